"""What a training function is given: its rank, its data, its last checkpoint, and the means to report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from cloudai.errors import DataError, SpecError
from cloudai.specs.training import TrainSpec
from cloudai.training import randomness
from cloudai.training.checkpoints import Checkpoint, Checkpoints

__all__ = ["Context", "Group", "Solo", "Stopped"]

_OVERHEAD = 0.01
"""The share of a run's time that checkpoints may take, where they need not come more often than asked."""
_SOONEST = 0.5  # seconds between two checkpoints, however cheap they are


class Stopped(BaseException):
    """Ends a worker that was told to stop; a user's ``except Exception`` does not catch it."""


class Group(Protocol):
    """The workers of a run."""

    rank: int
    world_size: int

    def gather(self, value: str) -> list[str]:
        """Return every rank's value, in order of rank, to all of them."""
        ...

    def any(self, flag: bool) -> bool:
        """Return whether any rank says yes, the same on all of them."""
        ...

    def wrap(self, module: Any) -> Any:
        """Return the module so that its gradients are averaged over the ranks."""
        ...

    def whole(self, module: Any) -> Any:
        """Return the module with all of its weights, on rank 0; all ranks call it."""
        ...


class Solo:
    """A group of one."""

    rank = 0
    world_size = 1

    def gather(self, value: str) -> list[str]:
        """Return the only value."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Return the only flag."""
        return flag

    def wrap(self, module: Any) -> Any:
        """Return the module itself."""
        return module

    def whole(self, module: Any) -> Any:
        """Return the module itself."""
        return module


@dataclass
class Context:
    """The side of a run that training code sees.

    Attributes
    ----------
    config : Mapping
        What was passed to ``cloudai.train(config=…)``.
    data : Mapping of str to array, or None
        What was passed as ``data=``: ``inputs`` and, where there are any, ``targets``.
    seed : int
        The run's seed; Python, numpy and torch are seeded with it (plus the rank) before the function is called.
    rank, world_size : int
        Which worker this is, and of how many.
    """

    spec: TrainSpec
    data: Mapping[str, np.ndarray] | None
    checkpoints: Checkpoints
    group: Group = field(default_factory=Solo)
    on_report: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    before_checkpoint: Callable[[], bool] = lambda: True
    """Called before a checkpoint is committed: what was reported up to it must be written by then, for it is not done again.
    Where it says that it could not, there is no checkpoint."""
    on_checkpoint: Callable[[int], None] = lambda step: None
    stop_reason: Callable[[], str] = lambda: ""
    """Says why the worker should end; empty while it should not."""

    def __post_init__(self) -> None:
        self._found: Checkpoint | None = self.checkpoints.latest(self.rank)
        self._step = self._found.step if self._found else -1
        self._saved_at = time.monotonic()
        self._cost = 0.0

    @property
    def config(self) -> Mapping[str, Any]:
        """What was passed to ``cloudai.train(config=…)``."""
        return self.spec.config

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.spec.seed

    @property
    def rank(self) -> int:
        """Which worker this is, from 0."""
        return self.group.rank

    @property
    def world_size(self) -> int:
        """How many workers there are."""
        return self.group.world_size

    @property
    def resumed_from(self) -> int | None:
        """The step of the checkpoint that this attempt came back from; None for a fresh start."""
        return self._found.step if self._found else None

    def wrap(self, module: Any) -> Any:
        """Return the module so that its gradients are averaged over the workers; itself where there is one."""
        return self.group.wrap(module)

    def restore(self, **parts: Any) -> dict[str, Any]:
        """Put the last checkpoint back into modules and optimisers.

        Parameters
        ----------
        **parts
            The objects that were passed to ``report(checkpoint=…)``, under the same names; each has
            ``load_state_dict``.

        Returns
        -------
        dict
            The plain values of the checkpoint, such as the epoch; empty for a fresh start.
        """
        if self._found is None:
            return {}
        saved = dict(self._found.shared)
        for name, part in parts.items():
            if name not in saved:
                raise SpecError(f"the checkpoint has no part {name!r}", fix=f"it has: {', '.join(saved)}")
            part.load_state_dict(saved.pop(name))
        if self._found.own is not None:
            randomness.restore(self._found.own["random"])
        return saved

    @property
    def own(self) -> Any:
        """What this rank alone had saved beside its random states; None for a fresh start."""
        return self._found.own["rest"] if self._found is not None and self._found.own is not None else None

    def report(
        self, metrics: Mapping[str, float], *, step: int | None = None, checkpoint: Mapping[str, Any] | None = None
    ) -> None:
        """Report metrics, and write a checkpoint if one is given.

        Parameters
        ----------
        metrics : mapping of str to float
            Finite numbers; 0-d arrays and tensors are read.
        step : int, optional
            By default the one after the last.
        checkpoint : mapping, optional
            Modules and optimisers (anything with ``state_dict``) and plain values, by name. Give it on every rank.

        Raises
        ------
        DataError
            If a metric is not a finite number: training on would waste the money.
        """
        self._step = self._step + 1 if step is None else step
        numbers = {name: _finite(name, value, self._step) for name, value in metrics.items()}
        if self.rank == 0 and numbers:
            self.on_report(self._step, numbers)
        if checkpoint is not None:
            self.save(self._step, checkpoint)
        self.stop_if_told()

    def due(self) -> bool:
        """Whether it is time for a checkpoint; the same on all ranks."""
        interval = min(self.spec.checkpoint.every, max(_SOONEST, self._cost / _OVERHEAD))
        told = bool(self.stop_reason())
        return self.group.any(told or time.monotonic() - self._saved_at >= interval)

    def save(self, step: int, checkpoint: Mapping[str, Any], own: Any = None) -> None:
        """Write a checkpoint: rank 0 the shared part, every rank its random states and `own`."""
        begin = time.monotonic()
        shared = {name: _state(part) for name, part in checkpoint.items()} if self.rank == 0 else None
        tree = {"shared": shared, "own": {"random": randomness.snapshot(), "rest": own}}
        digests = self.group.gather(self.checkpoints.write_part(step, self.rank, tree))
        if self.rank == 0 and self.before_checkpoint() and self.checkpoints.commit(step, digests):
            self.on_checkpoint(step)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - begin

    def stop_if_told(self) -> None:
        """End the worker, at a moment when nothing is half done, if it was told to stop."""
        if self.group.any(bool(self.stop_reason())):
            raise Stopped(self.stop_reason() or "another worker was told to stop")


def _state(part: Any) -> Any:
    return part.state_dict() if hasattr(part, "state_dict") else part


def _finite(name: str, value: Any, step: int) -> float:
    try:
        number = float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError):
        raise DataError(f"the metric {name!r} is a {type(value).__name__}", fix="report numbers") from None
    if not math.isfinite(number):
        raise DataError(f"{name} is {number} at step {step}", fix="lower the learning rate, or look for bad rows in the data")
    return number
