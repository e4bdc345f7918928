"""Clauses of the contract, and the gaps that a driver declares.

A clause is one or a few tests under a stable name. A subclass of a suite that declares a gap turns that clause's tests into
strict expected failures, so that a gap that has closed is noticed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args

from cloudai.display import nearest
from cloudai.errors import MissingExtraError, SpecError

try:
    import pytest
except ImportError as error:
    raise MissingExtraError(
        "cloudai.testing needs pytest, which is not installed", fix='pip install "cloudai[testing]"'
    ) from error

__all__ = ["Conformance", "Gap", "clause", "clauses_of"]

F = TypeVar("F", bound=Callable[..., None])
Kind = Literal["todo", "upstream", "never"]


@dataclass(frozen=True)
class Gap:
    """A clause that a driver does not fulfil, and why.

    Parameters
    ----------
    kind : {"todo", "upstream", "never"}
        Whether the driver will fulfil it, or what it drives has to change first, or it cannot be.
    reason : str
        Why, in a sentence for users.

    Raises
    ------
    SpecError
        If the kind is none of these, or the reason is empty.
    """

    kind: Kind
    reason: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SpecError(f"{self.kind!r} is no kind of gap", fix=nearest(str(self.kind), get_args(Kind)))
        if not self.reason.strip():
            raise SpecError(f"a gap of the kind {self.kind!r} has no reason", fix="say in a sentence why it is there")


def clause(name: str) -> Callable[[F], F]:
    """Mark a test as one of a clause's."""

    def mark(test: F) -> F:
        test.__dict__["clause"] = name
        return test

    return mark


def clauses_of(suite: type) -> dict[str, list[str]]:
    """Return the names of a suite's clauses, each with the names of its tests."""
    found: dict[str, list[str]] = {}
    for name in dir(suite):
        if name.startswith("test_") and (of := getattr(getattr(suite, name), "clause", "")):
            found.setdefault(of, []).append(name)
    return found


class Conformance:
    """What all suites share; a subclass may declare `gaps`.

    Raises
    ------
    SpecError
        When a subclass is defined whose gap names no clause.
    """

    gaps: ClassVar[Mapping[str, Gap]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        known = clauses_of(cls)
        for name, gap in cls.gaps.items():
            if name not in known:
                raise SpecError(f"{cls.__name__}.gaps: there is no clause {name!r}", fix=nearest(name, sorted(known)))
            for test in known[name]:
                setattr(cls, test, _expected_to_fail(getattr(cls, test), gap))


def _expected_to_fail(test: Callable[..., None], gap: Gap) -> Callable[..., None]:
    """Return a copy of a test with the mark; the suite's own test stays as it is."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        test(*args, **kwargs)

    mark = pytest.mark.xfail(strict=True, reason=f"gap ({gap.kind}): {gap.reason}")
    marked: Callable[..., None] = mark(run)
    return marked
