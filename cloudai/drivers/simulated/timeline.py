"""What is going to happen in a simulated cloud, in order of time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from cloudai.clock import SimulatedClock

__all__ = ["Timeline"]


class Timeline:
    """Events to come, at seconds after the simulation's start; what is planned first happens first at equal times."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._start = clock.now()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return self._clock.now() - self._start

    @property
    def next(self) -> float | None:
        """When the next event is, in unix time; None where none is planned."""
        return self.unix(self._events[0][0]) if self._events else None

    def unix(self, seconds: float) -> float:
        """Return the unix time of a moment."""
        return self._start + seconds

    def plan(self, at: float, act: Callable[[], None]) -> None:
        """Let something happen at a time; what lies in the past happens next."""
        heapq.heappush(self._events, (max(at, self.now), next(self._order), act))

    def happen(self) -> None:
        """Let happen what is due by now."""
        while self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[2]()

    def pause(self, seconds: float) -> None:
        """Wait for news."""
        self._clock.pause(seconds)
