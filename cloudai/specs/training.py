"""What a user asks for when training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from cloudai.specs.resources import Resources, ScalingPolicy
from cloudai.specs.units import Seconds
from cloudai.specs.validation import Spec

__all__ = ["CheckpointPolicy", "FailurePolicy", "Loop", "TrainSpec", "Work"]

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""Names are DNS labels (RFC 1123), so that every backend can carry them unchanged."""


class CheckpointPolicy(Spec):
    """When a checkpoint is written, and how many are kept."""

    every: Seconds = 30.0
    """The longest time between two checkpoints of the built-in loop; one is always written at the end of an epoch that is
    longer than a tenth of this."""
    keep: int = Field(2, ge=1)
    """How many are kept; the one before the last is there for when the last is damaged."""


class FailurePolicy(Spec):
    """How often a run that was killed or lost comes back."""

    max_failures: int = Field(3, ge=0)


class Loop(Spec):
    """The built-in supervised loop."""

    loss: Literal["cross_entropy", "mse", "l1", "bce_with_logits"] = "cross_entropy"
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(32, ge=1)
    """Rows of one optimiser step, over all workers together."""
    validation: float = Field(0.1, ge=0, lt=1)
    """The share of rows held back to measure the model; drawn with the seed."""


class Work(Spec):
    """What is trained: a function of a context, or a module with data. Every part lies in the store."""

    kind: Literal["function", "module"]
    entry: str = ""
    """Of a function: ``module:name`` inside the bundle."""
    code: str = ""
    """The store's key of the code bundle; empty where no code of the user's is needed."""
    module: str = ""
    """The store's key of the module's description and first weights."""
    data: str = ""
    """The store's key of the data."""
    rows: int = 0
    parameters: int = 0
    """How many weights the module has."""
    features: tuple[str, ...] = ()
    """The names of the data's columns, where it has names."""

    @property
    def fingerprint(self) -> str:
        """What must be equal for two runs to do the same work."""
        return "/".join((self.kind, self.entry, self.code, self.module, self.data))


class TrainSpec(Spec):
    """A training run as asked for."""

    name: str = Field(pattern=NAME)
    work: Work
    on: str = "local"
    model_name: str = Field(pattern=NAME)
    config: dict[str, Any] = {}
    """Passed to the user's function as ``context.config``; recorded as parameters."""
    loop: Loop = Loop()
    seed: int = Field(0, ge=0, lt=2**32)
    resources: Resources = Resources()
    scaling: ScalingPolicy = ScalingPolicy()
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    failure: FailurePolicy = FailurePolicy()
    lease: Seconds
    store: str
    tracking: str
