"""What is wrong with a run that goes on, in words: pure functions of what its worker saw and reported.

Each says nothing unless it has seen enough. A threshold is where acting pays; the reason stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from cloudai.display import Card, Shown
from cloudai.errors import IntegrityError
from cloudai.tracking import Row
from cloudai.training.performance import Performance

__all__ = ["Anomaly", "found"]


@dataclass(frozen=True)
class Anomaly(Shown):
    """Something about a run that somebody should look at.

    Attributes
    ----------
    kind : str
        waiting, checkpoints, gpu, memory, gpu memory, slower, exploding, stuck or overfitting.
    what : str
        What is wrong, with the numbers.
    fix : str
        What may help.
    since : float
        When it was first seen, in unix time.
    """

    kind: str
    what: str
    fix: str
    since: float

    def card(self) -> Card:
        """Show it."""
        return Card(f"Anomaly: {self.kind}", [("what", self.what), ("fix", self.fix)])

    def to_json(self) -> dict[str, Any]:
        """Return it as it is written down."""
        return asdict(self)

    @classmethod
    def parse(cls, value: Any) -> Anomaly:
        """Read what was written down.

        Raises
        ------
        IntegrityError
            If it is something else.
        """
        if isinstance(value, Mapping):
            texts, since = [value.get(name) for name in ("kind", "what", "fix")], value.get("since")
            if all(isinstance(text, str) for text in texts) and isinstance(since, int | float) and math.isfinite(since):
                return cls(str(texts[0]), str(texts[1]), str(texts[2]), float(since))
        raise IntegrityError("the run's status holds no anomalies", fix="see who can write to the store")


_LOOKS = 3
"""Looks in a row that must agree; each is of the last quarter of a minute already, so a hiccup is no anomaly."""
_WAITING = 0.2
"""From a fifth on, what the waits cost is more than an hour of work on the loader on all but the shortest runs."""
_STALLED, _STALLED_AFTER = 0.05, 60.0
"""Checkpoints are spaced to take a hundredth of the time. Five times that is a store or a policy to look at, once a minute
of training has passed: before, a single checkpoint is a large share of nothing."""
_BUSY = 0.5
"""A GPU that does nothing half of the time costs twice as much for each step."""
_MEMORY, _GPU_MEMORY = 0.9, 0.95
"""What is left is less than what a few larger rows take. A GPU is given to one process, so it may be filled further."""
_FELL, _USUAL_LOOKS = 0.5, 10
"""Half of what was usual over some ten looks before: noise of a shared machine is less."""
_ENDS = 5
"""Losses at the beginning and at the end whose median is compared: single batches are noisy."""
_EXPLODED, _EXPLODED_ROWS = 2.0, 20
"""A loss twice as high as at the beginning is worse than knowing nothing, which is where it began."""
_STUCK, _STRAYED, _STUCK_ROWS = 0.01, 0.1, 50
"""A loss that is within a hundredth of where it began, and never was further than a tenth from it, after a quarter of the
points of a whole run's curve."""
_WORSE, _WORSE_TIMES = 1.05, 3
"""So much worse than the best validation loss, for so many epochs in a row, is more than the noise of a held-back tenth."""


def found(looks: Sequence[Performance], rows: Sequence[Row]) -> list[Anomaly]:
    """Return what is wrong now.

    Parameters
    ----------
    looks : sequence of Performance
        What was seen of this attempt, some seconds apart, the latest last.
    rows : sequence of Row
        The metrics of the whole run, in order.
    """
    seen = [check(looks) for check in (*_OF_LOOKS, _slower)] if looks else []
    seen += [check(rows) for check in (_exploding, _stuck, _overfitting)]
    return [anomaly for anomaly in seen if anomaly is not None]


def _lately(looks: Sequence[Performance], wrong: Callable[[Performance], bool]) -> float | None:
    """Return since when something has been wrong at every look; None where it is not, or not for long enough."""
    since, count = None, 0
    for look in reversed(looks):
        if not wrong(look):
            break
        since, count = look.at, count + 1
    return since if count >= _LOOKS else None


@dataclass(frozen=True)
class _Lasting:
    """Something that is wrong with each of the last looks."""

    kind: str
    wrong: Callable[[Performance], bool]
    what: Callable[[Performance], str]
    fix: str

    def __call__(self, looks: Sequence[Performance]) -> Anomaly | None:
        since = _lately(looks, self.wrong)
        return None if since is None else Anomaly(self.kind, self.what(looks[-1]), self.fix, since)


_OF_LOOKS = (
    _Lasting(
        "waiting",
        lambda look: look.waiting > _WAITING,
        lambda look: f"training waits for data {look.waiting:.0%} of the time",
        "prepare the rows beforehand, or move the data nearer to the worker",
    ),
    _Lasting(
        "checkpoints",
        lambda look: look.stalled > _STALLED and look.seconds >= _STALLED_AFTER,
        lambda look: f"checkpoints take {look.stalled:.0%} of the time",
        "write them less often with checkpoint=, or to a faster store",
    ),
    _Lasting(
        "gpu",
        lambda look: look.gpu_busy is not None and look.gpu_busy < _BUSY and look.waiting <= _WAITING,
        lambda look: f"the GPU is busy only {look.gpu_busy or 0:.0%} of the time, and not for want of data",
        "take larger batches, or a smaller GPU; run.profile() shows what it waits for",
    ),
    _Lasting(
        "memory",
        lambda look: look.memory_limit > 0 and look.memory > _MEMORY * look.memory_limit,
        lambda look: f"the worker uses {look.memory / look.memory_limit:.0%} of the machine's memory, and may be killed for it",
        "stream the data, take smaller batches, or ask for more with resources=",
    ),
    _Lasting(
        "gpu memory",
        lambda look: look.gpu_memory_limit > 0 and look.gpu_memory > _GPU_MEMORY * look.gpu_memory_limit,
        lambda look: f"{look.gpu_memory / look.gpu_memory_limit:.0%} of the GPU's memory was in use",
        "a longer row may not fit: take smaller batches",
    ),
)


def _slower(looks: Sequence[Performance]) -> Anomaly | None:
    """Compare with what was usual before; in tokens where there are any, since rows may be of any length."""
    rates = [look.tokens_per_second or look.rows_per_second for look in looks]
    usual = rates[:-_LOOKS]
    if len(usual) < _USUAL_LOOKS or not median(usual):
        return None
    limit = _FELL * median(usual)
    since = _lately(looks, lambda look: (look.tokens_per_second or look.rows_per_second) < limit)
    if since is None:
        return None
    what = f"training runs at {rates[-1] / median(usual):.0%} of the speed that was usual"
    return Anomaly(
        "slower", what, "see who else uses the machine, and whether it is throttled; run.profile() shows more", since
    )


def _curve(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """Return a metric's values, each with its time."""
    return [(row.at, row.metrics[name]) for row in rows if name in row.metrics]


def _ends(losses: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the loss at the beginning and at the end."""
    return median(value for _, value in losses[:_ENDS]), median(value for _, value in losses[-_ENDS:])


def _exploding(rows: Sequence[Row]) -> Anomaly | None:
    losses = _curve(rows, "loss")
    if len(losses) < _EXPLODED_ROWS:
        return None
    first, last = _ends(losses)
    if first <= 0 or last <= _EXPLODED * first:
        return None
    what = f"the loss is {last:.3g}, and began with {first:.3g}"
    return Anomaly("exploding", what, "lower the learning rate, or look for bad rows in the data", losses[-_ENDS][0])


def _stuck(rows: Sequence[Row]) -> Anomaly | None:
    losses = _curve(rows, "loss")
    if len(losses) < _STUCK_ROWS:
        return None
    values, quarter = [value for _, value in losses], len(losses) // 4  # more than the ends: noise may be more than movement
    first, last = median(values[:quarter]), median(values[-quarter:])
    moves = first <= 0 or abs(first - last) > _STUCK * first
    if moves or min(values) < (1 - _STRAYED) * first or max(values) > (1 + _STRAYED) * first:
        return None
    what = f"the loss has not moved from {first:.3g} in {len(losses)} reports"
    fix = "see that the targets can be told from the inputs; scale the inputs, or change the learning rate"
    return Anomaly("stuck", what, fix, losses[0][0])


def _overfitting(rows: Sequence[Row]) -> Anomaly | None:
    epochs = [row for row in rows if "val_loss" in row.metrics and "epoch_loss" in row.metrics]
    if len(epochs) <= _WORSE_TIMES:
        return None
    best = min(range(len(epochs)), key=lambda i: epochs[i].metrics["val_loss"])
    lowest, after = epochs[best].metrics, epochs[best + 1 :]
    worse = [row.metrics["val_loss"] > _WORSE * lowest["val_loss"] for row in after[-_WORSE_TIMES:]]
    learns = bool(after) and after[-1].metrics["epoch_loss"] < lowest["epoch_loss"]
    if len(worse) < _WORSE_TIMES or not all(worse) or lowest["val_loss"] <= 0 or not learns:
        return None
    what = f"the validation loss rose from {lowest['val_loss']:.3g} to {after[-1].metrics['val_loss']:.3g} while the loss fell"
    return Anomaly("overfitting", what, "stop after fewer epochs, raise weight_decay=, or bring more data", after[0].at)
