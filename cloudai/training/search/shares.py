"""How a search's budget is shared by its trials, so that all together never cost more."""

from __future__ import annotations

from collections.abc import Mapping

from cloudai.training.limits import Limits

__all__ = ["share"]


def share(limits: Limits, own: float, ended: float, reserved: Mapping[str, float], free: int) -> Limits | None:
    """Return the limits of a trial that begins or goes on; None where nothing is left for it.

    Parameters
    ----------
    limits : Limits
        Those of the whole search.
    own : float
        What the trial has cost so far, where it goes on.
    ended : float
        What the other trials have cost that do not run.
    reserved : Mapping[str, float]
        For each trial that runs, what it may cost.
    free : int
        How many trials may be begun now, this one included: they share what is left.

    Examples
    --------
    >>> from cloudai.specs.limits import Budget
    >>> whole = Limits(Budget(usd=10))
    >>> share(whole, 0.0, 0.0, {}, free=2).budget.amount, share(whole, 0.0, 1.0, {"a": 5.0}, free=1).budget.amount
    (5.0, 4.0)
    """
    if limits.budget is None:
        return limits
    left = limits.budget.amount - ended - sum(reserved.values()) - own
    if left <= 0:
        return None
    budget = limits.budget.model_copy(update={"amount": own + left / free})
    return Limits(budget, limits.until, limits.since)
