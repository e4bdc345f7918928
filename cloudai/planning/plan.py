"""A plan: where the work would run, what it would cost, how sure that is, and why not elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, NoReturn, TypeVar

from cloudai.display import Card, Shown, Table, duration, money
from cloudai.drivers.protocols import Driver, Needs, Offer
from cloudai.errors import IntegrityError, NotReadyError, PlacementError
from cloudai.planning.estimate import Estimate

__all__ = ["Plan", "choose", "no_place", "place"]

T = TypeVar("T")


def choose(offers: Sequence[Offer], on: str, *, spot: bool = False) -> Offer | None:
    """Return the cheapest offer of a driver that can be launched now, spot or on demand; None where there is none."""
    able = [offer for offer in offers if offer.available and offer.driver == on and offer.spot == spot]
    return min(able, key=lambda offer: offer.price_per_hour, default=None)


def place(driver: Driver, needs: Needs, *, spot: bool = False) -> Offer:
    """Return the cheapest offer that a driver makes now.

    Raises
    ------
    NotReadyError
        If there is none now and there may be one soon.
    PlacementError
        If the driver cannot run it, with its reasons.
    """
    offers = [offer for offer in driver.offers(needs) if offer.driver == driver.name]
    offer = choose(offers, driver.name, spot=spot)
    if offer is not None:
        return offer
    passing = [f"{o.place}: {o.why_not}" for o in offers if o.temporary and o.spot == spot]
    if passing:
        raise NotReadyError(f"no place is free now ({'; '.join(passing)})", fix="wait, or cancel it and ask for less")
    raise no_place(offers or [_no_offer(driver)])


def _no_offer(driver: Driver) -> Offer:
    """Return the offer of a driver that makes none, with what it lacks as the reason."""
    lacks = "; ".join(f"{problem.what}: {problem.fix}" for problem in driver.check())
    return Offer(driver.name, "nowhere", 0.0, "", "", "", available=False, why_not=lacks or "it offers no place")


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
    launch: Callable[[], T] = field(compare=False)
    spot: bool = False
    """Whether spot machines were asked for."""
    limits: str = ""
    """Its budget and deadline, and whether the estimate stays within them; empty where there are none."""
    at_once: int = 1
    """How many such places are taken at the same time, by the trials of a search."""

    def __repr__(self) -> str:
        return f"Plan({self.title!r}, on={self.offer.driver if self.offer else None!r})"

    @property
    def cost(self) -> tuple[float, float] | None:
        """The cost as a range; None where the duration is unknown or no place was found."""
        if self.offer is None or self.estimate.low is None or self.estimate.high is None:
            return None
        hourly = self.offer.price_per_hour * self.at_once / 3600
        return self.estimate.low * hourly, self.estimate.high * hourly

    def card(self) -> Card:
        """Show place, time and cost with their basis, and why not elsewhere."""
        offer = self.offer
        facts = [
            ("place", f"{offer.driver}: {offer.place}" if offer else "nowhere: see why not"),
            ("time", _span(self.estimate)),
            ("basis", self.estimate.basis),
            ("cost", self._cost_text()),
            *([("limits", self.limits)] if self.limits else []),
        ]
        rows = [
            (
                "✓" if o is offer else "",
                o.driver,
                o.place,
                self._price(o),
                o.as_of,
                "" if o is offer else o.why_not or self._why_not(o),
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

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON: everything but the work itself."""
        offers = [asdict(offer) for offer in self.offers]
        chosen = None if self.offer is None else list(self.offers).index(self.offer)
        facts = {"title": self.title, "needs": asdict(self.needs), "estimate": asdict(self.estimate), "spot": self.spot}
        facts |= {"limits": self.limits, "at_once": self.at_once}
        return {**facts, "offers": offers, "offer": chosen, "cost": None if self.cost is None else list(self.cost)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan[Any]:
        """Read what `to_json` returned: it shows the same, and cannot be applied, for the work is not in it.

        Raises
        ------
        IntegrityError
            If it is not that.
        """
        try:
            offers = tuple(Offer(**offer) for offer in data["offers"])
            chosen = None if data["offer"] is None else offers[data["offer"]]
            needs, estimate = Needs(**data["needs"]), Estimate(**data["estimate"])
            title, spot, limits = str(data["title"]), bool(data["spot"]), str(data.get("limits", ""))
            at_once = int(data.get("at_once", 1))
            return cls(title, needs, chosen, offers, estimate, _without_work, spot, limits, at_once)
        except (KeyError, IndexError, TypeError) as error:
            raise IntegrityError(f"the stored plan cannot be read: {error!r}", fix="plan again") from None

    def _why_not(self, offer: Offer) -> str:
        """Say why an offer that could be launched was not chosen."""
        if offer.spot == self.spot:
            return "costs more"
        return "may be taken away: spot_policy='spot' takes it" if offer.spot else "on demand, and spot was asked for"

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


def _without_work() -> NoReturn:
    raise NotReadyError("this plan was read back, and the work is not in it", fix="plan again, and apply that plan")


def no_place(offers: Sequence[Offer]) -> PlacementError:
    """Return the error that says why no place can run the work."""
    reasons = "; ".join(f"{offer.driver}: {offer.why_not}" for offer in offers if offer.driver and offer.why_not)
    return PlacementError(f"no place can run this ({reasons})", fix="ask for less, or use another driver with on=")


def _span(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "unknown"
    return f"{duration(estimate.low)} to {duration(estimate.high)}"
