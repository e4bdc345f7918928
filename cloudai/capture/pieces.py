"""The statements of a captured module, and the order that they must stand in."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = ["Piece", "in_order", "write"]


@dataclass
class Piece:
    """One statement, or a few, that bind a name.

    Attributes
    ----------
    name : str
        The name.
    kind : str
        ``"import"``, ``"value"`` or ``"definition"``.
    text : str
        The source.
    needs : set of str
        The names that must be bound before it runs.
    uses : set of str
        The names that must be bound before it is called.
    in_two_steps : tuple of str
        Of a container: the source that binds it empty and the source that fills it, for one whose contents refer back to it
        (a registry that decorators write to).
    """

    name: str
    kind: Literal["import", "value", "definition"] = "value"
    text: str = ""
    needs: set[str] = field(default_factory=set)
    uses: set[str] = field(default_factory=set)
    in_two_steps: tuple[str, str] | None = None


def write(pieces: Mapping[str, Piece], submodules: Iterable[str], *, lazy_annotations: bool) -> str:
    """Write the module; an empty text if there is nothing in it."""
    if not pieces:
        return ""
    imports = sorted({piece.text for piece in pieces.values() if piece.kind == "import"})
    lines = ['"""What cloudai captured from a notebook, a script or a session."""', ""]
    lines += ["from __future__ import annotations", ""] if lazy_annotations else []
    lines += [f"import {name}" for name in sorted(submodules)] + imports
    rest = "".join(f"\n\n\n{piece.text}" for piece in in_order(pieces) if piece.kind != "import")
    return "\n".join(lines) + f"{rest}\n"


def in_order(pieces: Mapping[str, Piece]) -> list[Piece]:
    """Return the pieces so that each comes after what it needs and, where no circle forbids it, after what it uses.

    What a decorator or a class body calls while the module is being imported must be complete by then.

    Raises
    ------
    graphlib.CycleError
        If pieces need each other.

    Examples
    --------
    >>> base = Piece("Base", uses={"Child"})
    >>> child = Piece("Child", needs={"Base"})
    >>> [piece.name for piece in in_order({"Child": child, "Base": base})]
    ['Base', 'Child']
    """
    pieces = _with_circles_opened(pieces)
    depth: dict[str, int] = {}
    needs = {name: piece.needs & pieces.keys() - {name} for name, piece in sorted(pieces.items())}
    for name in graphlib.TopologicalSorter(needs).static_order():
        depth[name] = 1 + max((depth[needed] for needed in needs[name]), default=0)
    # A piece reaches more than anything that it refers to, unless both lie in a circle; there the depth decides.
    return sorted(pieces.values(), key=lambda piece: (len(_reach(piece.name, pieces)), depth[piece.name], piece.name))


def _with_circles_opened(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """Split each container that stands in a circle; whoever is outside of the circle waits until it is full."""
    opened = dict(pieces)
    for name, piece in sorted(pieces.items()):
        inside = {other for other in _reach(name, pieces) if name in _reach(other, pieces)}
        if piece.in_two_steps and len(inside) > 1:
            full = f"{name} filled"
            opened[full] = Piece(full, "value", piece.in_two_steps[1], piece.needs | {name}, piece.uses)
            opened[name] = Piece(name, "value", piece.in_two_steps[0])
            for other in opened.keys() - inside - {full}:
                opened[other] = _also(opened[other], name, full)
    return opened


def _also(piece: Piece, name: str, full: str) -> Piece:
    needs = piece.needs | {full} if name in piece.needs else piece.needs
    uses = piece.uses | {full} if name in piece.uses else piece.uses
    return replace(piece, needs=needs, uses=uses)


def _reach(start: str, pieces: Mapping[str, Piece]) -> set[str]:
    reached, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name in pieces and name not in reached:
            reached.add(name)
            waiting += pieces[name].needs | pieces[name].uses
    return reached
