"""The driver of a Ray cluster that is there already."""

from __future__ import annotations

import platform
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from typing import Any, NoReturn
from urllib.parse import urlsplit

import psutil

from cloudai import settings
from cloudai.drivers.capacity import Node, fit, nodes_of
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
from cloudai.drivers.ray.api import Api, RefusedError, failed, job_path
from cloudai.drivers.ray.deployments import Deployments
from cloudai.drivers.ray.jobs import bring_package, job_request, job_status, submission_of
from cloudai.errors import CloudAIError, DriverError, NotFoundError, PlacementError

__all__ = ["RayDriver", "is_here", "versions_differ"]

_OLDEST_RAY = (2, 54)
_OLDEST_SERVE = (2, 60)
"""The oldest Ray whose Serve can ask all replicas of a deployment at once."""
_POLL = 0.5
_SHARE_OF_POLL = 20.0
"""Ray gives the whole log each time, so a long one is asked for less often: what takes long is waited for so much longer."""
_NO_CLUSTER = Problem(
    "no Ray cluster is set",
    "set ray_address to its dashboard, such as http://127.0.0.1:8265 (CLOUDAI_RAY_ADDRESS)",
    passing=True,
)


class RayDriver:
    """Runs jobs on a Ray cluster through its Jobs API, and deployments on Ray Serve.

    Parameters
    ----------
    address : str, optional
        The address of the cluster's dashboard; that of the setting ``ray_address`` by default.
    """

    name = "ray"

    def __init__(self, address: str = "") -> None:
        self._address = address

    @property
    def capabilities(self) -> Capabilities:
        """What a cluster can do; whether it sees this machine's files depends on where it is."""
        address = self._address or settings.current().ray_address
        return Capabilities(
            train=True, serve=True, telemetry=True, gpu=True, max_workers=4096, routing="weights", sticky=True,
            scale_to_zero=True, autoscaling="own", elsewhere=bool(address) and not is_here(address),
        )  # fmt: skip

    @property
    def _api(self) -> Api:
        address = self._address or settings.current().ray_address  # looked up each time: it may be changed
        if not address:
            raise PlacementError(_NO_CLUSTER.what, fix=_NO_CLUSTER.fix)
        return Api(address)

    def check(self) -> Iterable[Problem]:
        """Say whether there is a cluster, whether it lets us in, and whether its versions fit."""
        try:
            self._check_versions(self._api)
        except CloudAIError as error:
            yield Problem(error.what, error.fix, passing=True)

    def offers(self, needs: Needs) -> Iterable[Offer]:
        """Offer the cluster, or say what it lacks; nothing where none is set."""
        if not (self._address or settings.current().ray_address):
            return
        api = self._api
        try:
            self._check_versions(api)
        except RefusedError as error:  # before anything has begun, waiting would not help
            raise PlacementError(error.what, fix=error.fix) from None
        nodes = _nodes(api)
        found = fit(nodes, needs, time.time())
        now = settings.current()
        yield Offer(
            self.name, _place(api.address, nodes), 0.0, now.currency, "own cluster, not counted", date.today().isoformat(),
            available=not found.why_not, why_not=found.why_not, temporary=found.temporary,
        )  # fmt: skip

    def close(self) -> None:
        """Nothing is held."""

    def submit(self, job: Job, offer: Offer, *, key: str) -> JobId:
        """Give the job to the cluster, which keeps one of each key."""
        api, submission = self._api, submission_of(key)
        if api.get(job_path(submission)).ok:
            return JobId(key)
        if not offer.available:
            raise PlacementError(f"{offer.place!r} cannot be had: {offer.why_not}", fix="ask for offers again")
        self._check_versions(api)
        bring_package(api)
        answer = api.post("/api/jobs/", job_request(job, submission))
        if not answer.ok and not api.get(job_path(submission)).ok:  # another process may have been first
            raise failed(f"take the job {key!r}", answer)
        return JobId(key)

    def status(self, job_id: JobId) -> JobStatus:
        """Ask the cluster for the job."""
        return job_status(self._details(job_id))

    def logs(self, job_id: JobId, *, follow: bool = False) -> Iterator[LogLine]:
        """Read what the job wrote, as far as it is a whole line or the job has ended."""
        self._details(job_id)
        return self._lines(job_id, follow=follow)

    def _lines(self, job_id: JobId, *, follow: bool) -> Iterator[LogLine]:
        read = 0
        while True:
            over = job_status(self._details(job_id)).phase not in ("starting", "running")
            begin = time.monotonic()
            try:
                text = self._log(job_id)
            except DriverError:
                if job_status(self._details(job_id)).phase in ("lost", "preempted"):  # the log lay on the machine that is gone
                    return
                raise
            end = len(text) if over or not follow else text.rfind("\n") + 1
            yield from (LogLine(line) for line in text[read:end].splitlines())
            read = max(read, end)
            if over or not follow:
                return
            time.sleep(max(_POLL, _SHARE_OF_POLL * (time.monotonic() - begin)))

    def _log(self, job_id: JobId) -> str:
        answer = self._api.get(job_path(submission_of(job_id), "logs"))
        if not answer.ok:
            raise failed(f"read the log of {job_id!r}", answer)
        return str(answer.json().get("logs") or "")

    def cancel(self, job_id: JobId) -> None:
        """Ask the cluster to stop the job: SIGTERM, and half a minute later SIGKILL."""
        answer = self._api.post(job_path(submission_of(job_id), "stop"))
        if not answer.ok and not answer.missing:
            raise failed(f"stop the job {job_id!r}", answer)

    def _details(self, job_id: JobId) -> Mapping[str, Any]:
        answer = self._api.get(job_path(submission_of(job_id)))
        if answer.missing:
            raise NotFoundError(f"there is no job {job_id!r} on the Ray cluster", fix="look at cloudai.ps()")
        if not answer.ok:
            raise failed(f"look at the job {job_id!r}", answer)
        details: Mapping[str, Any] = answer.json()
        return details

    def _check_versions(self, api: Api, oldest: tuple[int, int] = _OLDEST_RAY) -> None:
        found = api.read("/api/v0/cluster_metadata").get("data") or {}
        versions_differ(str(found.get("rayVersion", "?")), str(found.get("pythonVersion", "?")), oldest)

    @property
    def _deployments(self) -> Deployments:
        return Deployments(self._api)

    def apply(self, name: str, revision: Revision, *, key: str) -> RevisionId:
        """Let Ray Serve bring a revision up, and the gate in front of it; what is there already is left as it is."""
        self._check_versions(self._api, _OLDEST_SERVE)
        return self._deployments.apply(name, revision)

    def route(
        self,
        name: str,
        traffic: Mapping[RevisionId, Percent],
        *,
        sticky: str = "",
        shadow: Mapping[RevisionId, Percent] | None = None,
    ) -> None:
        """Let the gate split the traffic otherwise."""
        self._deployments.route(name, traffic, sticky)

    def retire(self, name: str, revision: RevisionId) -> None:
        """Let Ray Serve drain and end a revision."""
        self._deployments.retire(name, revision)

    def inspect(self, name: str) -> DeploymentStatus:
        """Read from the dashboard what Ray Serve has."""
        return self._deployments.inspect(name)

    def delete(self, name: str) -> None:
        """Let Ray Serve end the gate and all revisions."""
        self._deployments.delete(name)

    def metrics(self, name: str, *, since: datetime) -> Iterable[Metric]:
        """Ask each replica for what it counts, since its own start."""
        return self._deployments.metrics(name) if since.timestamp() <= time.time() else ()

    def samples(self, name: str, *, since: datetime, limit: int) -> Iterable[Sample]:
        """Ask each replica for the rows that it has kept."""
        return self._deployments.samples(name, since.timestamp(), limit)


def versions_differ(ray: str, python: str, oldest: tuple[int, int] = _OLDEST_RAY) -> None:
    """Refuse a cluster whose Ray is too old, or whose Python is another than the one in which code was captured here.

    cloudai itself is the same on both sides: each job brings it along.

    Raises
    ------
    PlacementError
        If so, with the versions of both.
    """
    here = platform.python_version()
    wanted = ".".join(map(str, oldest))
    if _numbers(ray) < oldest:
        fix = f'pip install --upgrade "ray[default,serve,train]>={wanted}" on all machines of the cluster, and start it again'
        raise PlacementError(f"the cluster has Ray {ray}, cloudai needs {wanted} or later", fix=fix)
    if _numbers(python) != sys.version_info[:2]:
        fix = "start the cluster, or this kernel, with the other's Python"
        raise PlacementError(f"the cluster has Python {python}, and this is Python {here}: code may not run there", fix=fix)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version; (0, 0) where it has none."""
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if len(parts) == 2 and all(part.isdigit() for part in parts) else (0, 0)


def _nodes(api: Api) -> list[Node]:
    listed = api.read("/api/v0/nodes?detail=1&limit=10000")
    status = api.read("/api/cluster_status")
    try:
        usage = status["data"]["clusterStatus"]["loadMetricsReport"]["usageByNode"]
        return nodes_of(listed["data"]["result"]["result"], usage or {})
    except (KeyError, TypeError):
        _not_said()


def _not_said() -> NoReturn:
    raise DriverError("the Ray cluster does not say yet what it has", fix="wait until it has started") from None


def _place(address: str, nodes: list[Node]) -> str:
    alive = [node for node in nodes if node.gone_at is None]
    cores = sum(node.total.get("CPU", 0.0) for node in alive)
    return f"Ray cluster at {address} ({len(alive)} machine{'s' * (len(alive) != 1)}, {cores:g} cores)"


def is_here(address: str) -> bool:
    """Whether a cluster's address is one of this machine, so that it sees the same files."""
    host = urlsplit(address).hostname or ""
    own = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses}
    return host in own | {"localhost", socket.gethostname()}
