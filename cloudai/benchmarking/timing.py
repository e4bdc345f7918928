"""Times of steps and of single passes, measured where the work happens, and how sure the mean is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Interval", "Latency", "StepTimes", "measure_latency", "rate"]

_T_9 = 2.262
"""The 97.5 % quantile of Student's t with 9 degrees of freedom (NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2)."""
_BLOCKS = 10
_WARM_UP = 10
_STEPS = 50
_LEAST = 5.0
"""A window is at least 50 steps and 5 seconds long, unless its longest time is over: 50 steps of a small module take 20 ms."""
_FEWEST = 2  # steps, however long they take: one says nothing about the spread
_RUNS, _RUNS_WARM_UP = 200, 20
_FEWEST_FOR_P99 = 100


@dataclass(frozen=True)
class Interval:
    """A mean, and where it lies with a confidence of 95 %; both ends None where there are too few values."""

    mean: float
    low: float | None
    high: float | None


class StepTimes:
    """When steps end: on a GPU by its own clock, so that measuring does not make it wait.

    Parameters
    ----------
    device : torch.device
        Where the steps are computed.
    longest : float
        Seconds after which the warm-up ends, and the window after it, even with few steps.
    on_begin : callable
        Called when the warm-up is over and nothing is under way.
    """

    def __init__(self, device: torch.device, longest: float, on_begin: Callable[[], None] = lambda: None) -> None:
        self._device, self._longest, self._on_begin = device, longest, on_begin
        self._begin = time.perf_counter()
        self._warm = 0
        self._marks: list[torch.cuda.Event | float] = []
        self._rows: list[int] = []

    @property
    def measuring(self) -> bool:
        """Whether the warm-up is over."""
        return bool(self._marks)

    @property
    def steps(self) -> int:
        """Steps in the window so far."""
        return max(0, len(self._marks) - 1)

    @property
    def elapsed(self) -> float:
        """Seconds since the warm-up, or the window, began."""
        return time.perf_counter() - self._begin

    def mark(self, rows: int) -> bool:
        """Note that a step has been given to the device, with the rows done so far; returns whether that is enough."""
        if not self._marks:
            self._warm += 1
            if self._warm < _WARM_UP and self.elapsed < self._longest:
                return False
            self._synchronize()
            self._on_begin()
            self._begin = time.perf_counter()
        self._marks.append(self._now())
        self._rows.append(rows)
        enough = self.steps >= _STEPS and self.elapsed >= _LEAST
        return self.steps >= _FEWEST and (enough or self.elapsed >= self._longest)

    def durations(self) -> np.ndarray:
        """Return the seconds of each step."""
        self._synchronize()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return np.array([_between(before, after) for before, after in pairs])

    def rows(self) -> np.ndarray:
        """Return the rows of each step."""
        return np.diff(np.array(self._rows))

    def _now(self) -> torch.cuda.Event | float:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _between(before: torch.cuda.Event | float, after: torch.cuda.Event | float) -> float:
    if isinstance(before, float) and isinstance(after, float):
        return after - before
    assert isinstance(before, torch.cuda.Event)
    assert isinstance(after, torch.cuda.Event)
    return float(before.elapsed_time(after)) / 1e3


def rate(rows: np.ndarray, seconds: np.ndarray) -> Interval:
    """Return rows per second, from the rows and seconds of each step.

    The interval is that of ten blocks of steps, by the method of batch means: steps that follow each other are alike, so they
    say less than so many independent ones (Law, Simulation Modeling and Analysis, 5th ed. 2015, section 9.5.3).

    Examples
    --------
    >>> rate(np.full(20, 8), np.full(20, 0.5))
    Interval(mean=16.0, low=16.0, high=16.0)
    """
    mean = float(rows.sum() / seconds.sum())
    if len(seconds) < _BLOCKS:
        return Interval(mean, None, None)
    blocks = zip(np.array_split(seconds, _BLOCKS), np.array_split(rows, _BLOCKS), strict=True)
    each = np.array([time_of.sum() / rows_of.sum() for time_of, rows_of in blocks])
    half = _T_9 * float(each.std(ddof=1)) / math.sqrt(_BLOCKS)
    slowest, fastest = 1 / mean + half, 1 / mean - half
    return Interval(mean, 1 / slowest, 1 / fastest if fastest > 0 else None)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a pass with one row, from the host and back; a percentile is None where there are too few runs."""

    p50: float
    p95: float
    p99: float | None
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Return the percentiles of so many runs.

        Examples
        --------
        >>> Latency.of([0.001] * 199 + [0.101])
        Latency(p50=1.0, p95=1.0, p99=1.0, runs=200)
        """
        p50, p95, p99 = (round(1e3 * float(np.percentile(seconds, q)), 4) for q in (50, 95, 99))
        return cls(p50, p95, p99 if len(seconds) >= _FEWEST_FOR_P99 else None, len(seconds))


def measure_latency(once: Callable[[], object], longest: float, between: Callable[[], object] = lambda: None) -> Latency:
    """Measure passes, each of which ends when its answer is on the host.

    Parameters
    ----------
    once : callable
        One pass.
    longest : float
        Seconds after which there are no more runs, if there are at least ten.
    between : callable
        Called between two passes; its time does not count.
    """
    begin = time.perf_counter()
    for _ in range(_RUNS_WARM_UP):
        once()
        between()
        if time.perf_counter() - begin > longest / 4:
            break
    seconds: list[float] = []
    begin = time.perf_counter()
    while len(seconds) < _RUNS and (len(seconds) < _BLOCKS or time.perf_counter() - begin < longest):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
        between()
    return Latency.of(seconds)
