"""How the ledger's tables came to be: numbered migrations, each one transaction together with its number.

A process that is killed in the middle leaves the ledger as it was, and a thousand that open an old one at the same moment
carry out each migration once. So no copy is made first. A migration is never changed once it was released; add one.
"""

from __future__ import annotations

from cloudai.errors import LedgerError
from cloudai.state.database import Database, Transaction

__all__ = ["MIGRATIONS", "migrate"]

_TABLES = (
    """CREATE TABLE objects (
    kind TEXT NOT NULL, name TEXT NOT NULL, phase TEXT NOT NULL,
    spec TEXT NOT NULL, desired TEXT NOT NULL, status TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL, updated DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (kind, name))""",
    "CREATE INDEX objects_by_phase ON objects (phase)",
    """CREATE TABLE events (
    seq {serial}, kind TEXT NOT NULL, name TEXT NOT NULL, at DOUBLE PRECISION NOT NULL, what TEXT NOT NULL)""",
    "CREATE INDEX events_by_object ON events (kind, name)",
    """CREATE TABLE models (
    name TEXT NOT NULL, version TEXT NOT NULL, uri TEXT NOT NULL, digest TEXT NOT NULL, run TEXT NOT NULL,
    at DOUBLE PRECISION NOT NULL, PRIMARY KEY (name, version))""",
    """CREATE TABLE holders (
    kind TEXT NOT NULL, name TEXT NOT NULL, pid INTEGER NOT NULL, started DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (kind, name, pid))""",
)

_TEAMS = (
    "ALTER TABLE objects ADD COLUMN version INTEGER NOT NULL DEFAULT 1",
    "ALTER TABLE objects ADD COLUMN home TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE objects ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE objects ADD COLUMN anywhere INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX objects_by_updated ON objects (updated)",
    """CREATE TABLE leases (
    kind TEXT NOT NULL, name TEXT NOT NULL, until DOUBLE PRECISION, PRIMARY KEY (kind, name))""",
    "ALTER TABLE holders RENAME TO holders_1",
    """CREATE TABLE holders (
    kind TEXT NOT NULL, name TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, started DOUBLE PRECISION NOT NULL,
    seen DOUBLE PRECISION NOT NULL, PRIMARY KEY (kind, name, host, pid))""",
    "INSERT INTO holders SELECT kind, name, '', pid, started, started FROM holders_1",
    "DROP TABLE holders_1",
)

MIGRATIONS = (_TABLES, _TEAMS)
"""The statements of each migration; the first makes version 1."""


def migrate(database: Database) -> None:
    """Bring the tables up to date.

    Raises
    ------
    LedgerError
        If a newer cloudai wrote them, or they cannot be written.
    """
    while (have := database.version()) < len(MIGRATIONS):
        with database.transaction(alone=True) as tx:
            if tx.version() == have:  # else another process was quicker
                _carry_out(tx, MIGRATIONS[have])
                tx.set_version(have + 1)
    if have > len(MIGRATIONS):
        raise LedgerError(f"the ledger {database.where} was written by a newer cloudai", fix="pip install --upgrade cloudai")


def _carry_out(tx: Transaction, statements: tuple[str, ...]) -> None:
    for statement in statements:
        tx.execute(statement.replace("{serial}", tx.serial))
