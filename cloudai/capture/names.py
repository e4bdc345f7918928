"""Which names a definition reads from outside itself, and when.

Python's own symbol table answers, so comprehensions, lambdas, nested functions, class bodies, ``global`` and
``nonlocal`` mean here what they mean to the interpreter.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Definable", "Names", "names_in"]

Definable = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_HOLDER = "_holder_of_free_names"
_DEFERRED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True)
class Names:
    """The names that a definition takes from outside.

    Attributes
    ----------
    early : frozenset of str
        Read while the definition itself runs: decorators, defaults, bases, class bodies, evaluated annotations.
    late : frozenset of str
        Read when it is called.
    perhaps : frozenset of str
        Good to have, not needed: annotations that nobody evaluates, names that a class body may read before it binds
        them, globals that are only assigned.
    assigned : frozenset of str
        Bound as globals by code inside of it.
    dotted : frozenset of str
        The longest attribute chains that start at a name, such as ``"xml.etree.ElementTree.parse"``.
    lines : Mapping[str, int]
        The first line that has each name; 1 is the definition's own first line.
    """

    early: frozenset[str]
    late: frozenset[str]
    perhaps: frozenset[str]
    assigned: frozenset[str]
    dotted: frozenset[str]
    lines: Mapping[str, int]


def names_in(node: Definable, *, free: Collection[str] = (), lazy_annotations: bool = False) -> Names:
    r"""Find the names that a definition takes from outside itself.

    Parameters
    ----------
    node : ast.FunctionDef, ast.AsyncFunctionDef or ast.ClassDef
        The definition.
    free : collection of str
        Names that its enclosing function binds for it; they are not reported.
    lazy_annotations : bool
        Whether it was compiled under ``from __future__ import annotations``.

    Examples
    --------
    >>> node = ast.parse("def f(x, n=SIZE):\n    return [g(i) for i in x]").body[0]
    >>> names = names_in(node)
    >>> sorted(names.early), sorted(names.late)
    (['SIZE'], ['g'])
    """
    table = symtable.symtable(_held(_Bare(lazy_annotations).visit(_copy(node)), free), "<definition>", "exec")
    early, late, assigned = _globals(table)
    whole, later, _ = _globals(symtable.symtable(_held(node, free), "<definition>", "exec"))
    perhaps = whole | later | assigned | set(_read_before_bound(node))
    return Names(
        early=frozenset(early),
        late=frozenset(late - early),
        perhaps=frozenset(perhaps - early - late - set(free) - {node.name}),
        assigned=frozenset(assigned - {node.name}),
        dotted=_longest(set(_dotted(node))),
        lines=_lines(node),
    )


def _lines(node: ast.AST) -> dict[str, int]:
    lines: dict[str, int] = {}
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            lines[part.id] = min(part.lineno, lines.get(part.id, part.lineno))
    return lines


def _held(node: Definable, free: Collection[str]) -> str:
    """Put the definition into a function that binds its free names: ``nonlocal`` is an error without."""
    own = [] if node.name in free else [f"global {node.name}"]
    lines = [f"def {_HOLDER}({', '.join(sorted(free))}):", *own, *ast.unparse(node).split("\n")]
    return lines[0] + "".join(f"\n {line}" for line in lines[1:])


def _copy(node: Definable) -> Definable:
    copied = ast.parse(ast.unparse(node)).body[0]
    assert isinstance(copied, Definable)
    return copied


class _Bare(ast.NodeTransformer):
    """Drops the annotations that Python does not evaluate."""

    def __init__(self, lazy: bool) -> None:
        self.lazy = lazy
        self.in_function = False  # where annotations of variables are never evaluated

    def visit(self, node: ast.AST) -> Any:
        if self.lazy and isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign) and (self.lazy or self.in_function):
            node.annotation = ast.Constant(value=None)
        if not isinstance(node, Definable):
            return self.generic_visit(node)
        return self._visit_definition(node)

    def _visit_definition(self, node: Definable) -> ast.AST:
        is_function = not isinstance(node, ast.ClassDef)
        if self.lazy and not isinstance(node, ast.ClassDef):
            node.returns = None
        before, self.in_function = self.in_function, is_function
        self.generic_visit(node)
        self.in_function = before
        return node


def _globals(top: symtable.SymbolTable) -> tuple[set[str], set[str], set[str]]:
    """Return the global names that are read early, read late, and assigned."""
    early: set[str] = set()
    late: set[str] = set()
    assigned: set[str] = set()
    waiting = [(table, True) for table in top.get_children()]
    while waiting:
        table, now = waiting.pop()
        for symbol in table.get_symbols():
            if symbol.is_global() and symbol.is_referenced():
                (early if now else late).add(symbol.get_name())
            if symbol.is_global() and symbol.is_assigned():
                assigned.add(symbol.get_name())
        waiting += [(child, now and _runs_at_once(child)) for child in table.get_children()]
    return early, late, assigned


def _runs_at_once(table: symtable.SymbolTable) -> bool:
    """Whether the code of a nested scope runs where it stands, not when something is called."""
    comprehension = table.get_name().strip("<>") in {"listcomp", "setcomp", "dictcomp", "genexpr"}
    return comprehension or str(table.get_type()) == "class" or str(table.get_type()).startswith("type param")


def _read_before_bound(node: ast.AST) -> Iterator[str]:
    """Yield names such as ``rate`` in a class body's ``rate = rate``: the symbol table calls them local."""
    for owner in ast.walk(node):
        if not isinstance(owner, ast.ClassDef):
            continue
        bound: set[str] = set()
        for statement in owner.body:
            parts = list(_at_once(statement))
            yield from (p.id for p in parts if isinstance(p, ast.Name) and isinstance(p.ctx, ast.Load) and p.id not in bound)
            bound |= _bound_in(parts)


def _at_once(node: ast.AST) -> Iterator[ast.AST]:
    """Walk the parts of a statement that run with it."""
    yield node
    if not isinstance(node, _DEFERRED):
        for child in ast.iter_child_nodes(node):
            yield from _at_once(child)


def _bound_in(parts: Sequence[ast.AST]) -> set[str]:
    """Return the names that are assigned, defined or imported by `parts` themselves."""
    bound = {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    bound |= {part.name for part in parts if isinstance(part, Definable)}
    return bound | {part.asname or part.name.partition(".")[0] for part in parts if isinstance(part, ast.alias)}


def _longest(chains: set[str]) -> frozenset[str]:
    starts = {chain.rpartition(".")[0] for chain in chains}
    return frozenset(chains - starts)


def _dotted(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute):
            chain, root = [part.attr], part.value
            while isinstance(root, ast.Attribute):
                chain.append(root.attr)
                root = root.value
            if isinstance(root, ast.Name):
                yield ".".join([root.id, *reversed(chain)])
