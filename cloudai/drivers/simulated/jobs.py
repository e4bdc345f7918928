"""The jobs of a simulated cloud, and the machines that they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Protocol

from cloudai.drivers.protocols import Job, JobId, JobPhase, JobStatus, LogLine, Offer
from cloudai.drivers.simulated.machines import Machines, Taken
from cloudai.drivers.simulated.timeline import Timeline
from cloudai.errors import NotFoundError

__all__ = ["Course", "Jobs", "Workload"]


@dataclass(frozen=True)
class Course:
    """What a job does once its machine has started, if nothing happens to it.

    Attributes
    ----------
    seconds : float
        After how long it ends by itself; infinite for one that goes on until it is ended.
    finish : callable
        Called when it ends by itself; returns the exit code.
    steps : sequence of (float, callable)
        What it does on the way, each after some seconds; a text that is returned is a line of its log.
    """

    seconds: float
    finish: Callable[[], int] = lambda: 0
    steps: Sequence[tuple[float, Callable[[], str | None]]] = ()


class Workload(Protocol):
    """What the jobs of a simulated cloud do."""

    def begin(self, job: Job) -> Course:
        """Return what a job does; called when its machine has started."""
        ...


@dataclass
class _Running:
    job: Job
    machines: Taken
    phase: JobPhase = "starting"
    exit_code: int | None = None
    reason: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.phase not in ("starting", "running")


class Jobs:
    """The jobs of a cloud."""

    def __init__(self, timeline: Timeline, machines: Machines, workload: Workload) -> None:
        self._timeline, self._machines, self._workload = timeline, machines, workload
        self._jobs: dict[str, _Running] = {}
        for preemption in machines.world.preemptions:
            timeline.plan(preemption.at, partial(self._preempt, preemption.zone))
        for zone in machines.world.zones:
            for at, price in zone.spot:
                # where there is a price again, that is news for those who wait
                timeline.plan(at, partial(self._preempt, zone.name) if price is None else lambda: None)

    def submit(self, job: Job, offer: Offer, key: str) -> JobId:
        """Take the machines of an offer; `PlacementError` where they cannot be had any more."""
        if key not in self._jobs:
            what = f"job {job.name}"
            taken = self._machines.take(offer.place, what, count=job.needs.workers, spot=offer.spot)
            running = self._jobs[key] = _Running(job, taken)
            self._timeline.plan(taken.starts, lambda: self._begin(running))
        return JobId(key)

    def _begin(self, running: _Running) -> None:
        if running.ended:
            return
        running.phase = "running"
        now = self._timeline.now
        course = self._workload.begin(running.job)
        for after, act in course.steps:
            self._timeline.plan(now + after, partial(self._step, running, act))
        for crash in self._machines.world.crashes_of(running.job.name):
            self._timeline.plan(now + crash.after, partial(self._end, running, "failed", crash.reason, crash.exit_code))
        if course.seconds != float("inf"):
            self._timeline.plan(now + course.seconds, lambda: self._finish(running, course))

    def _step(self, running: _Running, act: Callable[[], str | None]) -> None:
        if not running.ended:
            line = act()
            if line is not None:
                running.lines.append(line)

    def _finish(self, running: _Running, course: Course) -> None:
        if running.ended:
            return
        code = course.finish()
        self._end(running, "failed" if code else "succeeded", f"exit code {code}" if code else "", code)

    def _end(self, running: _Running, phase: JobPhase, reason: str, code: int | None) -> None:
        if not running.ended:
            running.phase, running.reason, running.exit_code = phase, reason, code
            self._machines.give_back(running.machines)

    def _preempt(self, pattern: str) -> None:
        for running in self._jobs.values():
            taken = running.machines
            if taken.spot and not running.ended and fnmatchcase(taken.zone.name, pattern):
                self._end(running, "preempted", f"the spot machine in {taken.zone.name} was taken away", None)

    def status(self, job_id: str) -> JobStatus:
        """Say what is known of a job."""
        running = self._find(job_id)
        taken, now = running.machines, self._timeline.now
        started = taken.starts if running.phase != "starting" and taken.starts <= (taken.ends or now) else None
        unix = self._timeline.unix
        return JobStatus(
            running.phase,
            running.exit_code,
            running.reason,
            started_at=None if started is None else unix(started),
            ended_at=unix(taken.ends) if taken.ends is not None else None,
            cost=taken.cost(now),
        )

    def logs(self, job_id: str, *, follow: bool) -> Iterator[LogLine]:
        """Read the lines of a job; following it lets the simulation go on."""
        running, read = self._find(job_id), 0
        while True:
            for line in running.lines[read:]:
                read += 1
                yield LogLine(line)
            if not follow or running.ended:
                return
            self._timeline.pause(1.0)

    def cancel(self, job_id: str) -> None:
        """End a job."""
        if job_id in self._jobs:
            self._end(self._jobs[job_id], "cancelled", "cancelled", None)

    def _find(self, job_id: str) -> _Running:
        if job_id not in self._jobs:
            raise NotFoundError(f"the simulated cloud has no job {job_id!r}", fix="look at cloudai.ps()")
        return self._jobs[job_id]
