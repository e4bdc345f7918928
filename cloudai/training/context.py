"""What a training function is given: its rank, its data, its last checkpoint, and the means to report."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from cloudai.errors import DataError, SpecError
from cloudai.specs.training import TrainSpec
from cloudai.training import randomness
from cloudai.training.cadence import Cadence
from cloudai.training.checkpoints import Checkpoint, Checkpoints, Writer
from cloudai.training.devices import device_of
from cloudai.training.loaders import Loader
from cloudai.training.meter import Meter

__all__ = ["Context", "Copies", "Group", "Solo", "Stopped"]


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

    def device(self, spec: TrainSpec) -> torch.device:
        """Return where this rank computes; `PlacementError` where there is no such device."""
        ...

    def wrap(self, module: Any) -> Any:
        """Return the module so that its gradients are averaged over the ranks."""
        ...

    def state(self, module: Any, optimizer: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return the states of a module and its optimiser, whole on rank 0; all ranks call it."""
        ...

    def load(self, module: Any, optimizer: Any, model_state: Mapping[str, Any], optimizer_state: Mapping[str, Any]) -> None:
        """Put back what `state` returned on rank 0; all ranks call it, with all of it."""
        ...

    def whole(self, module: Any) -> Any:
        """Return the module with all of its weights, on rank 0; all ranks call it."""
        ...


class Copies:
    """What a group does whose workers each hold all of the module."""

    def state(self, module: Any, optimizer: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return both states."""
        return module.state_dict(), optimizer.state_dict()

    def load(self, module: Any, optimizer: Any, model_state: Mapping[str, Any], optimizer_state: Mapping[str, Any]) -> None:
        """Put both states back."""
        module.load_state_dict(model_state)
        optimizer.load_state_dict(optimizer_state)

    def whole(self, module: Any) -> Any:
        """Return the module itself."""
        return module


class Solo(Copies):
    """A group of one."""

    rank = 0
    world_size = 1

    def gather(self, value: str) -> list[str]:
        """Return the only value."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Return the only flag."""
        return flag

    def device(self, spec: TrainSpec) -> torch.device:
        """Return the first GPU where the run asks for one, else the processor."""
        return device_of(spec)

    def wrap(self, module: Any) -> Any:
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
    on_checkpoint: Callable[[int, float, float], None] = lambda step, at, took: None
    """Called when there is a new checkpoint, with its step, the unix time of the state that it holds, and the seconds that it
    took to copy and to write."""
    alive: Callable[[], None] = lambda: None
    """Called while there is work between two steps, such as measuring, so that nobody takes it for a hang."""
    on_first_step: Callable[[], None] = lambda: None
    """Called when this attempt has taken its first step."""
    works: Callable[[torch.nn.Module, Sequence[torch.Tensor], str], None] = lambda module, inputs, dtype: None
    """Told once, before the first step, what a step works on, and in which dtype."""
    meter: Meter = field(default_factory=Meter)
    stop_reason: Callable[[], str] = lambda: ""
    """Says why the worker should end; empty while it should not."""
    hurries: Callable[[], bool] = lambda: False
    """Says, once, that a checkpoint is wanted at once, though the worker goes on."""
    interruptions: int = 0
    """How often the run was interrupted before."""

    def __post_init__(self) -> None:
        self._device = self.group.device(self.spec)
        self._found: Checkpoint | None = self.checkpoints.latest(self.rank)
        self._step = self._found.step if self._found else -1
        self._began = self._saved_at = time.monotonic()
        self._taken_at = 0.0
        self._worked = float(self._found.own.get("worked", 0.0)) if self._found and self._found.own else 0.0
        self._writer = Writer(self.checkpoints, self.rank, self._commit, alone=self.world_size == 1)
        policy = self.spec.checkpoint
        self._cadence = Cadence(
            longest=policy.every,
            mtbf=policy.mtbf,
            spot=self.spec.spot_policy == "spot",
            failures=self.interruptions,
            worked=self._worked,
        )
        self._next = self._choose_next()

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

    @property
    def device(self) -> torch.device:
        """Where this worker computes: its GPU where the run asked for one, else the processor."""
        return self._device

    def loader(self, dataset: Any, *, batch_size: int, num_workers: int = 0) -> Loader:
        """Return a loader of your own dataset whose place comes back with a checkpoint.

        Parameters
        ----------
        dataset
            A map-style dataset of torch: with ``__len__`` and ``__getitem__``.
        batch_size : int
            Rows of one batch, over all workers of the run together.
        num_workers : int
            Processes that load rows beside the training. What they draw at random is drawn from the seed, the epoch and the
            row, so it comes back too.

        Raises
        ------
        DataError
            If the dataset has no length, or less rows than a batch.
        """
        group = self.group
        return Loader(
            dataset,
            batch_size=batch_size,
            seed=self.seed,
            rank=group.rank,
            world_size=group.world_size,
            num_workers=num_workers,
        )

    def accumulating(self, module: Any, *, last: bool) -> contextlib.AbstractContextManager[object]:
        """Return the context for one of several parts of a step: of a wrapped module, gradients are averaged with the last."""
        if last or not hasattr(module, "no_sync"):
            return contextlib.nullcontext()
        return module.no_sync()  # type: ignore[no-any-return]

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
        if self.spec.work.kind == "function":
            self.meter.ended(rows=0)  # what it does in between is its own; a report is a step
        numbers = {name: _finite(name, value, self._step) for name, value in metrics.items()}
        if self.rank == 0 and numbers:
            self.on_report(self._step, numbers)
        if self._writer.undecided:
            self._decide()
        if checkpoint is not None:
            self.save(self._step, checkpoint)
        if self.spec.work.kind == "function":  # the built-in loop ends after a checkpoint, never before
            self.stop_if_told()

    def due(self) -> bool:
        """Whether it is time for a checkpoint; the same on all ranks."""
        told = bool(self.stop_reason()) or self.hurries()
        if self._writer.undecided and not self._decide():
            return self.group.any(told)
        return self.group.any(told or self._is_time())

    def _is_time(self) -> bool:
        if time.monotonic() < self._next or not self._writer.idle:
            return False
        self._next = self._choose_next()  # now it is known how long the writing took
        return time.monotonic() >= self._next

    def _choose_next(self) -> float:
        """Return when the next checkpoint is due."""
        self._cadence.learn(writing=self._writer.seconds)
        return self._saved_at + self._cadence.interval(time.monotonic() - self._began)

    def save(self, step: int, checkpoint: Mapping[str, Any], own: Any = None) -> None:
        """Begin a checkpoint: rank 0 the shared part, every rank its random states and `own`.

        Training stands still while they are copied, and until the checkpoint before has been written.
        """
        self.settle()
        ready = time.monotonic()
        shared = {name: _state(part) for name, part in checkpoint.items()} if self.rank == 0 else None
        worked = self._worked + ready - self._began
        tree = {"shared": shared, "own": {"random": randomness.snapshot(), "rest": own, "worked": worked}}
        self._taken_at = time.time()  # before a thread may look at it
        self._writer.begin(step, tree)
        self._saved_at = time.monotonic()
        self._cadence.learn(stall=self._saved_at - ready)
        self._next = self._choose_next()
        self.meter.stalled(self._saved_at - ready)

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is on its way to the store."""
        return not self._writer.idle

    @property
    def writing_seconds(self) -> float:
        """How long this worker's part of the last checkpoint was on its way."""
        return self._writer.seconds

    def settle(self) -> None:
        """Wait until the checkpoint that was begun last counts, or was left out."""
        begin = time.monotonic()
        if self._writer.undecided:
            self._gather()
        self._writer.wait()
        self.meter.stalled(time.monotonic() - begin)

    def _decide(self) -> bool:
        """Let the last checkpoint count if all ranks have written their part of it; returns whether they have."""
        if self.group.any(self._writer.writing):
            return False
        self._gather()
        return True

    def _gather(self) -> None:
        digests = self.group.gather(self._writer.digest())
        if self.rank == 0:
            self._writer.settle(digests)

    def _commit(self, step: int, digests: Sequence[str]) -> None:
        begin = time.monotonic()
        if self.before_checkpoint() and self.checkpoints.commit(step, digests, self._taken_at):
            took = self._writer.copying + self._writer.seconds + time.monotonic() - begin
            self.on_checkpoint(step, self._taken_at, took)

    def stop_if_told(self) -> None:
        """End the worker, at a moment when nothing is half done, if it was told to stop."""
        if self.group.any(bool(self.stop_reason())):
            self.settle()
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
