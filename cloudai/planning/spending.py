"""What was spent: measured time at a price that has a source, or what the place itself has billed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloudai.display import duration, money
from cloudai.drivers.protocols import Offer

__all__ = ["Price", "Span", "Spending", "price_of", "spending"]

_MOST_SOURCES = 3


@dataclass(frozen=True)
class Price:
    """An hourly price and where it comes from."""

    per_hour: float
    currency: str
    source: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for the ledger."""
        return dict(vars(self))


def price_of(offer: Offer) -> Price:
    """Return the price of an offer."""
    return Price(offer.price_per_hour, offer.currency, f"{offer.source}, {offer.as_of}")


@dataclass(frozen=True)
class Span:
    """A time at a place.

    Attributes
    ----------
    start, end : float or None
        Unix times; a start of None has not begun, an end of None goes on.
    price : Mapping or None
        A `Price` as JSON; None where no place was taken.
    billed : float or None
        What the place said that it had cost when it was last asked; None where it does not say.
    billed_at : float or None
        When it said so; by default the end.
    """

    start: float | None
    end: float | None
    price: Mapping[str, Any] | None
    billed: float | None = None
    billed_at: float | None = None

    def seconds(self, now: float) -> float:
        """Return its length up to `now`; a clock that was set back makes no negative time."""
        return 0.0 if self.start is None else max(0.0, (self.end or now) - self.start)

    def amount(self, now: float) -> float:
        """Return what it cost up to `now`: what was billed, and time at the price for what was not billed yet."""
        if self.price is None:
            return 0.0
        seconds = self.seconds(now)
        if self.billed is not None:
            seconds = max(0.0, (self.end or now) - (self.billed_at or self.end or now))
        return (self.billed or 0.0) + seconds / 3600 * float(self.price["per_hour"])


@dataclass(frozen=True)
class Spending:
    """Time used and what it cost.

    Attributes
    ----------
    seconds : float
        Wall-clock seconds of all attempts, up to now for what still runs.
    amount : float
        In ``currency``.
    basis : str
        The price, its source, and what is left out.
    """

    seconds: float
    amount: float
    currency: str
    basis: str

    def __str__(self) -> str:
        return f"{money(self.amount, self.currency)} for {duration(self.seconds)} ({self.basis})"


def spending(spans: Sequence[Span], now: float) -> Spending:
    """Add up what spans cost until `now`, a unix time."""
    seconds = sum(span.seconds(now) for span in spans)
    priced = [span for span in spans if span.price is not None]
    if not priced:
        return Spending(seconds, 0.0, "", "no place was taken yet")
    prices = [dict(span.price or {}) for span in priced]
    bases = list(dict.fromkeys(_basis(price) for price in prices))
    told = "; ".join(bases[:_MOST_SOURCES]) + (f" and {len(bases) - _MOST_SOURCES} more" if len(bases) > _MOST_SOURCES else "")
    billed = "as billed by the place, " if any(span.billed is not None for span in priced) else ""
    return Spending(seconds, sum(span.amount(now) for span in priced), prices[-1]["currency"], billed + told)


def _basis(price: Mapping[str, Any]) -> str:
    if not price["per_hour"]:
        return str(price["source"])
    return f"at {money(price['per_hour'], price['currency'])} per hour: {price['source']}"
