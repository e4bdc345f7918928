"""What a simulated cloud is made of: data and nothing else, so that it can be written down, varied and read back.

Times are seconds after the simulation's start, or texts such as ``"40m"``. Machines are whole: a job takes one machine for
each of its workers, a revision one for each replica.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from cloudai.errors import SpecError
from cloudai.specs.units import Bytes, Seconds
from cloudai.specs.validation import Spec

__all__ = ["Act", "Crash", "Fate", "LostAnswer", "Machine", "Outage", "Preemption", "World", "Zone"]

Act = Literal[
    "offers", "submit", "status", "logs", "cancel", "apply", "scale", "route", "retire", "inspect", "delete", "metrics",
    "samples",
]  # fmt: skip
"""What a driver can be asked for."""


class Machine(Spec):
    """The machines of a zone, all alike."""

    cpus: float = Field(default=4.0, gt=0)
    memory: Bytes = 16 * 2**30
    gpus: int = Field(default=0, ge=0)
    gpu_type: str = ""


def _series(value: Any) -> Any:
    """Read a constant spot price as a series of one."""
    if value is None or isinstance(value, list | tuple):
        return value or ()
    return ((0.0, value),)


Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Zone(Spec):
    """A place with machines.

    Examples
    --------
    >>> zone = Zone(name="a", price=3.0, spot=[("0m", 1.0), ("40m", None), ("50m", 1.2)])
    >>> zone.spot_price(0.0), zone.spot_price(2400.0), zone.spot_price(3600.0)
    (1.0, None, 1.2)
    """

    name: str = Field(min_length=1)
    price: Price
    """USD for an hour of a machine that stays."""
    spot: Annotated[tuple[tuple[Seconds, Price | None], ...], BeforeValidator(_series)] = ()
    """The spot price from a time on, in order of time; None from when no spot machine is to be had: those that run are taken
    away then. A bare number is a price that stays; without any, the zone has no spot machines."""
    machine: Machine = Machine()
    quota: int = Field(default=16, ge=0)
    """Machines that one may have at the same time."""
    boot: Seconds = 60.0
    """How long a machine takes to start; it is billed from then on."""

    def spot_price(self, at: float) -> float | None:
        """Return the spot price at a time; None where no spot machine is to be had."""
        index = bisect.bisect_right([start for start, _ in self.spot], at)
        return self.spot[index - 1][1] if index else None

    def bill(self, start: float, end: float, *, spot: bool) -> float:
        """Return what one machine costs from `start` to `end`: each second at the price that is in force then."""
        if not spot:
            return (end - start) / 3600 * self.price
        changes = [start, *(at for at, _ in self.spot if start < at < end), end]
        spans = itertools.pairwise(changes)
        return sum((to - since) / 3600 * (self.spot_price(since) or 0.0) for since, to in spans)


class Preemption(Spec):
    """Spot machines are taken away once, and can be had again at once."""

    at: Seconds
    zone: str = "*"
    """The zone, or a pattern of zones."""


class Crash(Spec):
    """A job fails by itself, as a pod that runs out of memory does."""

    job: str = "*"
    """The job, or a pattern such as ``"digits-*.1"`` for first attempts."""
    after: Seconds
    """After so long on its machine."""
    exit_code: int = Field(default=137, ge=1, le=255)
    reason: str = "out of memory"


class LostAnswer(Spec):
    """The driver's `nth` call of an act is carried out, and its answer never arrives."""

    act: Act
    nth: int = Field(default=1, ge=1)


class Outage(Spec):
    """The cloud answers nothing for a while; what runs goes on."""

    start: Seconds
    end: Seconds
    act: Act | Literal["*"] = "*"


class Fate(Spec):
    """What becomes of a revision."""

    revision: str = "*"
    """The revision, or a pattern such as ``"v1.1.*"``."""
    boot: Seconds = 30.0
    """How long it takes to become ready, after its machine has started."""
    ready: bool = True
    crash_after: Seconds | None = None
    """It ends by itself so long after its machine has started; each time that it is started."""
    error_rate: float = Field(default=0.0, ge=0, le=1)
    """The share of its requests that fail."""
    latency: Seconds = 0.02


class World(Spec):
    """A cloud.

    Examples
    --------
    >>> world = World(zones=[Zone(name="a", price=3.0, spot=1.0)], preemptions=[Preemption(at="40m")])
    >>> World.parse(world.model_dump_json()) == world
    True
    """

    zones: tuple[Zone, ...] = (Zone.of(name="zone-a", price=1.0, spot=0.3),)
    preemptions: tuple[Preemption, ...] = ()
    crashes: tuple[Crash, ...] = ()
    lost_answers: tuple[LostAnswer, ...] = ()
    outages: tuple[Outage, ...] = ()
    fates: tuple[Fate, ...] = ()

    def zone(self, name: str) -> Zone:
        """Return the zone of that name; `SpecError` where there is none."""
        for zone in self.zones:
            if zone.name == name:
                return zone
        raise SpecError(f"the simulated cloud has no zone {name!r}", fix=f"it has: {', '.join(z.name for z in self.zones)}")

    def fate(self, revision: str) -> Fate:
        """Return what becomes of a revision: the first fate whose pattern fits."""
        return next((fate for fate in self.fates if fnmatchcase(revision, fate.revision)), Fate())

    def crashes_of(self, job: str) -> Sequence[Crash]:
        """Return the ways in which a job will fail."""
        return [crash for crash in self.crashes if fnmatchcase(job, crash.job)]
