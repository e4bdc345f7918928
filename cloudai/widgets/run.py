"""The widget of a run: phase, curve, what it has cost, and cancel."""

from __future__ import annotations

import ipywidgets

from cloudai.training.run import Run
from cloudai.widgets.live import LiveView, assign

__all__ = ["RunView"]


class RunView(LiveView):
    """A run, live.

    Parameters
    ----------
    run : Run
        The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._asked = False
        self.progress = ipywidgets.FloatProgress(min=0, max=1, layout={"width": "320px"}, style={"description_width": "3em"})
        self.cancel = self.button("Cancel", "End the run; its last checkpoint stays", self._cancel, "danger")
        super().__init__(run, [self.progress, self.cancel])

    def update_controls(self) -> None:
        """Show how far it is, where that is known; nothing can be cancelled twice, or after the end."""
        status, ended = self._run.status, self._run.ended
        share = (status.step or 0) / status.total_steps if status.total_steps else 0.0
        assign(self.progress, value=share, description=f"{share:.0%}")
        assign(self.progress.layout, display=None if status.total_steps else "none")
        waiting = self._asked and not ended
        assign(self.cancel, disabled=ended or waiting, description="Cancelling …" if waiting else "Cancel")

    def _cancel(self) -> None:
        self._run.cancel()
        self._asked = True
