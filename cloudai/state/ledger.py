"""The ledger: what was asked for, what was seen, and what happened, in a SQLite file or a PostgreSQL database.

Each record has one writer for each of its parts. The verbs write ``spec`` once and ``desired`` whenever the user wants
something else; the supervisor writes ``phase`` and ``status``. So no part is ever overwritten by a reader's stale copy.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloudai import settings
from cloudai.clock import SYSTEM, Clock
from cloudai.display import nearest
from cloudai.errors import LedgerError, NotFoundError, SpecError
from cloudai.state import lease, news
from cloudai.state.clocks import refuse_clock, trust
from cloudai.state.database import Database, Lead, Row, TakenError, Transaction
from cloudai.state.machine import HOLD, host, is_process, me, owner, this_home
from cloudai.state.migrations import migrate
from cloudai.state.postgres import Postgres
from cloudai.state.records import ENDED, KINDS, Event, Holder, Record
from cloudai.state.sqlite import SQLite

__all__ = ["ENDED", "KINDS", "Event", "Holder", "Ledger", "Record", "open_ledger", "use_ledger"]

_COLUMNS = "kind, name, phase, spec, desired, status, created, updated, version, home, owner, anywhere"
_ALIVE = "phase NOT IN ({})".format(", ".join(f"'{phase}'" for phase in sorted(ENDED)))
_LOOK = 1.0  # seconds between two looks at the clocks by whoever asks for leases again and again


class Ledger:
    """The records of one home, or of a team; safe for many threads, kernels and supervisors at once.

    Parameters
    ----------
    path : Path
        The SQLite file; it and its folder are made when missing, readable by the user alone. With `url`, only its folder
        counts, as the home.
    clock : Clock
        The time that everything which belongs to this ledger goes by.
    url : str
        The PostgreSQL database of a ledger that several homes share.

    Raises
    ------
    LedgerError
        If it cannot be opened or brought up to date.
    """

    def __init__(self, path: Path, clock: Clock = SYSTEM, *, url: str = "") -> None:
        self.path = path
        self.clock = clock
        self.url = url
        self._database: Database = Postgres(url) if url else SQLite(path)
        migrate(self._database)
        self._watch = lease.LeaseWatch(clock.now, self.running, interval=_LOOK)

    @property
    def home(self) -> Path:
        """The folder of everything else that belongs to the ledger on this machine."""
        return self.path.parent

    @functools.cached_property
    def here(self) -> str:
        """What names this home in a ledger that several share; empty in one of its own."""
        return this_home(self.home) if self.url else ""

    @property
    def poll(self) -> float:
        """Seconds between two looks at `revision`."""
        return self._database.poll

    def running(self) -> float:
        """Return seconds that count up evenly, whatever the clock is set to."""
        return time.monotonic() if self.clock is SYSTEM else self.clock.now()

    def exists(self) -> bool:
        """Whether it is still there: a home may be removed."""
        return self.home.exists() and self._database.exists()

    def mine(self, record: Record) -> bool:
        """Whether an object was made in this home."""
        return record.home in ("", self.here)

    def lead(self) -> Lead:
        """Return the lead over what lives on no home's machine, not taken yet."""
        return self._database.lead()

    def create(
        self,
        kind: str,
        name: str,
        spec: Mapping[str, Any],
        desired: Mapping[str, Any],
        phase: str = "queued",
        *,
        anywhere: bool = False,
        home: str | None = None,
    ) -> Record:
        """Record a new object.

        Parameters
        ----------
        anywhere : bool
            Whether it lives outside this machine, so that the supervisor of any home can take it further.
        home : str, optional
            The home that it belongs to, where that is another one's.

        Raises
        ------
        SpecError
            If one of that kind and name is there already.
        LedgerError
            If this machine's clock cannot be right.
        """
        return self._add(Record(kind, name, phase, dict(spec), dict(desired), {}, *self._made(home), anywhere))

    def replace(
        self,
        kind: str,
        name: str,
        spec: Mapping[str, Any],
        desired: Mapping[str, Any],
        *,
        anywhere: bool = False,
        home: str | None = None,
    ) -> Record:
        """Record a new object in the place of an ended one of the same name; else as `create`."""
        record = Record(kind, name, "queued", dict(spec), dict(desired), {}, *self._made(home), anywhere)
        made = self._add(record, in_place_of_ended=True)
        self.lease_file(kind, name).unlink(missing_ok=True)  # the old one's
        return made

    def _made(self, home: str | None) -> tuple[float, float, int, str, str]:
        """Return when, where and by whom a new object is made."""
        now = self.clock.now()
        return now, now, 1, self.here if home is None else home, owner()

    def _add(self, new: Record, *, in_place_of_ended: bool = False) -> Record:
        refuse_clock(self._database, self.clock)
        key = (new.kind, new.name)
        try:
            with self._database.transaction() as tx:
                found = tx.locked("SELECT phase, version FROM objects WHERE kind=? AND name=?", key)
                if in_place_of_ended and found and found[0][0] in ENDED:
                    new = replace(new, version=found[0][1] + 1)  # a handle of the old one must see that this is newer
                    for table in ("objects", "leases", "holders"):
                        tx.execute(f"DELETE FROM {table} WHERE kind=? AND name=?", key)  # noqa: S608
                _insert(tx, new)
                return new
        except TakenError:
            fix = f"pass another name=, or cloudai.attach('{new.ref}')"
            raise SpecError(f"there is a {new.kind} {new.name!r} already", fix=fix) from None

    def get(self, kind: str, name: str) -> Record:
        """Return a record.

        Raises
        ------
        NotFoundError
            If there is none, with the nearest names.
        """
        rows = self._database.query(f"SELECT {_COLUMNS} FROM objects WHERE kind=? AND name=?", (kind, name))  # noqa: S608
        if not rows:
            raise NotFoundError(f"there is no {kind} {name!r}", fix=nearest(name, [r.name for r in self.records(kind)]))
        return _record(rows[0])

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
            f"there is no run, deployment, monitor or schedule {ref!r}", fix=nearest(ref, [r.ref for r in self.records()])
        )

    def records(self, kind: str | None = None, *, alive: bool = False) -> list[Record]:
        """Return the records, the newest first; with `alive` only those that have not ended."""
        where = _ALIVE if alive else "1=1"
        sql = f"SELECT {_COLUMNS} FROM objects WHERE {where} ORDER BY created DESC, kind, name"  # noqa: S608
        return [record for record in map(_record, self._database.query(sql)) if kind is None or record.kind == kind]

    def want(self, kind: str, name: str, change: Mapping[str, Any]) -> Record:
        """Merge `change` into what the user wants of an object, and return the record."""
        with self._database.transaction() as tx:
            for (before,) in tx.locked("SELECT desired FROM objects WHERE kind=? AND name=?", (kind, name)):
                desired = json.dumps({**json.loads(before), **change})
                sql = "UPDATE objects SET desired=?, updated=?, version=version+1 WHERE kind=? AND name=?"
                tx.execute(sql, (desired, self.clock.now(), kind, name))
        return self.get(kind, name)

    def observe(self, kind: str, name: str, phase: str, change: Mapping[str, Any], *, event: str = "") -> None:
        """Write what the supervisor saw: the phase, and a change merged into the status. An ended object stays ended."""
        with self._database.transaction() as tx:
            for before, status in tx.locked("SELECT phase, status FROM objects WHERE kind=? AND name=?", (kind, name)):
                if before in ENDED:
                    return
                now = self.clock.now()
                sql = "UPDATE objects SET phase=?, status=?, updated=?, version=version+1 WHERE kind=? AND name=?"
                tx.execute(sql, (phase, json.dumps({**json.loads(status), **change}), now, kind, name))
                if event or phase != before:
                    _note(tx, kind, name, now, event or phase)

    def revive(self, kind: str, name: str, change: Mapping[str, Any], *, event: str) -> Record:
        """Let a stopped object go on as the same one, with a change of what is wanted; nothing happens to one that lives.

        Raises
        ------
        SpecError
            If it has ended in another way.
        """
        with self._database.transaction() as tx:
            for phase, before in tx.locked("SELECT phase, desired FROM objects WHERE kind=? AND name=?", (kind, name)):
                if phase in ENDED - {"stopped"}:
                    raise SpecError(f"the {kind} {name!r} is {phase}, and cannot go on", fix="begin it anew")
                if phase in ENDED:
                    now, desired = self.clock.now(), json.dumps({**json.loads(before), **change})
                    sql = "UPDATE objects SET phase='queued', desired=?, updated=?, version=version+1 WHERE kind=? AND name=?"
                    tx.execute(sql, (desired, now, kind, name))
                    _note(tx, kind, name, now, event)
        return self.get(kind, name)

    def hold(self, kind: str, name: str) -> None:
        """Record that this process holds a handle of the object."""
        row = (kind, name, host(), *me(), self.clock.now())
        sql = """INSERT INTO holders VALUES (?,?,?,?,?,?) ON CONFLICT (kind, name, host, pid)
        DO UPDATE SET started=excluded.started, seen=excluded.seen"""
        with self._database.transaction() as tx:
            tx.execute(sql, row)

    def holders(self, kind: str, name: str) -> list[Holder]:
        """Return the live processes that hold a handle of the object; those of other machines as they last said."""
        sql = "SELECT pid, host, started, seen FROM holders WHERE kind=? AND name=?"
        found, now = [], self.clock.now()
        for pid, where, started, seen in self._database.query(sql, (kind, name)):
            if where in ("", host()):
                found += [Holder(pid)] * is_process(pid, started)
            elif now - seen < HOLD or self._watch.in_grace():
                found.append(Holder(pid, where))
        return found

    def lease_file(self, kind: str, name: str) -> Path:
        """Return the file from which local processes read the lease of an object."""
        return self.home / "leases" / f"{kind}-{name}.json"

    def news_file(self, kind: str, name: str) -> Path:
        """Return the file that local processes make to tell the supervisor of news about an object."""
        return news.file(self.home, kind, name)

    def renew_lease(self, kind: str, name: str, seconds: float | None) -> None:
        """Let an object go on for `seconds` from now; None for ever."""
        until = None if seconds is None else self.clock.now() + seconds
        file = self.lease_file(kind, name)
        try:
            with self._database.transaction() as tx:
                sql = "INSERT INTO leases VALUES (?,?,?) ON CONFLICT (kind, name) DO UPDATE SET until=excluded.until"
                tx.execute(sql, (kind, name, until))
                homes = tx.query("SELECT home FROM objects WHERE kind=? AND name=?", (kind, name))
        except LedgerError:
            if file.exists():  # what runs here goes on while its holder lives, also without the database
                lease.write(file, until)
            raise
        if not homes or homes[0][0] in ("", self.here):
            lease.write(file, until)

    def leases(self) -> dict[tuple[str, str], float | None]:
        """Return until when each object may go on, by kind and name; None for ever."""
        return {(kind, name): until for kind, name, until in self._database.query("SELECT kind, name, until FROM leases")}

    def lease_left(self, kind: str, name: str) -> float | None:
        """Return the seconds left of an object's lease, negative when it has passed; None for ever."""
        rows = self._database.query("SELECT until FROM leases WHERE kind=? AND name=?", (kind, name))
        until = rows[0][0] if rows else lease.read(self.lease_file(kind, name))  # a file alone is of an older cloudai
        return None if until is None else until - self.clock.now()

    def lease_expired(self, kind: str, name: str) -> bool:
        """Whether an object's lease has passed; after a jump of the clock, live holders first get time to renew it."""
        left = self.lease_left(kind, name)
        if left is None or left > 0:
            return False
        return not (self._watch.in_grace() and self.holders(kind, name))

    def watch_clocks(self) -> None:
        """Look whether the clock jumped; to be called again and again by whoever ends what nobody renews."""
        self._watch.in_grace()

    def trust_clock(self) -> int:
        """Take this machine's clock for right, and bring back every time in the ledger that lies in its future.

        Returns
        -------
        int
            How many objects were changed.
        """
        now = self.clock.now()
        count = trust(self._database, now)
        for (kind, name), until in self.leases().items():
            file = self.lease_file(kind, name)
            if file.exists() and lease.read(file) != until:
                lease.write(file, until)
        return count

    def events(self, kind: str, name: str) -> list[Event]:
        """Return what happened to an object, in order."""
        sql = "SELECT at, what FROM events WHERE kind=? AND name=? ORDER BY seq"
        return [Event(*row) for row in self._database.query(sql, (kind, name))]

    def revision(self) -> int:
        """Return a number that changes whenever somebody else has written an object (cheap enough to poll)."""
        return self._database.changes()

    def add_model(self, name: str, version: str, uri: str, digest: str, run: str) -> None:
        """Record a finished model and the digest that its files must have from now on."""
        row = (name, version, uri, digest, run, self.clock.now())
        with self._database.transaction() as tx:
            tx.execute("INSERT INTO models VALUES (?,?,?,?,?,?) ON CONFLICT DO NOTHING", row)

    def models(self, name: str | None = None) -> list[tuple[str, str, str, str]]:
        """Return (name, version, uri, digest) of each recorded model, the oldest first."""
        rows = self._database.query("SELECT name, version, uri, digest FROM models ORDER BY at, version")
        return [(found, version, uri, digest) for found, version, uri, digest in rows if name is None or found == name]


def open_ledger() -> Ledger:
    """Return the ledger of the settings in force; one object for each and process.

    Raises
    ------
    LedgerError
        If it cannot be opened.
    """
    now = settings.current()
    path = now.home / "ledger.sqlite"
    key = (path, now.ledger)
    if key not in _open or not (now.ledger or path.exists()):
        _open[key] = Ledger(path, url=now.ledger)
    return _open[key]


def use_ledger(ledger: Ledger) -> None:
    """Make this the object that `open_ledger` returns for its place, such as one with a clock of its own."""
    _open[ledger.path, ledger.url] = ledger


_open: dict[tuple[Path, str], Ledger] = {}


def _insert(tx: Transaction, new: Record) -> None:
    texts = (json.dumps(new.spec), json.dumps(new.desired), json.dumps(new.status))
    row = (new.kind, new.name, new.phase, *texts, new.created, new.updated, new.version, new.home, new.owner, int(new.anywhere))
    tx.execute(f"INSERT INTO objects ({_COLUMNS}) VALUES ({','.join('?' * len(row))})", row)  # noqa: S608
    _note(tx, new.kind, new.name, new.created, new.phase)


def _note(tx: Transaction, kind: str, name: str, at: float, what: str) -> None:
    tx.execute("INSERT INTO events (kind, name, at, what) VALUES (?,?,?,?)", (kind, name, at, what.replace("\0", "")))


def _record(row: Row) -> Record:
    kind, name, phase, spec, desired, status, created, updated, version, home, made_by, anywhere = row
    parts = (json.loads(spec), json.loads(desired), json.loads(status))
    return Record(kind, name, phase, *parts, created, updated, version, home, made_by, bool(anywhere))
