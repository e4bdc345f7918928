"""A simulation: a cloud that is not there, the time that passes in it, and the real core on top.

Everything above the drivers is the real thing: the verbs, the ledger, the policies, the store, the training itself. Only
places, prices, time and faults are simulated, so a day with two preemptions takes a second and costs nothing.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from cloudai import _api, settings
from cloudai.clock import SimulatedClock
from cloudai.display import Card, Shown, Table, duration, money
from cloudai.drivers.simulated import SimulatedCloud, use_cloud
from cloudai.drivers.simulated.deployments import Traffic
from cloudai.drivers.simulated.machines import Taken
from cloudai.drivers.simulated.world import World
from cloudai.errors import NotReadyError, SpecError
from cloudai.specs.units import parse_duration
from cloudai.state.handles import freshen
from cloudai.state.leader import leading
from cloudai.state.ledger import Ledger, use_ledger
from cloudai.testing.workload import ModelServers, TrainingWorkload

__all__ = ["Bill", "BillLine", "Simulation"]

_MOST_ROUNDS = 100
"""So many rounds in which the core goes on acting at one moment mean that it runs in a circle."""


@dataclass(frozen=True)
class BillLine:
    """Machines that were taken: what for, where, from when to when in hours after the start, and the amount in USD."""

    what: str
    zone: str
    spot: bool
    machines: int
    start: float
    end: float
    amount: float

    @classmethod
    def of(cls, taken: Taken, now: float) -> BillLine:
        """Make the line of machines that were taken; `now` in seconds after the start."""
        end = now if taken.ends is None else taken.ends
        start, end = taken.starts / 3600, max(taken.starts, end) / 3600
        return cls(taken.what, taken.zone.name, taken.spot, taken.count, start, end, taken.cost(now))

    @property
    def row(self) -> tuple[str, ...]:
        """What a table shows of it."""
        zone = f"{self.zone}, spot" if self.spot else self.zone
        length = duration(3600 * (self.end - self.start))
        return self.what, zone, str(self.machines), f"{self.start:.2f} h", length, money(self.amount)


@dataclass(frozen=True, repr=False)
class Bill(Shown):
    """What a simulated cloud charges."""

    lines: Sequence[BillLine]

    def __repr__(self) -> str:
        return f"Bill({money(self.total)}, {len(self.lines)} lines)"

    @property
    def total(self) -> float:
        """The sum, in USD."""
        return sum(line.amount for line in self.lines)

    def card(self) -> Card:
        """Show each line and the sum."""
        table = Table(("what", "zone", "machines", "from", "for", "amount"), [line.row for line in self.lines])
        return Card(
            f"Bill: {money(self.total)}", tables=[table] if self.lines else [], notes=["leaves out storage and network"]
        )


class Simulation:
    """A simulated cloud in force, with a home and a clock of its own.

    Use it as a context, or between `start` and `stop` in a notebook. Meanwhile ``on="simulated"`` runs there, `cloudai.ps`
    and the other verbs see only what belongs to it, and ``wait()`` lets simulated time pass. Work is really trained, in this
    process, at the moment when its simulated job ends.

    Parameters
    ----------
    world : World, optional
        Zones, prices, preemptions and faults.
    durations : Mapping[str, str or float], optional
        How long the work of a run takes on its machine, by the name of its model or a pattern; by default an hour.
    checkpoint_every : str or float
        How often the simulated work writes a checkpoint: what came after the last is lost with the machine.
    traffic : Mapping[str, Traffic], optional
        The requests to each deployment, by its name.
    start : datetime, optional
        The simulated time of the start; with it and the same world, everything happens the same.
    home : Path, optional
        Where its ledger and store lie; by default a temporary folder that is removed at the end.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from cloudai.drivers.simulated.world import Preemption, World, Zone
    >>> world = World(zones=[Zone(name="a", price=3.0, spot=1.0)], preemptions=[Preemption(at="30m")])
    >>> with Simulation(world) as simulation:
    ...     data = np.zeros((40, 4)), np.zeros(40, int)
    ...     run = _api.train(torch.nn.Linear(4, 2), data, on="simulated", spot_policy="spot", name="first", epochs=1)
    ...     status = run.wait(progress=False).status
    ...     print(status.phase, status.preemptions, run.cost.amount == simulation.bill.total)
    succeeded 1 True
    """

    def __init__(
        self,
        world: World | None = None,
        *,
        durations: Mapping[str, str | float] | None = None,
        checkpoint_every: str | float = "10m",
        traffic: Mapping[str, Traffic] | None = None,
        start: datetime = datetime(2026, 1, 1, tzinfo=UTC),
        home: Path | None = None,
    ) -> None:
        if start.tzinfo is None:
            raise SpecError(f"{start.isoformat()} has no time zone", fix="give datetime(…, tzinfo=timezone.utc)")
        self.world = world or World()
        self.clock = SimulatedClock(start.timestamp())
        self.clock.on_pause = self._pause
        seconds = {pattern: parse_duration(value) for pattern, value in (durations or {}).items()}
        self._work = TrainingWorkload(self.clock, seconds, parse_duration(checkpoint_every))
        self._cloud = SimulatedCloud(self.world, self.clock, self._work, traffic, ModelServers())
        self._home = home
        self._ledger: Ledger | None = None
        self._held = ExitStack()
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"Simulation({len(self.world.zones)} zones, now={self.now:%Y-%m-%d %H:%M:%S})"

    def __enter__(self) -> Simulation:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> Simulation:
        """Put it in force.

        Raises
        ------
        SpecError
            If it is in force already, or somebody leads the home that was given.
        """
        if self._ledger is not None:
            raise SpecError("this simulation runs already", fix="stop() it first, or make another")
        with ExitStack() as held:
            home = self._home or Path(held.enter_context(tempfile.TemporaryDirectory(prefix="cloudai-simulation-")))
            held.enter_context(_configured(home=home, store=str(home / "store"), tracking="none", ledger=""))
            if not held.enter_context(leading(home)):  # so that no supervisor starts, whose clock would be another
                raise SpecError(f"a supervisor leads {home}", fix="give another home, or none")
            self._ledger = Ledger(home / "ledger.sqlite", clock=self.clock)
            use_ledger(self._ledger)
            use_cloud(self._cloud)
            held.callback(use_cloud, None)
            self._held = held.pop_all()
        return self

    def stop(self) -> None:
        """Take it out of force; what it made is gone, unless a home was given."""
        self._ledger = None
        self._held.close()

    @property
    def now(self) -> datetime:
        """The simulated time."""
        return datetime.fromtimestamp(self.clock.now(), UTC)

    @property
    def bill(self) -> Bill:
        """What the cloud charges up to now, line by line."""
        return Bill([BillLine.of(taken, self._cloud.timeline.now) for taken in self._cloud.machines.taken])

    def advance(self, by: str | float = 0.0) -> datetime:
        """Let time pass, with everything that happens in it; returns the new time.

        Parameters
        ----------
        by : str or float
            Seconds, or a text such as ``"2h"``. 0 lets happen what is due now.

        Raises
        ------
        SpecError
            If the simulation does not run.
        """
        with self._lock:
            until = self.clock.now() + parse_duration(by)
            self._settle()
            while (at := self._next()) is not None and at <= until:
                self.clock.move(at)
                self._settle()
            self.clock.move(until)
            self._settle()
        return self.now

    def _pause(self, seconds: float) -> None:
        """Go on to the next moment at which something happens, for somebody who waits for it; news of now come first."""
        with self._lock:
            if self._settle():
                return
            in_vain, at = self._waits_in_vain(), self._next()
            if at is not None:
                self.advance(max(seconds, at - self.clock.now()))
            if at is None or (in_vain and self._waits_in_vain()):  # also after it has asked once more
                fix = "look at cloudai.ps() for what is waited for"
                raise NotReadyError("nothing more will happen in this simulation", fix=fix)

    def _next(self) -> float | None:
        """Return when the cloud or the core will do something next, in unix time."""
        ledger, now = self._running(), self.clock.now()
        due = [_api.due(ledger, record) for record in ledger.records(alive=True)]
        moments = [max(at, now + 1.0) for at in due if at is not None and at != float("inf")]
        if self._cloud.timeline.next is not None:
            moments.append(self._cloud.timeline.next)
        return min(moments, default=None)

    def _waits_in_vain(self) -> bool:
        """Whether all that is alive waits for a place, and nothing is planned that could free one."""
        records = self._running().records(alive=True)
        return self._cloud.timeline.next is None and all(record.status.get("waiting") for record in records)

    def _settle(self) -> bool:
        """Let cloud and core act until nothing changes any more at this moment; returns whether anything did."""
        ledger = self._running()
        freshen(ledger)
        first = ledger.records()
        for _ in range(_MOST_ROUNDS):
            self._cloud.timeline.happen()
            before = ledger.records(alive=True)
            for record in sorted(before, key=lambda record: (record.created, record.name)):
                _api.advance(ledger, ledger.get(record.kind, record.name))
            if ledger.records(alive=True) == before:
                break
        freshen(ledger)
        return ledger.records() != first

    def _running(self) -> Ledger:
        if self._ledger is None:
            raise SpecError("this simulation does not run", fix="start() it, or use it in a with statement")
        return self._ledger


@contextlib.contextmanager
def _configured(**values: Any) -> Iterator[None]:
    """Set settings for a while."""
    now = settings.current()
    before = {name: getattr(now, name) if now.sources[name] == "configure()" else None for name in values}
    settings.configure(**values)
    try:
        yield
    finally:
        settings.configure(**before)
