"""The supervisor: takes every live object one step further, again and again, until nothing is left to do.

``python -m cloudai.agents.supervisor``. Any number may be started; the one that gets the lock leads, the others end.
It holds nothing in memory: killed at any moment, the next one goes on from the ledger.
"""

from __future__ import annotations

import logging
import signal
import sqlite3
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType

from cloudai import _api, settings
from cloudai.agents.catching_up import CatchingUp
from cloudai.specs.units import parse_duration
from cloudai.state.leader import leading
from cloudai.state.ledger import Ledger, Record, open_ledger

__all__ = ["main"]

log = logging.getLogger("cloudai.supervisor")

_LISTEN = 0.02  # seconds between two looks whether somebody wants something
_LOOK = 0.2  # seconds between two looks at what is alive
_LOOK_CALM = 1.0  # seconds between two looks at what is as it should be
_CALM = frozenset({"ready", "watching"})
_THREADS = 8


class _Told(Exception):  # noqa: N818  not an error
    """The supervisor was told to end."""


def main() -> int:
    """Lead until nothing has been alive for a while; returns at once where somebody else leads."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _tell)
    home = settings.current().home
    idle = parse_duration(settings.current().supervisor_idle)
    while True:
        with leading(home) as leads:
            if not leads:
                return 0
            log.info("leading %s", home)
            try:
                _Supervisor(open_ledger()).run(idle)
            except _Told:
                return 0
        # what was asked for between our last look and the end of our lead is seen now
        if not (home / "ledger.sqlite").exists() or not open_ledger().records(alive=True):
            return 0


def _tell(number: int, frame: FrameType | None) -> None:
    raise _Told


class _Supervisor:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._busy: dict[str, Future[None]] = {}
        self._looked: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="advance")

    def run(self, idle: float) -> None:
        """Look and act until nothing has been alive for `idle` seconds."""
        catching_up = CatchingUp(self._ledger.home)
        seen, looked, active = -1, float("-inf"), time.monotonic()
        try:
            while time.monotonic() - active < idle and self._ledger.path.exists():  # a home may be removed
                revision, now = self._ledger.revision(), time.monotonic()
                news = revision != seen
                if news or now - looked >= _LOOK:
                    seen, looked = revision, now
                    if self._look(now, news=news):
                        active = now
                catching_up.look(now)
                time.sleep(_LISTEN)
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _look(self, now: float, *, news: bool) -> bool:
        """Take each live object one step further, those apart that are still in their last step."""
        records = self._ledger.records(alive=True)
        for record in records:
            step, age = self._busy.get(record.ref), now - self._looked.get(record.ref, float("-inf"))
            due = news or age >= (_LOOK_CALM if record.phase in _CALM else _LOOK)
            if due and (step is None or step.done()):
                self._looked[record.ref] = now
                self._busy[record.ref] = self._pool.submit(self._advance, record)
        return bool(records)

    def _advance(self, record: Record) -> None:
        try:
            _api.advance(self._ledger, self._ledger.get(record.kind, record.name))
        except sqlite3.OperationalError as error:
            log.warning("%s: the ledger is busy: %s", record.ref, error)
        except Exception:
            log.exception("%s could not be taken further", record.ref)


if __name__ == "__main__":
    sys.exit(main())
