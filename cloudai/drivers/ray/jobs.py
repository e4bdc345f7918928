"""Jobs of a Ray cluster in the words of its Jobs API: what is asked of it, and what it says."""

from __future__ import annotations

import hashlib
import shlex
import socket
from collections.abc import Mapping
from typing import Any

from cloudai import settings
from cloudai.drivers.capacity import share_of
from cloudai.drivers.protocols import Job, JobPhase, JobStatus
from cloudai.drivers.ray.api import Api, failed
from cloudai.drivers.ray.launch import ENVIRONMENT, packed
from cloudai.drivers.ray.package import package

__all__ = ["bring_package", "job_request", "job_status", "submission_of"]

_GRACE = "30"
"""Seconds that a cancelled job has for its last checkpoint; Ray's own 3 are too few."""
_NEVER_BEGUN = {
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": "the cluster had no room for it in time",
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": "the cluster had no room for it",
}
_NO_FAULT = _NEVER_BEGUN | {"JOB_SUPERVISOR_ACTOR_DIED": "the machine that it ran on is gone"}
"""What ends a job for a reason that is the cluster's, so that it is no failure of the run."""


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


def bring_package(api: Api) -> None:
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
