"""What the widgets have in common: a picture that follows its object, buttons, and a line for errors."""

from __future__ import annotations

import contextlib
import html
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

from cloudai.display import Card
from cloudai.errors import CloudAIError
from cloudai.state.handles import Handle

__all__ = ["LiveView"]

_REPAINT = 0.5  # seconds; what has not changed is not sent again


class LiveView:
    """A widget that shows a handle's card and follows it until it ends or the view is closed.

    It works in a thread of its own, so it stays live while a cell runs, and it never blocks one.

    Parameters
    ----------
    handle : Handle
        What is shown.
    controls : sequence of widgets
        What is shown under the card.
    """

    def __init__(self, handle: Handle, controls: Sequence[ipywidgets.Widget]) -> None:
        self.handle = handle
        self._picture = ipywidgets.HTML()
        self._problem = ipywidgets.HTML()
        self._problem.layout.display = "none"
        self.box = ipywidgets.VBox([self._picture, ipywidgets.HBox(list(controls)), self._problem])
        self._closed = threading.Event()
        self._paint_lock = threading.Lock()
        self.painter = 0
        """The thread that paints now: changes of widgets that it makes are no wishes of the user's."""
        self.paint()
        self._thread = threading.Thread(target=self._follow, name=f"cloudai-view-{handle.name}", daemon=True)
        self._thread.start()

    def paint(self) -> None:
        """Show the last snapshot; only what has changed is sent."""
        with self._paint_lock:
            self.painter = threading.get_ident()
            try:
                self._set(self._picture, value=self.card().html())
                self.update_controls()
            finally:
                self.painter = 0

    def card(self) -> Card:
        """Return what is shown."""
        return self.handle.card()

    def update_controls(self) -> None:
        """Enable what can be done now, and disable the rest."""

    def close(self) -> None:
        """Stop following and take the widget away."""
        self._closed.set()
        self.box.close()

    def button(self, label: str, tooltip: str, act: Callable[[], Any], style: str = "") -> ipywidgets.Button:
        """Return a button that does something and shows the error if that fails."""
        made = ipywidgets.Button(description=label, tooltip=tooltip, button_style=style)
        made.on_click(lambda _: self.attempt(act))
        return made

    def attempt(self, act: Callable[[], Any]) -> None:
        """Do something for the user; an error is shown under the widget, not lost in a log."""
        try:
            act()
        except CloudAIError as error:
            self._show_problem(f"{html.escape(error.what)}<br>Fix: {html.escape(error.fix)}")
            return
        self._show_problem("")
        self.paint()

    def _show_problem(self, text: str) -> None:
        self._set(self._problem, value=f"<div role='alert' style='color:#c33'>{text}</div>" if text else "")
        self._problem.layout.display = "block" if text else "none"

    def _set(self, widget: ipywidgets.Widget, **values: Any) -> None:
        for name, value in values.items():
            if getattr(widget, name) != value:
                setattr(widget, name, value)

    def _follow(self) -> None:
        while not self._closed.wait(_REPAINT):
            ended = self.handle.ended  # read before painting: the last state is painted too
            with contextlib.suppress(CloudAIError):  # the next snapshot may be readable again
                if ended:
                    self.handle.refresh()
                self.paint()
            if ended:
                return

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Give the widget, and the card for front ends and readers that cannot show it."""
        card = self.card()
        bundle = self.box._repr_mimebundle_()
        return {**(bundle or {}), "text/plain": card.text(), "text/html": card.html()}
