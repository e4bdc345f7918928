"""The energy that a device or a processor took, where it counts that itself; nothing is estimated."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

__all__ = ["Meter", "NvmlMeter", "RaplMeter", "meter_of"]

_RAPL = Path("/sys/class/powercap")
_MOST_WATTS = 1000.0
"""More than any processor takes for longer than a moment; the largest are made for half of it."""


class Meter(Protocol):
    """Counts energy."""

    source: str

    def start(self) -> None:
        """Begin to count."""
        ...

    def joules(self) -> float | None:
        """Return the joules since the start; None where they cannot be known."""
        ...


def meter_of(device: torch.device) -> Meter | None:
    """Return what counts a device's energy; None where nothing does, or we may not read it."""
    if device.type == "cuda":
        return NvmlMeter.found(device)
    return RaplMeter.found(_RAPL)


@dataclass
class RaplMeter:
    """The counters of Intel's and AMD's processors as Linux shows them (Documentation/power/powercap of the kernel).

    They count whole processors: what else the machine does is in them.
    """

    zones: Mapping[Path, int]
    """The folder of each processor, and at which microjoule its counter begins again."""
    now: Callable[[], float] = time.monotonic
    source = "RAPL, the whole processor"

    def __post_init__(self) -> None:
        self.start()

    @classmethod
    def found(cls, root: Path) -> RaplMeter | None:
        """Return the meter of all processors below a folder; None where there is none that can be read."""
        zones: dict[Path, int] = {}
        for zone in sorted(root.glob("*-rapl:*")):
            if zone.name.count(":") > 1:  # a part of a processor that is counted with it
                continue
            with contextlib.suppress(OSError, ValueError):
                _read(zone / "energy_uj")  # only root may read it on many machines
                zones[zone] = _read(zone / "max_energy_range_uj")
        return cls(zones) if zones else None

    def start(self) -> None:
        """Begin to count."""
        self._spent, self._lost = 0, False
        self._at, self._last = self.now(), self._energy()

    def joules(self) -> float | None:
        """Return the joules since the start; None where a counter may have begun again twice between two questions."""
        at, energy = self.now(), self._energy()
        self._lost |= at - self._at > min(self.zones.values()) / 1e6 / _MOST_WATTS
        self._spent += sum((energy[zone] - last) % (self.zones[zone] + 1) for zone, last in self._last.items())
        self._at, self._last = at, energy
        return None if self._lost else self._spent / 1e6

    def _energy(self) -> dict[Path, int]:
        return {zone: _read(zone / "energy_uj") for zone in self.zones}


def _read(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


@dataclass
class NvmlMeter:
    """The counter of an NVIDIA GPU, of Volta or later (nvmlDeviceGetTotalEnergyConsumption)."""

    nvml: Any
    handle: Any
    source = "NVML, the GPU alone"

    def __post_init__(self) -> None:
        self._begin = 0

    @classmethod
    def found(cls, device: torch.device) -> NvmlMeter | None:
        """Return the meter of a GPU; None where ``pynvml`` is not installed, or the GPU does not count."""
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            meter = cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
            meter.start()
        except Exception:  # noqa: BLE001  whatever is missing, there is no figure then
            return None
        return meter

    def start(self) -> None:
        """Begin to count."""
        self._begin = self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)

    def joules(self) -> float:
        """Return the joules since the start."""
        return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) - self._begin) / 1e3
