"""The driver of a simulated cloud, and the cloud that is in force in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TypeVar

from cloudai.clock import SimulatedClock
from cloudai.drivers.protocols import (
    Capabilities,
    DeploymentStatus,
    Job,
    JobId,
    JobStatus,
    LogLine,
    Metric,
    Needs,
    Offer,
    Percent,
    Problem,
    Revision,
    RevisionId,
    Sample,
)
from cloudai.drivers.simulated.deployments import Answer, Deployments, Traffic
from cloudai.drivers.simulated.jobs import Jobs, Workload
from cloudai.drivers.simulated.machines import Machines
from cloudai.drivers.simulated.timeline import Timeline
from cloudai.drivers.simulated.world import Act, World
from cloudai.errors import DriverError

__all__ = ["SimulatedCloud", "SimulatedDriver", "use_cloud"]

T = TypeVar("T")


class SimulatedCloud:
    """A cloud in memory: what happens in it is in `world`, and when, is the clock's.

    Parameters
    ----------
    world : World
        Its zones, prices and faults.
    clock : SimulatedClock
        Its time; whoever moves it calls ``timeline.happen()`` afterwards.
    workload : Workload
        What its jobs do.
    traffic : Mapping[str, Traffic]
        The requests to each deployment.
    answer : callable
        Given a revision, returns what computes its outputs for rows of inputs.
    """

    def __init__(
        self,
        world: World,
        clock: SimulatedClock,
        workload: Workload,
        traffic: Mapping[str, Traffic] | None = None,
        answer: Callable[[Revision], Answer] = lambda revision: lambda inputs: {},
    ) -> None:
        self.world = world
        self.timeline = Timeline(clock)
        self.machines = Machines(world, self.timeline)
        self.jobs = Jobs(self.timeline, self.machines, workload)
        self.deployments = Deployments(self.timeline, self.machines, traffic or {})
        self.answer = answer
        self._calls: Counter[str] = Counter()
        for outage in world.outages:
            for moment in (outage.start, outage.end):  # there is news then for whoever looks
                self.timeline.plan(moment, lambda: None)

    def call(self, act: Act, do: Callable[[], T]) -> T:
        """Carry out a call, unless the cloud is out; its answer may get lost."""
        now = self.timeline.now
        for outage in self.world.outages:
            if outage.act in ("*", act) and outage.start <= now < outage.end:
                raise ConnectionError("the simulated cloud does not answer")
        self._calls[act] += 1
        result = do()
        if any(lost.act == act and lost.nth == self._calls[act] for lost in self.world.lost_answers):
            raise TimeoutError(f"the answer to {act} never came")
        return result


_cloud: SimulatedCloud | None = None


def use_cloud(cloud: SimulatedCloud | None) -> None:
    """Make this the cloud that the driver ``"simulated"`` drives in this process; None for none."""
    global _cloud  # noqa: PLW0603  one cloud is in force, as one clock is
    _cloud = cloud


class SimulatedDriver:
    """Drives the simulated cloud; it holds nothing, so that any number of them see the same.

    Parameters
    ----------
    cloud : SimulatedCloud, optional
        By default the one that is in force when it is asked.
    """

    name = "simulated"
    capabilities = Capabilities(
        train=True,
        serve=True,
        telemetry=True,
        gpu=True,
        spot=True,
        max_workers=4096,
        routing="weights",
        scale_to_zero=True,
        autoscaling="asked",
        here=True,
    )

    def __init__(self, cloud: SimulatedCloud | None = None) -> None:
        self._own = cloud

    @property
    def _cloud(self) -> SimulatedCloud:
        cloud = self._own or _cloud
        if cloud is None:
            raise DriverError(_LACKS.what, fix=_LACKS.fix)
        return cloud

    def check(self) -> Iterable[Problem]:
        """Say whether a simulation runs."""
        if (self._own or _cloud) is None:
            yield _LACKS

    def offers(self, needs: Needs) -> Iterable[Offer]:
        """Offer each zone, on demand and spot; nothing where no simulation runs."""
        if (self._own or _cloud) is None:
            return []
        return self._cloud.call("offers", lambda: list(self._cloud.machines.offers(needs, self.name)))

    def close(self) -> None:
        """Nothing is held."""

    def submit(self, job: Job, offer: Offer, *, key: str) -> JobId:
        """Take machines for the job."""
        return self._cloud.call("submit", lambda: self._cloud.jobs.submit(job, offer, key))

    def status(self, job_id: JobId) -> JobStatus:
        """Look at the job."""
        return self._cloud.call("status", lambda: self._cloud.jobs.status(job_id))

    def logs(self, job_id: JobId, *, follow: bool = False) -> Iterator[LogLine]:
        """Read what the job wrote."""
        return self._cloud.call("logs", lambda: self._cloud.jobs.logs(job_id, follow=follow))

    def cancel(self, job_id: JobId) -> None:
        """End the job and give its machines back."""
        self._cloud.call("cancel", lambda: self._cloud.jobs.cancel(job_id))

    def apply(self, name: str, revision: Revision, *, key: str) -> RevisionId:
        """Take a machine for each replica of the revision."""
        return self._cloud.call("apply", lambda: self._cloud.deployments.apply(name, revision))

    def scale(self, name: str, revision: RevisionId, replicas: int) -> None:
        """Take machines or give them back until the revision has so many replicas."""
        self._cloud.call("scale", lambda: self._cloud.deployments.scale(name, revision, replicas))

    def route(self, name: str, traffic: Mapping[RevisionId, Percent]) -> None:
        """Split the traffic."""
        self._cloud.call("route", lambda: self._cloud.deployments.route(name, traffic))

    def retire(self, name: str, revision: RevisionId) -> None:
        """Give the revision's machines back."""
        self._cloud.call("retire", lambda: self._cloud.deployments.retire(name, revision))

    def inspect(self, name: str) -> DeploymentStatus:
        """Look at the revisions."""
        return self._cloud.call("inspect", lambda: self._cloud.deployments.inspect(name))

    def delete(self, name: str) -> None:
        """Give all machines of the deployment back."""
        self._cloud.call("delete", lambda: self._cloud.deployments.delete(name))

    def metrics(self, name: str, *, since: datetime) -> Iterable[Metric]:
        """Count the requests."""
        cloud = self._cloud
        measured = since.timestamp() <= cloud.timeline.unix(cloud.timeline.now)
        return cloud.call("metrics", lambda: list(cloud.deployments.metrics(name)) if measured else [])

    def samples(self, name: str, *, since: datetime, limit: int) -> Iterable[Sample]:
        """Give the rows that were answered."""
        cloud = self._cloud
        after = since.timestamp() - cloud.timeline.unix(0.0)
        return cloud.call("samples", lambda: list(cloud.deployments.samples(name, after, limit, cloud.answer)))


_LACKS = Problem("no simulation runs in this process", "start one: cloudai.testing.Simulation().start()", passing=True)
