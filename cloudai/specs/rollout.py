"""How a new version is let in by itself, and what throws it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from cloudai.errors import SpecError
from cloudai.specs.units import Seconds, parse_duration
from cloudai.specs.validation import Spec

__all__ = ["Guard", "Rollout", "RolloutOrder"]

_MARGINS = {"errors": 0.01, "latency": 0.2, "drift": 0.1, "shadow": 0.05, "accuracy": 0.02}
_BOUNDED = ("errors", "latency")


class Guard(Spec):
    """What the new version must not be worse in than the stable one, and by how much it may be.

    Examples
    --------
    >>> Guard(watch="errors").allowed
    0.01
    >>> Guard(watch="latency", quantile=0.99, bound="200ms").bound
    0.2
    """

    watch: Literal["errors", "latency", "drift", "shadow", "accuracy"]
    """The share of requests that fail, how long they take, the distribution of the predictions, answers to mirrored requests
    that differ from the stable version's, or the share of wrong predictions among those with a label."""
    margin: float | None = Field(default=None, ge=0, lt=10)
    """By how much it may be worse: a difference of shares, of latency a share of the stable one's. By default 0.01 of the
    errors, 0.2 of the latency, 0.1 of the predictions (of any share of them), 0.05 of the mirrored, 0.02 of the accuracy."""
    bound: float | None = Field(default=None, gt=0)
    """In place of the comparison: the largest share of errors, or of the latency the seconds of its quantile."""
    quantile: float = Field(default=0.95, gt=0, lt=1)
    """Which quantile of the latency."""
    tolerance: float = Field(default=0.1, gt=0, le=1)
    """An answer to a mirrored request differs when a number in it does by more than this share of the row's largest."""

    @property
    def allowed(self) -> float:
        """The margin, or what is usual for what is watched."""
        return _MARGINS[self.watch] if self.margin is None else self.margin

    @field_validator("bound", mode="before")
    @classmethod
    def _seconds(cls, value: object) -> object:
        return parse_duration(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _bound_makes_sense(self) -> Self:
        if self.bound is not None and self.watch not in _BOUNDED:
            raise SpecError(f"there is no bound on {self.watch!r}", fix="give margin=, or watch the errors or the latency")
        if self.watch == "errors" and self.bound is not None and self.bound >= 1:
            raise SpecError(f"bound={self.bound:g} lets every request fail", fix="give a share such as bound=0.05")
        if self.watch != "latency" and self.allowed >= 1:
            raise SpecError(f"margin={self.allowed:g} is no difference of shares", fix="give a share such as margin=0.01")
        return self


class Rollout(Spec):
    """How a new version gets its traffic.

    Examples
    --------
    >>> canary = Rollout(steps=(1, 10, 50, 100), bake="5m")
    >>> blue_green = Rollout(steps=(0, 100), bake="2m")
    >>> shadow = Rollout(steps=(0,), shadow=100, bake="1h")
    """

    steps: tuple[int, ...] = (1, 10, 50, 100)
    """Its share of the requests, in percent, step by step. After a last step of 100 it is promoted; after another it waits
    for `promote`."""
    bake: Seconds = 300.0
    """The time that each step takes at least."""
    shadow: int = Field(default=0, ge=0, le=100)
    """The share of the stable version's requests, in percent, that it is asked as well; clients never see these answers."""
    sticky: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9-]*$")
    """A header, such as ``"x-user-id"``: requests with the same value in it go to the same version."""
    alarm_rate: float = Field(default=0.05, gt=0, le=0.5)
    """The share of versions which are no worse than the guards allow that is rolled back, at most."""
    min_requests: int = Field(default=100, ge=0)
    """So many requests must the new version have seen in a step; at 0 % mirrored ones, where there are any."""
    max_time: Seconds = Field(default=3600.0, gt=0)
    """How long a step may wait for them."""
    on_max_time: Literal["hold", "rollback", "proceed"] = "hold"
    """What is done then: wait for a person, go back, or go on with the next step."""
    ready_within: Seconds = Field(default=600.0, gt=0)
    """How long it may take to come up."""

    @field_validator("sticky")
    @classmethod
    def _lower(cls, value: str) -> str:
        return value.lower()

    @model_validator(mode="after")
    def _steps_grow(self) -> Self:
        if not self.steps or list(self.steps) != sorted(set(self.steps)) or not 0 <= self.steps[0] <= self.steps[-1] <= 100:
            raise SpecError(f"the steps {self.steps} do not grow from 0 to 100", fix="give shares such as (1, 10, 50, 100)")
        if self.max_time < self.bake:
            what = f"a step must take {self.bake:g} s, and may take {self.max_time:g} s"
            raise SpecError(what, fix="raise max_time=, or lower bake=")
        return self


class RolloutOrder(Spec):
    """A rollout as it was asked for, and what was said about it since."""

    id: str
    rollout: Rollout
    guards: tuple[Guard, ...]
    asked: float = 0.0
    """Unix time."""
    paused: bool = False
    resumed: int = 0
    """How often it was told to go on."""

    @classmethod
    def new(cls, key: str, rollout: Rollout, guards: Sequence[Guard], asked: float = 0.0) -> Self:
        """Make an order; without guards the errors are watched.

        Raises
        ------
        SpecError
            If a guard can never see anything in such a rollout.
        """
        for guard in guards:
            if not isinstance(guard, Guard):
                raise SpecError(f"{guard!r} is no guard", fix="give cloudai.Guard(watch=…)")
            if guard.watch == "shadow" and not rollout.shadow:
                raise SpecError("a guard watches mirrored requests, and none are mirrored", fix="give Rollout(shadow=100, …)")
        return cls(id=key, rollout=rollout, guards=tuple(guards) or (Guard(watch="errors"),), asked=asked)
