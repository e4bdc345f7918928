"""The statements of a captured module, and the order that they must stand in."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
    """

    name: str
    kind: Literal["import", "value", "definition"] = "value"
    text: str = ""
    needs: set[str] = field(default_factory=set)
    uses: set[str] = field(default_factory=set)


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
    depth: dict[str, int] = {}
    needs = {name: piece.needs & pieces.keys() - {name} for name, piece in sorted(pieces.items())}
    for name in graphlib.TopologicalSorter(needs).static_order():
        depth[name] = 1 + max((depth[needed] for needed in needs[name]), default=0)
    # A piece reaches more than anything that it refers to, unless both lie in a circle; there the depth decides.
    return sorted(pieces.values(), key=lambda piece: (len(_reach(piece.name, pieces)), depth[piece.name], piece.name))


def _reach(start: str, pieces: Mapping[str, Piece]) -> set[str]:
    reached, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name in pieces and name not in reached:
            reached.add(name)
            waiting += pieces[name].needs | pieces[name].uses
    return reached
