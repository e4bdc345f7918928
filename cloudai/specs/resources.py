"""What a piece of work needs, and how it may be spread."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from cloudai.errors import SpecError
from cloudai.specs.units import Bytes, Seconds
from cloudai.specs.validation import Spec

__all__ = ["Resources", "ScalingPolicy"]


class Resources(Spec):
    """What one worker or one replica needs.

    Examples
    --------
    >>> Resources.of(cpus=2, memory="4GiB").memory
    4294967296
    """

    cpus: float = Field(default=1.0, gt=0)
    """Processor cores."""
    memory: Bytes = 0
    """Bytes of memory; 0 means "does not matter"."""
    gpus: int = Field(default=0, ge=0)
    """Accelerators."""
    gpu_type: str = ""
    """The accelerator's name, such as ``"A100"``; empty means any."""


def _workers(value: Any) -> Any:
    """Refuse what is no range before pydantic says so in its own words."""
    if isinstance(value, tuple | list) and not (
        len(value) == 2 and all(type(n) is int for n in value) and value[0] <= value[1]
    ):
        raise SpecError(f"{value!r} is no range of workers", fix="give the fewest and the most, such as (1, 4)")
    return value


_Count = Annotated[int, Field(ge=1, le=4096)]


class ScalingPolicy(Spec):
    """Over how many workers a run is spread.

    Examples
    --------
    >>> ScalingPolicy(num_workers=(1, 4)).sizes(64)
    (1, 2, 4)
    """

    num_workers: Annotated[_Count | tuple[_Count, _Count], BeforeValidator(_workers)] = 1
    """1 runs in one process; more are processes of a Ray cluster. ``(min, max)`` takes as many as there is room for, and
    another number later."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What each worker holds: a copy of the whole model (DistributedDataParallel), or a part of it (FSDP2, for a model that
    is too large for one worker)."""
    check_every: Seconds = 30.0
    """How often an elastic run looks whether there is room for more workers."""

    @property
    def smallest(self) -> int:
        """The fewest workers."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def largest(self) -> int:
        """The most workers."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.smallest < self.largest

    def sizes(self, batch_size: int) -> tuple[int, ...]:
        """Return the numbers of workers that can share a batch of so many rows equally."""
        return tuple(size for size in range(self.smallest, self.largest + 1) if batch_size % size == 0)
