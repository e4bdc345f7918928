"""Collects what captured code refers to, name by name, and writes the module that holds it all."""

from __future__ import annotations

import builtins
import graphlib
import re
import sys
from collections import deque, namedtuple
from collections.abc import Callable, Collection, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

from cloudai.capture.bundle import INNER_PREFIX
from cloudai.capture.constants import Uncarriable, render
from cloudai.capture.definitions import Definition, Found, changes_since, find, is_named_tuple, stale_defaults
from cloudai.capture.imports import Address, LocalModules, address_of, imports_in, whereabouts
from cloudai.capture.names import Names, names_in
from cloudai.capture.pieces import Piece, in_order, write
from cloudai.capture.problems import ODD_NAMES, Problems, Use, use_in, why_no_source

__all__ = ["Collector"]

_OWN_NAMES = frozenset({"__name__", "__doc__", "__package__", "__loader__", "__spec__", "__builtins__", "__debug__"})
"""Names that every module has for itself."""
_FILLED_BY: dict[type, str] = {dict: "update", list: "extend"}


class Collector:
    """Everything that captured objects refer to.

    Attributes
    ----------
    problems : Problems
        What cannot be carried; complete after `finish`.
    modules : LocalModules
        The local modules that travel along.
    """

    def __init__(self) -> None:
        self.problems = Problems()
        self.modules = LocalModules()
        self._pieces: dict[str, Piece] = {}
        self._namespace: dict[str, Any] | None = None
        self._asked: dict[str, Use | None] = {}  # the global names seen so far, and who cannot do without
        self._failed: dict[str, Uncarriable] = {}
        self._private: dict[int, tuple[str, Any]] = {}
        self._needed: deque[Callable[[], None]] = deque()
        self._wanted: deque[Callable[[], None]] = deque()
        self._submodules: set[str] = set()
        self._lazy_annotations = False

    def entry(self, value: Any, label: str) -> str:
        """Take an object that was asked for and return where it is found: ``module:qualname``, or a name in the source."""
        address = address_of(value)
        if address is not None:
            self.modules.add(address.module, label)
            return f"{address.module}:{address.qualname}"
        try:
            return self._entry_name(value, label)
        except Uncarriable as error:
            self.problems.cannot_carry(error, Use(label))
            return ""

    def _entry_name(self, value: Any, label: str) -> str:
        piece = Piece(f"{INNER_PREFIX}entry_{len(self._pieces)}")
        expression = self._expression(value, label, piece, Use(label))
        if all(part.isidentifier() for part in expression.split(".")):
            return expression
        piece.text = f"{piece.name} = {expression}"
        self._pieces[piece.name] = piece
        return piece.name

    def finish(self) -> None:
        """Follow all references to their ends; names that are only good to have come last."""
        while self._needed or self._wanted:
            (self._needed or self._wanted).popleft()()
        for name, importer in self.modules.compiled.items():
            self.problems.no_source(name, importer)
        try:
            in_order(self._pieces)
        except graphlib.CycleError as error:
            self.problems.circle([re.sub(rf"^{INNER_PREFIX}[0-9]+_", "", name) for name in error.args[1]])

    def source(self) -> str:
        """Write the module that holds it all; an empty text if nothing is in it."""
        return write(self._pieces, self._submodules, lazy_annotations=self._lazy_annotations)

    def _read(self, name: str, piece: Piece, use: Use, *, early: bool, soft: bool = False) -> None:
        """Note that a piece reads a global name, and see that the name gets bound."""
        if name in _OWN_NAMES or name == piece.name:
            return
        if name in ODD_NAMES or name not in self._names:
            if not soft and not _is_builtin(name):
                self.problems.no_such_name(name, use)
        else:
            (piece.needs if early else piece.uses).add(name)
            self._ask(name, use, soft=soft)

    def _ask(self, name: str, use: Use, *, soft: bool) -> None:
        if name not in self._asked:
            self._asked[name] = None if soft else use
            (self._wanted if soft else self._needed).append(lambda: self._bind(name, use))
        elif not soft and self._asked[name] is None:
            self._asked[name] = use
            if name in self._failed:
                self.problems.cannot_carry(self._failed[name], use)

    def _bind(self, name: str, use: Use) -> None:
        """Write the piece that binds a global name."""
        piece = Piece(name)
        try:
            self._fill(piece, self._names[name], use)
            self._pieces[name] = piece
        except Uncarriable as error:
            self._failed[name] = error
            needed_by = self._asked[name]
            if needed_by is not None:
                self.problems.cannot_carry(error, needed_by)

    def _fill(self, piece: Piece, value: Any, use: Use) -> None:
        if isinstance(value, ModuleType):
            piece.kind, piece.text = "import", self._import_module(value, piece.name, use)
            return
        address = address_of(value, piece.name) if callable(value) else None
        found = find(value) if address is None and callable(value) else None
        if found is not None and self._is_public(value, found) and found.definition.node.name == piece.name:
            self._define(piece, value, found)
        elif address is not None:
            self._import_object(piece, address, use)
        else:
            self._fill_with_value(piece, value, use)

    def _fill_with_value(self, piece: Piece, value: Any, use: Use) -> None:
        try:
            sentinel = type(value) is object  # nothing but its identity, which the name keeps
            expression = "object()" if sentinel else self._expression(value, piece.name, piece, use)
            piece.text = f"{piece.name} = {expression}"
            if type(value) in _FILLED_BY and value:
                filling = f"{piece.name}.{_FILLED_BY[type(value)]}({expression})"
                piece.in_two_steps = (f"{piece.name} = {'{}' if type(value) is dict else '[]'}", filling)
        except Uncarriable:
            address = address_of(value, piece.name)
            if address is None:
                raise
            self._import_object(piece, address, use)

    def _import_module(self, module: ModuleType, name: str, use: Use) -> str:
        known = next((key for key in (module.__name__, *sys.modules) if sys.modules.get(key) is module), "")
        if not known or whereabouts(known) == "missing":
            fix = "import a module that is installed or stands in a file"
            raise Uncarriable(name, module, "it was made in this session", fix)
        self.modules.add(known, use.user)
        return f"import {known}" if known == name else f"import {known} as {name}"

    def _import_object(self, piece: Piece, address: Address, use: Use) -> None:
        if "." in address.qualname:
            piece.text = f"{piece.name} = {self._at(address, piece, use)}"
            return
        self.modules.add(address.module, use.user)
        renamed = "" if address.qualname == piece.name else f" as {piece.name}"
        piece.kind, piece.text = "import", f"from {address.module} import {address.qualname}{renamed}"

    def _at(self, address: Address, piece: Piece, use: Use) -> str:
        """Return an expression for something in a module, under an alias that no name of the user's can hide."""
        alias = _alias(address.module)
        self.modules.add(address.module, use.user)
        self._pieces[alias] = Piece(alias, "import", f"import {address.module} as {alias}")
        piece.needs.add(alias)
        return f"{alias}.{address.qualname}"

    def _expression(self, value: Any, label: str, piece: Piece, use: Use) -> str:
        return render(value, label, lambda inner, inner_label: self._refer(inner, inner_label, piece, use))

    def _refer(self, value: Any, label: str, piece: Piece, use: Use) -> str:
        """Return an expression for a module, class or function inside of a value."""
        if isinstance(value, ModuleType):
            alias = _alias(value.__name__)
            self._pieces[alias] = Piece(alias, "import", self._import_module(value, alias, use))
            piece.needs.add(alias)
            return alias
        address = address_of(value)
        if address is not None:
            return self._at(address, piece, use)
        if isinstance(value, MethodType) and isinstance(value.__self__, type):
            return f"{self._refer(value.__self__, label, piece, use)}.{value.__name__}"
        owner = self._owner_of(value)
        if owner is not None:
            return f"{self._refer(owner, label, piece, use)}.{value.__name__}"
        if not callable(value):
            raise Uncarriable(label, value)
        return self._refer_to_definition(value, label, piece, use)

    def _owner_of(self, value: Any) -> type | None:
        """Return the class of the user's in whose body a class or function stands."""
        head, _, name = getattr(value, "__qualname__", "").rpartition(".")
        if not isinstance(value, type | FunctionType) or not head or head.endswith(">"):
            return None
        found = find(value)
        self._namespace = self._namespace or (found.namespace if found is not None else None)
        owner: Any = self._space_of(value, found).get(head.partition(".")[0])
        for part in head.split(".")[1:]:
            owner = getattr(owner, part, None)
        return owner if isinstance(owner, type) and getattr(owner, name, None) is value else None

    def _refer_to_definition(self, value: Any, label: str, piece: Piece, use: Use) -> str:
        found = find(value)
        if found is None and is_named_tuple(value):
            return self._refer_to_value(value, label, piece, use)
        if found is None:
            raise Uncarriable(label, value, *why_no_source(value))
        space = self._space_of(value, found)
        if self._namespace is None and (found.namespace is space or space.get(found.definition.node.name) is value):
            self._namespace = space
        if self._is_public(value, found):
            self._read(found.definition.node.name, piece, use, early=True)
            return found.definition.node.name
        if id(value) not in self._private:
            made = self._private_piece(found.definition.node.name, value)
            self._needed.append(lambda: self._define_private(made, value, found))
        piece.needs.add(self._private[id(value)][0])
        return self._private[id(value)][0]

    def _private_piece(self, own: str, value: Any) -> Piece:
        name = f"{INNER_PREFIX}{len(self._private) + 1}_{own}"
        self._private[id(value)] = name, value  # held, so that its id stays its own
        self._pieces[name] = Piece(name)
        return self._pieces[name]

    def _refer_to_value(self, value: Any, label: str, piece: Piece, use: Use) -> str:
        """Bind a value that must stay one and the same to a name of ours."""
        if id(value) not in self._private:
            made = self._private_piece(value.__name__, value)
            maker = self._refer(namedtuple, label, made, use)
            defaults = self._expression(list(value._field_defaults.values()), label, made, use)
            made.text = f"{made.name} = {maker}({value.__name__!r}, {list(value._fields)}, defaults={defaults})"
        piece.needs.add(self._private[id(value)][0])
        return self._private[id(value)][0]

    def _space_of(self, value: Any, found: Found | None) -> dict[str, Any]:
        """Return the globals that an object of the user's knows."""
        if found is not None and found.namespace is not None:
            return found.namespace
        return self._namespace if self._namespace is not None else vars(sys.modules.get(value.__module__, builtins))

    def _is_public(self, value: Any, found: Found) -> bool:
        """Whether the object is what its own name means to everybody."""
        at_home = found.namespace is None or found.namespace is self._namespace
        return at_home and not found.free and self._names.get(found.definition.node.name) is value

    @property
    def _names(self) -> dict[str, Any]:
        return self._namespace if self._namespace is not None else {}

    def _define(self, piece: Piece, value: Any, found: Found) -> None:
        """Write a definition that everybody knows by its own name."""
        piece.kind, piece.text = "definition", found.definition.text
        self._scan(piece, value, found.definition, self._names_in(found.definition))

    def _define_private(self, piece: Piece, value: Any, found: Found) -> None:
        """Write a definition under a name of ours: it had variables around it, or its name means something else by now."""
        definition, own = found.definition, found.definition.node.name
        name, piece.kind = piece.name, "definition"
        names = self._names_in(definition, found.free)
        free = dict(found.free)
        if found.namespace is not None and found.namespace is not self._namespace:
            used = names.early | names.late | names.perhaps
            free |= {key: found.namespace[key] for key in used & found.namespace.keys() - _OWN_NAMES - ODD_NAMES.keys()}
            names = self._names_in(definition, free)
        free = {key: held for key, held in free.items() if held is not value}  # its own definition binds it
        arguments = [
            f"{key}={self._argument(key, free[key], piece, use_in(definition, names.lines.get(key, 1)))}"
            for key in sorted(free)
        ]
        calls_own_name = own in names.early | names.late and not isinstance(value, type)
        if calls_own_name and not free:
            piece.text = f"{definition.renamed(name)}\n\n\n{name}.__name__ = {own!r}"
        else:
            piece.text = f"{_in_factory(name, definition, arguments)}\n{name}.__qualname__ = {name!r}"
        self._scan(piece, value, definition, names)

    def _argument(self, key: str, value: Any, piece: Piece, use: Use) -> str:
        try:
            return self._expression(value, key, piece, use)
        except Uncarriable as error:
            address = address_of(value, key)
            if address is not None:
                return self._at(address, piece, use)
            self.problems.cannot_carry(error, use)
            return "None"

    def _names_in(self, definition: Definition, free: Collection[str] = ()) -> Names:
        return names_in(definition.node, free=free, lazy_annotations=definition.lazy_annotations)

    def _scan(self, piece: Piece, value: Any, definition: Definition, names: Names) -> None:
        """Follow everything that a definition refers to."""
        self._lazy_annotations |= definition.lazy_annotations
        self.problems.bound_when_called |= names.assigned
        self.problems.changed(definition, changes_since(value, definition))
        self.problems.stale(definition, names, stale_defaults(value, definition))
        for name in sorted(names.early | names.late, key=lambda name: (names.lines.get(name, 1), name)):
            self._read(name, piece, use_in(definition, names.lines.get(name, 1)), early=name in names.early)
        for name in sorted(names.perhaps):
            self._read(name, piece, use_in(definition, names.lines.get(name, 1)), early=False, soft=True)
        for chain in sorted(names.dotted):
            self._submodules.update(list(self._modules_along(chain))[-1:])
        self._follow_imports(definition)

    def _modules_along(self, chain: str) -> Iterator[str]:
        """Yield the submodules that an attribute chain passes: ``import xml`` alone does not load ``xml.etree``."""
        root, *attributes = chain.split(".")
        module = self._names.get(root)
        for attribute in attributes:
            below = getattr(module, attribute, None) if isinstance(module, ModuleType) else None
            if not isinstance(below, ModuleType) or module is None or below.__name__ != f"{module.__name__}.{attribute}":
                return
            self.modules.add(below.__name__, chain)
            yield below.__name__
            module = below

    def _follow_imports(self, definition: Definition) -> None:
        """See that the modules that the code imports when it is called will be there."""
        for found in imports_in(definition.node):
            self.modules.add(found.name, definition.node.name)
            missing = found.name.startswith(".") or whereabouts(found.name) == "missing"
            if missing and not found.guarded and not found.maybe:
                self.problems.no_such_module(found.name, use_in(definition, found.line))


def _alias(module: str) -> str:
    return INNER_PREFIX + module.replace("_", "__").replace(".", "_")


def _is_builtin(name: str) -> bool:
    """Whether every Python has the name; IPython adds some of its own."""
    module = getattr(getattr(builtins, name, None), "__module__", None) or "builtins"
    return hasattr(builtins, name) and not module.startswith("IPython")


def _in_factory(name: str, definition: Definition, arguments: list[str]) -> str:
    """Write a function that gives the definition its variables, and the call of it."""
    factory = f"{INNER_PREFIX}make_{name.removeprefix(INNER_PREFIX)}"
    parameters = ", ".join(argument.partition("=")[0] for argument in arguments)
    head = f"def {factory}({parameters}):\n{definition.indented()}\n    return {definition.node.name}"
    return f"{head}\n\n\n{name} = {factory}({', '.join(arguments)})"
