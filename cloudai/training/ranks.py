"""One rank's side of a run on several workers: its group, and how it hears that it should end.

Ray Train carries processes, ranks and collectives; checkpoints are ours, on the store, and are found there by whichever
processes come next.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cloudai.specs.confidential import start_log
from cloudai.specs.training import TrainSpec
from cloudai.training.context import Copies
from cloudai.training.job import STOPPED, SUCCEEDED
from cloudai.training.sharding import Sharding
from cloudai.training.stopping import Stop

__all__ = ["Notice", "Pace", "RankStop", "RayGroup", "Said", "rank_main"]

log = logging.getLogger(__name__)

_LISTEN = 0.3  # seconds between two looks at the notice


class Said(NamedTuple):
    """What the ranks are told."""

    reason: str = ""
    """Why they should end; empty while they should not."""
    hurries: int = 0
    """How often a checkpoint was wanted at once."""
    notice: str = ""
    """What the cloud of the machine that tells them says last."""


class Pace(NamedTuple):
    """What rank 0 has measured, in seconds."""

    step: float = 0.0
    """The longest of its last steps."""
    checkpoint: float = 0.0
    """The slowest checkpoint."""


class Notice:
    """A Ray actor between the worker that was submitted and the ranks, which may be on other machines."""

    def __init__(self) -> None:
        self._said, self._pace = Said(), Pace()
        self._code: int | None = None
        self._begun = False

    def tell(self, reason: str, notice: str) -> None:
        """Say why the ranks should end."""
        self._said = self._said._replace(reason=reason, notice=notice)

    def hurry(self, notice: str) -> None:
        """Say that a checkpoint is wanted at once, though the work goes on."""
        self._said = self._said._replace(hurries=self._said.hurries + 1, notice=notice)

    def hear(self, pace: Pace | None) -> Said:
        """Return what the ranks are told; rank 0 says how it goes."""
        self._pace = pace or self._pace
        return self._said

    def pace(self) -> Pace:
        """Return how it goes, as rank 0 has said last."""
        return self._pace

    def begin(self) -> None:
        """Note that rank 0 is at work, and would hear."""
        self._begun = True

    def begun(self) -> bool:
        """Return whether rank 0 is at work."""
        return self._begun

    def end(self, code: int) -> None:
        """Note how rank 0 has ended."""
        self._code = code

    def code(self) -> int | None:
        """Return how rank 0 has ended; None where it has not said."""
        return self._code


def rank_main(config: Mapping[str, Any]) -> None:
    """Run in each Ray worker: one rank's part. A rank that fails must say so to Ray, or the others would wait for it."""
    import ray

    from cloudai.training.execution import execute

    start_log()
    spec, notice = TrainSpec.parse(config["spec"]), config["notice"]
    group = RayGroup(spec.scaling.strategy)
    if group.rank == 0:
        ray.get(notice.begin.remote())
    code = execute(spec, config["attempt"], group, RankStop(_ears(notice), group.rank))
    if group.rank == 0:
        ray.get(notice.end.remote(code))
    if code not in (SUCCEEDED, STOPPED):
        raise RuntimeError(f"this rank ended with code {code}")


def _ears(notice: Any) -> Callable[[Pace | None], Said | None]:
    """Return what asks the notice; None is its answer where whoever would tell is gone: Ray ends this rank, too."""
    import ray

    def hear(pace: Pace | None) -> Said | None:
        with contextlib.suppress(ray.exceptions.RayError):
            said: Said = ray.get(notice.hear.remote(pace), timeout=10)
            return said
        return None

    return hear


class RankStop(Stop):
    """Says why this rank should end, as far as it has heard; rank 0 says in turn how long its steps and checkpoints take.

    Parameters
    ----------
    hear : callable
        Takes rank 0's pace, None of others, and returns what the ranks are told.
    rank : int
        Which one this is. Rank 0 alone asks for a checkpoint that is wanted at once: the others follow it.
    """

    def __init__(self, hear: Callable[[Pace | None], Said | None], rank: int) -> None:
        super().__init__(lambda: self._said.reason)
        self._hear, self._first = hear, rank == 0
        self._said = Said()
        self._checkpoint, self._hurried = 0.0, 0
        threading.Thread(target=self._listen, name="cloudai-listener", daemon=True).start()

    def checkpoint_took(self, seconds: float) -> None:
        """Learn how long a checkpoint was on its way."""
        self._checkpoint = max(self._checkpoint, seconds)

    def hurries(self) -> bool:
        """Whether a checkpoint is wanted at once, though the worker goes on; says so once."""
        before, self._hurried = self._hurried, self._said.hurries
        return self._first and self._hurried > before

    def _listen(self) -> None:
        wait: Callable[[float], bool] = threading.Event().wait
        while not self._said.reason:
            pace = Pace(self.pulse.recent, self._checkpoint) if self._first else None
            self._said = self._hear(pace) or self._said
            self.notice = self._said.notice
            wait(_LISTEN)


class RayGroup(Copies):
    """The workers of a run as Ray Train and torch.distributed know them.

    Parameters
    ----------
    strategy : {"ddp", "fsdp"}
        What each of them holds: all of the model, or a part.
    """

    def __init__(self, strategy: str = "ddp") -> None:
        import ray.train
        import torch.distributed

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self._dist = torch.distributed
        self._strategy = strategy
        self._sharding: Sharding | None = None

    def gather(self, value: str) -> list[str]:
        """Return every rank's value on all ranks, as bytes: torch's own gathering of objects would read pickles."""
        import torch

        mine = torch.tensor(list(value.encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        self._dist.all_gather(sizes, torch.tensor([len(mine)]))
        padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
        padded[: len(mine)] = mine
        parts = [torch.zeros_like(padded) for _ in sizes]
        self._dist.all_gather(parts, padded)
        return [bytes(part[: int(size)].tolist()).decode() for part, size in zip(parts, sizes, strict=True)]

    def any(self, flag: bool) -> bool:
        """Return whether any rank says yes."""
        import torch

        votes = torch.tensor([int(flag)])
        self._dist.all_reduce(votes, op=self._dist.ReduceOp.MAX)
        return bool(votes.item())

    def device(self, spec: TrainSpec) -> Any:
        """Return the device that Ray has given to this rank."""
        import ray.train.torch

        return ray.train.torch.get_device()

    def wrap(self, module: Any) -> Any:
        """Return the module so that its gradients are averaged over the ranks, or so that each rank holds a part of it."""
        from torch.nn.parallel import DistributedDataParallel

        if not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        if self._strategy == "fsdp":
            self._sharding = Sharding(module, self.world_size)
            return module
        return DistributedDataParallel(module)

    def state(self, module: Any, optimizer: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return the full state of a module and its optimiser; all ranks must call it, and rank 0's is whole."""
        if self._sharding is not None:
            return self._sharding.state(optimizer)
        return super().state(module, optimizer)

    def load(self, module: Any, optimizer: Any, model_state: Mapping[str, Any], optimizer_state: Mapping[str, Any]) -> None:
        """Put back what `state` returned on rank 0; all ranks must call it with all of it."""
        if self._sharding is not None:
            self._sharding.load(optimizer, model_state, optimizer_state)
        else:
            super().load(module, optimizer, model_state, optimizer_state)

    def whole(self, module: Any) -> Any:
        """Return the module with all of its weights, on rank 0; all ranks must call it."""
        return super().whole(module) if self._sharding is None else self._sharding.whole()
