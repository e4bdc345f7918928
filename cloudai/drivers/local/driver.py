"""The local driver: what it can do here, and the jobs that it runs."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from pathlib import Path

import psutil

from cloudai import settings
from cloudai.drivers.local.deployments import Deployments
from cloudai.drivers.local.processes import Process, Processes
from cloudai.drivers.protocols import (
    Capabilities,
    DeploymentStatus,
    Job,
    JobId,
    JobPhase,
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
from cloudai.errors import NotFoundError, PlacementError

__all__ = ["LocalDriver"]

_GRACE = 10.0
"""Seconds that a cancelled job has to write its last checkpoint."""


class LocalDriver:
    """Runs jobs and deployments as processes of this machine.

    Parameters
    ----------
    root : Path, optional
        Where process folders are kept; ``<home>/local`` by default.
    """

    name = "local"
    capabilities = Capabilities(
        train=True,
        serve=True,
        telemetry=True,
        max_workers=os.cpu_count() or 1,
        routing="weights",
        sticky=True,
        shadow=True,
        router=True,
        scale_to_zero=True,
        autoscaling="asked",
        here=True,
    )

    def __init__(self, root: Path | None = None) -> None:
        self._root = root

    @property
    def _jobs(self) -> Processes:
        return Processes(self._folder / "jobs")

    @property
    def _deployments(self) -> Deployments:
        return Deployments(self._folder / "deployments")

    @property
    def _folder(self) -> Path:
        return self._root or settings.current().home / "local"  # looked up each time: the home may be changed

    def check(self) -> Iterable[Problem]:
        """Say what is missing here."""
        if platform.system() == "Windows":
            yield Problem("the local driver needs a POSIX system", "use WSL 2, Linux or macOS")

    def offers(self, needs: Needs) -> Iterable[Offer]:
        """Offer this machine, or say what it lacks."""
        now = settings.current()
        price = now.local_price_per_hour
        source = f"local_price_per_hour, from {now.sources['local_price_per_hour']}" if price else "own machine, not counted"
        why_not = _why_not(needs)
        place = f"this machine ({os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB)"
        yield Offer(
            "local", place, price, now.currency, source, date.today().isoformat(), available=not why_not, why_not=why_not
        )

    def close(self) -> None:
        """Nothing is held: processes go on and are found again."""

    def submit(self, job: Job, offer: Offer, *, key: str) -> JobId:
        """Start the job as a process."""
        if not offer.available and self._jobs.look(key) is None:
            raise PlacementError(f"{offer.place!r} cannot be had: {offer.why_not}", fix="ask for offers again")
        env = {**job.env, "CLOUDAI_SCRATCH": str(self._jobs.folder(key))}
        self._jobs.start(key, job.argv, env, cwd=job.folder if Path(job.folder).is_dir() else "")
        return JobId(key)

    def status(self, job_id: JobId) -> JobStatus:
        """Look at the process."""
        process = self._found(job_id)
        cancelled = (self._jobs.folder(job_id) / "cancelled").exists()
        phase, reason = _ending(process, cancelled=cancelled)
        pid = process.pid if process.alive else None
        return JobStatus(phase, process.exit_code, reason, pid, process.started_at, process.ended_at)

    def logs(self, job_id: JobId, *, follow: bool = False) -> Iterator[LogLine]:
        """Read what the process wrote."""
        self._found(job_id)
        for text in self._jobs.log_lines(job_id, follow=follow):
            yield LogLine(text)

    def _found(self, job_id: JobId) -> Process:
        process = self._jobs.look(job_id)
        if process is None:
            raise NotFoundError(f"there is no job {job_id!r} on this machine", fix="look at cloudai.ps()")
        return process

    def cancel(self, job_id: JobId) -> None:
        """End the process and all that it started."""
        process = self._jobs.look(job_id)
        if process is not None and process.alive:
            (self._jobs.folder(job_id) / "cancelled").touch()
            self._jobs.stop(job_id, grace=_GRACE)

    def apply(self, name: str, revision: Revision, *, key: str) -> RevisionId:
        """Bring a revision up as processes, or up again where they have died."""
        return self._deployments.apply(name, revision)

    def scale(self, name: str, revision: RevisionId, replicas: int) -> None:
        """Start and end processes of a revision until there are so many."""
        self._deployments.scale(name, revision, replicas)

    def route(
        self,
        name: str,
        traffic: Mapping[RevisionId, Percent],
        *,
        sticky: str = "",
        shadow: Mapping[RevisionId, Percent] | None = None,
    ) -> None:
        """Write the routing table, which the router reads at its next request."""
        self._deployments.route(name, traffic, sticky, shadow)

    def retire(self, name: str, revision: RevisionId) -> None:
        """Drain and end one revision's processes."""
        self._deployments.retire(name, revision)

    def inspect(self, name: str) -> DeploymentStatus:
        """Look at the processes and the routing table."""
        return self._deployments.inspect(name)

    def delete(self, name: str) -> None:
        """End the router and all revisions."""
        self._deployments.delete(name)

    def metrics(self, name: str, *, since: datetime) -> Iterable[Metric]:
        """Read ``/metrics`` of each live replica; counters run since its start, and end with it."""
        return self._deployments.metrics(name) if since.timestamp() <= time.time() else ()

    def samples(self, name: str, *, since: datetime, limit: int) -> Iterable[Sample]:
        """Read the rows that the servers have kept."""
        return self._deployments.samples(name, since.timestamp(), limit)


def _why_not(needs: Needs) -> str:
    cores, memory = os.cpu_count() or 1, psutil.virtual_memory().total
    if needs.gpus and not any(Path("/dev").glob("nvidia[0-9]*")):
        return f"needs {needs.gpus} × {needs.gpu_type or 'GPU'}, this machine has none"
    if needs.cpus * needs.workers > cores:
        return f"needs {needs.cpus * needs.workers:g} cores, this machine has {cores}"
    if needs.memory * needs.workers > memory:
        return f"needs {needs.memory * needs.workers / 2**30:.1f} GiB of memory, this machine has {memory / 2**30:.1f}"
    return ""


def _ending(process: Process, *, cancelled: bool) -> tuple[JobPhase, str]:
    """Return the phase of a process, and why it ended."""
    if process.alive:
        return "running", ""
    if cancelled:
        return "cancelled", "cancelled"
    if process.exit_code is None:
        return "lost", "the process and its keeper are gone"
    return ("succeeded", "") if process.exit_code == 0 else ("failed", _reason(process.exit_code))


def _reason(code: int) -> str:
    if code > 128:
        try:
            return f"killed by {signal.Signals(code - 128).name}"
        except ValueError:
            pass
    return f"exit code {code}"
