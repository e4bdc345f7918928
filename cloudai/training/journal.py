"""The journal of a run: what its worker reports, where anybody can read it while it goes on.

The worker writes small files in the run's folder: ``status.json`` (where it is), ``metrics/<attempt>-<n>.json`` (rows of
metrics), and in the end ``result.json`` or ``error.json``. One writer, any number of readers, on any store.

On an object store each look costs money. So nothing is written where there is no news, the status says how many files of
metrics there are, and who has read the status lists them only when there are more.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloudai.artifacts.store import Store
from cloudai.errors import IntegrityError
from cloudai.tracking import Row

__all__ = ["Journal", "JournalReader", "Row"]

log = logging.getLogger(__name__)

_FIRST_FLUSH = 0.25  # seconds
_NUMBERS = ("attempt", "pid", "step", "total_steps", "checkpoint", "resumed_from", "files")
_BRIEF = 10.0  # seconds that one flush tries again, before it leaves it to the next
_SHARE = 0.01
"""Flushes come at intervals of at least this share of the time passed, so that a week's run does not write a million files."""


class Journal:
    """The writing side, in the worker of rank 0; writes in a thread of its own.

    Parameters
    ----------
    store : Store
        The run's folder.
    attempt : int
        How often the run was started, from 1.
    status : mapping
        What is known from the start, such as the process id.
    on_written : callable
        Called with rows that are in the store now.
    """

    def __init__(
        self,
        store: Store,
        attempt: int,
        status: Mapping[str, Any],
        on_written: Callable[[Sequence[Row]], None] = lambda rows: None,
    ) -> None:
        self._store = store
        self._brief = store.patient(min(_BRIEF, store.patience))
        self._attempt = attempt
        self._on_written = on_written
        self._status = {"attempt": attempt, "started": time.time(), **status}
        self._written: Mapping[str, Any] = {}
        self._rows: list[Row] = []
        self._files = self._written_before()
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cloudai-journal", daemon=True)
        self.flush()
        self._thread.start()

    def _written_before(self) -> int:
        """Count the files of this attempt: its workers may have been started again with another number of them."""
        try:
            return sum(name.startswith(f"{self._attempt:04d}-") for name in self._brief.list("metrics"))
        except OSError:
            return 0

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row of metrics."""
        with self._lock:
            self._rows.append(Row(step, dict(metrics), time.time()))
            self._status["step"] = step

    def checkpointed(self, step: int, at: float) -> None:
        """Note a checkpoint, of the state at a unix time; the work is at least as far as that."""
        with self._lock:
            self._status.update(checkpoint=step, checkpoint_at=at, step=max(step, self._status.get("step", step)))

    def update(self, **status: Any) -> None:
        """Change what the status says."""
        with self._lock:
            self._status.update(status)

    def flush(self) -> bool:
        """Write what is new, and return whether all is written; a store that fails is tried again at the next flush."""
        return self._flush(self._brief)

    def _flush(self, store: Store) -> bool:
        with self._flushing:
            with self._lock:
                rows, self._rows = self._rows, []
                status = dict(self._status)
            try:
                self._write(store, rows, status)
            except OSError as error:
                log.warning("the store cannot be written (%s); trying again", getattr(error, "what", error))
                with self._lock:
                    self._rows = rows + self._rows
                return False
        return True

    def _write(self, store: Store, rows: list[Row], status: dict[str, Any]) -> None:
        if rows:
            lines = [[row.step, row.metrics, row.at] for row in rows]
            store.write(f"metrics/{self._attempt:04d}-{self._files:06d}.json", json.dumps(lines).encode())
            self._files += 1
            written = list(rows)
            rows.clear()  # written: if the status fails now, they must not be written again
            self._on_written(written)
        status["files"] = self._files
        if status != self._written:
            store.write_json("status.json", {**status, "updated": time.time()})
            self._written = status

    def close(self) -> None:
        """Write the rest and stop."""
        self._stop.set()
        self._thread.join()
        self._flush(self._store)

    def _run(self) -> None:
        begin = time.monotonic()
        while not self._stop.wait(max(_FIRST_FLUSH, _SHARE * (time.monotonic() - begin))):
            self.flush()


@dataclass
class JournalReader:
    """The reading side; reads each file of metrics once."""

    store: Store
    _chunks: dict[str, list[Row]] = field(default_factory=dict)
    _said: tuple[int, int] = (0, 0)
    """The attempt and its number of files of metrics, as the status says that was read last."""
    _listed: tuple[int, int] = (0, 0)

    def status(self) -> Mapping[str, Any]:
        """Return where the worker is; empty before it has started."""
        status = self.store.read_json("status.json") or {}
        if not all(status.get(name) is None or type(status[name]) is int for name in _NUMBERS):
            raise _damaged(self.store, "status.json")
        self._said = (status.get("attempt") or 0, status.get("files") or 0)
        return status

    def rows(self, *, after_status: bool = False) -> list[Row]:
        """Return all metrics in order of step; what a later attempt did again counts once, as it was done last.

        Parameters
        ----------
        after_status : bool
            Whether the status was read just now, so that the store need not be asked where it has no news.
        """
        if not after_status or self._said != self._listed:
            self._read_new()
        rows: dict[int, Row] = {}
        for reported in self._by_attempt().values():
            for row in reported:
                known = rows.get(row.step)
                rows[row.step] = Row(row.step, {**known.metrics, **row.metrics}, row.at) if known else row
        return [rows[step] for step in sorted(rows)]

    def attempts(self) -> dict[int, list[Row]]:
        """Return for each attempt what it reported, in order."""
        self._read_new()
        return self._by_attempt()

    def _read_new(self) -> None:
        said = self._said
        for name in self.store.list("metrics"):
            if name not in self._chunks:
                self._chunks[name] = _read_rows(self.store, f"metrics/{name}")
        self._listed = said

    def _by_attempt(self) -> dict[int, list[Row]]:
        attempts: dict[int, list[Row]] = {}
        for name in sorted(self._chunks):
            number = name.partition("-")[0]
            if not number.isdecimal():
                raise _damaged(self.store, f"metrics/{name}")
            attempts.setdefault(int(number), []).extend(self._chunks[name])
        return attempts

    def result(self) -> Mapping[str, Any] | None:
        """Return how the run succeeded; None while it has not."""
        return self._told("result.json", "why_not_exact")

    def error(self) -> Mapping[str, Any] | None:
        """Return the error in the user's code that ended the run; None where there was none."""
        return self._told("error.json", "what", "fix", "frames")

    def _told(self, name: str, *texts: str) -> Mapping[str, Any] | None:
        found = self.store.read_json(name)
        if found is not None and not all(isinstance(found.get(text), str) for text in texts):
            raise _damaged(self.store, name)
        return found


def _read_rows(store: Store, key: str) -> list[Row]:
    try:
        lines = [(int(step), dict(metrics), float(at)) for step, metrics, at in json.loads(store.read(key))]
        return [Row(step, {str(name): float(value) for name, value in found.items()}, at) for step, found, at in lines]
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise _damaged(store, key) from None


def _damaged(store: Store, key: str) -> IntegrityError:
    return IntegrityError(f"{store.uri(key)} is damaged", fix="remove it, or train again")
