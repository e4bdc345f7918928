"""Logs of attempts on a cluster: they go when it goes, so a copy is kept in the run's folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from cloudai.artifacts.store import Store
from cloudai.drivers.protocols import JobId, TrainDriver
from cloudai.errors import CloudAIError, DriverError, NotFoundError, StoreError
from cloudai.specs.confidential import redact

__all__ = ["LogCopies", "lines_of"]

_EVERY = 60.0
"""Seconds between two copies of the log of an attempt that runs: so much of it is lost with a machine that dies at once."""
_TIMES_COPYING = 20.0
"""So many times as long as a copy takes is the pause after it, at least."""
_MOST = 16 * 2**20
"""Characters of a log of which a copy is kept: its last ones."""


def _key(attempt: Mapping[str, Any]) -> str:
    return f"logs/{attempt['number']:04d}.txt"


class LogCopies:
    """Copies what attempts write, as long as they can be asked for it."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def keep(self, driver: TrainDriver, attempt: Mapping[str, Any], folder: Store, now: float) -> None:
        """Copy the log of an attempt: now and then while it runs, once more when it has ended.

        A log that cannot be had, or not be written, is no reason to do anything else: the next look tries again.
        """
        if driver.capabilities.here:
            return
        which, begin = folder.uri(_key(attempt)), time.monotonic()
        if "ended" in attempt:
            self._next.pop(which, None)
        elif now < self._next.setdefault(which, now + _EVERY):
            return
        with contextlib.suppress(DriverError, NotFoundError, StoreError):
            text = "".join(f"{redact(line.text)}\n" for line in driver.logs(JobId(attempt["job"])))
            if text:  # a machine that is gone has none, and what was copied before is all there is
                folder.write(_key(attempt), text[-_MOST:].encode())
        if "ended" not in attempt:
            self._next[which] = now + max(_EVERY, _TIMES_COPYING * (time.monotonic() - begin))


def lines_of(driver: TrainDriver, attempt: Mapping[str, Any], folder: Store, *, follow: bool) -> Iterator[str]:
    """Read what an attempt wrote, without secrets: its place's own log, or the copy where that is gone.

    Raises
    ------
    NotFoundError
        If its place does not know it (yet), and there is no copy.
    DriverError
        If its place does not answer, and there is no copy.
    """
    if "ended" in attempt and not driver.capabilities.here and (copy := _copy(attempt, folder)) is not None:
        yield from copy
        return
    try:
        entries = driver.logs(JobId(attempt["job"]), follow=follow)
    except (DriverError, NotFoundError):
        copy = _copy(attempt, folder)
        if copy is None:
            raise
        yield from copy
        return
    yield from (redact(entry.text) for entry in entries)


def _copy(attempt: Mapping[str, Any], folder: Store) -> list[str] | None:
    try:
        return folder.read(_key(attempt)).decode().splitlines()
    except CloudAIError:
        return None
