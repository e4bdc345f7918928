"""The ledger of a team: tables in the schema ``cloudai`` of a PostgreSQL database. psycopg is imported only here.

A password never stands in the setting: libpq finds it in PGPASSWORD, PGPASSFILE or ~/.pgpass. TLS is libpq's too
(``?sslmode=verify-full``).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cloudai.errors import LedgerError, MissingExtraError
from cloudai.state.database import Row, TakenError

if TYPE_CHECKING:
    import psycopg

__all__ = ["Postgres"]

_CONNECT = 5  # seconds
_RESTART = 5.0  # seconds for which a server that is restarting is waited for
_MIGRATING = 0x636C6F7564616901  # "cloudai", 1: the advisory lock of whoever migrates
_LEADING = 0x636C6F7564616902  # "cloudai", 2: that of the supervisor that leads
_SESSION = (
    "SET search_path = cloudai; SET statement_timeout = '15s'; SET lock_timeout = '10s'; "
    "SET idle_in_transaction_session_timeout = '30s'; "
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
)
"""So nothing waits for ever, and the server gives back within half a minute what a machine held that was cut off."""

_OPTIONS: Any = {
    "client_encoding": "utf8",  # also where the database was made without an encoding
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # milliseconds
}
"""So we notice within half a minute that the other end is gone."""


class Postgres:
    """A PostgreSQL database; one connection for all threads of this process, made anew when it is lost.

    Parameters
    ----------
    url : str
        ``postgresql://user@host:port/dbname``, without a password.

    Raises
    ------
    MissingExtraError
        If psycopg is not installed.
    LedgerError
        If the server cannot be reached, does not let us in, or lacks the database or the rights.
    """

    poll = 0.2

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.RLock()
        self._connection: psycopg.Connection | None = None
        self._pid = 0
        parts = urlsplit(url)
        self.where = f"{parts.scheme}://{parts.netloc}{parts.path}"

    def exists(self) -> bool:
        """Whether it is there: only the server knows."""
        return True

    def version(self) -> int:
        """Return the number of the last migration, 0 where there is none."""
        if self.query("SELECT to_regclass('cloudai.migrations')")[0][0] is None:
            return 0
        return int(self.query("SELECT coalesce(max(number), 0) FROM migrations")[0][0])

    @contextmanager
    def transaction(self, *, alone: bool = False) -> Iterator[_Transaction]:
        """Write; with `alone` while nobody else does so with `alone`."""
        with self._lock, self._errors():
            db = self._begin()
            try:
                tx = _Transaction(db)
                if alone:
                    tx.query("SELECT pg_advisory_xact_lock(?)", (_MIGRATING,))
                    tx.execute("CREATE SCHEMA IF NOT EXISTS cloudai")
                    tx.execute("CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY)")
                yield tx
                db.execute("COMMIT")
            except BaseException:
                with suppress(Exception):  # what matters is the error before
                    db.execute("ROLLBACK")
                raise

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Read; once more where the connection was lost meanwhile."""
        psycopg = _psycopg()
        with self._lock, self._errors():
            try:
                return _rows(self._connected(), sql, values)
            except psycopg.OperationalError:
                if not self._lost():
                    raise
            return _rows(self._connected(), sql, values)

    def changes(self) -> int:
        """Return a number that changes whenever somebody has written an object: the sum of their versions."""
        return int(self.query("SELECT coalesce(sum(version), 0) FROM objects")[0][0])

    def time(self) -> float | None:
        """Return the unix time of the server's clock."""
        return float(self.query("SELECT extract(epoch FROM clock_timestamp())")[0][0])

    def lead(self) -> _SessionLead:
        """Return the lead, held by a session of its own."""
        return _SessionLead(self._connect)

    def _begin(self) -> psycopg.Connection:
        """Begin a transaction; a connection that was lost since the last one is noticed here, before anything is written."""
        import psycopg

        db = self._connected()
        try:
            db.execute("BEGIN")
        except psycopg.OperationalError:
            if not self._lost():
                raise
            db = self._connected()
            db.execute("BEGIN")
        return db

    def _lost(self) -> bool:
        """Whether there was a connection that is gone; then the next call makes a new one."""
        return self._connection is not None and self._connection.closed

    def _connected(self) -> psycopg.Connection:
        if self._pid != os.getpid():  # a fork: the connection is our parent's
            self._connection, self._pid = None, os.getpid()
        if self._connection is None:
            self._connection = self._connect()
        elif self._connection.closed:
            self._connection = self._connect(time.monotonic() + _RESTART)
        return self._connection

    def _connect(self, deadline: float = 0.0) -> psycopg.Connection:
        """Connect; until `deadline` a server that is not there is taken for one that is restarting."""
        psycopg = _psycopg()
        while True:
            try:
                db: Any = psycopg.connect(
                    self._url, autocommit=True, connect_timeout=_CONNECT, application_name="cloudai", **_OPTIONS
                )
                db.execute(_SESSION)
                return db  # type: ignore[no-any-return]
            except psycopg.OperationalError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.1)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Say in two lines what PostgreSQL says in many."""
        psycopg = _psycopg()
        try:
            yield
        except psycopg.errors.UniqueViolation:
            raise TakenError from None
        except psycopg.Error as error:
            raise _in_words(self.where, error) from None


class _Transaction:
    serial = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"

    def __init__(self, db: psycopg.Connection) -> None:
        self._db = db

    def execute(self, sql: str, values: Sequence[Any] = ()) -> None:
        """Carry out a statement."""
        self._db.execute(_placed(sql), values)

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a statement."""
        return _rows(self._db, sql, values)

    def locked(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return rows that nobody else changes meanwhile."""
        return _rows(self._db, f"{sql} FOR UPDATE", values)

    def version(self) -> int:
        """Return the number of the last migration."""
        return int(self.query("SELECT coalesce(max(number), 0) FROM migrations")[0][0])

    def set_version(self, version: int) -> None:
        """Write that number."""
        self.execute("INSERT INTO migrations VALUES (?)", (version,))


class _SessionLead:
    """An advisory lock: the server gives it back when the session of its holder ends, however it ends."""

    def __init__(self, connect: Callable[[], psycopg.Connection]) -> None:
        self._connect = connect
        self._lock = threading.RLock()
        self._db: psycopg.Connection | None = None
        self._has = False

    def held(self) -> bool:
        import psycopg

        with self._lock:
            try:
                if self._db is None:
                    self._db = self._connect()
                if self._has:
                    self._db.execute("SELECT 1")  # as long as the session lives, the lock is ours
                else:
                    self._has = bool(_rows(self._db, "SELECT pg_try_advisory_lock(?)", (_LEADING,))[0][0])
            except psycopg.Error:
                self.release()
            return self._has

    def release(self) -> None:
        with self._lock:
            db, had = self._db, self._has
            self._db, self._has = None, False
            if db is None:
                return
            with suppress(Exception):  # a session that is lost has given its lock back
                if had:  # the server ends a session some time after it is closed: who is next shall not wait for that
                    db.execute("SELECT pg_advisory_unlock(%s)", (_LEADING,))
            with suppress(Exception):  # closed is closed
                db.close()


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtraError(
            f"a ledger on PostgreSQL needs {error.name}, which is not installed", fix='pip install "cloudai[team]"'
        ) from error
    return psycopg


def _placed(sql: str) -> Any:
    return sql.replace("?", "%s")


def _rows(db: psycopg.Connection, sql: str, values: Sequence[Any]) -> list[Row]:
    return db.execute(_placed(sql), values).fetchall()


def _in_words(where: str, error: psycopg.Error) -> LedgerError:
    """Say what is wrong, and its fix."""
    if error.sqlstate is not None and (known := _by_state(where).get(error.sqlstate)):
        return known
    text = " ".join(str(error).split())
    for part, known in _by_message(where).items():
        if part in text.lower():
            return known
    fix = "start the server, or mend the setting 'ledger'; then call again"
    return LedgerError(f"the ledger {where} cannot be reached: {text[:200]}", fix=fix)


def _by_state(where: str) -> dict[str, LedgerError]:
    """Return the errors of statements by PostgreSQL's code."""
    rights = "as the owner of the database: GRANT CREATE ON DATABASE …; as the owner of the tables: GRANT ON SCHEMA cloudai …"
    return {
        "42501": LedgerError(f"the ledger {where} does not give the rights that are needed", fix=rights),
        "25006": LedgerError(f"the ledger {where} is read-only", fix="use the address of the primary server, not of a standby"),
        "53100": LedgerError(
            f"the ledger {where} cannot be written: the server's disk is full", fix="make room there, and call again"
        ),
        "57014": LedgerError(
            f"the ledger {where} did not answer in 15 s", fix="call again; look at what else the server is doing"
        ),
        "55P03": LedgerError(f"the ledger {where} was busy for 10 s", fix="call again; look at who holds a lock on the server"),
        "42P01": LedgerError(
            f"the ledger {where} has lost its tables", fix="restore the schema cloudai; or start this process again"
        ),
    }


def _by_message(where: str) -> dict[str, LedgerError]:
    """Return the errors of connections by what libpq says: they have no code."""
    known_ways = "set PGPASSWORD, or write the password into ~/.pgpass (mode 600)"
    crowded = LedgerError(
        f"the ledger {where} has too many connections", fix="call again later, or raise max_connections of the server"
    )
    tls = LedgerError(
        f"the ledger {where} cannot be reached over TLS", fix="look at sslmode= and sslrootcert= in the setting 'ledger'"
    )
    stranger = LedgerError(
        f"the ledger {where} does not let this machine or user in", fix="ask whoever runs the server: pg_hba.conf"
    )
    return {
        "password authentication failed": LedgerError(f"the ledger {where} does not accept the password", fix=known_ways),
        "no password supplied": LedgerError(f"the ledger {where} asks for a password", fix=known_ways),
        "no pg_hba.conf entry": stranger,
        "does not exist": LedgerError(
            f"the ledger {where} does not exist, or its user does not", fix="createdb NAME, createuser NAME"
        ),
        "too many": crowded,
        "remaining connection slots": crowded,
        "certificate": tls,
        "ssl": tls,
        "invalid": LedgerError(f"the ledger {where} has no address that can be read", fix="postgresql://user@host:5432/dbname"),
    }
