"""Feeds a tracker from a thread: nothing that it does or fails to do holds up the caller."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from cloudai.tracking.protocol import Row, TrackedModel, TrackedRun, Tracker

__all__ = ["BackgroundTracker", "Source"]

log = logging.getLogger(__name__)

_INTERVAL = 2.0  # seconds between two batches
_LONGEST_PAUSE = 60.0  # seconds between two tries while it is down
_BATCH = 1000
_MOST = 200_000  # rows that wait in memory for a tracker that does not answer; the source has them, too


class Source(Protocol):
    """Where everything can be read again that the tracker must know. All of it is called in the thread."""

    def begin(self) -> tuple[Tracker, TrackedRun]:
        """Make the tracker and say what it is told first."""
        ...

    def rows(self) -> Sequence[Row]:
        """Return all rows so far."""
        ...

    def fresh(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return of newly reported rows what has not been among the rows of earlier attempts."""
        ...


class BackgroundTracker:
    """Feeds a tracker from a thread.

    Whatever fails, the next try begins anew with all rows of the source: a tracker takes what it has once more without harm.

    Parameters
    ----------
    source : Source
        What is to be told.
    said : callable
        Called in the thread whenever the tracker falls behind, with the reason, and with ``""`` when it is not any more.

    Attributes
    ----------
    problem : str
        Why the tracker is behind; empty where it is not.
    reached : bool
        Whether the tracker has ever answered.
    complete : bool
        Whether the tracker has everything, the end included.
    """

    def __init__(self, source: Source, said: Callable[[str], None] = lambda problem: None) -> None:
        self._source = source
        self._said = said
        self._tracker: Tracker | None = None
        self._listening = False
        self._rows: deque[Row] = deque()
        self._end: tuple[bool, float, TrackedModel | None] = (False, 0.0, None)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._moved = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="cloudai-tracker", daemon=True)
        self.problem = ""
        self.reached = False
        self.complete = False

    def add(self, rows: Iterable[Row]) -> None:
        """Queue rows that the source has by now; the first ones start the thread."""
        with self._lock:
            if self._listening:
                self._rows.extend(rows)
            if len(self._rows) > _MOST:
                self._forget()
            if not self._thread.ident:
                self._thread.start()

    def close(self, succeeded: bool, at: float, model: TrackedModel | None = None) -> None:
        """Say how the run ended, at a unix time; the thread sends the rest and ends the record, once."""
        self._end = (succeeded, at, model)
        self._moved = time.monotonic()
        self._ending.set()
        if not self._thread.ident:
            self._thread.start()

    def wait(self, limit: float, *, patience: float | None = None) -> bool:
        """Wait for the thread to end after `close`, and return whether the tracker has everything.

        Parameters
        ----------
        limit : float
            Seconds after which the caller goes on in any case.
        patience : float, optional
            Seconds in which the tracker must have answered something.
        """
        deadline = time.monotonic() + limit
        while self._thread.is_alive() and (now := time.monotonic()) < deadline:
            if patience is not None and now - self._moved > patience:
                break
            self._thread.join(0.05)
        if self._thread.is_alive():
            self.problem = self.problem or "it did not answer in time"
        return self.complete

    def _run(self) -> None:
        pause = 0.0
        while not self._ending.wait(pause):
            well = self._try(self._send)
            pause = _INTERVAL if well else min(max(_INTERVAL, 2 * pause), _LONGEST_PAUSE)
        self.complete = self._try(self._finish)

    def _try(self, act: Callable[[], None]) -> bool:
        problem = ""
        try:
            act()
        except (Exception, SystemExit) as error:  # noqa: BLE001  a tracker may fail in any way; the run goes on
            problem = _words(error)
            with self._lock:
                self._forget()
        if problem != self.problem:
            self.problem = problem
            log.warning("tracking is behind: %s", problem or "no more")
            self._said(problem)
        return not problem

    def _forget(self) -> None:
        """Let the next batch begin anew, from the source."""
        self._tracker, self._listening = None, False
        self._rows.clear()

    def _send(self) -> None:
        tracker = self._tracker or self._started()
        while batch := self._next():
            tracker.log(self._source.fresh(batch))
            self._moved = time.monotonic()

    def _started(self) -> Tracker:
        tracker, run = self._source.begin()
        tracker.start(run)
        self.reached = True
        with self._lock:
            self._listening = True  # from here on nothing is missed: what comes now is queued, the rest is read
        rows = self._source.rows()
        for first in range(0, len(rows), _BATCH):
            self._moved = time.monotonic()
            tracker.log(rows[first : first + _BATCH])
        with self._lock:
            self._tracker = tracker if self._listening else None
        return tracker

    def _next(self) -> list[Row]:
        with self._lock:
            return [self._rows.popleft() for _ in range(min(_BATCH, len(self._rows)))]

    def _finish(self) -> None:
        if self._tracker is None:
            self._started()
        self._send()
        succeeded, at, model = self._end
        assert self._tracker is not None
        if model is not None:
            self._tracker.register(model)
            self._moved = time.monotonic()
        self._tracker.end(succeeded, at)


def _words(error: BaseException) -> str:
    """Return an error in one line of bearable length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
