"""The ledger of one home: a SQLite file, in WAL mode, so that readers and the writer do not wait for each other."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloudai.errors import LedgerError
from cloudai.files import append_to, private_folder
from cloudai.state.database import Row, TakenError

__all__ = ["SQLite"]

_WAIT = 30.0  # seconds for which a process waits for another one that writes
_MAKING = 0.5  # seconds in which a new file gets its first page, at the latest
_OURS = {"objects", "events"}  # tables that every version has


class SQLite:
    """A SQLite file, readable by the user alone; one connection for each thread.

    Parameters
    ----------
    path : Path
        It and its folder are made when missing.

    Raises
    ------
    LedgerError
        If it cannot be opened.
    """

    poll = 0.02

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self.where = str(path)
        try:
            private_folder(path.parent)
            self._refuse_emptied()
            append_to(path).close()  # before SQLite makes it: its own files get the rights of this one
        except OSError as error:
            raise LedgerError(f"the ledger {self.where} cannot be opened: {error.strerror}", fix=_writable(path)) from None

    def _refuse_emptied(self) -> None:
        """Refuse an empty file, which would be a new ledger, where leases say that there was one before."""
        if self._is_empty() and any(self._path.parent.glob("leases/*.json")):
            time.sleep(_MAKING)  # another process may be making it just now
            if self._is_empty():
                raise LedgerError(f"the ledger {self.where} is empty, and was not before", fix=_replace(self._path))

    def _is_empty(self) -> bool:
        return self._path.exists() and self._path.stat().st_size == 0

    def exists(self) -> bool:
        """Whether the file is there: a home may be removed."""
        return self._path.exists()

    def version(self) -> int:
        """Return the number of the last migration; refuses a file that is not ours."""
        with self._errors():
            self._refuse_foreign(self._connection())
        return int(self.query("PRAGMA user_version")[0][0])

    def _refuse_foreign(self, db: sqlite3.Connection) -> None:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        if tables and not tables >= _OURS:
            fix = f"move it away, or set CLOUDAI_HOME to another folder than {self._path.parent}"
            raise LedgerError(f"the ledger {self.where} is the database of another program", fix=fix)

    @contextmanager
    def transaction(self, *, alone: bool = False) -> Iterator[_Transaction]:
        """Write; every writer is alone."""
        with self._errors():
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield _Transaction(db)
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Read."""
        with self._errors():
            return self._connection().execute(sql, values).fetchall()

    def changes(self) -> int:
        """Return a number that changes whenever another connection has written."""
        return int(self.query("PRAGMA data_version")[0][0])

    def time(self) -> float | None:
        """Return nothing: the file has no clock of its own."""
        return None

    def lead(self) -> _HomeLead:
        """Return the lead, which is that of the home."""
        return _HomeLead()

    def _connection(self) -> sqlite3.Connection:
        """Return this thread's connection to the file that is at the path now: it may have been replaced."""
        found = self._path.stat()
        key = (found.st_dev, found.st_ino, os.getpid())
        if getattr(self._local, "key", None) != key:
            self._local.db, self._local.key = self._connect(), key
        db: sqlite3.Connection = self._local.db
        return db

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(f"{self._path.as_uri()}?mode=rw", uri=True, timeout=_WAIT, isolation_level=None)
        deadline = time.monotonic() + _WAIT
        while True:
            try:
                if db.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                    self._refuse_foreign(db)  # before anything is changed
                    db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=NORMAL")
                return db
            except sqlite3.OperationalError as error:  # SQLite does not wait by itself for this one
                if _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Say in two lines what SQLite says in one word."""
        try:
            yield
        except FileNotFoundError:
            raise LedgerError(
                f"the ledger {self.where} is gone", fix="put it back, or call again to start with an empty one"
            ) from None
        except PermissionError as error:
            raise LedgerError(
                f"the ledger {self.where} cannot be opened: {error.strerror}", fix=_writable(self._path)
            ) from None
        except sqlite3.IntegrityError:
            raise TakenError from None
        except sqlite3.Error as error:
            self._local.key = None  # the next call starts afresh
            raise self._in_words(error) from None

    def _in_words(self, error: sqlite3.Error) -> LedgerError:
        room = f"make room on the disk of {self._path.parent}, and call again"
        writable = _writable(self._path)
        copy = _replace(self._path)
        busy = "call again; if that stays so, end the process that writes"
        known = {
            sqlite3.SQLITE_FULL: LedgerError(f"the ledger {self.where} cannot be written: the disk is full", fix=room),
            sqlite3.SQLITE_IOERR: LedgerError(
                f"the ledger {self.where} cannot be written: the disk is full or fails", fix=room
            ),
            sqlite3.SQLITE_READONLY: LedgerError(f"the ledger {self.where} cannot be written: it is read-only", fix=writable),
            sqlite3.SQLITE_CANTOPEN: LedgerError(
                f"the ledger {self.where} cannot be opened: its folder is read-only, or the disk is full", fix=writable
            ),
            sqlite3.SQLITE_NOTADB: LedgerError(f"the ledger {self.where} is damaged: it is no database", fix=copy),
            sqlite3.SQLITE_CORRUPT: LedgerError(
                f"the ledger {self.where} is damaged: parts are missing or overwritten", fix=copy
            ),
            sqlite3.SQLITE_BUSY: LedgerError(f"the ledger {self.where} was busy for {_WAIT:g} s", fix=busy),
        }
        return known.get(_code(error), LedgerError(f"the ledger {self.where} cannot be used: {error}", fix=copy))


class _Transaction:
    serial = "INTEGER PRIMARY KEY"

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def execute(self, sql: str, values: Sequence[Any] = ()) -> None:
        """Carry out a statement."""
        self._db.execute(sql, values)

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a statement."""
        return self._db.execute(sql, values).fetchall()

    locked = query  # whoever writes is alone

    def version(self) -> int:
        """Return the number of the last migration."""
        return int(self.query("PRAGMA user_version")[0][0])

    def set_version(self, version: int) -> None:
        """Write that number; SQLite does so within the transaction."""
        self._db.execute(f"PRAGMA user_version={version:d}")


class _HomeLead:
    """Whoever leads the home leads its ledger."""

    def held(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _writable(path: Path) -> str:
    return f"make {path.parent} a folder that you can write to, or set CLOUDAI_HOME to one"


def _replace(path: Path) -> str:
    return f"put a copy back, or move it away to start with an empty one: mv {path} {path}.damaged"
