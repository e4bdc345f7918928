"""What is tried in a search of hyper-parameters, how often, and when a trial is given up early."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from cloudai.errors import SpecError
from cloudai.specs.training import Config
from cloudai.specs.validation import Spec

__all__ = ["Choice", "Range", "Search", "choice", "integers", "log_uniform", "uniform"]

_DIGITS = 6
"""Significant digits of drawn numbers: readable, and the same whatever the machine's logarithm does in its last bit."""
_MOST_REPEATS = 1000  # for each trial, before a space counts as exhausted


class _Plain(Spec):
    values: Config


class Choice(Spec):
    """One of some values."""

    kind: Literal["choice"] = "choice"
    values: tuple[Any, ...] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def _are_plain(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_Plain(values={"choice": list(values)}).values["choice"])

    @property
    def size(self) -> float:
        """How many different values there are."""
        return len({json.dumps(value, sort_keys=True) for value in self.values})

    def at(self, share: float) -> Any:
        """Return the value at a share of the whole, from 0 to below 1."""
        return self.values[int(share * len(self.values))]


class Range(Spec):
    """A number between two others."""

    kind: Literal["uniform", "log_uniform", "integers"]
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)

    @field_validator("high")
    @classmethod
    def _is_a_range(cls, high: float, info: ValidationInfo) -> float:
        kind, low = info.data.get("kind", ""), info.data.get("low", -math.inf)
        given = f"{kind}({low:g}, {high:g})"
        if low >= high:
            raise SpecError(f"{given} is empty", fix="give the lower bound first, then the higher one")
        if kind == "log_uniform" and low <= 0:
            raise SpecError(f"{given} reaches 0, which has no logarithm", fix="give a lower bound above 0, or use uniform")
        if kind == "integers" and not (low.is_integer() and high.is_integer()):
            raise SpecError(f"{given} has bounds that are no integers", fix="give whole numbers, or use uniform")
        return high

    @property
    def size(self) -> float:
        """How many different values there are; infinite for real numbers."""
        return self.high - self.low + 1 if self.kind == "integers" else math.inf

    def at(self, share: float) -> float | int:
        """Return the value at a share of the whole, from 0 to below 1."""
        if self.kind == "integers":
            return int(self.low) + int(share * self.size)
        if self.kind == "uniform":
            value = self.low + share * (self.high - self.low)
        else:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


def choice(*values: Any) -> Choice:
    """Return one of these values, each as likely as the others.

    Examples
    --------
    >>> choice(16, 32).values
    (16, 32)
    """
    return Choice(values=values)


def uniform(low: float, high: float) -> Range:
    """Return a real number from `low` to `high`."""
    return Range(kind="uniform", low=low, high=high)


def log_uniform(low: float, high: float) -> Range:
    """Return a positive number from `low` to `high`, each power of ten as likely as the others.

    Examples
    --------
    >>> log_uniform(1e-4, 1e-2).at(0.5)
    0.001
    """
    return Range(kind="log_uniform", low=low, high=high)


def integers(low: int, high: int) -> Range:
    """Return a whole number from `low` to `high`, both included."""
    return Range(kind="integers", low=low, high=high)


def _space(value: Any) -> Any:
    if not isinstance(value, Mapping) or not value:
        raise SpecError(f"{value!r} is no space to search", fix="give a dict, such as {'lr': log_uniform(1e-4, 1e-1)}")
    for key, domain in value.items():
        if not isinstance(domain, Choice | Range) and not (isinstance(domain, Mapping) and "kind" in domain):
            fix = "give choice(…), uniform(…), log_uniform(…) or integers(…); what is fixed is an option of train"
            raise SpecError(f"{key!r} is {domain!r}, which is nothing to draw from", fix=fix)
    return value


class Search(Spec):
    """A search of hyper-parameters by trials, of which the weak ones are stopped early.

    Parameters
    ----------
    space : mapping of str to Choice or Range
        For each option what it is drawn from: an option of the built-in loop (``"lr"``), or for your own function a value of
        its config (``"config.width"``).
    trials : int
        How many are drawn; fewer where the space does not hold so many different ones.
    metric, mode : str
        The reported metric that says how good a trial is, and whether the smallest or the largest is best.
    parallel : int
        How many run at once.
    grace : int or None
        After so many reports of the metric a trial may be stopped for the first time; None stops none early.
    reduction : int
        At each rung the best 1 / `reduction` go on; rungs lie at ``grace × reduction^k`` reports.

    Examples
    --------
    >>> search = Search({"lr": log_uniform(1e-4, 1e-1), "batch_size": choice(16, 32)}, trials=2)
    >>> search.drawn(seed=0) == search.drawn(seed=0)
    True
    >>> len(Search({"batch_size": choice(16, 32)}, trials=8).drawn(seed=0))
    2
    """

    space: Annotated[dict[str, Annotated[Choice | Range, Field(discriminator="kind")]], BeforeValidator(_space)]
    trials: int = Field(default=8, ge=1, le=1000)
    metric: str = Field(default="val_loss", min_length=1)
    mode: Literal["min", "max"] = "min"
    parallel: int = Field(default=2, ge=1)
    grace: int | None = Field(default=1, ge=1)
    reduction: int = Field(default=3, ge=2)

    def __init__(self, space: Mapping[str, Choice | Range] | None = None, **values: Any) -> None:
        super().__init__(space=space, **values)

    def drawn(self, seed: int) -> list[dict[str, Any]]:
        """Return the parameters of each trial: the same for the same seed, and never the same twice.

        A draw is a hash of the seed, its number and the option's name, so the first trials of a longer search are those of
        a shorter one.
        """
        size = math.prod(domain.size for domain in self.space.values())
        wanted = int(min(self.trials, size))
        found: dict[str, dict[str, Any]] = {}
        for number in range(_MOST_REPEATS * wanted):
            drawn = {key: domain.at(_share(seed, number, key)) for key, domain in self.space.items()}
            found.setdefault(json.dumps(drawn, sort_keys=True), drawn)
            if len(found) == wanted:
                break
        return list(found.values())


def _share(seed: int, number: int, key: str) -> float:
    """Return a number from 0 to below 1 that depends on nothing but these."""
    digest = hashlib.sha256(f"{seed}/{number}/{key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
