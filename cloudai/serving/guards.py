"""What a rollout's guards have seen, and how much evidence it is against the new version. Pure: counts in, verdicts out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cloudai.serving.counters import Counts
from cloudai.serving.outputs import OutputColumn, learnt
from cloudai.specs.rollout import Guard
from cloudai.statistics.sequential import (
    Tally,
    bound_evidence,
    gap_at_least,
    gap_evidence,
    mean_evidence,
    share_at_least,
)

__all__ = ["DEAD", "Look", "Verdict", "Watch", "needed_evidence"]

DEAD = Guard(watch="errors", bound=0.5)
"""Every rollout has it: a version most of whose requests fail is thrown out also where nothing can be compared."""

_LEARN_REQUESTS = 100
"""Requests of the stable version from which the level of its latency is learnt."""
_LEARN_ROWS = 200
"""The same for the cells of its predictions."""
_LEAST_MARGIN = 1e-6


@dataclass(frozen=True)
class Look:
    """What both versions answered since the last look.

    Attributes
    ----------
    share : float
        The chance of a request to be dealt to the new one meanwhile, 0 to 1.
    new, old : Counts
        What was counted.
    new_outputs, old_outputs : mapping of str to array
        Kept predictions, one row of each request; see `cloudai.serving.outputs.first_rows`.
    new_labelled, old_labelled : tuple of (int, int)
        Predictions whose label came in, and how many of them were wrong.
    """

    share: float
    new: Counts = field(default_factory=Counts)
    old: Counts = field(default_factory=Counts)
    new_outputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    old_outputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    new_labelled: tuple[int, int] = (0, 0)
    old_labelled: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Verdict:
    """What a guard says.

    Attributes
    ----------
    evidence : float
        The log of the evidence that the new version is worse than allowed.
    needed : float
        From this on it is thrown out.
    effect, numbers : str
        How much worse, and by which counts, for a person.
    """

    evidence: float
    needed: float
    effect: str
    numbers: str

    @property
    def worse(self) -> bool:
        """Whether the new version is to be thrown out."""
        return self.evidence >= self.needed


@dataclass(frozen=True)
class Watch:
    """One guard at work.

    Attributes
    ----------
    guard : Guard
        What is watched.
    tallies : tuple of Tally
        The counts, one for each share that requests were dealt by.
    level : float, optional
        Seconds: what the stable version's quantile was before the comparison began.
    learning : mapping of float to int
        What that is learnt from: how many of the stable version's requests took longer than so many seconds.
    learnt_from : int
        How many requests these were.
    columns : tuple of OutputColumn
        The predictions' cells and counts.
    """

    guard: Guard
    tallies: tuple[Tally, ...] = ()
    level: float | None = None
    learning: Mapping[float, int] = field(default_factory=dict)
    learnt_from: int = 0
    columns: tuple[OutputColumn, ...] = ()

    def seeing(self, look: Look) -> Watch:
        """Return the watch after one more look."""
        if self.guard.watch == "drift":
            return self._seeing_outputs(look)
        if self.guard.watch == "latency" and self.level is None:
            return self._learning_level(look)
        tally = self._tally(look)
        return self if tally is None else replace(self, tallies=_added(self.tallies, tally))

    def _tally(self, look: Look) -> Tally | None:
        if self.guard.watch == "shadow":
            differing = _above(look.new.differing, self.guard.tolerance)
            return Tally(1.0, (look.new.compared, differing)) if look.new.compared else None
        if not look.share:
            return None
        return Tally(look.share, *self._counted(look))

    def _counted(self, look: Look) -> tuple[tuple[int, int], tuple[int, int]]:
        new, old = look.new, look.old
        if self.guard.watch == "accuracy":
            return look.new_labelled, look.old_labelled
        if self.guard.watch == "latency":
            level = self.level or 0.0
            allowed = level if self.guard.bound is not None else level * (1 + self.guard.allowed)
            return (new.requests, _above(new.slower, allowed)), (old.requests, _above(old.slower, level))
        if self.guard.bound is not None:
            return (new.requests, new.failed), (old.requests, old.failed)
        return (new.requests, new.errors), (old.requests, old.errors)

    def _learning_level(self, look: Look) -> Watch:
        """Fix the level by the past alone, so that what is counted from now on is a fair bet."""
        if self.guard.bound is not None:
            return replace(self, level=self.guard.bound).seeing(look)
        total = self.learnt_from + look.old.requests
        slower = {bound: self.learning.get(bound, 0) + n for bound, n in look.old.slower.items()} or self.learning
        if total < _LEARN_REQUESTS:
            return replace(self, learning=slower, learnt_from=total)
        few = (1 - self.guard.quantile) * total
        level = next((bound for bound, n in sorted(slower.items()) if n <= few), max(slower))
        return replace(self, level=level, learning={}, learnt_from=total)

    def _seeing_outputs(self, look: Look) -> Watch:
        columns = self.columns
        if not columns:
            enough = look.old_outputs and len(next(iter(look.old_outputs.values()))) >= _LEARN_ROWS
            return replace(self, columns=tuple(learnt(*item) for item in look.old_outputs.items())) if enough else self
        if not 0 < look.share < 1:
            return self
        none = np.zeros(0)
        return replace(
            self,
            columns=tuple(
                column.added(
                    look.share,
                    column.cells(look.new_outputs.get(column.name, none)),
                    column.cells(look.old_outputs.get(column.name, none)),
                )
                for column in columns
            ),
        )

    @property
    def learns(self) -> bool:
        """Whether it still learns what is usual, and compares nothing yet."""
        return (self.guard.watch == "drift" and not self.columns) or (self.guard.watch == "latency" and self.level is None)

    def evidence(self, steps: int) -> float:
        """Return the log of the evidence that the new version is worse than allowed."""
        if self.guard.watch == "drift":
            return mean_evidence([each for each, _, _ in self._drifts(steps)] or [0.0])
        if self._bound is not None:
            return bound_evidence(self.tallies, self._bound, steps=steps)
        return gap_evidence(self.tallies, self._gap, steps=steps)

    def verdict(self, needed: float, steps: int) -> Verdict:
        """Say how much evidence there is, against the evidence (a log) that is needed."""
        words = self._drift_in_words(steps) if self.guard.watch == "drift" else self._in_words(needed, steps)
        return Verdict(self.evidence(steps), needed, *words)

    @property
    def _bound(self) -> float | None:
        """The share of bad outcomes that is allowed whatever the stable version does."""
        if self.guard.watch == "shadow":
            return max(self.guard.allowed, _LEAST_MARGIN)
        if self.guard.bound is not None:
            return 1 - self.guard.quantile if self.guard.watch == "latency" else self.guard.bound
        return None

    @property
    def _gap(self) -> float:
        return 0.0 if self.guard.watch == "latency" else self.guard.allowed  # latency has its margin in its level

    def _in_words(self, needed: float, steps: int) -> tuple[str, str]:
        beside = [tally for tally in self.tallies if tally.share < 1 or self._bound is not None]
        (new, bad), (old, old_bad) = _total([tally.new for tally in beside]), _total([tally.old for tally in beside])
        if self._bound is not None:
            least = share_at_least(self.tallies, needed, steps=steps)
            numbers = f"{bad} of {new}; at least {least:.1%} for sure, {self._bound:.1%} is allowed"
            return f"{_share(bad, new)} of {self._what}", numbers
        least = gap_at_least(self.tallies, needed, steps=steps)
        numbers = f"{bad} of {new} against {old_bad} of {old}; at least {least:.1%} more for sure, {self._gap:.1%} is allowed"
        return f"{_share(bad, new)} of {self._what}, {_share(old_bad, old)} of the stable one's in the same time", numbers

    @property
    def _what(self) -> str:
        watch, level = self.guard.watch, self.level or 0.0
        if watch == "latency":
            usual = f" (the stable one's {level * 1000:.3g} ms, and {self._slack:.0%})" if self.guard.bound is None else ""
            return f"its requests took longer than {level * (1 + self._slack) * 1000:.3g} ms{usual}"
        return {
            "errors": "its requests failed",
            "shadow": "its answers to mirrored requests differ",
            "accuracy": "its predictions with a label are wrong",
        }[watch]

    @property
    def _slack(self) -> float:
        return self.guard.allowed if self.guard.bound is None else 0.0

    def _drifts(self, steps: int) -> list[tuple[float, str, list[Tally]]]:
        """Return the evidence of each range of each column; their mean counts, so that many of them raise no more alarms."""
        return [
            (gap_evidence(tallies, self.guard.allowed, steps=steps), column.name, tallies)
            for column in self.columns
            for event in column.events()
            if (tallies := [Tally(*counts) for counts in event])
        ]

    def _drift_in_words(self, steps: int) -> tuple[str, str]:
        """Name the range that weighs most."""
        found = self._drifts(steps)
        if not found:
            return "its predictions are not compared yet", ""
        _, name, tallies = max(found, key=lambda item: item[0])
        (new, inside), (old, old_inside) = _total([t.new for t in tallies]), _total([t.old for t in tallies])
        shares = f"{_share(inside, new)} of its predictions, {_share(old_inside, old)} of the stable one's"
        allowed = f"{self.guard.allowed:.0%} is allowed"
        return f"{name}: {shares} lie in one range", f"{inside} of {new} against {old_inside} of {old}; {allowed}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for the ledger."""
        return {
            "guard": self.guard.model_dump(mode="json"),
            "tallies": [[t.share, list(t.new), list(t.old)] for t in self.tallies],
            "level": self.level,
            "learning": {str(bound): n for bound, n in self.learning.items()},
            "learnt_from": self.learnt_from,
            "columns": [column.to_json() for column in self.columns],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Watch:
        """Read what `to_json` returned."""
        return cls(
            Guard.model_validate(data["guard"]),
            tuple(Tally(share, tuple(new), tuple(old)) for share, new, old in data["tallies"]),
            data["level"],
            {float(bound): n for bound, n in data["learning"].items()},
            data["learnt_from"],
            tuple(map(OutputColumn.from_json, data["columns"])),
        )


def _added(tallies: tuple[Tally, ...], more: Tally) -> tuple[Tally, ...]:
    if not tallies or tallies[-1].share != more.share:
        return (*tallies, more)
    last = tallies[-1]
    return (*tallies[:-1], Tally(more.share, _total([last.new, more.new]), _total([last.old, more.old])))


def _total(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(n for n, _ in pairs), sum(bad for _, bad in pairs)


def _above(counts: Mapping[float, int], level: float) -> int:
    """Return how many are above a level, which is rounded up to the next bound that was counted by."""
    return next((n for bound, n in sorted(counts.items()) if bound >= level * (1 - 0.005)), 0)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def needed_evidence(alarm_rate: float, guards: int) -> float:
    """Return the log of the evidence that each guard needs, so that all of them together raise a false alarm that rarely."""
    return math.log(guards / alarm_rate)
