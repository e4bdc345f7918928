"""How long a search will take, as a range with its basis."""

from __future__ import annotations

from collections.abc import Sequence

from cloudai.planning.estimate import Estimate, estimate_seconds
from cloudai.specs.search import Search
from cloudai.specs.training import TrainSpec
from cloudai.state.ledger import Record

__all__ = ["at_once", "estimate_trials"]


def at_once(specs: Sequence[TrainSpec], search: Search) -> int:
    """Return how many trials run at the same time."""
    return min(search.parallel, len(specs))


def estimate_trials(specs: Sequence[TrainSpec], search: Search, history: Sequence[Record]) -> Estimate:
    """Estimate the duration of a search: of all its trials, some at once.

    At the high end no trial is stopped early; at the low end all but one are, at their first rung.
    """
    each = [estimate_seconds(spec, history) for spec in specs]
    trials = f"{len(specs)} trials, {at_once(specs, search)} at once; each: {each[0].basis}"
    if any(one.low is None or one.high is None for one in each):
        return Estimate(None, None, trials)
    low = [(one.low or 0.0) * _least_share(spec, search) for one, spec in zip(each, specs, strict=True)]
    whole = max(range(len(specs)), key=lambda number: each[number].low or 0.0)
    low[whole] = each[whole].low or 0.0
    high = sum(one.high or 0.0 for one in each)
    width = at_once(specs, search)
    early = "" if search.grace is None else "; the low end if all but one are stopped at their first rung"
    return Estimate(max(low[whole], sum(low) / width), high / width, trials + early)


def _least_share(spec: TrainSpec, search: Search) -> float:
    """Return the share of its steps that a trial does at least."""
    return 1.0 if search.grace is None else min(1.0, search.grace / spec.loop.epochs)
