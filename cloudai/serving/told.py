"""A rollout in words, for the card of its deployment."""

from __future__ import annotations

import math

from cloudai.display import duration
from cloudai.serving.guards import Verdict
from cloudai.serving.rollout import Progress
from cloudai.specs.rollout import RolloutOrder

__all__ = ["guard_rows", "rollout_facts"]


def rollout_facts(canary: str, order: RolloutOrder, progress: Progress, now: float) -> list[tuple[str, str]]:
    """Say where a rollout stands, and in two lines why it is held or was rolled back."""
    return [("rollout", f"{canary}: {_where(order, progress, now)}"), *([("", progress.numbers)] if progress.numbers else [])]


def _where(order: RolloutOrder, progress: Progress, now: float) -> str:
    rollout = order.rollout
    step = f"step {progress.step + 1} of {len(rollout.steps)}, {rollout.steps[progress.step]} %"
    if progress.phase == "promoted":
        return "promoted after all its steps"
    if progress.phase == "starting":
        return "waits until it is ready"
    if progress.reason:
        return f"{progress.phase} at {step}: {progress.reason}"
    since = duration(max(0.0, now - progress.since))
    return f"{progress.phase} at {step}, for {since} of {duration(rollout.bake)}, {progress.requests} requests"


def guard_rows(order: RolloutOrder, progress: Progress) -> list[tuple[str, str, str]]:
    """Say of each guard how much evidence there is against the new version, as odds against those that are needed."""
    return [
        (watch.guard.watch, _odds(verdict), "learns what is usual" if watch.learns else verdict.effect)
        for watch, verdict in zip(progress.watches, progress.verdicts(order), strict=True)
    ]


def _odds(verdict: Verdict) -> str:
    if verdict.worse:
        return f"over {math.exp(verdict.needed):.0f}"
    return f"{math.exp(verdict.evidence):.2g} of {math.exp(verdict.needed):.0f}"
