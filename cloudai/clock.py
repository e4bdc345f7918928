"""The time that the core goes by: the machine's, or one that a test or a simulation advances by hand.

Whatever is written into the ledger, compared with a lease or turned into money is read from the ledger's clock. What
waits for a real process or a real server goes by the machine's own time.
"""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["SYSTEM", "Clock", "SystemClock"]


class Clock(Protocol):
    """Tells the time, and lets it pass."""

    def now(self) -> float:
        """Return the unix time, in seconds."""
        ...

    def pause(self, seconds: float) -> None:
        """Let at least `seconds` pass; whoever pauses waits for news, and a simulated clock may go on to the next event."""
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
