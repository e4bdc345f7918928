"""A correct driver in memory, on a clock that only moves when somebody waits: the suites take no time on it."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field

import numpy as np

from cloudai.drivers.protocols import (
    Capabilities,
    DeploymentStatus,
    Job,
    JobStatus,
    LogLine,
    Metric,
    Offer,
    Problem,
    Revision,
    RevisionId,
    RevisionStatus,
    Sample,
)
from cloudai.errors import DriverError, NotFoundError, PlacementError, SpecError
from cloudai.testing import Bench

STARTING, RUNNING = 1.0, 3.0
"""Seconds that a job takes to start, and then to run."""


class ManualClock:
    def __init__(self):
        self.seconds = 1_800_000_000.0
        self.lock = threading.Lock()

    def now(self):
        return self.seconds

    def pause(self, seconds):
        with self.lock:
            self.seconds += seconds


@dataclass
class MemoryJob:
    job: Job
    submitted: float
    ended: float | None = None
    phase: str = ""
    code: int | None = None
    reason: str = ""


@dataclass
class MemoryRevision:
    revision: Revision
    applied: float
    pids: list[int]
    dead: bool = False


@dataclass
class World:
    """What outlives the driver objects."""

    clock: ManualClock = field(default_factory=ManualClock)
    lock: threading.RLock = field(default_factory=threading.RLock)
    jobs: dict[str, MemoryJob] = field(default_factory=dict)
    deployments: dict[str, dict[str, MemoryRevision]] = field(default_factory=dict)
    traffic: dict[str, dict[str, int]] = field(default_factory=dict)
    rows: list[tuple[str, str, float]] = field(default_factory=list)
    pids: int = 0


class MemoryDriver:
    """Jobs and revisions as entries of a World: what their argv says is all that they do."""

    name = "memory"
    capabilities = Capabilities(
        train=True,
        serve=True,
        telemetry=True,
        spot=True,
        max_workers=4,
        routing="weights",
        scale_to_zero=True,
        autoscaling="asked",
    )

    def __init__(self, world):
        self.world = world

    def check(self):
        return [Problem("the token is missing", "log in")]

    def offers(self, needs):
        why_not = "too large" if needs.cpus > 8 or needs.gpus or needs.workers > self.capabilities.max_workers else ""
        for spot, price in ((False, 1.0), (True, 0.4)):
            yield Offer("memory", "zone a", price, "EUR", "made up", "2026-11-24", spot, available=not why_not, why_not=why_not)

    def close(self):
        pass

    # ── jobs ──

    def submit(self, job, offer, *, key):
        with self.world.lock:
            if key not in self.world.jobs:
                if not offer.available:
                    raise PlacementError("the offer is gone", fix="ask for offers again")
                self.world.jobs[key] = MemoryJob(job, self.world.clock.now())
        return key

    def status(self, job_id):
        with self.world.lock:
            return self._status(self._job(job_id))

    def _job(self, job_id):
        if job_id not in self.world.jobs:
            raise NotFoundError(f"there is no job {job_id!r}", fix="look at cloudai.ps()")
        return self.world.jobs[job_id]

    def _status(self, found):
        now, started = self.world.clock.now(), found.submitted + STARTING
        kind, *rest = found.job.argv
        if not found.phase and kind != "endless" and now >= started + RUNNING:
            found.ended, found.code = started + RUNNING, int(rest[0]) if kind == "fail" else 0
            found.phase, found.reason = ("failed", f"exit code {found.code}") if found.code else ("succeeded", "")
        if not found.phase and now < started:
            return JobStatus("starting")
        cost = max(0.0, ((found.ended or now) - started) / 3600)
        return JobStatus(
            found.phase or "running", found.code, found.reason, started_at=started, ended_at=found.ended, cost=cost
        )

    def _end(self, job_id, phase, reason):
        with self.world.lock:
            found = self._job(job_id)
            if self._status(found).ended_at is None and not found.phase:
                found.phase, found.reason = phase, reason
                found.ended = max(self.world.clock.now(), found.submitted + STARTING)

    def logs(self, job_id, *, follow=False):
        found = self._job(job_id)
        while follow and self.status(job_id).phase in ("starting", "running"):
            self.world.clock.pause(0.5)
            threading.Event().wait(0.0002)
        kind, *lines = found.job.argv
        if kind == "print" and self.status(job_id).phase != "starting":
            yield from map(LogLine, lines)
        if kind == "echo":
            asked, *words = lines
            yield LogLine(json.dumps([words, {name: found.job.env.get(name) for name in json.loads(asked)}]))

    def cancel(self, job_id):
        if job_id in self.world.jobs:
            self._end(job_id, "cancelled", "cancelled")

    # ── deployments ──

    def apply(self, name, revision, *, key):
        with self.world.lock:
            revisions = self.world.deployments.setdefault(name, {})
            found = revisions.get(revision.id)
            if found is None or found.dead:
                count = len(found.pids) if found else max(1, revision.scaling.min_replicas)
                revisions[revision.id] = MemoryRevision(revision, self.world.clock.now(), self.new_pids(count))
        return revision.id

    def new_pids(self, count):
        self.world.pids += count
        return list(range(self.world.pids - count, self.world.pids))

    def scale(self, name, revision, replicas):
        with self.world.lock:
            self.check_count(replicas)
            found = self.world.deployments.get(name, {}).get(revision)
            if found is None:
                raise DriverError(f"{name!r} has no {revision!r}", fix="apply it first")
            self.replace_dead(name, found)
            found.pids[replicas:] = self.new_pids(max(0, replicas - len(found.pids)))

    def check_count(self, replicas):
        if replicas < 0:
            raise SpecError(f"there cannot be {replicas} replicas", fix="give 0 or more")

    def replace_dead(self, name, found):
        if found.dead:
            self.apply(name, found.revision, key="")
            found.dead, found.pids = False, self.world.deployments[name][found.revision.id].pids
            self.world.deployments[name][found.revision.id] = found

    def route(self, name, traffic):
        with self.world.lock:
            self.check_shares(traffic)
            for revision, share in traffic.items():
                self.check_ready(name, revision, share)
            self.world.traffic[name] = {revision: share for revision, share in traffic.items() if share}

    def check_shares(self, traffic):
        if sum(traffic.values()) != 100 or min(traffic.values()) < 0:
            raise SpecError(f"{traffic} does not sum to 100", fix="give shares that sum to 100")

    def check_ready(self, name, revision, share):
        if share and not self._look(name, revision).ready:
            raise DriverError(f"{revision!r} is not up", fix="route to it when it is ready")

    def retire(self, name, revision):
        with self.world.lock:
            self.check_idle(name, revision)
            self.world.deployments.get(name, {}).pop(revision, None)

    def check_idle(self, name, revision):
        if self.world.traffic.get(name, {}).get(revision):
            raise SpecError(f"{revision!r} has traffic", fix="route its traffic elsewhere first")

    def inspect(self, name):
        with self.world.lock:
            revisions = tuple(self._look(name, revision) for revision in sorted(self.world.deployments.get(name, {})))
            routed = [found for found in revisions if found.traffic]
            url = f"memory://{name}" if revisions else ""
            return DeploymentStatus(name, url, bool(routed) and all(found.ready for found in routed), revisions)

    def _look(self, name, revision):
        found = self.world.deployments.get(name, {}).get(revision)
        if found is None:
            return RevisionStatus(RevisionId(revision), ready=False, replicas=0, traffic=0)
        kind, age = found.revision.argv[0], self.world.clock.now() - found.applied
        dead = found.dead or (kind == "crash" and age >= 1)
        ready = (kind == "ready" and age >= 2 and not dead) or not found.pids
        reason = "" if ready else "it has crashed" if dead else "not ready yet"
        traffic = self.world.traffic.get(name, {}).get(revision, 0)
        pids = () if dead else tuple(found.pids)
        return RevisionStatus(found.revision.id, ready, len(pids), traffic, reason, pids, 0.0, len(pids) if ready else 0)

    def delete(self, name):
        with self.world.lock:
            self.world.deployments.pop(name, None)
            self.world.traffic.pop(name, None)
            self.world.rows[:] = [row for row in self.world.rows if row[0] != name]

    # ── telemetry ──

    def metrics(self, name, *, since):
        if since.timestamp() <= self.world.clock.now():
            for revision in self.world.deployments.get(name, {}):
                count = sum(row[:2] == (name, revision) for row in self.world.rows)
                yield Metric("requests_total", float(count), {"revision": revision})

    def samples(self, name, *, since, limit):
        rows = sorted((time, revision) for of, revision, time in self.world.rows if of == name and time > since.timestamp())
        return [sample(revision, time) for time, revision in rows[:limit]]


def sample(revision, time):
    column = np.zeros((1, 1))
    return Sample(revision, np.array([time]), ("an-id",), {"x": column}, {"y": column})


class MemoryBench(Bench):
    """Gives jobs and revisions whose argv is what the MemoryDriver understands."""

    patience, step = 30.0, 0.5
    kind = MemoryDriver

    def __init__(self):
        self.world = World()
        self.clock = self.world.clock

    def connect(self):
        return self.kind(self.world)

    def footprint(self):
        return frozenset({*self.world.jobs, *self.world.deployments})

    def succeeding_job(self, name):
        return Job(name, ("succeed",))

    def failing_job(self, name, code):
        return Job(name, ("fail", str(code)))

    def printing_job(self, name, lines):
        return Job(name, ("print", *lines))

    def endless_job(self, name):
        return Job(name, ("endless",))

    def echoing_job(self, name, words, env, ask):
        return Job(name, ("echo", json.dumps(list(ask)), *words), env)

    def interrupt(self, job_id):
        MemoryDriver(self.world)._end(job_id, "preempted", "the machine was taken away")
        return True

    def ready_revision(self, deployment, revision):
        return Revision(RevisionId(revision), ("ready",))

    def stuck_revision(self, deployment, revision):
        return Revision(RevisionId(revision), ("stuck",))

    def crashing_revision(self, deployment, revision):
        return Revision(RevisionId(revision), ("crash",))

    def kill_revision(self, deployment, revision):
        self.world.deployments[deployment][revision].dead = True
        return True

    def ask(self, deployment):
        with self.world.lock:
            shares = self.world.traffic.get(deployment, {})
            answered = sum(row[0] == deployment for row in self.world.rows)
            able = sorted(shares)
            revision = able[answered % len(able)]
            self.world.rows.append((deployment, revision, self.clock.now()))
            return RevisionId(revision)


__all__ = ["MemoryBench", "MemoryDriver", "World", "sample"]
