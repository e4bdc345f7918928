"""What was spent: measured time at a price that has a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloudai.display import duration, money
from cloudai.drivers.protocols import Offer

__all__ = ["Price", "Spending", "price_of", "spending"]


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


def spending(spans: Sequence[tuple[float | None, float | None]], price: Mapping[str, Any] | None, now: float) -> Spending:
    """Add up what spans of (start, end) in unix time cost; an end of None is `now`, a start of None has not begun.

    A clock that was set back makes nothing cost less than nothing.
    """
    seconds = sum(max(0.0, (end or now) - start) for start, end in spans if start is not None)
    if price is None:
        return Spending(seconds, 0.0, "", "no place was taken yet")
    amount = seconds / 3600 * price["per_hour"]
    at = f"at {money(price['per_hour'], price['currency'])} per hour: {price['source']}"
    basis = at if price["per_hour"] else price["source"]
    return Spending(seconds, amount, price["currency"], basis)
