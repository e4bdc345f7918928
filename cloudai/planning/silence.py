"""A driver that does not answer, or has no place now: since when, how often it was asked, and when to ask again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Silence", "asks_again"]

_FIRST_PAUSE = 0.25  # seconds
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True)
class Silence:
    """Calls that failed, one after the other.

    Each pause is twice as long as the one before, up to a minute, so that a driver which is down is not stormed.

    Attributes
    ----------
    since : float
        The unix time of the first failure.
    count : int
        How many there were.
    again : float
        The unix time from which it may be asked again.

    Examples
    --------
    >>> first = Silence.after(None, now=100.0)
    >>> second = Silence.after(first.to_json(), now=101.0)
    >>> second.count, second.again, second.lasts(101.0)
    (2, 101.5, 1.0)
    """

    since: float
    count: int
    again: float

    @classmethod
    def after(cls, before: Mapping[str, Any] | None, now: float) -> Silence:
        """Return what follows from another failure; `before` is what was noted of those before it."""
        since, count = (before["since"], before["count"]) if before else (now, 0)
        return cls(since, count + 1, now + min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(count, 20)))

    def lasts(self, now: float) -> float:
        """Return for how many seconds nothing was answered."""
        return now - self.since

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for the ledger."""
        return asdict(self)


def asks_again(status: Mapping[str, Any]) -> float | None:
    """Return when the driver of an object may be asked again, in unix time; None where that is at once.

    Parameters
    ----------
    status : Mapping
        The object's: ``silence`` is what followed from failed calls, ``waiting`` from places that were not free.
    """
    times = [status[key]["again"] for key in ("silence", "waiting") if status.get(key)]
    return max(times, default=None)
