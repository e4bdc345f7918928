"""A plan: where the work would run, what it would cost, how sure that is, and why not elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cloudai.display import Card, Shown, Table, duration, money
from cloudai.drivers.protocols import Driver, Needs, Offer
from cloudai.errors import PlacementError
from cloudai.planning.estimate import Estimate
from cloudai.state.ledger import Record

__all__ = ["Plan", "choose", "no_place", "place"]

T = TypeVar("T")


def choose(offers: Sequence[Offer], on: str) -> Offer | None:
    """Return the cheapest offer that can be launched on the driver asked for; None where there is none."""
    able = [offer for offer in offers if offer.available and offer.driver == on]
    return min(able, key=lambda offer: offer.price_per_hour, default=None)


def place(driver: Driver, needs: Needs, record: Record) -> Offer:
    """Return the offer that a record was made with, or else the cheapest that the driver makes now.

    Raises
    ------
    PlacementError
        If the driver cannot run it, with its reasons.
    """
    recorded = record.desired.get("offer")
    if recorded is not None:
        return Offer(**recorded)
    offers = list(driver.offers(needs))
    offer = choose(offers, driver.name)
    if offer is None:
        raise no_place(offers)
    return offer


@dataclass(frozen=True, repr=False)
class Plan(Shown, Generic[T]):
    """What `cloudai.train` or `cloudai.deploy` would do, before it does it.

    Attributes
    ----------
    title : str
        What is planned.
    offer : Offer or None
        The place chosen; None where no place can run it.
    offers : sequence of Offer
        All places looked at, each with its reason where it was not chosen.
    estimate : Estimate
        The duration, as a range of seconds with its basis.
    """

    title: str
    needs: Needs
    offer: Offer | None
    offers: Sequence[Offer]
    estimate: Estimate
    launch: Callable[[], T]

    def __repr__(self) -> str:
        return f"Plan({self.title!r}, on={self.offer.driver if self.offer else None!r})"

    @property
    def cost(self) -> tuple[float, float] | None:
        """The cost as a range; None where the duration is unknown or no place was found."""
        if self.offer is None or self.estimate.low is None or self.estimate.high is None:
            return None
        hourly = self.offer.price_per_hour / 3600
        return self.estimate.low * hourly, self.estimate.high * hourly

    def card(self) -> Card:
        """Show place, time and cost with their basis, and why not elsewhere."""
        offer = self.offer
        facts = [
            ("place", f"{offer.driver}: {offer.place}" if offer else "nowhere: see why not"),
            ("time", _span(self.estimate)),
            ("basis", self.estimate.basis),
            ("cost", self._cost_text()),
        ]
        rows = [
            (
                "✓" if o is offer else "",
                o.driver,
                o.place,
                self._price(o),
                o.as_of,
                "" if o is offer else o.why_not or "costs more",
            )
            for o in self.offers
        ]
        table = Table(("", "driver", "place", "per hour", "as of", "why not"), rows)
        sources = dict.fromkeys(f"{o.driver}: {o.source}" for o in self.offers)
        return Card(f"Plan: {self.title}", facts, tables=[table], notes=[f"prices from {'; '.join(sources)}"])

    def explain(self) -> str:
        """Return the plan as text."""
        return self.card().text()

    def apply(self) -> T:
        """Do what is planned.

        Raises
        ------
        PlacementError
            If no place can run it, with the reasons.
        """
        if self.offer is None:
            raise no_place(self.offers)
        return self.launch()

    def _cost_text(self) -> str:
        if self.offer is None:
            return "–"
        if self.offer.price_per_hour == 0:
            return f"{money(0, self.offer.currency)}: {self.offer.source}"
        span = self.cost
        if span is None:
            return f"{money(self.offer.price_per_hour, self.offer.currency)} for each hour it takes"
        low, high = (money(value, self.offer.currency) for value in span)
        return f"{low} to {high}, at {self._price(self.offer)} per hour; leaves out electricity, network and storage"

    def _price(self, offer: Offer) -> str:
        if math.isnan(offer.price_per_hour):
            return "unknown"
        return money(offer.price_per_hour, offer.currency) + (" spot" if offer.spot else "")


def no_place(offers: Sequence[Offer]) -> PlacementError:
    """Return the error that says why no place can run the work."""
    reasons = "; ".join(f"{offer.driver}: {offer.why_not}" for offer in offers if offer.driver and offer.why_not)
    return PlacementError(f"no place can run this ({reasons})", fix="ask for less, or use another driver with on=")


def _span(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "unknown"
    return f"{duration(estimate.low)} to {duration(estimate.high)}"
