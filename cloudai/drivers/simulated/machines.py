"""The machines of a simulated cloud: who has taken which, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cloudai.drivers.protocols import Needs, Offer
from cloudai.drivers.simulated.timeline import Timeline
from cloudai.drivers.simulated.world import World, Zone
from cloudai.errors import PlacementError

__all__ = ["Machines", "Taken"]

_SOURCE = "the simulated cloud's price list"


@dataclass
class Taken:
    """Machines of one zone that somebody has; times in seconds after the simulation's start."""

    zone: Zone
    what: str
    count: int
    spot: bool
    starts: float
    ends: float | None = None

    def cost(self, now: float) -> float:
        """Return what they have cost until now, in USD."""
        end = now if self.ends is None else self.ends
        return self.count * self.zone.bill(self.starts, end, spot=self.spot) if end > self.starts else 0.0


@dataclass
class Machines:
    """Who has taken which machines, the ended included."""

    world: World
    timeline: Timeline
    taken: list[Taken] = field(default_factory=list)

    def offers(self, needs: Needs, driver: str) -> Iterator[Offer]:
        """Offer each zone, on demand and spot."""
        for zone in self.world.zones:
            yield self._offer(zone, needs, driver, spot=False)
            if zone.spot:
                yield self._offer(zone, needs, driver, spot=True)

    def _offer(self, zone: Zone, needs: Needs, driver: str, *, spot: bool) -> Offer:
        price = (zone.spot_price(self.timeline.now) or 0.0) if spot else zone.price
        as_of = datetime.fromtimestamp(self.timeline.unix(self.timeline.now), UTC).date().isoformat()
        lacks = _lacks(zone, needs)
        why_not = lacks or self._why_not(zone, needs.workers, spot=spot)
        return Offer(
            driver, zone.name, price * needs.workers, "USD", _SOURCE, as_of, spot=spot,
            available=not why_not, why_not=why_not, temporary=bool(why_not and not lacks),
        )  # fmt: skip

    def _why_not(self, zone: Zone, count: int, *, spot: bool) -> str:
        """Say why machines cannot be had now; empty where they can."""
        if spot and zone.spot_price(self.timeline.now) is None:
            return "no spot machine is free"
        used = sum(taken.count for taken in self.taken if taken.ends is None and taken.zone.name == zone.name)
        return f"the quota of {zone.quota} machines leaves {zone.quota - used}" if used + count > zone.quota else ""

    def take(self, place: str, what: str, *, count: int, spot: bool) -> Taken:
        """Take machines; `PlacementError` where they cannot be had any more."""
        zone = self.world.zone(place)
        why_not = self._why_not(zone, count, spot=spot)
        if why_not:
            raise PlacementError(f"{place}: {why_not}", fix="choose another place, or wait")
        taken = Taken(zone, what, count, spot, self.timeline.now + zone.boot)
        self.taken.append(taken)
        return taken

    def take_cheapest(self, needs: Needs, what: str) -> Taken:
        """Take the cheapest machines that stay."""
        able = [offer for offer in self.offers(needs, "") if offer.available and not offer.spot]
        if not able:
            raise PlacementError("no zone of the simulated cloud has a machine for this", fix="ask for less, or wait")
        return self.take(min(able, key=lambda offer: offer.price_per_hour).place, what, count=needs.workers, spot=False)

    def give_back(self, taken: Taken) -> None:
        """End the bill."""
        if taken.ends is None:
            taken.ends = self.timeline.now


def _lacks(zone: Zone, needs: Needs) -> str:
    """Say what a zone's machines lack for one worker, however long one waits."""
    machine = zone.machine
    if needs.workers > zone.quota:
        return f"needs {needs.workers} machines, the quota is {zone.quota}"
    if needs.gpus > machine.gpus or (needs.gpus and needs.gpu_type not in ("", machine.gpu_type)):
        return f"needs {needs.gpus} × {needs.gpu_type or 'GPU'}, a machine has {machine.gpus} × {machine.gpu_type or 'GPU'}"
    if needs.cpus > machine.cpus:
        return f"needs {needs.cpus:g} cores, a machine has {machine.cpus:g}"
    if needs.memory > machine.memory:
        return f"needs {needs.memory / 2**30:.1f} GiB of memory, a machine has {machine.memory / 2**30:.1f}"
    return ""
