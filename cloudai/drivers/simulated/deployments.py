"""The deployments of a simulated cloud: revisions, their traffic, and what they answered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cloudai.drivers.protocols import DeploymentStatus, Metric, Percent, Revision, RevisionId, RevisionStatus, Sample
from cloudai.drivers.simulated.machines import Machines, Taken
from cloudai.drivers.simulated.timeline import Timeline
from cloudai.drivers.simulated.world import Fate
from cloudai.errors import DriverError, SpecError

__all__ = ["Deployments", "Shift", "Traffic"]

_LATENCIES = tuple(0.001 * 1.2**n for n in range(60))
"""Seconds, up to the bounds by which a simulated router counts."""
_MOST_WAITING = 256
"""Requests that wait for a revision that is asleep; more are refused."""
_RETIRED = -1


@dataclass(frozen=True)
class Shift:
    """From a time on, one column of the traffic is another.

    Attributes
    ----------
    at : float
        Seconds after the simulation's start.
    column : int
        Which column of the rows.
    by : float
        What is added to it.
    """

    at: float
    column: int
    by: float


@dataclass(frozen=True)
class Traffic:
    """Requests to a deployment, each with one row.

    Attributes
    ----------
    rows : array, shape (n, …)
        They are drawn from these, with replacement.
    per_minute : int
        How many come in a minute.
    shifts : tuple of Shift
        How they change with time.
    seed : int
        The same seed draws the same rows.
    """

    rows: np.ndarray
    per_minute: int = 60
    shifts: tuple[Shift, ...] = ()
    seed: int = 0

    def minute(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the times, in seconds after the start, and the rows of one minute."""
        draw = np.random.default_rng((self.seed, number))
        times = 60.0 * number + 60.0 * (np.arange(self.per_minute) + 0.5) / self.per_minute
        rows = np.array(self.rows[draw.integers(0, len(self.rows), self.per_minute)])
        for shift in self.shifts:
            rows[times >= shift.at, shift.column] += shift.by
        return times, rows


Answer = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Gives the outputs of a model for rows of inputs."""


@dataclass
class _Up:
    """One revision of a deployment."""

    revision: Revision
    fate: Fate
    wanted: int
    replicas: list[Taken] = field(default_factory=list)
    """The machines of its replicas, also of those that have ended."""
    reason: str = ""
    shares: list[tuple[float, int]] = field(default_factory=list)
    """(when, share) of each change of its traffic."""
    asleep_since: float = 0.0

    @property
    def alive(self) -> list[Taken]:
        return [machines for machines in self.replicas if machines.ends is None]

    @property
    def share(self) -> int:
        return self.shares[-1][1] if self.shares else 0

    def give(self, share: int, now: float) -> None:
        """Change its share of the traffic."""
        self.shares.append((now, share))

    def traffic_seconds(self, now: float) -> float:
        """Return for how long it has had all the traffic, had it come in one piece."""
        ends = [at for at, _ in self.shares[1:]] + [now]
        return sum(share / 100 * (end - at) for (at, share), end in zip(self.shares, ends, strict=True))

    def answering(self, now: float) -> int:
        """Return how many of its replicas take requests."""
        return sum(self.fate.ready and now >= machines.starts + self.fate.boot for machines in self.alive)

    def ready(self, now: float) -> bool:
        return self.wanted == 0 or self.answering(now) > 0

    def ongoing(self, now: float, rate: float) -> float:
        """Return its ongoing requests by Little's law, and those that wait since it fell asleep, at so many a second."""
        its_rate = rate * self.share / 100
        waiting = 0.0 if self.answering(now) else min(_MOST_WAITING, its_rate * (now - self.asleep_since))
        return its_rate * self.fate.latency + waiting


class Deployments:
    """The deployments of a cloud."""

    def __init__(self, timeline: Timeline, machines: Machines, traffic: Mapping[str, Traffic]) -> None:
        self._timeline, self._machines, self._traffic = timeline, machines, traffic
        self._deployments: dict[str, dict[str, _Up]] = {}

    def apply(self, name: str, revision: Revision) -> RevisionId:
        """Bring a revision up, or what of it has ended."""
        up = self._deployments.setdefault(name, {})
        first = max(1, revision.scaling.min_replicas)
        if revision.id not in up:
            up[revision.id] = _Up(revision, self._machines.world.fate(revision.id), first)
        elif up[revision.id].wanted == _RETIRED:
            up[revision.id].wanted = first
        self._fill_up(name, up[revision.id])
        return RevisionId(revision.id)

    def scale(self, name: str, revision: str, replicas: int) -> None:
        """Take machines for the replicas that are missing, give those back that are too many."""
        if replicas < 0:
            raise SpecError(f"there cannot be {replicas} replicas", fix="give 0 or more")
        up = self._deployments.get(name, {}).get(revision)
        if up is None:
            raise DriverError(f"{name!r} has no revision {revision!r}", fix="apply it first")
        if up.wanted and not replicas:
            up.asleep_since = self._timeline.now
        up.wanted = replicas
        self._fill_up(name, up)
        for machines in up.alive[replicas:]:
            self._machines.give_back(machines)

    def _fill_up(self, name: str, up: _Up) -> None:
        for _ in range(up.wanted - len(up.alive)):
            taken = self._machines.take_cheapest(up.revision.needs, f"revision {name}/{up.revision.id}")
            up.replicas.append(taken)
            self._timeline.plan(taken.starts + up.fate.boot, lambda: None)  # a moment at which there is news
            if up.fate.crash_after is not None:
                self._timeline.plan(taken.starts + up.fate.crash_after, functools.partial(self._crash, up, taken))

    def _crash(self, up: _Up, machines: Taken) -> None:
        if machines.ends is None:
            self._machines.give_back(machines)
            up.reason = "the process ended by itself"
            if not up.alive:
                up.give(0, self._timeline.now)

    def route(self, name: str, traffic: Mapping[RevisionId, Percent]) -> None:
        """Split the traffic: all of it at once, or not at all."""
        up = self._deployments.get(name, {})
        if sum(traffic.values()) != 100 or min(traffic.values()) < 0:
            raise SpecError(f"the traffic {dict(traffic)} does not sum to 100", fix="give percentages that sum to 100")
        missing = [rev for rev, share in traffic.items() if share and not (rev in up and up[rev].ready(self._timeline.now))]
        if missing:
            raise DriverError(f"the revision {missing[0]!r} of {name!r} is not up", fix="route to it when it is ready")
        for key, revision in up.items():
            revision.give(traffic.get(RevisionId(key), 0), self._timeline.now)

    def retire(self, name: str, revision: str) -> None:
        """End a revision that has no traffic."""
        up = self._deployments.get(name, {}).get(revision)
        if up is None:
            return
        if up.share:
            raise SpecError(f"the revision {revision!r} of {name!r} has traffic", fix="route its traffic elsewhere first")
        for machines in up.alive:
            self._machines.give_back(machines)
        up.wanted = _RETIRED

    def inspect(self, name: str) -> DeploymentStatus:
        """Say what is there."""
        up, now = self._deployments.get(name, {}), self._timeline.now
        revisions = tuple(self._look(name, key, revision, now) for key, revision in sorted(up.items()))
        answering = [revision for revision in revisions if revision.traffic]
        ready = bool(answering) and all(revision.ready for revision in answering)
        taken = [machines for revision in up.values() for machines in revision.replicas]
        cost = sum(machines.cost(now) for machines in taken) if taken else None
        return DeploymentStatus(name, f"simulated://{name}" if up else "", ready, revisions, cost=cost)

    def _look(self, name: str, key: str, up: _Up, now: float) -> RevisionStatus:
        ready, alive = up.ready(now), up.alive
        never = alive and not up.fate.ready and now >= alive[0].starts + up.fate.boot
        reason = "it does not become ready" if never else "" if ready else up.reason
        ongoing = up.ongoing(now, self._rate(name))
        return RevisionStatus(
            RevisionId(key), ready, len(alive), up.share, reason, ongoing=ongoing, ready_replicas=up.answering(now)
        )

    def delete(self, name: str) -> None:
        """End a deployment."""
        for up in self._deployments.pop(name, {}).values():
            for machines in up.alive:
                self._machines.give_back(machines)

    def _rate(self, name: str) -> float:
        return self._traffic[name].per_minute / 60 if name in self._traffic else 0.0

    def metrics(self, name: str) -> Iterator[Metric]:
        """Count requests, errors and latency of each revision, since it came up."""
        for key, up in sorted(self._deployments.get(name, {}).items()):
            requests = int(self._rate(name) * up.traffic_seconds(self._timeline.now))
            labels = {"model_name": name, "version": key.removeprefix("v"), "instance": f"simulated/{key}"}
            yield Metric("ml_inference_latency_count", float(requests), labels)
            yield Metric("ml_inference_latency_sum", requests * up.fate.latency, labels)
            errors = int(requests * up.fate.error_rate)
            yield Metric("ml_inference_errors_total", float(errors), labels)
            yield from _routed(key, requests, errors, up.fate.latency)

    def samples(self, name: str, since: float, limit: int, answer: Callable[[Revision], Answer]) -> Iterable[Sample]:
        """Give the rows that were answered after `since`, in seconds after the simulation's start."""
        up = {key: revision for key, revision in self._deployments.get(name, {}).items() if revision.share}
        if name not in self._traffic or not up or limit <= 0 or since >= self._timeline.now:
            return
        began = min(revision.shares[0][0] for revision in up.values())
        times, rows = self._rows(self._traffic[name], max(since, began), limit)
        owners = _owners(times, {key: revision.share for key, revision in up.items()})
        for key, revision in sorted(up.items()):
            mine = owners == key
            if mine.any():
                yield self._sample(key, revision, times[mine], rows[mine], answer)

    def _rows(self, traffic: Traffic, since: float, limit: int) -> tuple[np.ndarray, np.ndarray]:
        now = self._timeline.now
        minutes = [traffic.minute(number) for number in range(int(max(0.0, since) // 60), int(now // 60) + 1)]
        times = np.concatenate([times for times, _ in minutes])
        rows = np.concatenate([rows for _, rows in minutes])
        chosen = np.flatnonzero((times > since) & (times <= now))[:limit]
        return times[chosen], rows[chosen]

    def _sample(self, key: str, up: _Up, times: np.ndarray, rows: np.ndarray, answer: Callable[[Revision], Answer]) -> Sample:
        inputs = {"input": rows}
        ids = tuple(f"{at:.3f}" for at in times)
        outputs: Mapping[str, Any] = answer(up.revision)(inputs)
        return Sample(key, times + self._timeline.unix(0.0), ids, inputs, outputs)


def _routed(revision: str, requests: int, errors: int, latency: float) -> Iterator[Metric]:
    """Count what a router would count, of requests that all take as long."""
    for code, count in (("200", requests - errors), ("500", errors)):
        yield Metric("cloudai_requests_total", float(count), {"revision": revision, "code": code})
    for bound in (*_LATENCIES, float("inf")):
        count = requests if latency <= bound else 0
        yield Metric("cloudai_request_duration_seconds_bucket", float(count), {"revision": revision, "le": str(bound)})


def _owners(times: np.ndarray, shares: Mapping[str, int]) -> np.ndarray:
    """Say which revision answered each row, by the last two digits of its time in milliseconds."""
    names = sorted(shares)
    bounds = np.cumsum([shares[name] for name in names])
    points = (np.round(times * 1000).astype(np.int64) * 61 % 100) * bounds[-1] / 100
    owners: np.ndarray = np.array(names)[np.searchsorted(bounds, points, side="right")]
    return owners
