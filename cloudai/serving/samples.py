"""What a server answered, kept for the monitor: sampled rows in files, the oldest dropped first."""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cloudai.drivers.samples import Answer, Arrays, encode
from cloudai.files import private_folder, replace_file

__all__ = ["SampleLog"]

_logger = logging.getLogger(__name__)


class SampleLog:
    """Keeps a share of the answered requests, in memory first and soon in files, off the request's path.

    Parameters
    ----------
    folder : Path
        Where the files go; only the user can read it.
    rate : float
        The share of requests that are kept, each by an independent draw.
    most_requests : float
        Requests that are kept each second, at most, on average: of more the share shrinks, so that it is chance which are
        kept, and keeping them does not slow the others down.
    max_bytes : int
        The most that may lie in the folder, and the most that may wait in memory.
    dropped : callable
        Told how many rows could not be kept because memory or disk was full.
    events : callable, optional
        Told of what is kept, in the writer's thread.
    flush_rows : int
        So many waiting rows are written at once, fewer after `flush_seconds`.

    Raises
    ------
    OSError
        If the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rate: float,
        max_bytes: int,
        dropped: Callable[[int], None],
        most_requests: float = 1000.0,
        events: Callable[[Sequence[Answer]], None] | None = None,
        flush_rows: int = 1000,
        flush_seconds: float = 1.0,
    ) -> None:
        private_folder(folder)
        for draft in folder.glob(".*.tmp"):  # of a server that was killed while it wrote
            draft.unlink(missing_ok=True)
        self._folder, self._rate, self._max_bytes, self._dropped = folder, rate, max_bytes, dropped
        self._flush_rows, self._flush_seconds = flush_rows, flush_seconds
        self._events = events
        self.share = rate
        """The share of requests that are kept now."""
        self._most_requests, self._offered, self._since = most_requests, 0, time.monotonic()
        self._waiting: list[Answer] = []
        self._waiting_bytes = self._waiting_rows = 0
        self._newest = 0.0
        self._numbers = itertools.count()
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._wake, self._closed = threading.Event(), False
        self._writer = threading.Thread(target=self._write_on, name="samples", daemon=True)
        self._writer.start()

    def draw(self, inputs: Arrays) -> Arrays | None:
        """Decide whether a request is kept: a copy of its inputs (a model may change its own), or None."""
        self._offered += 1
        if self.share < 1 and random.random() >= self.share:  # noqa: S311  no secret
            return None
        return {name: array.copy() for name, array in inputs.items()}

    def keep(self, request_id: str, inputs: Arrays, outputs: Arrays, *, rows: int) -> None:
        """Keep a drawn request, whose arrays have `rows` rows each."""
        with self._lock:
            self._newest = max(self._newest, time.time())  # never backwards: readers go on from the last time they saw
            answer = Answer(request_id, self._newest, inputs, {name: array.copy() for name, array in outputs.items()}, rows)
            fits = self._waiting_bytes + answer.size <= self._max_bytes
            if fits:
                self._waiting.append(answer)
                self._waiting_bytes += answer.size
                self._waiting_rows += rows
        if not fits:
            self._dropped(rows)
        elif self._waiting_rows >= self._flush_rows:
            self._wake.set()

    def flush(self) -> None:
        """Return when all that was kept so far is in files.

        Raises
        ------
        OSError
            If it cannot be written; these rows are lost then.
        """
        with self._writing:
            answers = self._take()
            if not answers:
                return
            newest = int(answers[-1].time * 1e6) + 1
            name = f"{newest:016d}-{os.getpid()}-{next(self._numbers)}.safetensors"
            try:
                replace_file(self._folder / name, encode(answers))
                _drop_oldest(self._folder, self._max_bytes)
            except OSError:
                self._dropped(sum(answer.rows for answer in answers))
                raise
            finally:
                if self._events is not None:
                    self._events(answers)

    def close(self) -> None:
        """Write what waits, and end."""
        self._closed = True
        self._wake.set()
        self._writer.join()

    def _take(self) -> list[Answer]:
        with self._lock:
            answers, self._waiting = self._waiting, []
            self._waiting_bytes = self._waiting_rows = 0
        return answers

    def _write_on(self) -> None:
        while not self._closed:
            self._wake.wait(self._flush_seconds)
            self._wake.clear()
            self._adapt()
            try:
                self.flush()
            except OSError as error:
                _logger.warning("sampled rows are lost, they cannot be written: %s", error)

    def _adapt(self) -> None:
        """Let the share follow how many requests come."""
        now = time.monotonic()
        if now - self._since >= self._flush_seconds:
            coming = self._offered / (now - self._since)
            self.share = min(self._rate, self._most_requests / coming) if coming else self._rate
            self._offered, self._since = 0, now


def _drop_oldest(folder: Path, max_bytes: int) -> None:
    left = max_bytes
    for path in sorted(folder.glob("*.safetensors"), reverse=True):
        left -= path.stat().st_size
        if left < 0:
            path.unlink()
