"""What captured code cannot take along, collected in one pass and told as one error."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from cloudai.capture.constants import Uncarriable, describe
from cloudai.capture.definitions import Definition, place_of
from cloudai.capture.imports import is_installed_file
from cloudai.capture.names import Names
from cloudai.errors import CaptureError

__all__ = ["ODD_NAMES", "Problems", "Use", "use_in", "why_no_source"]

_MOST_SHOWN = 5
_ELSEWHERE = "cannot be carried to the worker"

ODD_NAMES = {
    "get_ipython": ("magics and ! commands work only in a notebook", "write plain Python"),
    "__file__": ("it names another file there", "pass the path as config="),
}
"""Names that mean something only here, each with the reason and the fix."""


@dataclass(frozen=True)
class Use:
    """Who refers to a name, and where; without a file, the name was passed itself."""

    user: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"‘{self.user}’ uses it ({place_of(self.file, self.line)})" if self.file else "it was passed itself"


def use_in(definition: Definition, line: int = 1) -> Use:
    """Return the use that a line of a definition makes; 1 is its first."""
    return Use(definition.node.name, definition.file, definition.line + line - 1)


@dataclass(frozen=True)
class _Problem:
    what: str
    fix: str
    use: Use


class Problems:
    """All that was found so far.

    Attributes
    ----------
    bound_when_called : set of str
        Globals that captured functions bind themselves: they need not be defined yet.
    """

    def __init__(self) -> None:
        self.bound_when_called: set[str] = set()
        self._found: list[_Problem] = []
        self._undefined: dict[str, Use] = {}

    def add(self, what: str, fix: str, use: Use) -> None:
        """Note a problem in the caller's own words."""
        self._found.append(_Problem(what, fix, use))

    def cannot_carry(self, error: Uncarriable, use: Use) -> None:
        """Note a value that cannot be written as source."""
        reason = f" ({error.reason})" if error.reason else ""
        self.add(f"{describe(error.label, error.value)} {_ELSEWHERE}{reason}; {use}", error.fix, use)

    def no_such_name(self, name: str, use: Use) -> None:
        """Note a name that is not defined, or means something only here; the first use is enough."""
        self._undefined.setdefault(name, use)

    def changed(self, definition: Definition, attributes: Collection[str]) -> None:
        """Note attributes that were set on a class or function after its definition ran."""
        own = definition.node.name
        for name in attributes:
            what = f"‘{own}.{name}’ was set after ‘{own}’ was defined, and would be lost"
            self.add(what, "write it into the definition, and run that cell again", use_in(definition))

    def stale(self, definition: Definition, names: Names, defaults: Collection[str]) -> None:
        """Note globals that have another value than when they became defaults."""
        own = definition.node.name
        for name in defaults:
            use = use_in(definition, names.lines[name])
            what = f"‘{name}’ has another value than when it became a default of ‘{own}’ ({place_of(use.file, use.line)})"
            self.add(what, f"run the cell that defines ‘{own}’ again", use)

    def no_such_module(self, name: str, use: Use) -> None:
        """Note an import that will fail there."""
        if name.startswith("."):
            fix = "write the import with the full name of the package"
            self.add(f"the relative import of ‘{name}’ has no package on the worker; {use}", fix, use)
        else:
            self.add(f"there is no module ‘{name}’; {use}", "install it, or mend the name", use)

    def no_source(self, module: str, importer: str) -> None:
        """Note a local module that cannot travel."""
        what = f"the local module ‘{module}’ has no source and cannot travel; ‘{importer}’ imports it"
        self.add(what, "install it as a package where the work runs", Use(importer))

    def circle(self, names: Collection[str]) -> None:
        """Note definitions that need each other."""
        listed = " and ".join(f"‘{name}’" for name in sorted(set(names)))
        fix = "define them at the top level, and run the cells in order in a fresh kernel"
        self.add(f"{listed} need each other before they are defined", fix, Use(listed))

    def error(self) -> CaptureError | None:
        """Return one error for all, in the order of the source; None if there is no problem."""
        for name, use in self._undefined.items():
            if name in ODD_NAMES:
                reason, fix = ODD_NAMES[name]
                self.add(f"‘{name}’ {_ELSEWHERE} ({reason}); {use}", fix, use)
            elif name not in self.bound_when_called:
                self.add(f"‘{name}’ is not defined; {use}", "define or import it in a cell that runs before", use)
        if not self._found:
            return None
        users = list(dict.fromkeys(problem.use.user for problem in self._found))
        first, *others = sorted(self._found, key=lambda problem: (users.index(problem.use.user), problem.use.line))
        lines = [first.what, *(f"also: {problem.what} ({problem.fix})" for problem in others[: _MOST_SHOWN - 1])]
        if len(others) >= _MOST_SHOWN:
            lines.append(f"… and {len(others) + 1 - _MOST_SHOWN} more")
        return CaptureError("\n".join(lines), fix=first.fix)


def why_no_source(value: Any) -> tuple[str, str]:
    """Return the reason and the fix for a callable whose source cannot be had."""
    if getattr(value, "__name__", "") == "<lambda>":
        return "a lambda has no source of its own", "write a def"
    if isinstance(value, FunctionType) and is_installed_file(value.__code__.co_filename):
        return "it was made by an installed package", "write it as a decorator over a def, or make it inside the function"
    if isinstance(value, type | FunctionType):
        return "its source is not available", "define it with def or class in a cell of its own, without %%time, or in a file"
    if hasattr(value, "__wrapped__"):
        return "it was wrapped by a call", "write the wrapper as a decorator over the def"
    return "it is an object", "build it inside the function, or write a def that does what it does"
