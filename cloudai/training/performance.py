"""How a run fares, as a value that travels: the worker writes it into its status, the handle reads and shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from cloudai.display import Card, Shown, duration
from cloudai.errors import IntegrityError

__all__ = ["Performance"]

_KEPT_TEXT = 200  # letters of a text from the store


@dataclass(frozen=True)
class Performance(Shown):
    """How fast a run goes, and what keeps it: the view of its first worker, at most some seconds old.

    Attributes
    ----------
    at : float
        When it was measured, in unix time.
    steps : int
        Steps of this attempt.
    seconds : float
        How long this attempt has trained, with its waits and stalls, without validation.
    rows_per_second, tokens_per_second : float
        Lately, on this worker; tokens are 0 where the data has none.
    step_p50, step_p95 : float
        Seconds of a step, without waiting for data and checkpoints: half, and 95 of 100, took no longer.
    waiting : float
        The share of the time lately that the loop waited for data.
    stalled : float
        The share of this attempt's time that training stood still for checkpoints.
    flops_per_second : float
        Floating-point operations of the model's arithmetic, lately; 0 where they are not known.
    peak : float
        What the device could do in a second; 0 where that is not known.
    peak_of : str
        What that rate is: a published peak, or one that was measured.
    memory, memory_limit : int
        Bytes of main memory: used by the worker's processes, and of the machine or container.
    gpu : str
        The name of the GPU; empty where there is none.
    gpu_memory, gpu_memory_limit : int
        Bytes: the most that was in use on the GPU, and what it has.
    gpu_busy : float or None
        The share of time in which the GPU did anything at all; None where the driver cannot be asked.

    Examples
    --------
    >>> seen = Performance(at=0.0, steps=10, seconds=5.0, flops_per_second=2e9, peak=8e9)
    >>> seen.utilisation
    0.25
    >>> Performance.parse(seen.to_json()) == seen
    True
    """

    at: float
    steps: int = 0
    seconds: float = 0.0
    rows_per_second: float = 0.0
    tokens_per_second: float = 0.0
    step_p50: float = 0.0
    step_p95: float = 0.0
    waiting: float = 0.0
    stalled: float = 0.0
    flops_per_second: float = 0.0
    peak: float = 0.0
    peak_of: str = ""
    memory: int = 0
    memory_limit: int = 0
    gpu: str = ""
    gpu_memory: int = 0
    gpu_memory_limit: int = 0
    gpu_busy: float | None = None

    @property
    def utilisation(self) -> float | None:
        """The share of the device's peak that the model's arithmetic takes: on a GPU its MFU. None where either is not known.

        MFU as in Chowdhery et al. 2022 (arXiv:2204.02311): what is computed twice, such as for activation checkpointing,
        counts once.
        """
        return self.flops_per_second / self.peak if self.flops_per_second and self.peak else None

    def to_json(self) -> dict[str, Any]:
        """Return it as it is written down."""
        return asdict(self)

    @classmethod
    def parse(cls, value: Any) -> Performance:
        """Read what was written down.

        Raises
        ------
        IntegrityError
            If it is something else.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or not all(_fits(name, value[name]) for name in known & set(value)):
            raise IntegrityError("the run's status holds no performance", fix="see who can write to the store")
        return cls(**{"at": 0.0, **{name: value[name] for name in known & set(value)}})

    def facts(self) -> list[tuple[str, str]]:
        """Return it in words, one line for each thing that is known."""
        lines = [
            ("throughput", self._throughput()),
            ("waiting for data", f"{self.waiting:.1%} of the time"),
            ("checkpoints cost", f"{self.stalled:.1%} of the time"),
            ("MFU" if self.gpu else "arithmetic", self._arithmetic()),
            ("memory", _memory(self.memory, self.memory_limit)),
            ("GPU", self._gpu()),
        ]
        return [(name, text) for name, text in lines if text and (self.steps or name in ("memory", "GPU"))]

    def card(self) -> Card:
        """Show it."""
        return Card("Performance", self.facts() or [("steps", "none yet")])

    def _throughput(self) -> str:
        tokens = f", {_count(self.tokens_per_second)} tokens/s" if self.tokens_per_second else ""
        steps = f"a step takes {_short(self.step_p50)}, 95 of 100 at most {_short(self.step_p95)}"
        rows = f"{_count(self.rows_per_second)} rows/s{tokens}; " if self.rows_per_second else ""
        return rows + steps

    def _arithmetic(self) -> str:
        if not self.flops_per_second:
            return ""
        share = "" if self.utilisation is None else f", {self.utilisation:.1%} of {self.peak_of}"
        return f"{_count(self.flops_per_second)}FLOP/s{share}"

    def _gpu(self) -> str:
        if not self.gpu:
            return ""
        busy = "" if self.gpu_busy is None else f", busy {self.gpu_busy:.0%} of the time"
        return f"{self.gpu}, {_memory(self.gpu_memory, self.gpu_memory_limit)}{busy}"


def _fits(name: str, value: Any) -> bool:
    if name in ("gpu", "peak_of"):
        return isinstance(value, str) and len(value) <= _KEPT_TEXT
    if name == "gpu_busy" and value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _memory(used: int, limit: int) -> str:
    return f"{used / 2**30:.2g} of {limit / 2**30:.3g} GiB" if limit else ""


def _short(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{seconds * 1e3:.2g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def _count(number: float) -> str:
    """Write a number with three digits and a prefix, a space between number and prefix."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            scale = 1e3 if prefix == "k" else size
            return f"{number / scale:.3g} {prefix}"
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"
