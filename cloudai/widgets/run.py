"""The widget of a run: phase, curve, what it has cost, and cancel."""

from __future__ import annotations

import ipywidgets

from cloudai.training.run import Run
from cloudai.widgets.live import LiveView

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
        self.progress = ipywidgets.FloatProgress(min=0, max=1, description="progress", layout={"width": "300px"})
        self.cancel = self.button("Cancel", "End the run; its last checkpoint stays", run.cancel, "warning")
        super().__init__(run, [self.progress, self.cancel])

    def update_controls(self) -> None:
        """Show how far it is; nothing can be cancelled that has ended."""
        status = self._run.status
        done = status.step or 0
        self._set(self.progress, value=done / status.total_steps if status.total_steps else float(self._run.ended))
        self._set(self.cancel, disabled=self._run.ended)
