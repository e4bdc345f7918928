"""Tests that may be looked at at any time: evidence against "no worse than that", from bets.

Each test is the wealth of a gambler who bets on every request that the new version is worse than allowed. Where it is
not, the bets are unfair to the gambler: the wealth is a supermartingale that begins with 1, so the chance that it *ever*
reaches 1/α is at most α (Ville 1939), however often and whenever one looks. Betting on bounded means: Waudby-Smith and
Ramdas, J. R. Statist. Soc. B 86 (2024). That requests are dealt at random is what makes the two versions comparable, at
each moment and under any drift of the traffic: inverse-propensity scores as in Howard et al., Annals of Statistics 49
(2021), section 4.2; canaries at Netflix: Lindon and Malek, NeurIPS 2022.

A mixture of bets of several sizes is such a wealth too, and needs no guess of how bad a bad version is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Tally", "bound_evidence", "gap_at_least", "gap_evidence", "mean_evidence", "share_at_least"]

_BETS = 0.9 * 0.5 ** np.arange(12)
"""Sizes of the bets, as shares of the largest with which nobody can be ruined."""
_HALVINGS = 40


@dataclass(frozen=True)
class Tally:
    """What was counted while requests were dealt by one share.

    Attributes
    ----------
    share : float
        The chance of a request to be dealt to the new version, above 0 and at most 1.
    new, old : tuple of (int, int)
        Requests that the new and the old version answered, and how many of them count against it.
    """

    share: float
    new: tuple[int, int]
    old: tuple[int, int] = (0, 0)


def gap_evidence(tallies: Sequence[Tally], margin: float, *, steps: int = 1) -> float:
    """Return the log of the evidence that the new version's rate of bad outcomes exceeds the old one's by more than `margin`.

    If it does not exceed it at any moment, then ``exp`` of this ever reaches 1/α with a probability of at most α.
    On the n-th request the bet pays y/s for a bad outcome y of the new version, takes y/(1 − s) for one of the old, and
    takes the margin for each: its mean is the gap less the margin, whatever the rates are just then.

    Parameters
    ----------
    tallies : sequence of Tally
        One for each share that requests were dealt by, in the order of time; what was dealt without a control counts nothing.
    margin : float
        The difference that is allowed, 0 to 1.
    steps : int
        How many shares there will be. Half of the wealth is bet all the time, the other half is divided over the
        steps: each begins anew, so that a version which fails only under more load is found as fast.

    Examples
    --------
    >>> same = gap_evidence([Tally(0.1, (100, 2), (900, 18))], margin=0.01)
    >>> worse = gap_evidence([Tally(0.1, (100, 12), (900, 18))], margin=0.01)
    >>> same < 0 < worse
    True
    """
    return _wealth([_gap_logs(tally, margin) for tally in tallies], steps)


def bound_evidence(tallies: Sequence[Tally], bound: float, *, steps: int = 1) -> float:
    """Return the log of the evidence that the new version's rate of bad outcomes is above `bound`; see `gap_evidence`.

    Examples
    --------
    >>> bound_evidence([Tally(0.1, (40, 40))], bound=0.5) > 3
    True
    """
    return _wealth([_bound_logs(tally, bound) for tally in tallies], steps)


def mean_evidence(logs: Sequence[float]) -> float:
    """Return the log of the mean of several evidences, which is one itself for what all of them deny.

    Examples
    --------
    >>> round(mean_evidence([0.0, 0.0]), 6)
    0.0
    """
    return float(np.logaddexp.reduce(logs)) - math.log(len(logs))


def gap_at_least(tallies: Sequence[Tally], needed: float, *, steps: int = 1) -> float:
    """Return the largest margin against which there is evidence of `needed` (a log): the gap is at least that.

    A confidence bound that holds at all times at once, as it turns the test around.
    """
    return _largest(lambda margin: gap_evidence(tallies, margin, steps=steps) >= needed)


def share_at_least(tallies: Sequence[Tally], needed: float, *, steps: int = 1) -> float:
    """Return the largest bound against which there is evidence of `needed` (a log); see `gap_at_least`."""
    return _largest(lambda bound: bound_evidence(tallies, max(bound, 1e-9), steps=steps) >= needed)


def _gap_logs(tally: Tally, margin: float) -> np.ndarray:
    """Return the log of what each bet has made of 1."""
    share, (new, new_bad), (old, old_bad) = tally.share, tally.new, tally.old
    if share >= 1:
        return np.zeros_like(_BETS)
    bets = _BETS * (1 - share) / (1 + margin * (1 - share))
    good = new - new_bad + old - old_bad
    logs: np.ndarray = new_bad * np.log1p(bets * (1 / share - margin)) + good * np.log1p(-bets * margin)
    logs += old_bad * np.log1p(-bets * (1 / (1 - share) + margin))
    return logs


def _bound_logs(tally: Tally, bound: float) -> np.ndarray:
    new, bad = tally.new
    logs: np.ndarray = bad * np.log1p(_BETS * (1 - bound) / bound) + (new - bad) * np.log1p(-_BETS)
    return logs


def _wealth(logs: Sequence[np.ndarray], steps: int) -> float:
    """Mix the bets of all steps and those of the last alone; to leave out what the others hold is on the safe side."""
    if not logs:
        return 0.0
    whole = mean_evidence(np.sum(logs, axis=0).tolist())
    if steps == 1:
        return whole
    return float(np.logaddexp(whole, mean_evidence(logs[-1].tolist()) - math.log(steps))) - math.log(2)


def _largest(holds: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
