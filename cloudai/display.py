"""Text and HTML from one description, so that a notebook and a terminal always say the same.

A `Card` is what an object shows of itself: facts, tables and curves. Objects that are shown inherit `Shown` and
describe themselves in `card`; they never touch the network while they do so.
"""

from __future__ import annotations

import html
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Card", "Curve", "Shown", "Table", "ago", "duration", "money", "nearest"]

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_BARS = "▁▂▃▄▅▆▇█"
_STYLE = (
    # the class thrice: a notebook's own rules for tables name two classes and would win over one
    "<style>.cloudai{font:13px/1.5 system-ui,sans-serif;max-width:60em}"
    ".cloudai.cloudai.cloudai table{border-collapse:collapse;margin:.4em 0}"
    ".cloudai.cloudai.cloudai tr{background:none}"
    ".cloudai.cloudai.cloudai th,.cloudai.cloudai.cloudai td{border:0;border-bottom:1px solid #8884;"
    "padding:.15em .8em .15em 0;text-align:left;vertical-align:top;background:none}"
    ".cloudai.cloudai.cloudai th{font-weight:600}.cloudai.cloudai.cloudai th[scope=row]{white-space:nowrap}"
    ".cloudai .muted{opacity:.7}.cloudai svg{display:block}</style>"
)


def _visible(text: str) -> str:
    """Return a text in which what a terminal would obey, or what turns the order of letters, is written out."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _escaped(text: str) -> str:
    return html.escape(_visible(text))


def money(amount: float, currency: str = "USD") -> str:
    """Write an amount with its currency, and cents only where they say something.

    Examples
    --------
    >>> money(0.0)
    '0 USD'
    >>> money(0.00042)
    '0.00042 USD'
    >>> money(12.5)
    '12.50 USD'
    """
    if amount == 0:
        return f"0 {currency}"
    return f"{amount:.2f} {currency}" if abs(amount) >= 1 else f"{amount:.2g} {currency}"


def duration(seconds: float) -> str:
    """Write a length of time in at most two units.

    Examples
    --------
    >>> duration(0.25), duration(75), duration(7260), duration(90000)
    ('0.25 s', '1 min 15 s', '2 h 1 min', '1 d 1 h')
    """
    if seconds < 10:
        return f"{seconds:.2g} s"
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    rest = round(seconds)
    parts: list[str] = []
    for size, unit in units:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(part for part in parts[:2] if part)


def ago(seconds: float) -> str:
    """Write the age of a snapshot.

    Examples
    --------
    >>> ago(0.2), ago(90)
    ('just now', '1 min 30 s ago')
    """
    return "just now" if seconds < 1 else f"{duration(seconds)} ago"


def nearest(name: str, choices: Sequence[str]) -> str:
    """Name the choices, the nearest first, for the fix of an error.

    Examples
    --------
    >>> nearest("lcoal", ["ray", "local"])
    "did you mean 'local'? There is: 'local', 'ray'"
    >>> nearest("x", [])
    'there is none yet'
    """
    if not choices:
        return "there is none yet"
    import difflib

    close = difflib.get_close_matches(name, choices, n=1)
    ordered = close + [choice for choice in sorted(choices) if choice not in close]
    listed = ", ".join(repr(choice) for choice in ordered[:8]) + (", …" if len(ordered) > 8 else "")
    return f"did you mean {close[0]!r}? There is: {listed}" if close else f"there is: {listed}"


@dataclass(frozen=True)
class Table:
    """Rows under named columns; every cell is a string and is escaped in HTML."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def text(self) -> str:
        """Return aligned plain text."""
        lines = [list(self.columns), *[list(row) for row in self.rows]]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        body.insert(1, "  ".join("─" * width for width in widths))
        return "\n".join(([self.title] if self.title else []) + body)

    def html(self) -> str:
        """Return an HTML table."""
        head = "".join(f"<th scope='col'>{_escaped(name)}</th>" for name in self.columns)
        body = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        title = f"<div><b>{_escaped(self.title)}</b></div>" if self.title else ""
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class Curve:
    """A line of numbers over steps: a sparkline in text, a picture in HTML."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]

    def text(self) -> str:
        """Return a sparkline of at most 40 characters."""
        values = _thin(self.values, 40)
        if not values:
            return f"{self.label}: no values yet"
        low, high = min(values), max(values)
        scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
        bars = "".join(_BARS[round((value - low) * scale)] for value in values)
        return f"{self.label} {bars} {self.values[0]:.4g} → {self.values[-1]:.4g}"

    def html(self) -> str:
        """Return an inline SVG picture with its first and last value in words."""
        label = _escaped(self.label)
        if not self.values:
            return f"<div class='muted'>{label}: no values yet</div>"
        values, steps = _thin(self.values, 400), _thin(self.steps, 400)
        low, high = min(values), max(values)
        first, last = min(steps), max(steps)
        points = " ".join(
            f"{4 + 312 * (step - first) / ((last - first) or 1):.1f},{4 + 72 * (high - value) / ((high - low) or 1):.1f}"
            for step, value in zip(steps, values, strict=True)
        )
        words = f"{label}: {self.values[0]:.4g} → {self.values[-1]:.4g} over step {first:g} to {last:g}"
        return (
            f"<figure style='margin:.4em 0'><svg role='img' aria-label='{words}' width='320' height='80' "
            f"viewBox='0 0 320 80'><polyline fill='none' stroke='currentColor' stroke-width='1.5' points='{points}'/>"
            f"</svg><figcaption class='muted'>{words}</figcaption></figure>"
        )


def _thin(values: Sequence[float], most: int) -> list[float]:
    """Keep the first, the last and evenly spaced values between them."""
    finite = [float(value) for value in values]
    if len(finite) <= most:
        return finite
    return [finite[round(i * (len(finite) - 1) / (most - 1))] for i in range(most)]


@dataclass(frozen=True)
class Card:
    """What an object shows of itself."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    curves: Sequence[Curve] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Return plain text."""
        width = max((len(label) for label, _ in self.facts), default=0)
        parts = [self.title, *(f"  {label.ljust(width)}  {value}" for label, value in self.facts)]
        parts += [f"  {curve.text()}" for curve in self.curves]
        parts += [_indent(table.text()) for table in self.tables]
        parts += [f"  {note}" for note in self.notes]
        return _visible("\n".join(parts))

    def html(self) -> str:
        """Return HTML in which every string is escaped."""
        rows = "".join(
            f"<tr><th scope='row'>{_escaped(label)}</th><td>{_escaped(value)}</td></tr>" for label, value in self.facts
        )
        facts = f"<table>{rows}</table>" if rows else ""
        inner = "".join(curve.html() for curve in self.curves) + "".join(table.html() for table in self.tables)
        notes = "".join(f"<div class='muted'>{_escaped(note)}</div>" for note in self.notes)
        return f"{_STYLE}<div class='cloudai'><b>{_escaped(self.title)}</b>{facts}{inner}{notes}</div>"


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.split("\n"))


class Shown(ABC):
    """An object with a card: one line as ``repr``, the whole card as ``str``, text and HTML in a notebook."""

    live: Callable[[Any], Any] | None = None
    """Set by `cloudai.widgets.enable`, so that displaying an object shows its live widget."""

    @abstractmethod
    def card(self) -> Card:
        """Describe the object from its last snapshot."""

    def __str__(self) -> str:
        return self.card().text()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        try:
            card = self.card()
            bundle: dict[str, Any] = {"text/plain": card.text(), "text/html": card.html()}
            live = type(self).live
            if live is not None:
                bundle = {**live(self)._repr_mimebundle_(), **bundle}
        except Exception as error:  # noqa: BLE001  a repr never raises: the notebook would show nothing at all
            bundle = {"text/plain": f"<{type(self).__name__}: cannot be shown: {error}>"}
        return bundle
