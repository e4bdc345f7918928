"""The simulated driver fulfils the contract: what is tried out on it holds elsewhere."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from cloudai.clock import SimulatedClock
from cloudai.drivers.protocols import Job, Needs, Revision, RevisionId
from cloudai.drivers.simulated import SimulatedCloud, SimulatedDriver
from cloudai.drivers.simulated.jobs import Course
from cloudai.testing import (
    Bench,
    Fate,
    ServeDriverConformance,
    TelemetryDriverConformance,
    Traffic,
    TrainDriverConformance,
    World,
    Zone,
)

WORLD = World(
    zones=(Zone.of(name="a", price=1.0, spot=0.3, quota=100, boot=2.0), Zone.of(name="full", price=1.0, quota=0)),
    fates=(
        Fate.of(revision="*stuck", ready=False, boot=1.0),
        Fate.of(revision="*crash*", ready=False, crash_after=1.0),
        Fate.of(boot=2.0),
    ),
)


class Everywhere(dict):
    """The same requests to each deployment."""

    def __bool__(self):
        return True

    def __contains__(self, name):
        return True

    def __missing__(self, name):
        return Traffic(np.ones((4, 2)), per_minute=120)


class Script:
    """What a job of the bench does: its arguments say it."""

    def begin(self, job):
        kind, *rest = job.argv
        steps = [(0.5, lambda line=line: line) for line in rest] if kind == "print" else []
        seconds = math.inf if kind == "endless" else 3.0
        return Course(seconds, (lambda: int(rest[0])) if kind == "fail" else (lambda: 0), steps)


class SimulatedBench(Bench):
    patience, step = 60.0, 0.5

    def __init__(self):
        self.clock = SimulatedClock(1_800_000_000.0)
        self.cloud = SimulatedCloud(WORLD, self.clock, Script(), Everywhere(), lambda revision: lambda inputs: dict(inputs))
        self.lock = threading.RLock()
        self.clock.on_pause = self.go_on

    def go_on(self, seconds):
        with self.lock:
            self.clock.move(self.clock.now() + seconds)
            self.cloud.timeline.happen()

    def connect(self):
        return SimulatedDriver(self.cloud)

    def footprint(self):
        return frozenset(range(len(self.cloud.machines.taken)))

    def succeeding_job(self, name):
        return Job(name, ("succeed",))

    def failing_job(self, name, code):
        return Job(name, ("fail", str(code)))

    def printing_job(self, name, lines):
        return Job(name, ("print", *lines))

    def endless_job(self, name):
        return Job(name, ("endless",))

    def echoing_job(self, name, words, env, ask):
        return None

    def interrupt(self, job_id):
        jobs = self.cloud.jobs
        jobs._end(jobs._find(job_id), "preempted", "the machine was taken away", None)
        return True

    def impossible(self):
        return Needs(cpus=1e6)

    def gone(self, offer):
        return replace(offer, place="full")

    def ready_revision(self, deployment, revision):
        return Revision(RevisionId(revision), ())

    stuck_revision = crashing_revision = ready_revision  # the world has their fates

    def kill_revision(self, deployment, revision):
        up = self.cloud.deployments._deployments[deployment][revision]
        for machines in up.alive:
            self.cloud.deployments._crash(up, machines)
        return True

    def ask(self, deployment):
        return None


@pytest.fixture
def bench():
    return SimulatedBench()


class TestTraining(TrainDriverConformance):
    pass


class TestServing(ServeDriverConformance):
    pass


class TestTelemetry(TelemetryDriverConformance):
    pass
