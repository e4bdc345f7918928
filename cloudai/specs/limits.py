"""What a run may cost, and until when it may go on."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from cloudai.errors import SpecError
from cloudai.specs.units import parse_duration
from cloudai.specs.validation import Spec

__all__ = ["Budget", "LimitsSpec", "MaybeBudget", "MaybeDeadline"]

_FIX = "write Budget(usd=5), or Budget(amount=5, currency='EUR')"


def _currency(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Z]{3}", value):
        raise SpecError(f"{value!r} is not a currency", fix="write three capital letters, such as 'USD' or 'EUR'")
    return value


class Budget(Spec):
    """The most that a run may cost, all its attempts together.

    Before that is reached, the run writes a checkpoint and stops; `cloudai.Run.resume` goes on from there with a larger one.
    What a last checkpoint takes, and then the saving of the model, is kept back.

    Parameters
    ----------
    usd : float, optional
        The amount in US dollars; short for ``amount=…, currency="USD"``.

    Raises
    ------
    SpecError
        If the amount is not a positive number, or there is none.

    Examples
    --------
    >>> Budget(usd=5)
    Budget(amount=5.0, currency='USD', warn_at=0.8)
    """

    amount: float = Field(gt=0, allow_inf_nan=False)
    currency: Annotated[str, BeforeValidator(_currency)]
    """That of the prices (the setting ``currency`` for this machine)."""
    warn_at: float = Field(default=0.8, gt=0, le=1)
    """The share of it at which the run warns."""

    def __init__(self, *, usd: float | None = None, **values: Any) -> None:
        if usd is not None:
            if "amount" in values or "currency" in values:
                raise SpecError("a budget has one amount", fix=_FIX)
            values |= {"amount": usd, "currency": "USD"}
        if "amount" not in values or "currency" not in values:
            raise SpecError("a budget needs an amount and its currency", fix=_FIX)
        super().__init__(**values)


def _budget(value: Any) -> Any:
    if value is None or isinstance(value, Budget | dict):
        return value
    raise SpecError(f"{value!r} is no budget", fix=_FIX)


MaybeBudget = Annotated[Budget | None, BeforeValidator(_budget)]
"""A budget, or none."""


def _deadline(value: Any) -> float | datetime | None:
    if value is None:
        return None
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d", value):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise SpecError(f"{value!r} is not a time", fix="write it like '2026-12-01T08:00+01:00'") from None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise SpecError(f"{value.isoformat()} has no time zone", fix="give datetime(…, tzinfo=timezone.utc)")
        return value
    seconds = parse_duration(value)
    if not seconds:
        raise SpecError(f"{value!r} is over before anything has begun", fix="give a duration such as '2h', or leave it out")
    return seconds


MaybeDeadline = Annotated[float | datetime | None, BeforeValidator(_deadline)]
"""Until when a run may go on, or None for ever.

Seconds or a text like ``"2h"`` count from when it was asked for; or a datetime with a time zone."""


class LimitsSpec(Spec):
    """What may end a run before its work is done."""

    budget: MaybeBudget = None
    deadline: MaybeDeadline = None
