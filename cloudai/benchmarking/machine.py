"""What a device is called, whether it is busy, how much memory was used and how much fits."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Callable

import psutil
import torch

from cloudai.training import hardware

__all__ = ["fitting_rows", "growth", "how_busy", "name_of", "peak_memory"]

_BUSY = 0.5
"""The load of the last minute, for each core, from which on a machine counts as busy."""
_SPARE = 0.5
"""The share of the free memory that a step may take on a processor, where too much ends the process."""


def name_of(device: torch.device) -> str:
    """Return what a device is called: the GPU's name, or the processor's with how many threads torch uses."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    named = hardware.processor("model name") or platform.processor() or platform.machine()
    return f"{named}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> tuple[int, str]:
    """Return the most bytes in use so far, and of what: of the GPU by torch, or of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device)), "GPU"
    return _peak_of_process(), "process"


def _peak_of_process() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def how_busy() -> tuple[str, ...]:
    """Say that others use this machine's processors, where they do so much that figures are worth less."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return (f"the machine was busy: a load of {load:.1f} on {cores} cores",) if load > _BUSY * cores else ()


def growth(act: Callable[[], None]) -> float:
    """Return by how many bytes this process was larger at most than before, while it did something or ever before."""
    before = psutil.Process().memory_info().rss
    act()
    return max(0.0, float(_peak_of_process() - before))


def fitting_rows(row_bytes: float, most: int, to_come: float = 0.0) -> int:
    """Return how many rows fit into this machine's memory: `most`, halved until they do, and at least 1.

    Parameters
    ----------
    to_come : float
        Bytes that something else will take.

    Examples
    --------
    >>> fitting_rows(row_bytes=1.0, most=32)
    32
    >>> fitting_rows(row_bytes=1e18, most=32)
    1
    """
    used = hardware.use()
    free = min(psutil.virtual_memory().available, used.memory_limit - used.memory)  # a container may have less
    rows, free = most, _SPARE * free - to_come
    while rows > 1 and rows * row_bytes > free:
        rows //= 2
    return rows
