"""What the worker's machine can do, and what of it is in use: peak rates, memory, utilisation."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil
import torch

__all__ = ["PEAKS", "PEAKS_AS_OF", "Use", "matmul_rate", "peak_of", "processor", "use"]

PEAKS_AS_OF = "2026-11-24"
"""When the table was last compared with public tables of NVIDIA's data sheets; H100 NVL and B200 were in none of them."""

_T = 1e12
PEAKS = MappingProxyType(
    {
        # Dense rates (without structured sparsity) of matrix multiplication, in operations a second, as NVIDIA publishes them.
        # Where a data sheet gives the rate with sparsity, half of it stands here. The first whose words are all in the
        # device's name counts. "float32" is the rate of plain float32, "tf32" that where torch may use TensorFloat-32.
        "B200": {"bfloat16": 2250 * _T, "float16": 2250 * _T, "tf32": 1125 * _T},  # HGX B200 data sheet
        "H200": {"bfloat16": 989.4 * _T, "float16": 989.4 * _T, "tf32": 494.7 * _T, "float32": 66.9 * _T},  # H200 data sheet
        "H100 PCIe": {"bfloat16": 756 * _T, "float16": 756 * _T, "tf32": 378 * _T, "float32": 51.2 * _T},  # H100 data sheet
        "H100 NVL": {"bfloat16": 835 * _T, "float16": 835 * _T, "tf32": 417 * _T, "float32": 60 * _T},  # H100 NVL brief
        "H100": {"bfloat16": 989.4 * _T, "float16": 989.4 * _T, "tf32": 494.7 * _T, "float32": 66.9 * _T},  # Hopper white paper
        "A100": {"bfloat16": 312 * _T, "float16": 312 * _T, "tf32": 156 * _T, "float32": 19.5 * _T},  # A100 data sheet
        "L40S": {"bfloat16": 362 * _T, "float16": 362 * _T, "tf32": 183 * _T, "float32": 91.6 * _T},  # L40S data sheet
        "L4": {"bfloat16": 121 * _T, "float16": 121 * _T, "tf32": 60 * _T, "float32": 30.3 * _T},  # L4 data sheet
        "A10": {"bfloat16": 125 * _T, "float16": 125 * _T, "tf32": 62.5 * _T, "float32": 31.2 * _T},  # A10 data sheet
        "T4": {"float16": 65 * _T, "float32": 8.1 * _T},  # T4 data sheet
        "V100 PCIE": {"float16": 112 * _T, "float32": 14 * _T},  # V100 data sheet
        "V100": {"float16": 125 * _T, "float32": 15.7 * _T},  # V100 data sheet
    }
)

_TRIAL = 0.02
"""Seconds that the rate of this machine's processor is measured for."""
_SIDE = 512
"""Rows and columns of the matrices that it is measured with: enough to be bound by arithmetic, few enough for a cache."""
_NO_LIMIT = 2**60
"""A container's limit from here on is none."""


def peak_of(device: str, dtype: str, *, tf32: bool = False) -> float:
    """Return the published rate of a GPU in operations a second; 0 where it is not known.

    Examples
    --------
    >>> peak_of("NVIDIA A100-SXM4-80GB", "bfloat16") / 1e12
    312.0
    >>> peak_of("Tesla T4", "bfloat16")  # it has none
    0.0
    """
    words = set(re.split(r"[^a-z0-9]+", device.lower()))
    rates = next((rates for name, rates in PEAKS.items() if set(name.lower().split()) <= words), {})
    return rates.get("tf32" if tf32 and dtype == "float32" else dtype, 0.0)


def processor(field: str) -> str:
    """Return what Linux says of the processor, such as its ``"model name"``; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def matmul_rate(dtype: torch.dtype = torch.float32) -> float:
    """Measure how many operations a second this processor reaches when it multiplies matrices, in about 20 ms.

    The counterpart, on a processor, of a GPU's published peak: not what the silicon could, but what torch gets out of it
    with the threads that the worker has.
    """
    left = torch.full((_SIDE, _SIDE), 0.5, dtype=dtype)
    best, until = 0.0, time.perf_counter() + _TRIAL
    while time.perf_counter() < until:
        begin = time.perf_counter()
        torch.mm(left, left)
        best = max(best, 2 * _SIDE**3 / (time.perf_counter() - begin))  # the quickest: others use the machine too
    return best


@dataclass(frozen=True)
class Use:
    """What a worker uses of its machine.

    Attributes
    ----------
    memory, memory_limit : int
        Bytes of main memory: of this process and those that it started, and what the machine or the container has.
    gpu : str
        The name of the GPU; empty where there is none.
    gpu_memory, gpu_memory_limit : int
        Bytes: the most that tensors have taken, and what the GPU has.
    gpu_busy : float or None
        The share of the last moments in which the GPU did anything at all; None where the driver cannot be asked
        (``nvidia-ml-py`` is not installed).
    """

    memory: int
    memory_limit: int
    gpu: str = ""
    gpu_memory: int = 0
    gpu_memory_limit: int = 0
    gpu_busy: float | None = None


def use() -> Use:
    """Look at what this process uses."""
    memory, limit = _memory(), _memory_limit()
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
        return Use(memory, limit)
    device = torch.cuda.current_device()
    found = torch.cuda.get_device_properties(device)
    return Use(memory, limit, found.name, torch.cuda.max_memory_allocated(device), found.total_memory, _gpu_busy())


def _memory() -> int:
    process = psutil.Process()
    total = 0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error, OSError):
            total += each.memory_info().rss
    return total


def _memory_limit() -> int:
    limits = [int(psutil.virtual_memory().total)]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" where there is none
            limits.append(int(Path(path).read_text(encoding="ascii")))
    return min(limit for limit in limits if limit < _NO_LIMIT)


def _gpu_busy() -> float | None:
    """Ask the driver; torch numbers the GPUs that it sees, the driver those that there are."""
    try:
        import pynvml
    except ImportError:
        return None
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip().isdigit()]
    index = torch.cuda.current_device()
    with contextlib.suppress(pynvml.NVMLError, IndexError):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(visible[index]) if visible else index)
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    return None
