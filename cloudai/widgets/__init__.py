"""Live widgets for notebooks: they show what an object's card shows, and their buttons call its methods.

>>> from cloudai import widgets            # doctest: +SKIP
>>> widgets.show(run)                      # doctest: +SKIP

`enable` makes runs and deployments show their widget whenever they are the last thing in a cell.
"""

from __future__ import annotations

from weakref import WeakValueDictionary

from cloudai.display import Shown
from cloudai.errors import MissingExtraError, SpecError
from cloudai.serving.deployment import Deployment
from cloudai.state.handles import Handle
from cloudai.training.run import Run

try:
    from cloudai.widgets.live import LiveView
    from cloudai.widgets.rollout import RolloutView
    from cloudai.widgets.run import RunView
except ImportError:
    raise MissingExtraError("widgets need ipywidgets", fix='pip install "cloudai[notebook]"') from None

__all__ = ["LiveView", "RolloutView", "RunView", "disable", "enable", "show"]


_views: WeakValueDictionary[Handle, LiveView] = WeakValueDictionary()


def show(thing: Run | Deployment) -> LiveView:
    """Return the live widget of a run or a deployment; shown in several cells, it is the same one.

    Raises
    ------
    SpecError
        If there is no widget for such an object.
    """
    if not isinstance(thing, Run | Deployment):
        raise SpecError(f"there is no widget for a {type(thing).__name__}", fix="show a run or a deployment; others print")
    view = _views.get(thing)
    if view is None or view.closed:
        view = _views[thing] = RunView(thing) if isinstance(thing, Run) else RolloutView(thing)
    return view


def enable() -> None:
    """Let runs and deployments show their live widget when they are displayed in a notebook."""
    kinds: tuple[type[Shown], ...] = (Run, Deployment)
    for kind in kinds:
        kind.live = show


def disable() -> None:
    """Let runs and deployments show their card again."""
    Run.live = Deployment.live = None
