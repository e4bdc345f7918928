"""The widget of a rollout: which revision has which traffic, the canary's share, promote and roll back."""

from __future__ import annotations

import threading
from typing import Any

import ipywidgets

from cloudai.serving.deployment import Deployment
from cloudai.widgets.live import LiveView

__all__ = ["RolloutView"]


class RolloutView(LiveView):
    """A deployment's rollout, live.

    Parameters
    ----------
    deployment : Deployment
        The deployment.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.share = ipywidgets.IntSlider(
            min=0, max=100, step=5, description="canary %", continuous_update=False, layout={"width": "320px"}
        )
        self.share.observe(self._share_moved, "value")
        self.promote = self.button("Promote", "Give the canary all the traffic", deployment.promote, "success")
        self.rollback = self.button("Roll back", "Go back to the revision before", deployment.rollback, "danger")
        super().__init__(deployment, [self.share, self.promote, self.rollback])

    def update_controls(self) -> None:
        """Show the share asked for; only what is possible can be pressed."""
        rollout, ended = self._deployment.rollout, self._deployment.ended
        self._set(self.share, value=rollout.percent, disabled=ended or not rollout.canary)
        self._set(self.promote, disabled=ended or not rollout.canary)
        self._set(self.rollback, disabled=ended or not (rollout.canary or rollout.previous))

    def _share_moved(self, change: dict[str, Any]) -> None:
        if self.painter != threading.get_ident():
            self.attempt(lambda: self._deployment.canary(percent=change["new"]))
