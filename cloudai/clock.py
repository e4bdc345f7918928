"""The time that the core goes by: the machine's, or one that a test or a simulation advances by hand.

Whatever is written into the ledger, compared with a lease or turned into money is read from the ledger's clock. What
waits for a real process or a real server goes by the machine's own time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["SYSTEM", "Clock", "SimulatedClock", "SystemClock"]


class Clock(Protocol):
    """Tells the time, and lets it pass."""

    def now(self) -> float:
        """Return the unix time, in seconds."""
        ...

    def pause(self, seconds: float) -> None:
        """Let `seconds` pass; whoever pauses waits for news, so a simulated clock goes on to the next event instead."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return the unix time, in seconds."""
        return time.time()

    def pause(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


SYSTEM = SystemClock()


class SimulatedClock:
    """A clock that stands still until it is moved.

    Parameters
    ----------
    start : float
        The unix time that it begins with.

    Attributes
    ----------
    on_pause : callable or None
        Called with the seconds of each pause, to move the clock and let happen what is due; without it the clock just moves.

    Examples
    --------
    >>> clock = SimulatedClock(1000.0)
    >>> clock.pause(60)
    >>> clock.now()
    1060.0
    """

    def __init__(self, start: float) -> None:
        self._now = start
        self.on_pause: Callable[[float], None] | None = None

    def now(self) -> float:
        """Return the simulated unix time, in seconds."""
        return self._now

    def move(self, to: float) -> None:
        """Move the clock; it never goes back."""
        self._now = max(self._now, to)

    def pause(self, seconds: float) -> None:
        """Let simulated time pass."""
        if self.on_pause is None:
            self.move(self._now + seconds)
        else:
            self.on_pause(seconds)
