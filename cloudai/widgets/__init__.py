"""Live widgets for notebooks: they show what an object's card shows, and their buttons call its methods.

>>> from cloudai import widgets            # doctest: +SKIP
>>> widgets.show(run)                      # doctest: +SKIP

`enable` makes runs and deployments show their widget whenever they are the last thing in a cell.
"""

from __future__ import annotations

from cloudai.display import Shown
from cloudai.errors import MissingExtraError, SpecError
from cloudai.serving.deployment import Deployment
from cloudai.training.run import Run

try:
    from cloudai.widgets.live import LiveView
    from cloudai.widgets.rollout import RolloutView
    from cloudai.widgets.run import RunView
except ImportError:
    raise MissingExtraError("widgets need ipywidgets", fix='pip install "cloudai[notebook]"') from None

__all__ = ["LiveView", "RolloutView", "RunView", "disable", "enable", "show"]


def show(thing: Run | Deployment) -> LiveView:
    """Return the live widget of a run or a deployment.

    Raises
    ------
    SpecError
        If there is no widget for such an object.
    """
    if isinstance(thing, Run):
        return RunView(thing)
    if isinstance(thing, Deployment):
        return RolloutView(thing)
    raise SpecError(f"there is no widget for a {type(thing).__name__}", fix="show a run or a deployment; others print")


def enable() -> None:
    """Let runs and deployments show their live widget when they are displayed in a notebook."""
    kinds: tuple[type[Shown], ...] = (Run, Deployment)
    for kind in kinds:
        kind.live = show


def disable() -> None:
    """Let runs and deployments show their card again."""
    Run.live = Deployment.live = None
