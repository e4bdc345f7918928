"""What a training loop does with its time, counted while it goes on.

A loop says little: that a step ended, how long it waited for data, how long it stood still for a checkpoint. The rest is
worked out by whoever asks, every few seconds and in another thread, so a step pays for one look at the clock and a few sums.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["NO_FLOPS", "Figures", "Flops", "Meter"]

_STEPS = 512
"""The spread of step times is that of so many last steps."""
_WINDOW = 8
"""Throughput is that between so many last looks at which something had happened: with one look every two seconds, of the
last quarter of a minute; a loop of slow steps has a longer window, not one without steps."""


@dataclass(frozen=True)
class Flops:
    """The operations of a training step, forward and backward.

    Attributes
    ----------
    per_row, per_token : float
        For each row, and for each token of it.
    per_pair : float
        For each token, and each token of its row that it attends to.
    """

    per_row: float = 0.0
    per_token: float = 0.0
    per_pair: float = 0.0

    def of(self, rows: float, tokens: float = 0.0) -> float:
        """Return the operations of some rows; those of attention as if all rows were of one length, which is a little less."""
        pairs = tokens * tokens / rows if rows else 0.0
        return self.per_row * rows + self.per_token * tokens + self.per_pair * pairs


NO_FLOPS = Flops()


@dataclass(frozen=True)
class _Totals:
    """What was counted up to a moment."""

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    training: float = 0.0
    waiting: float = 0.0
    stalled: float = 0.0

    @property
    def seconds(self) -> float:
        """The time of training, with what kept it; without what is none, such as measuring."""
        return self.training + self.waiting + self.stalled

    def since(self, before: _Totals) -> _Totals:
        return _Totals(
            self.steps - before.steps,
            self.rows - before.rows,
            self.tokens - before.tokens,
            self.training - before.training,
            self.waiting - before.waiting,
            self.stalled - before.stalled,
        )


@dataclass(frozen=True)
class Figures:
    """What a meter says at a moment.

    Attributes
    ----------
    steps : int
        Steps of this attempt.
    seconds : float
        How long this attempt has trained, with its waits and stalls.
    rows_per_second, tokens_per_second : float
        Lately, on this worker; the time of validation is left out. Tokens are 0 where there are none.
    step_p50, step_p95 : float
        Seconds of a step, without waiting for data and checkpoints: half, and 95 of 100, took no longer.
    waiting : float
        The share of the time lately that the loop waited for data.
    stalled : float
        The share of this attempt's time that training stood still for checkpoints.
    flops_per_second : float
        What the work of the steps comes to, lately; 0 where it is not known.
    """

    steps: int
    seconds: float
    rows_per_second: float
    tokens_per_second: float
    step_p50: float
    step_p95: float
    waiting: float
    stalled: float
    flops_per_second: float


class Meter:
    """Counts steps, waits and stalls.

    One thread trains and counts; another may look. A step costs one look at the clock: less than a microsecond.

    Parameters
    ----------
    clock : callable
        Seconds that never go back.

    Examples
    --------
    >>> now = [0.0]
    >>> meter = Meter(lambda: now[0])
    >>> meter.begin()
    >>> for _ in range(4):
    ...     meter.waited(0.25)  # seconds, out of the step's
    ...     now[0] += 1.0
    ...     meter.ended(rows=32)
    >>> figures = meter.figures()
    >>> figures.rows_per_second, figures.step_p50, figures.waiting
    (32.0, 0.75, 0.25)
    """

    __slots__ = (
        "_aside",
        "_clock",
        "_looks",
        "_mark",
        "_rows",
        "_seconds",
        "_stalled",
        "_steps",
        "_tokens",
        "_training",
        "_waiting",
        "after_step",
        "flops",
    )

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: deque[float] = deque(maxlen=_STEPS)
        self._looks: deque[_Totals] = deque([_Totals()], maxlen=_WINDOW)
        self._steps = self._rows = self._tokens = 0
        self._training = self._waiting = self._stalled = self._aside = 0.0
        self._mark = clock()
        self.flops: Flops = NO_FLOPS
        """The floating-point operations of a step's rows, where somebody has worked them out."""
        self.after_step: Callable[[], None] | None = None
        """Called at the end of each step, in the loop's thread; for a profile, while one is made."""

    def begin(self) -> None:
        """Say that steps come from now on: what passed since the last one, such as measuring, was no training."""
        self._aside = 0.0
        self._mark = self._clock()

    def ended(self, rows: int, tokens: int = 0) -> None:
        """Say that a step ended: it began when the one before ended, or at `begin`, and did not wait or stand still in it."""
        now = self._clock()
        seconds = now - self._mark - self._aside
        self._mark, self._aside = now, 0.0
        self._seconds.append(seconds)
        self._training += seconds
        self._rows += rows
        self._tokens += tokens
        self._steps += 1
        if self.after_step is not None:
            self.after_step()

    def waited(self, seconds: float) -> None:
        """Say that the loop waited for data, for so many seconds up to now."""
        self._waiting += seconds
        self._aside += seconds

    def stalled(self, seconds: float) -> None:
        """Say that training stood still for a checkpoint, for so many seconds up to now."""
        self._stalled += seconds
        self._aside += seconds

    def figures(self) -> Figures:
        """Work out how it goes. Each call is a look, and throughput is that between the last looks."""
        now = _Totals(self._steps, self._rows, self._tokens, self._training, self._waiting, self._stalled)
        lately = now.since(self._looks[0])
        if now.steps > self._looks[-1].steps:
            self._looks.append(now)
        seconds = sorted(self._seconds.copy())
        return Figures(
            steps=now.steps,
            seconds=now.seconds,
            rows_per_second=_per(lately.rows, lately.seconds),
            tokens_per_second=_per(lately.tokens, lately.seconds),
            step_p50=_quantile(seconds, 0.5),
            step_p95=_quantile(seconds, 0.95),
            waiting=_per(lately.waiting, lately.seconds),
            stalled=_per(now.stalled, now.seconds),
            flops_per_second=_per(self.flops.of(lately.rows, lately.tokens), lately.seconds),
        )


def _per(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share does not exceed; 0 where there is none."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)] if ordered else 0.0
