"""How long to wait between two checkpoints, from what they cost and how often machines fail."""

from __future__ import annotations

import math

__all__ = ["Cadence", "best_interval"]

_CHEAP = 0.01
"""A checkpoint that takes no more than this share of the time is written anyway: how often machines fail is a guess at first,
and who loses less work is happier than who saves a hundredth."""
_BESIDE = 0.3
"""What writing costs the training that goes on beside it, in seconds of each second: steps are that much slower meanwhile. With
500 MB on two cores it was 0.13 to 0.27 (recipes/benchmarks/training.py, 2026-11-24)."""
_SOONEST = 0.5  # seconds between two checkpoints, however cheap they are
_WRITING = 0.1
"""The share of the time during which a checkpoint may be on its way to the store, where that goes on beside the training."""
_ON_DEMAND, _SPOT = 24 * 3600.0, 3600.0
"""Seconds between two failures that are assumed before there is experience. Both are guesses on the safe side: a machine that
stays seldom fails within a day, and one that may be taken away usually stays for more than an hour."""


def best_interval(cost: float, mtbf: float) -> float:
    """Return how much work to do between two checkpoints so that least time is lost, in seconds.

    Parameters
    ----------
    cost : float
        Seconds for which the training stands still for one checkpoint.
    mtbf : float
        Mean time between failures, in seconds.

    Notes
    -----
    Daly's higher-order estimate: J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps",
    Future Generation Computer Systems 22 (2006) 303-312, equation 37. Its first term is the square root of J. W. Young, "A
    first order approximation to the optimum checkpoint interval", Communications of the ACM 17 (1974) 530-531.

    Examples
    --------
    >>> round(best_interval(cost=0.5, mtbf=3600), 1)
    59.7
    >>> best_interval(cost=10, mtbf=4)
    4
    """
    if cost >= 2 * mtbf:
        return mtbf
    ratio = cost / (2 * mtbf)
    return math.sqrt(2 * cost * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


class Cadence:
    """When the next checkpoint of a run is due; knows no clock.

    Parameters
    ----------
    longest : float or None
        Seconds after which there is one in any case; None where there is no such limit.
    mtbf : float or None
        Mean time between failures as the user knows it; None to begin with a guess and learn.
    spot : bool
        Whether the machines may be taken away.
    failures : int
        How often the run was interrupted so far.
    worked : float
        Seconds that it had worked before this attempt.

    Examples
    --------
    >>> cadence = Cadence(longest=None, mtbf=3600, spot=False, failures=0, worked=0)
    >>> cadence.learn(stall=0.5, writing=0.0)
    >>> round(cadence.interval(worked=0), 1)
    50.0
    """

    def __init__(self, *, longest: float | None, mtbf: float | None, spot: bool, failures: int, worked: float) -> None:
        self._longest, self._mtbf = longest, mtbf
        self._expected = _SPOT if spot else _ON_DEMAND
        self._failures, self._worked = failures, worked
        self._stall, self._writing = 0.0, 0.0

    def learn(self, *, stall: float | None = None, writing: float | None = None) -> None:
        """Take note of what the last checkpoint cost: for how long training stood still, and how long its writing took."""
        self._stall = self._stall if stall is None else stall
        self._writing = self._writing if writing is None else writing

    def mtbf(self, worked: float) -> float:
        """Return the mean time between failures as it is to be expected after `worked` seconds of this attempt.

        The guess counts as one failure in its time; what happened is added to it.
        """
        if self._mtbf is not None:
            return self._mtbf
        return (self._expected + self._worked + worked) / (1 + self._failures)

    def interval(self, worked: float) -> float:
        """Return the seconds from one checkpoint to the next."""
        cost = self._stall + _BESIDE * self._writing
        best = min(best_interval(cost, self.mtbf(worked)), max(_SOONEST, cost / _CHEAP))
        chosen = max(best, _SOONEST, self._writing / _WRITING)
        return chosen if self._longest is None else min(chosen, self._longest)
