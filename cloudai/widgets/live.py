"""What the widgets have in common: a picture that follows its object, buttons, and a line for errors."""

from __future__ import annotations

import html
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

from cloudai.display import Card, Shown
from cloudai.errors import CloudAIError
from cloudai.state.handles import Handle

__all__ = ["LiveView"]

log = logging.getLogger(__name__)

_REPAINT = 0.5  # seconds
_SHARE = 0.05
"""The share of a core that painting may take: where it takes long, it is done less often."""
_GOOD, _BAD, _BUSY = "#388e3c", "#e53935", "#1e88e5"
_COLOURS = {
    "running": _BUSY,
    "updating": _BUSY,
    "succeeded": _GOOD,
    "ready": _GOOD,
    "failed": _BAD,
    "failing": _BAD,
    "rejected": _BAD,
}
_IDLE = "#8a8a8a"


class LiveView(Shown):
    """A widget that shows a handle's card and follows it until it ends or the view is closed.

    It works in a thread of its own, so it stays live while a cell runs, and it never blocks one. What is clicked happens at
    once with JupyterLab 4.4 and ipykernel 7 or newer; before them, when the cell that runs has ended. The controls are above
    the card: they stay where they are while the card grows.

    Parameters
    ----------
    handle : Handle
        What is shown.
    controls : sequence of widgets
        What acts on it.
    """

    def __init__(self, handle: Handle, controls: Sequence[ipywidgets.Widget]) -> None:
        self.handle = handle
        self._controls = list(controls)
        self._phase = ipywidgets.HTML(layout={"min_width": "7em"})
        self._problem = ipywidgets.HTML(layout={"display": "none"})
        self._picture = ipywidgets.HTML()
        row = ipywidgets.HBox([self._phase, *self._controls], layout={"flex_flow": "row wrap", "align_items": "center"})
        self.box = ipywidgets.VBox([row, self._problem, self._picture])
        self._parts = [self.box, row, *row.children, self._problem, self._picture]
        self._closed = threading.Event()
        self._paint_lock = threading.Lock()
        self.paint()
        self._thread = threading.Thread(target=self._follow, name=f"cloudai-view-{handle.name}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.handle.ref!r}, phase={self.handle.phase!r})"

    @property
    def closed(self) -> bool:
        """Whether the widget was taken away."""
        return self._closed.is_set()

    def card(self) -> Card:
        """Return what is shown."""
        return self.handle.card()

    def paint(self) -> None:
        """Show the last snapshot; only what has changed is sent."""
        with self._paint_lock:
            if self.closed:
                return
            phase = self.handle.phase
            colour = _COLOURS.get(phase, _IDLE)
            assign(self._phase, value=f"<span style='color:{colour}' aria-hidden='true'>●</span> <b>{html.escape(phase)}</b>")
            assign(self._picture, value=self.card().html())
            self.update_controls()
            for control in self._controls:
                _hear_while_busy(control)

    def update_controls(self) -> None:
        """Enable what can be done now, and disable the rest."""

    def close(self) -> None:
        """Stop following, and take the widget away."""
        self._closed.set()
        with self._paint_lock:
            for part in self._parts:
                part.close()

    def button(self, label: str, tooltip: str, act: Callable[[], Any], style: str = "") -> ipywidgets.Button:
        """Return a button that does something and shows the error if that fails."""
        made = ipywidgets.Button(description=label, tooltip=tooltip, button_style=style, layout={"width": "auto"})

        def press(_: ipywidgets.Button) -> None:
            if not made.disabled:  # the second click of an impatient double click comes too late
                self.attempt(act)

        made.on_click(press)
        return made

    def attempt(self, act: Callable[[], Any]) -> None:
        """Do something for the user; an error is shown in the widget, not lost in a log."""
        try:
            act()
        except CloudAIError as error:
            self._show_problem(error.what, error.fix)
        except Exception as error:
            log.exception("%s: what was clicked failed", self.handle.ref)
            self._show_problem(f"{type(error).__name__}: {error}", "the log of this notebook has the details")
        else:
            self._show_problem()
        self.paint()

    def _show_problem(self, what: str = "", fix: str = "") -> None:
        style = "color:var(--jp-error-color1,#e53935)"
        text = f"<div role='alert' style='{style}'>{html.escape(what)}<br>Fix: {html.escape(fix)}</div>" if what else ""
        assign(self._problem, value=text)
        assign(self._problem.layout, display=None if what else "none")

    def _follow(self) -> None:
        """Paint again and again; the last state too."""
        pause = _REPAINT
        while not self._closed.wait(pause):
            ended, began = self.handle.ended, time.thread_time()
            try:
                if ended:
                    self.handle.refresh()
                self.paint()
            except CloudAIError as error:  # the next snapshot may be readable again
                log.debug("%s could not be shown: %s", self.handle.ref, error.what)
            except Exception:
                log.exception("%s could not be shown", self.handle.ref)
            if ended:
                return
            pause = max(_REPAINT, (time.thread_time() - began) / _SHARE)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Give the widget, and the card for front ends and readers that cannot show it."""
        widget = {} if self.closed else self.box._repr_mimebundle_() or {}
        return {**widget, **super()._repr_mimebundle_(include, exclude)}


def _hear_while_busy(widget: ipywidgets.Widget) -> None:
    """Let a widget hear the browser while a cell runs.

    JupyterLab sends what is clicked to a subshell. ipykernel 7.4.0 redirects it to the shell that last wrote to the widget: the
    cell's, which is busy. Without its note of who wrote, the message goes where it was sent, as in 7.0 to 7.3.
    """
    if widget.comm is not None:
        vars(widget.comm).pop("_reply_subshell_id", None)


def assign(widget: Any, **values: Any) -> None:
    """Set what differs, so that nothing is sent to the browser twice."""
    for name, value in values.items():
        if getattr(widget, name) != value:
            setattr(widget, name, value)
