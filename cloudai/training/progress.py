"""What a wait writes while it lasts: where the run is, and what is wrong with it."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

from cloudai.display import duration

if TYPE_CHECKING:
    from cloudai.training.run import Run

__all__ = ["LOSSES", "ProgressLine", "steps_of"]

LOSSES = ("loss", "epoch_loss", "val_loss")
"""The metrics that are shown as curves; the first that there is stands in the line."""

_EVERY = 2.0  # seconds between two lines, where they cannot be written over


class ProgressLine:
    """One line that is written over where that works, and now and then a new one where it does not.

    Parameters
    ----------
    enabled : bool
        Whether anything is written.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._over = sys.stderr.isatty()
        self._last = self._what = ""
        self._at = float("-inf")
        self._said: set[str] = set()

    def show(self, run: Run) -> None:
        """Write where the run is, if that is news, and each kind of anomaly once."""
        if not self._enabled:
            return
        self._show_anomalies(run)
        status = run.status
        loss = next((f", {name} {run.metrics[name]:.4g}" for name in LOSSES if name in run.metrics), "")
        why = f" ({status.reason})" if status.reason and not run.ended else ""
        what = f"{run.name}: {status.phase}, step {steps_of(status.step, status.total_steps)}{loss}"
        text, what = f"{what}, {duration(run.cost.seconds)}{why}", what + why
        if self._over:
            text = text[: shutil.get_terminal_size().columns - 1]  # a line that is broken cannot be written over
        if text != self._last if self._over else self._is_news(what, status.phase):
            sys.stderr.write(f"\r\033[K{text}" if self._over else f"{text}\n")
            sys.stderr.flush()
            self._last, self._what, self._at = text, what, time.monotonic()

    def _is_news(self, what: str, phase: str) -> bool:
        """Whether a line that stays is worth it: more than time has passed, and not too little of that."""
        return what != self._what and (phase not in self._what or time.monotonic() - self._at >= _EVERY)

    def _show_anomalies(self, run: Run) -> None:
        for anomaly in run.anomalies:
            if anomaly.kind not in self._said:
                self._said.add(anomaly.kind)
                before = "\r\033[K" if self._over else ""
                sys.stderr.write(f"{before}{run.name}: {anomaly.what}; {anomaly.fix}\n")

    def close(self) -> None:
        """End the line."""
        if self._enabled and self._over and self._last:
            sys.stderr.write("\n")


def steps_of(step: int | None, total: int | None) -> str:
    """Write how far a run is.

    Examples
    --------
    >>> steps_of(None, 10), steps_of(3, None), steps_of(3, 10)
    ('not started', '3', '3 of 10')
    """
    if step is None:
        return "not started"
    return f"{step}" if total is None else f"{step} of {total}"
