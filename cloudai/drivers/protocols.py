"""What a driver must do. Plain values only: a driver needs nothing of cloudai but this module.

A driver built in a new process finds what an old one started: it keeps its state where the work is, not in memory. It is
used from several threads at once. What goes wrong is an error of `cloudai.errors` with its fix.

The suites of `cloudai.testing` test each clause of what is said here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NewType, Protocol, runtime_checkable

__all__ = [
    "Capabilities",
    "DeploymentStatus",
    "Driver",
    "Job",
    "JobId",
    "JobPhase",
    "JobStatus",
    "LogLine",
    "Metric",
    "Needs",
    "Offer",
    "Percent",
    "Problem",
    "Revision",
    "RevisionId",
    "RevisionStatus",
    "Sample",
    "ScaleDriver",
    "Scaling",
    "ServeDriver",
    "TelemetryDriver",
    "TrainDriver",
]

JobId = NewType("JobId", str)
RevisionId = NewType("RevisionId", str)
Percent = int
JobPhase = Literal["starting", "running", "succeeded", "failed", "preempted", "lost", "cancelled"]


@dataclass(frozen=True)
class Capabilities:
    """What a driver can do; every field defaults to "no"."""

    train: bool = False
    serve: bool = False
    telemetry: bool = False
    gpu: bool = False
    spot: bool = False
    max_workers: int = 0
    """The most workers of one run; 0 means none."""
    routing: Literal["no", "weights", "device"] = "no"
    """How traffic is split: not at all, by weights between revisions, or by device."""
    sticky: bool = False
    """Whether `ServeDriver.route` takes the name of a header by which requests stay with a revision."""
    shadow: bool = False
    """Whether `ServeDriver.route` takes shares of the requests that are mirrored to other revisions."""
    scale_to_zero: bool = False
    autoscaling: Literal["no", "asked", "own"] = "no"
    """Who changes the number of replicas: nobody, cloudai by `ScaleDriver.scale`, or the place itself by `Revision.scaling`."""
    here: bool = False
    """It runs on this machine and in this environment, so what it lacks is known at once and a verb can say so."""
    elsewhere: bool = False
    """It runs on other machines, which do not see the files of this one: a store that is a folder here is none there."""


@dataclass(frozen=True)
class Problem:
    """Something that a driver lacks here, and what to do about it."""

    what: str
    fix: str
    passing: bool = False
    """Whether it matters only to whoever uses the driver now, and nothing on this machine is to be mended."""


@dataclass(frozen=True)
class Needs:
    """What one piece of work needs of a place."""

    cpus: float = 1.0
    memory: int = 0
    """Bytes; 0 means "does not matter"."""
    gpus: int = 0
    gpu_type: str = ""
    workers: int = 1
    """The fewest workers."""
    elastic: bool = False
    """Whether the work may take more of them, and places them itself where that can be."""


@dataclass(frozen=True)
class Offer:
    """A place where the work could run, with its price, or the reason why it cannot run there."""

    driver: str
    place: str
    price_per_hour: float
    currency: str
    source: str
    """Where the price comes from."""
    as_of: str
    """The date of the price."""
    spot: bool = False
    available: bool = True
    why_not: str = ""
    """Why the work cannot run here; empty where it can."""
    temporary: bool = False
    """Whether that reason may be over soon, so that waiting makes sense: no spot machine is free, a quota is used up."""


@dataclass(frozen=True)
class Job:
    """A command to run to its end."""

    name: str
    argv: tuple[str, ...]
    """Arguments for the Python interpreter of the place, such as ``("-m", "cloudai.training.worker", …)``."""
    env: Mapping[str, str] = field(default_factory=dict)
    needs: Needs = field(default_factory=Needs)
    folder: str = ""
    """The caller's working folder, for places that share it."""


@dataclass(frozen=True)
class JobStatus:
    """What is known of a job now."""

    phase: JobPhase
    exit_code: int | None = None
    reason: str = ""
    pid: int | None = None
    started_at: float | None = None
    """Unix time."""
    ended_at: float | None = None
    cost: float | None = None
    """What the place says that it has cost so far, in the currency of the offer; None where it does not say."""


@dataclass(frozen=True)
class LogLine:
    """One line that a job wrote."""

    text: str
    source: str = "worker"


@dataclass(frozen=True)
class Scaling:
    """How many replicas of a revision there may be, and how busy each should be."""

    min_replicas: int = 1
    """0 where none need be up while nobody asks."""
    max_replicas: int = 1
    target_ongoing_requests: float = 8.0
    """Requests that each replica should be working on, on average."""


@dataclass(frozen=True)
class Revision:
    """One version of a deployment: a command that serves a model until it is told to end."""

    id: RevisionId
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    needs: Needs = field(default_factory=Needs)
    port: int = 0
    """The port asked for the whole deployment; 0 lets the driver choose."""
    scaling: Scaling = field(default_factory=Scaling)


@dataclass(frozen=True)
class RevisionStatus:
    """What is known of a revision now."""

    id: RevisionId
    ready: bool
    replicas: int
    traffic: Percent
    reason: str = ""
    pids: tuple[int, ...] = ()
    ongoing: float = 0.0
    """Requests that are being worked on, and those that wait for a replica."""
    ready_replicas: int = 0
    """Those of its replicas that take requests now; 0 where the driver does not count them."""
    shadow: Percent = 0
    """The share of the other revisions' requests that is mirrored to it."""


@dataclass(frozen=True)
class DeploymentStatus:
    """What is known of a deployment now: desired beside observed."""

    name: str
    url: str
    ready: bool
    revisions: tuple[RevisionStatus, ...]
    pids: tuple[int, ...] = ()
    cost: float | None = None
    """What the place says that it has cost so far, in the currency of the offer; None where it does not say."""
    sticky: str = ""
    """The header by which requests stay with a revision."""


@dataclass(frozen=True)
class Metric:
    """One measured value with its labels."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """Rows that a deployment answered: arrays with one row per prediction."""

    revision: str
    times: Any
    """Unix times, float64[n]."""
    ids: tuple[str, ...]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


@runtime_checkable
class Driver(Protocol):
    """What every driver does."""

    name: str
    capabilities: Capabilities

    def check(self) -> Iterable[Problem]:
        """Say what is missing here, each with its fix; no problem means ready."""
        ...

    def offers(self, needs: Needs) -> Iterable[Offer]:
        """Say where the work could run, and where not and why; nothing is started for it.

        What no place can carry is offered with `available=False` and the reason.
        """
        ...

    def close(self) -> None:
        """Give back what this object holds; what it started goes on."""
        ...


@runtime_checkable
class TrainDriver(Driver, Protocol):
    """A driver that runs jobs to their end."""

    def submit(self, job: Job, offer: Offer, *, key: str) -> JobId:
        """Start the job; called again with the same key it starts nothing and returns the same id.

        That holds in another process, in several at once, and after the job has ended. Arguments and environment arrive as
        they are, and no other job gets them. A key is a name of up to 63 lower-case letters, digits and dashes, and often
        the number of an attempt after a dot.

        `PlacementError` where the offer cannot be had any more; then nothing was started.
        """
        ...

    def status(self, job_id: JobId) -> JobStatus:
        """Say what is known of the job; `NotFoundError` where it was never submitted here.

        The phase goes from "starting" over "running" to one end, which never changes again: "succeeded" with exit code 0
        and only then, "cancelled" after `cancel`, "failed" with the exit code, "preempted" where the place took the machine
        away, "lost" where nobody knows. What did not succeed has a reason in words.
        """
        ...

    def logs(self, job_id: JobId, *, follow: bool = False) -> Iterator[LogLine]:
        """Read the lines that the job wrote, all and in order; with `follow` until it ends.

        `NotFoundError` where there is no such job.
        """
        ...

    def cancel(self, job_id: JobId) -> None:
        """End the job; repeatable, and nothing happens where it has ended or never was."""
        ...


@runtime_checkable
class ServeDriver(Driver, Protocol):
    """A driver that keeps revisions of a deployment up and splits the traffic between them."""

    def apply(self, name: str, revision: Revision, *, key: str) -> RevisionId:
        """Bring a revision up, without traffic; called again with the same key it changes nothing.

        Only a revision that has died is brought up again. One that is not ready says why as its `reason`. It begins with
        `scaling.min_replicas` replicas, at least with one; where `scale` has given it another number, it keeps that.
        """
        ...

    def route(
        self,
        name: str,
        traffic: Mapping[RevisionId, Percent],
        *,
        sticky: str = "",
        shadow: Mapping[RevisionId, Percent] | None = None,
    ) -> None:
        """Split the traffic, all at once, without losing a request.

        With `sticky`, the lower-case name of a header, requests with the same value in it go to the same revision as long as
        no other's share grows. Of `shadow`, that percentage of the requests is asked of these revisions too, and what
        they answer is compared and counted, and never shown to the client. Neither is given to a driver whose capabilities
        do not say so.

        `SpecError` where the percentages do not sum to 100, `DriverError` where a revision with a share is not up; then
        the traffic stays as it was.
        """
        ...

    def retire(self, name: str, revision: RevisionId) -> None:
        """Let a revision without traffic finish what it is answering, and end it; repeatable.

        `SpecError` where it still has traffic; nothing happens where it never was.
        """
        ...

    def inspect(self, name: str) -> DeploymentStatus:
        """Say what is there now; of an unknown deployment that nothing is: no url, no revisions.

        It is ready when all revisions that have traffic are, and one has.
        """
        ...

    def delete(self, name: str) -> None:
        """End the deployment and all its revisions; repeatable. Of its name, a new one begins with nothing."""
        ...


@runtime_checkable
class ScaleDriver(ServeDriver, Protocol):
    """A driver that is told how many replicas a revision has: one whose `Capabilities.autoscaling` is "asked"."""

    def scale(self, name: str, revision: RevisionId, replicas: int) -> None:
        """Let a revision have so many replicas; called again it replaces those that have died, and changes nothing else.

        A replica too many answers what it has taken on and ends. The
        traffic stays as it is: replicas get requests as soon as they are ready. With none, where `scale_to_zero` is claimed,
        a revision counts as ready: requests to it wait, and are in its `ongoing`, until it is scaled up.

        `SpecError` where there can be no such number, `DriverError` where there is no such revision.
        """
        ...


@runtime_checkable
class TelemetryDriver(Driver, Protocol):
    """A driver that can say how a deployment fares."""

    def metrics(self, name: str, *, since: datetime) -> Iterable[Metric]:
        """Read the latest values that were measured after `since`; none of an unknown deployment.

        A rollout's guards need ``cloudai_requests_total{revision, code}`` and
        ``cloudai_request_duration_seconds_bucket{revision, le}``, and where answers are mirrored
        ``cloudai_shadow_difference_bucket{revision, le}``.
        """
        ...

    def samples(self, name: str, *, since: datetime, limit: int) -> Iterable[Sample]:
        """Read the oldest `limit` rows that were answered after `since`; none of an unknown deployment.

        To read on, give the largest time that came as the next `since`: rows of the same instant are not parted, so that
        there may be a few more than `limit`.
        """
        ...
