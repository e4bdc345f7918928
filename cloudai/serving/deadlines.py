"""Deadlines of many requests on one timer."""

from __future__ import annotations

import asyncio
from typing import Generic, Protocol, TypeVar

__all__ = ["Deadlines", "Expiring"]

_COARSEST = 0.001
"""Seconds between two looks at the least: a deadline may be that late."""


class Expiring(Protocol):
    """What has a deadline, in the event loop's time, and can be told that it has passed."""

    when: float

    def expire(self) -> None:
        """End: the deadline has passed."""


E = TypeVar("E", bound=Expiring)


class Deadlines(Generic[E]):
    """Ends what takes too long.

    A timer for each request would be made thousands of times a second and almost never fire. Here one timer waits for the
    earliest deadline that it knows; when it fires, those that are past are ended, and it waits for the earliest of the rest.
    """

    def __init__(self) -> None:
        self._open: set[E] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    def add(self, what: E) -> None:
        """Watch over it."""
        self._open.add(what)
        if what.when < self._timer_at:
            self._wait_until(what.when)

    def discard(self, what: E) -> None:
        """Watch over it no more."""
        self._open.discard(what)

    def all(self) -> list[E]:
        """Return what is watched over."""
        return list(self._open)

    def _wait_until(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = asyncio.get_running_loop().call_at(when, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        self._timer, self._timer_at = None, float("inf")
        for what in [what for what in self._open if what.when <= now]:
            self._open.discard(what)
            what.expire()
        if self._open:
            self._wait_until(max(now + _COARSEST, min(what.when for what in self._open)))
