"""The widget of a rollout: which revision has which traffic, the canary's share, promote and roll back."""

from __future__ import annotations

from typing import Any

import ipywidgets

from cloudai.serving.deployment import Deployment
from cloudai.widgets.live import LiveView, assign

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
        self._percent = 0
        layout, style = {"width": "300px"}, {"description_width": "5em"}
        self.share = ipywidgets.IntSlider(max=100, description="canary %", continuous_update=False, layout=layout, style=style)
        self.share.observe(self._share_moved, "value")
        self.promote = self.button("Promote", "Give the canary all the traffic", deployment.promote, "primary")
        self.rollback = self.button("Roll back", "Go back to the revision before", deployment.rollback)
        super().__init__(deployment, [self.share, self.promote, self.rollback])

    def update_controls(self) -> None:
        """Show the share asked for; only what is possible can be pressed."""
        split, ended = self._deployment.split, self._deployment.ended
        if split.percent != self._percent:  # a share that the user is just choosing is left alone
            self._show_share()
        assign(self.share, disabled=ended or not split.canary)
        assign(self.promote, disabled=ended or not split.canary)
        assign(self.rollback, disabled=ended or not (split.canary or split.previous))

    def _share_moved(self, change: dict[str, Any]) -> None:
        if change["new"] == self._percent:  # moved by `_show_share`, not by the user
            return
        self.attempt(lambda: self._deployment.canary(percent=change["new"]))
        self._show_share()  # what is so now, also where that was refused

    def _show_share(self) -> None:
        self._percent = self._deployment.split.percent
        assign(self.share, value=self._percent)
