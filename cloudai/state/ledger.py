"""The ledger: what was asked for, what was seen, and what happened, in one SQLite file.

Each record has one writer for each of its parts. The verbs write ``spec`` once and ``desired`` whenever the user wants
something else; the supervisor writes ``phase`` and ``status``. So no part is ever overwritten by a reader's stale copy.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cloudai import settings
from cloudai.clock import SYSTEM, Clock
from cloudai.display import nearest
from cloudai.errors import CloudAIError, NotFoundError, SpecError
from cloudai.files import append_to, private_folder
from cloudai.state import lease

__all__ = ["ENDED", "KINDS", "Event", "Ledger", "Record", "open_ledger", "use_ledger"]

KINDS = ("run", "deployment", "monitor")
"""The kinds of object that outlive a kernel."""

ENDED = frozenset({"succeeded", "failed", "cancelled", "rejected", "deleted", "stopped"})
"""The phases after which nothing happens any more."""

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    kind TEXT NOT NULL, name TEXT NOT NULL, phase TEXT NOT NULL,
    spec TEXT NOT NULL, desired TEXT NOT NULL, status TEXT NOT NULL,
    created REAL NOT NULL, updated REAL NOT NULL,
    PRIMARY KEY (kind, name));
CREATE INDEX IF NOT EXISTS objects_by_phase ON objects (phase);
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, at REAL NOT NULL, what TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_object ON events (kind, name);
CREATE TABLE IF NOT EXISTS models (
    name TEXT NOT NULL, version TEXT NOT NULL, uri TEXT NOT NULL, digest TEXT NOT NULL, run TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (name, version));
CREATE TABLE IF NOT EXISTS holders (
    kind TEXT NOT NULL, name TEXT NOT NULL, pid INTEGER NOT NULL, started REAL NOT NULL, PRIMARY KEY (kind, name, pid));
"""


@dataclass(frozen=True)
class Record:
    """One run, deployment or monitor as the ledger knows it."""

    kind: str
    name: str
    phase: str
    spec: Mapping[str, Any]
    desired: Mapping[str, Any]
    status: Mapping[str, Any]
    created: float
    updated: float

    @property
    def ended(self) -> bool:
        """Whether nothing happens to it any more."""
        return self.phase in ENDED

    @property
    def ref(self) -> str:
        """The reference that `cloudai.attach` takes."""
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Event:
    """Something that happened to an object, at a unix time."""

    at: float
    what: str


class Ledger:
    """The records of one user on one machine; safe for many threads, kernels and the supervisor at once.

    Parameters
    ----------
    path : Path
        The SQLite file; it and its folder are made when missing, readable by the user alone.
    clock : Clock
        The time that everything which belongs to this ledger goes by.
    """

    def __init__(self, path: Path, clock: Clock = SYSTEM) -> None:
        self.path = path
        self.clock = clock
        self._local = threading.local()
        private_folder(path.parent)
        append_to(path).close()  # before SQLite makes it: its own files get the rights of this one
        with self._write() as db:
            _prepare(db, path)

    @property
    def home(self) -> Path:
        """The folder that the ledger lies in, with everything else that belongs to it."""
        return self.path.parent

    def lease_file(self, kind: str, name: str) -> Path:
        """Return the file that holds the lease of an object."""
        return self.home / "leases" / f"{kind}-{name}.json"

    def renew_lease(self, kind: str, name: str, seconds: float | None) -> None:
        """Let an object go on for `seconds` from now; None for ever."""
        lease.renew(self.lease_file(kind, name), seconds, self.clock.now())

    def lease_left(self, kind: str, name: str) -> float | None:
        """Return the seconds left of an object's lease, negative when it has passed; None for ever."""
        return lease.remaining(self.lease_file(kind, name), self.clock.now())

    def lease_expired(self, kind: str, name: str) -> bool:
        """Whether an object's lease has passed."""
        return lease.expired(self.lease_file(kind, name), self.clock.now())

    def _db(self) -> sqlite3.Connection:
        db = getattr(self._local, "db", None)
        if db is None:
            db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            self._local.db = db
        return db

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing."""
        db = self._db()
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    def create(
        self, kind: str, name: str, spec: Mapping[str, Any], desired: Mapping[str, Any], phase: str = "queued"
    ) -> Record:
        """Record a new object.

        Raises
        ------
        SpecError
            If one of that kind and name is there already.
        """
        now = self.clock.now()
        try:
            with self._write() as db:
                row = (kind, name, phase, json.dumps(spec), json.dumps(desired), "{}", now, now)
                db.execute("INSERT INTO objects VALUES (?,?,?,?,?,?,?,?)", row)
                _note(db, kind, name, now, phase)
        except sqlite3.IntegrityError:
            raise SpecError(
                f"there is a {kind} {name!r} already", fix=f"pass another name=, or cloudai.attach('{kind}/{name}')"
            ) from None
        return Record(kind, name, phase, dict(spec), dict(desired), {}, now, now)

    def replace(self, kind: str, name: str, spec: Mapping[str, Any], desired: Mapping[str, Any]) -> Record:
        """Record a new object in the place of an ended one of the same name."""
        with self._write() as db:
            marks = ",".join("?" * len(ENDED))
            db.execute(f"DELETE FROM objects WHERE kind=? AND name=? AND phase IN ({marks})", (kind, name, *ENDED))  # noqa: S608
        return self.create(kind, name, spec, desired)

    def get(self, kind: str, name: str) -> Record:
        """Return a record.

        Raises
        ------
        NotFoundError
            If there is none, with the nearest names.
        """
        row = self._db().execute("SELECT * FROM objects WHERE kind=? AND name=?", (kind, name)).fetchone()
        if row is None:
            raise NotFoundError(f"there is no {kind} {name!r}", fix=nearest(name, [r.name for r in self.records(kind)]))
        return _record(row)

    def find(self, ref: str) -> Record:
        """Return the record of a reference: ``"run/digits"``, or just ``"digits"`` where that is the only one.

        Raises
        ------
        NotFoundError
            If nothing, or more than one thing, has that name.
        """
        if not isinstance(ref, str):
            raise NotFoundError(f"{ref!r} is no reference", fix="give a text such as 'run/digits'")
        kind, _, name = ref.rpartition("/")
        if kind:
            if kind not in KINDS:
                raise NotFoundError(f"{ref!r} names no kind of object", fix=nearest(kind, KINDS))
            return self.get(kind, name)
        found = [record for record in self.records() if record.name == ref]
        if len(found) == 1:
            return found[0]
        if found:
            raise NotFoundError(f"{ref!r} may be any of several", fix="say which: " + ", ".join(r.ref for r in found))
        raise NotFoundError(
            f"there is no run, deployment or monitor {ref!r}", fix=nearest(ref, [r.ref for r in self.records()])
        )

    def records(self, kind: str | None = None, *, alive: bool = False) -> list[Record]:
        """Return the records, the newest first; with `alive` only those that have not ended."""
        rows = self._db().execute("SELECT * FROM objects ORDER BY created DESC").fetchall()
        records = [_record(row) for row in rows]
        return [r for r in records if (kind is None or r.kind == kind) and not (alive and r.ended)]

    def want(self, kind: str, name: str, change: Mapping[str, Any]) -> Record:
        """Merge `change` into what the user wants of an object, and return the record."""
        with self._write() as db:
            row = db.execute("SELECT desired FROM objects WHERE kind=? AND name=?", (kind, name)).fetchone()
            if row is not None:
                desired = json.dumps({**json.loads(row[0]), **change})
                db.execute(
                    "UPDATE objects SET desired=?, updated=? WHERE kind=? AND name=?", (desired, self.clock.now(), kind, name)
                )
        return self.get(kind, name)

    def observe(self, kind: str, name: str, phase: str, change: Mapping[str, Any], *, event: str = "") -> None:
        """Write what the supervisor saw: the phase, and a change merged into the status. An ended object stays ended."""
        with self._write() as db:
            row = db.execute("SELECT phase, status FROM objects WHERE kind=? AND name=?", (kind, name)).fetchone()
            if row is None or row[0] in ENDED:
                return
            status = json.dumps({**json.loads(row[1]), **change})
            sql = "UPDATE objects SET phase=?, status=?, updated=? WHERE kind=? AND name=?"
            db.execute(sql, (phase, status, self.clock.now(), kind, name))
            if event or phase != row[0]:
                _note(db, kind, name, self.clock.now(), event or phase)

    def hold(self, kind: str, name: str) -> None:
        """Record that this process holds a handle of the object."""
        me = psutil.Process()
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO holders VALUES (?,?,?,?)", (kind, name, me.pid, me.create_time()))

    def holders(self, kind: str, name: str) -> list[int]:
        """Return the ids of the live processes that hold a handle of the object."""
        rows = self._db().execute("SELECT pid, started FROM holders WHERE kind=? AND name=?", (kind, name)).fetchall()
        return [pid for pid, started in rows if _is_process(pid, started)]

    def events(self, kind: str, name: str) -> list[Event]:
        """Return what happened to an object, in order."""
        sql = "SELECT at, what FROM events WHERE kind=? AND name=? ORDER BY seq"
        return [Event(*row) for row in self._db().execute(sql, (kind, name))]

    def revision(self) -> int:
        """Return a number that changes whenever another connection has written (cheap enough to poll)."""
        return int(self._db().execute("PRAGMA data_version").fetchone()[0])

    def add_model(self, name: str, version: str, uri: str, digest: str, run: str) -> None:
        """Record a finished model and the digest that its files must have from now on."""
        with self._write() as db:
            row = (name, version, uri, digest, run, self.clock.now())
            db.execute("INSERT OR IGNORE INTO models VALUES (?,?,?,?,?,?)", row)

    def models(self, name: str | None = None) -> list[tuple[str, str, str, str]]:
        """Return (name, version, uri, digest) of each recorded model, the oldest first."""
        rows = self._db().execute("SELECT name, version, uri, digest FROM models ORDER BY at, version").fetchall()
        return [row for row in rows if name is None or row[0] == name]


def open_ledger() -> Ledger:
    """Return the ledger of the settings in force; one object for each path and process."""
    path = settings.current().home / "ledger.sqlite"
    if path not in _open or not path.exists():
        try:
            _open[path] = Ledger(path)
        except (OSError, sqlite3.Error) as error:
            raise CloudAIError(
                f"the ledger {path} cannot be opened: {error}", fix="set CLOUDAI_HOME to a writable folder"
            ) from None
    return _open[path]


def use_ledger(ledger: Ledger) -> None:
    """Make this the object that `open_ledger` returns for its path, such as one with a clock of its own."""
    _open[ledger.path] = ledger


_open: dict[Path, Ledger] = {}


def _is_process(pid: int, started: float) -> bool:
    try:
        return bool(abs(psutil.Process(pid).create_time() - started) < 1.0)
    except psutil.NoSuchProcess:
        return False


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > _SCHEMA_VERSION:
        raise CloudAIError(f"the ledger {path} was written by a newer cloudai", fix="pip install --upgrade cloudai")
    for statement in _SCHEMA.split(";"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
    path.chmod(0o600)


def _note(db: sqlite3.Connection, kind: str, name: str, at: float, what: str) -> None:
    db.execute("INSERT INTO events (kind, name, at, what) VALUES (?,?,?,?)", (kind, name, at, what))


def _record(row: tuple[Any, ...]) -> Record:
    kind, name, phase, spec, desired, status, created, updated = row
    return Record(kind, name, phase, json.loads(spec), json.loads(desired), json.loads(status), created, updated)
