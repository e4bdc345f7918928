"""The driver of a Ray cluster that is there already."""

from __future__ import annotations

import hashlib
import platform
import shlex
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Any, NoReturn
from urllib.parse import urlsplit

import psutil

from cloudai import settings
from cloudai.drivers.capacity import Node, fit, nodes_of, share_of
from cloudai.drivers.protocols import (
    Capabilities,
    Job,
    JobId,
    JobPhase,
    JobStatus,
    LogLine,
    Needs,
    Offer,
    Problem,
)
from cloudai.drivers.ray.api import Api, RefusedError, failed, job_path
from cloudai.drivers.ray.launch import ENVIRONMENT, packed
from cloudai.drivers.ray.package import package
from cloudai.errors import CloudAIError, DriverError, NotFoundError, PlacementError

__all__ = ["RayDriver", "is_here", "job_request", "job_status", "submission_of", "versions_differ"]

_OLDEST_RAY = (2, 54)
_GRACE = "30"
"""Seconds that a cancelled job has for its last checkpoint; Ray's own 3 are too few."""
_POLL = 0.5
_SHARE_OF_POLL = 20.0
"""Ray gives the whole log each time, so a long one is asked for less often: what takes long is waited for so much longer."""
_NO_CLUSTER = Problem(
    "no Ray cluster is set",
    "set ray_address to its dashboard, such as http://127.0.0.1:8265 (CLOUDAI_RAY_ADDRESS)",
    passing=True,
)
_NEVER_BEGUN = {
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": "the cluster had no room for it in time",
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": "the cluster had no room for it",
}
_NO_FAULT = _NEVER_BEGUN | {"JOB_SUPERVISOR_ACTOR_DIED": "the machine that it ran on is gone"}
"""What ends a job for a reason that is the cluster's, so that it is no failure of the run."""


class RayDriver:
    """Runs jobs on a Ray cluster through its Jobs API.

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
        return Capabilities(train=True, gpu=True, max_workers=4096, elsewhere=bool(address) and not is_here(address))

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
        _bring_package(api)
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

    def _check_versions(self, api: Api) -> None:
        found = api.read("/api/v0/cluster_metadata").get("data") or {}
        versions_differ(str(found.get("rayVersion", "?")), str(found.get("pythonVersion", "?")))


def versions_differ(ray: str, python: str) -> None:
    """Refuse a cluster whose Ray is too old, or whose Python is another than the one in which code was captured here.

    cloudai itself is the same on both sides: each job brings it along.

    Raises
    ------
    PlacementError
        If so, with the versions of both.
    """
    here = platform.python_version()
    wanted = ".".join(map(str, _OLDEST_RAY))
    if _numbers(ray) < _OLDEST_RAY:
        fix = f'pip install --upgrade "ray[default,train]>={wanted}" on all machines of the cluster, and start it again'
        raise PlacementError(f"the cluster has Ray {ray}, cloudai needs {wanted} or later", fix=fix)
    if _numbers(python) != sys.version_info[:2]:
        fix = "start the cluster, or this kernel, with the other's Python"
        raise PlacementError(f"the cluster has Python {python}, and this is Python {here}: code may not run there", fix=fix)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version; (0, 0) where it has none."""
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if len(parts) == 2 and all(part.isdigit() for part in parts) else (0, 0)


def job_status(details: Mapping[str, Any]) -> JobStatus:
    """Read what the Jobs API says of a job."""
    code = details.get("driver_exit_code")
    phase, reason = _ending(str(details.get("status")), code, details)
    exit_code = None if code is None else (128 - code if code < 0 else code)
    ended = phase not in ("starting", "running")
    waited = phase == "starting" or details.get("error_type") in _NEVER_BEGUN  # Ray's start is when it was given the job
    return JobStatus(
        phase,
        exit_code,
        reason,
        None,
        None if waited else _seconds(details.get("start_time")),
        _seconds(details.get("end_time")) if ended else None,
    )


def _ending(status: str, code: int | None, details: Mapping[str, Any]) -> tuple[JobPhase, str]:
    """Return the phase of a job, and why it ended."""
    alive: Mapping[str, JobPhase] = {"PENDING": "starting", "RUNNING": "running"}
    if status in alive:
        return alive[status], ""
    if status == "STOPPED":
        return "cancelled", "cancelled"
    if status == "SUCCEEDED":
        return "succeeded", ""
    kind = str(details.get("error_type") or "")
    if code is not None:
        return "failed", f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    message = str(details.get("message") or "it ended without a word").strip().splitlines()[0][:300]
    if kind == "RUNTIME_ENV_SETUP_FAILURE":
        return "failed", message
    return ("preempted", _NO_FAULT[kind]) if kind in _NO_FAULT else ("lost", message)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def job_request(job: Job, submission: str) -> dict[str, Any]:
    """Return what the Jobs API is asked: one worker is the job itself, several are Ray Train's to place."""
    changed = {name: value for name, value in job.env.items() if "$" in value}
    plain = {name: value for name, value in job.env.items() if name not in changed}
    env = {**plain, ENVIRONMENT: packed(changed), "RAY_JOB_STOP_WAIT_TIME_S": _GRACE}
    request: dict[str, Any] = {
        "entrypoint": "exec python -m cloudai.drivers.ray.launch " + shlex.join(job.argv),
        "submission_id": submission,
        "runtime_env": {"working_dir": package().uri, "env_vars": env},
        "metadata": {"cloudai": job.name},
    }
    if job.needs.workers > 1 or job.needs.elastic:
        return request
    share = share_of(job.needs)
    named = {"CPU": "entrypoint_num_cpus", "GPU": "entrypoint_num_gpus", "memory": "entrypoint_memory"}
    request |= {named[name]: int(amount) if name == "memory" else amount for name, amount in share.items() if name in named}
    return request | {"entrypoint_resources": {name: amount for name, amount in share.items() if name not in named}}


def _bring_package(api: Api) -> None:
    """Make sure that the cluster has the package; to ask for it keeps it there for a while."""
    if api.get(package().path).ok:
        return
    answer = api.put(package().path, package().content)
    if not answer.ok:
        raise failed("take the package", answer)


def submission_of(key: str) -> str:
    """Return the cluster's id of a job: ledgers share a cluster, and may have runs of the same name."""
    now = settings.current()
    ledger = now.ledger or f"{socket.gethostname()}:{now.home}"
    return f"cloudai-{hashlib.sha256(ledger.encode()).hexdigest()[:12]}-{key}"


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
