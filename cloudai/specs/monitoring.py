"""What is watched, when it counts as drift, and what is then done."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cloudai.specs.units import Seconds
from cloudai.specs.validation import Spec

__all__ = ["Action", "DecisionPolicy", "DriftPolicy", "MonitorSpec"]

Action = Literal["hold", "retrain", "page"]
"""What a decision can be: go on, train anew on current data, or call a person."""


class DriftPolicy(Spec):
    """When a difference between the reference and a window counts as drift: it is both certain and large.

    Examples
    --------
    >>> DriftPolicy.of(alarm_rate=0.001).min_effect
    0.1
    """

    alarm_rate: float = Field(default=0.01, gt=0, le=0.5)
    """The share of windows without drift in which any feature is reported, at most: a family-wise error rate."""
    min_effect: float = Field(default=0.1, ge=0, le=10)
    """The smallest difference that matters, in standard deviations of the reference."""
    min_rows: int = Field(default=100, ge=2)
    """With fewer rows, in the window or in the reference, nothing is concluded."""


class DecisionPolicy(Spec):
    """What is done about drift."""

    on_drift: Action = "retrain"
    """When the values of features have moved, or have new categories."""
    on_fault: Action = "page"
    """When features are absent, of another kind, or suddenly missing more often: a fault in the input, which a
    retraining would learn."""
    min_share: float = Field(default=0.0, ge=0, le=1)
    """The share of all features that must have drifted before `on_drift` is done; 0 means any."""
    cool_down: Seconds = 86400.0
    """For how long the same action is not asked for again."""


class MonitorSpec(Spec):
    """How a deployment is watched.

    Examples
    --------
    >>> spec = MonitorSpec.of(every="15m", drift={"alarm_rate": 0.001}, decision={"on_drift": "page"})
    >>> spec.every, spec.decision.on_drift
    (900.0, 'page')
    """

    every: Seconds = Field(default=300.0, gt=0)
    """The length of a window."""
    drift: DriftPolicy = DriftPolicy()
    decision: DecisionPolicy = DecisionPolicy()
