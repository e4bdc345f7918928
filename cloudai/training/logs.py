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
_CUT = "(the lines before are left out)\n"


def _key(attempt: Mapping[str, Any]) -> str:
    return f"logs/{attempt['number']:04d}.txt"


class LogCopies:
    """Copies what attempts write, as long as they can be asked for it."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def keep(self, driver: TrainDriver, attempt: Mapping[str, Any], folder: Store, now: float) -> None:
        """Copy the log of an attempt: now and then while it runs, once more when it has ended.

        A log that cannot be had, or not be written, is no reason to do anything else.
        """
        if driver.capabilities.here:
            return
        which, begin = folder.uri(_key(attempt)), time.monotonic()
        if "ended" in attempt:
            self._next.pop(which, None)
        elif now < self._next.setdefault(which, now + _EVERY):
            return
        with contextlib.suppress(DriverError, NotFoundError, StoreError):
            # a secret may have several lines, and must not be cut in half
            text = redact("".join(f"{line.text}\n" for line in driver.logs(JobId(attempt["job"]))))
            if text:  # a machine that is gone has none, and what was copied before is all there is
                folder.write(_key(attempt), _end_of(text).encode(errors="replace"))
        if "ended" not in attempt:
            self._next[which] = now + max(_EVERY, _TIMES_COPYING * (time.monotonic() - begin))


def _end_of(text: str) -> str:
    if len(text) <= _MOST:
        return text
    return _CUT + text[text.find("\n", len(text) - _MOST) + 1 :]


def lines_of(driver: TrainDriver, attempt: Mapping[str, Any], folder: Store, *, follow: bool) -> Iterator[str]:
    """Read what an attempt wrote, without secrets: its place's own log, or the copy where that cannot be had.

    Raises
    ------
    NotFoundError
        If its place does not know it (yet), and there is no copy.
    DriverError
        If its place does not answer, and there is no copy; or it falls silent in the middle.
    """
    begun = False
    try:
        for entry in driver.logs(JobId(attempt["job"]), follow=follow):
            begun = True
            yield redact(entry.text)
    except (DriverError, NotFoundError):
        goes_on = follow and "ended" not in attempt  # what it writes next is in no copy
        if begun or goes_on or not (copy := _copy(attempt, folder)):
            raise
        yield from copy
        return
    if not begun and not driver.capabilities.here:
        yield from _copy(attempt, folder)


def _copy(attempt: Mapping[str, Any], folder: Store) -> list[str]:
    try:
        return redact(folder.read(_key(attempt)).decode()).split("\n")[:-1]
    except CloudAIError:
        return []
