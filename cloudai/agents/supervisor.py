"""The supervisor: takes every live object one step further, again and again, until nothing is left to do.

``python -m cloudai.agents.supervisor``. Any number may be started; the one that gets the lock leads, the others end.
It holds nothing in memory: killed at any moment, the next one goes on from the ledger.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType

from cloudai import _api, settings
from cloudai.agents.catching_up import CatchingUp
from cloudai.agents.faults import Faults
from cloudai.errors import LedgerError
from cloudai.specs.confidential import start_log
from cloudai.specs.units import parse_duration
from cloudai.state import lease
from cloudai.state import news as told
from cloudai.state.leader import leading
from cloudai.state.ledger import Ledger, Record, open_ledger

__all__ = ["main"]

log = logging.getLogger("cloudai.supervisor")

_LOOK = 0.2  # seconds between two looks at what is alive
_LOOK_CALM = 1.0  # seconds between two looks at what is as it should be
_CALM = frozenset({"ready", "watching", "scheduled"})
_THREADS = 8
_GIVE_UP = 24 * 3600.0  # seconds without a ledger after which nobody can be waiting for it any more


class _Told(Exception):  # noqa: N818  not an error
    """The supervisor was told to end."""


def main() -> int:
    """Lead until nothing has been alive for a while; returns at once where somebody else leads."""
    start_log()
    signal.signal(signal.SIGTERM, _tell)
    now = settings.current()
    idle = parse_duration(now.supervisor_idle)
    while True:
        try:
            with leading(now.home) as leads:
                if not leads:
                    return 0
                log.info("leading %s", now.home)
                ledger = _opened()
                if ledger is not None:
                    _Supervisor(ledger).run(idle)
        except _Told:
            return 0
        except LedgerError as error:  # there is no home to lead
            log.warning("%s", error)
            return 1
        # what was asked for between our last look and the end of our lead is seen now
        if ledger is None or not ledger.exists() or not _any_left(ledger):
            return 0


def _tell(number: int, frame: FrameType | None) -> None:
    raise _Told


def _opened() -> Ledger | None:
    """Open the ledger, as soon as that is possible; None where nobody can wait for it any more."""
    faults = Faults(log, give_up=_GIVE_UP)
    while settings.current().home.exists() and not faults.hopeless:
        try:
            return open_ledger()
        except LedgerError as error:
            faults.note(error)
            time.sleep(faults.pause)
    return None


def _any_left(ledger: Ledger) -> bool:
    try:
        return any(ledger.mine(record) for record in ledger.records(alive=True))
    except LedgerError:
        return False  # whoever can reach it starts a supervisor again


class _Supervisor:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lead = ledger.lead()
        self._busy: dict[str, Future[None]] = {}
        self._looked: dict[str, float] = {}
        self._told: set[tuple[str, str]] = set()
        self._leases: dict[tuple[str, str], float | None] = {}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="advance")
        self._reading = Faults(log, give_up=_GIVE_UP)
        self._writing = Faults(log, give_up=_GIVE_UP)
        self._not_before = float("-inf")

    def run(self, idle: float) -> None:
        """Look and act until nothing has been alive for `idle` seconds."""
        catching_up = CatchingUp(self._ledger.home)
        seen, looked, quiet_since = -1, float("-inf"), float("inf")
        try:
            while time.monotonic() - quiet_since < idle and self._ledger.exists() and not self._reading.hopeless:
                try:
                    revision, now = self._ledger.revision(), time.monotonic()
                    news = revision != seen
                    self._told |= told.take(self._ledger.home)
                    if news or self._told or now - looked >= _LOOK:
                        seen, looked = revision, now
                        quiet_since = float("inf") if self._look(now, news=news) else min(quiet_since, now)
                        self._reading.over()
                except LedgerError as error:
                    self._reading.note(error)
                    seen, quiet_since = -1, float("inf")  # what cannot be read is not nothing
                with contextlib.suppress(OSError):  # a home may be removed
                    catching_up.look(time.monotonic())
                time.sleep(self._ledger.poll + self._reading.pause)
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
            if all(step.done() for step in self._busy.values()):
                self._lead.release()  # else it goes back when the last step, and with it this process, has ended

    def _look(self, now: float, *, news: bool) -> bool:
        """Take each live object one step further, those apart that are still in their last step."""
        self._ledger.watch_clocks()
        records = self._ledger.records(alive=True)
        mine = [record for record in records if self._ledger.mine(record)]
        self._carry_leases(mine)
        leads = any(record.anywhere for record in records) and self._lead.held()
        for record in records:
            if leads if record.anywhere else self._ledger.mine(record):
                self._take_further(record, now, news=news)
        self._told &= {(record.kind, record.name) for record in mine}
        return bool(mine) or leads

    def _take_further(self, record: Record, now: float, *, news: bool) -> None:
        step, age = self._busy.get(record.ref), now - self._looked.get(record.ref, float("-inf"))
        key = record.kind, record.name
        due = news or key in self._told or age >= (_LOOK_CALM if record.phase in _CALM else _LOOK)
        if due and now >= self._not_before and (step is None or step.done()):
            self._looked[record.ref] = now
            self._told.discard(key)
            self._busy[record.ref] = self._pool.submit(self._advance, record)

    def _carry_leases(self, mine: list[Record]) -> None:
        """Bring what a holder on another machine renewed to the files that the processes here read."""
        if not self._ledger.url:
            return  # every holder is here, and writes the file itself
        renewed = self._ledger.leases()
        for key in [(record.kind, record.name) for record in mine]:
            until = renewed.get(key)
            if key in renewed and self._leases.get(key) != until:
                file = self._ledger.lease_file(*key)
                if lease.read(file) != until:
                    try:
                        lease.write(file, until)
                    except OSError as error:  # a full disk; the lease holds for a while yet, and the next look tries again
                        log.warning("the lease of %s cannot be written: %s", key[1], error)
                        continue
                self._leases[key] = until

    def _advance(self, record: Record) -> None:
        """Take one object one step further, unless the lead was lost meanwhile."""
        try:
            if record.anywhere and not self._lead.held():
                return
            before = self._ledger.get(record.kind, record.name)
            _api.advance(self._ledger, before)
            if self._writing.pause and self._ledger.get(record.kind, record.name).version > before.version:
                self._writing.over()
        except LedgerError as error:
            self._writing.note(error)
            self._not_before = time.monotonic() + self._writing.pause
        except Exception as error:  # noqa: BLE001  one object's trouble is not the others'
            self._writing.unexpected(f"{record.ref} could not be taken further", error)


if __name__ == "__main__":
    sys.exit(main())
