"""What a piece of work needs, and how it may be spread."""

from __future__ import annotations

from pydantic import Field

from cloudai.specs.units import Bytes
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


class ScalingPolicy(Spec):
    """Over how many workers a run is spread."""

    num_workers: int = Field(default=1, ge=1, le=4096)
    """1 runs in one process; more are processes of a Ray cluster."""
