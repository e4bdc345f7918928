"""The driver: jobs and revisions as processes of this machine, everything about them in one folder."""

import contextlib
import http.client
import json
import os
import shutil
import socket
from pathlib import Path

from cloudai.drivers.protocols import (
    Capabilities,
    DeploymentStatus,
    JobId,
    JobStatus,
    LogLine,
    Offer,
    Problem,
    RevisionStatus,
)
from cloudai.errors import DriverError, NotFoundError, PlacementError, SpecError
from cloudai_pocket.keeper import put
from cloudai_pocket.tasks import Tasks

HOME = Path("~/.cloudai-pocket").expanduser()


class PocketDriver:
    """Runs jobs and deployments; a new object finds what an old one started, for all state is in the folder."""

    name = "pocket"
    capabilities = Capabilities(train=True, serve=True, max_workers=1, routing="weights", here=True)

    def __init__(self, folder=None):
        self.folder = Path(folder or os.environ.get("CLOUDAI_POCKET_HOME") or HOME)
        self.jobs = Tasks(self.folder / "jobs")

    def check(self):
        if shutil.disk_usage(Path.home()).free < 2**30:
            yield Problem("less than 1 GiB is free on the disk", "free some, or set CLOUDAI_POCKET_HOME")

    def offers(self, needs):
        cores = os.cpu_count() or 1
        if needs.gpus or needs.memory > 2**33:
            why_not = "there is no GPU and not more than 8 GiB of memory in a pocket"
        elif needs.workers > 1 or needs.cpus > cores:
            why_not = f"a pocket holds one worker with {cores} cores"
        else:
            why_not = ""
        price = {"price_per_hour": 0.0, "currency": "EUR", "source": "pockets are free", "as_of": "2026-11-24"}
        yield Offer(self.name, "the pocket", **price, available=not why_not, why_not=why_not)

    def close(self):
        """Nothing is held."""

    # ── jobs ──

    def submit(self, job, offer, *, key):
        if not offer.available and self.jobs.look(key) is None:
            raise PlacementError(f"the pocket is full: {offer.why_not}", fix="ask for offers again")
        self.jobs.start(key, job.argv, job.env, job.folder if Path(job.folder).is_dir() else None)
        return JobId(key)

    def status(self, job_id):
        task = self._job(job_id)
        times = {"started_at": task.started, "ended_at": task.ended}
        if task.alive:
            return JobStatus("running", pid=task.pid, started_at=task.started)
        if (self.jobs.root / job_id / "cancelled").exists():
            return JobStatus("cancelled", task.code, "cancelled", **times)
        if task.code is None:
            return JobStatus("lost", reason="the machine was switched off", **times)
        if task.code:
            return JobStatus("failed", task.code, f"exit code {task.code}", **times)
        return JobStatus("succeeded", 0, **times)

    def logs(self, job_id, *, follow=False):
        self._job(job_id)
        return (LogLine(line) for line in self.jobs.lines(job_id, follow=follow))

    def cancel(self, job_id):
        task = self.jobs.look(job_id)
        if task is not None and task.alive:
            (self.jobs.root / job_id / "cancelled").touch()
            self.jobs.stop(job_id)

    def _job(self, job_id):
        if (task := self.jobs.look(job_id)) is None:
            raise NotFoundError(f"there is no job {job_id!r} in the pocket", fix="look at cloudai.ps()")
        return task

    # ── deployments: one process for each revision, and cloudai's router before them ──

    def apply(self, name, revision, *, key):
        tasks, folder = self._revisions(name), self._deployment(name)
        state = folder / "state" / revision.id
        self._start(tasks, revision.id, [*revision.argv, "--state", str(state)], revision.env)
        if not (folder / "routes.json").exists():
            put(folder / "routes.json", json.dumps({"traffic": {}, "backends": {}}))
        port = revision.port or _read(folder / "router.json").get("port") or _free_port()
        router = ["-m", "cloudai.serving.router", "--state", str(folder), "--port", str(port), "--drain-delay", "0.1"]
        self._start(Tasks(folder), "router", router, {})
        return revision.id

    def _start(self, tasks, key, argv, env):
        task = tasks.look(key)
        if task is not None and not task.alive:
            tasks.clear(key)
        tasks.start(key, argv, env)

    def route(self, name, traffic):
        if sum(traffic.values()) != 100 or min(traffic.values()) < 0:
            raise SpecError(f"{dict(traffic)} does not sum to 100", fix="give shares that sum to 100")
        ports = {revision: self._ready_port(name, revision) for revision, share in traffic.items() if share}
        for revision, port in ports.items():
            if port is None:
                raise DriverError(f"{revision!r} of {name!r} is not ready", fix="route to it when it is")
        backends = {revision: {"ports": [port]} for revision, port in ports.items()}
        put(self._deployment(name) / "routes.json", json.dumps({"traffic": dict(traffic), "backends": backends}))

    def retire(self, name, revision):
        if self._traffic(name).get(revision):
            raise SpecError(f"{revision!r} of {name!r} has traffic", fix="route its traffic elsewhere first")
        self._revisions(name).stop(revision)

    def inspect(self, name):
        folder = self._deployment(name)
        port = _read(folder / "router.json").get("port")
        up = port is not None and _answers(port, "/v2/health/live")
        traffic = self._traffic(name)  # once: between two looks it may be moved
        revisions = tuple(self._look(name, key, traffic) for key in self._revisions(name).keys())
        routed = [revision for revision in revisions if revision.traffic]
        ready = up and bool(routed) and all(revision.ready for revision in routed)
        router = Tasks(folder).look("router")
        pids = (router.pid,) if router is not None and router.alive else ()
        return DeploymentStatus(name, f"http://127.0.0.1:{port}" if up else "", ready, revisions, pids)

    def _look(self, name, key, traffic):
        tasks = self._revisions(name)
        task, port = tasks.look(key), self._ready_port(name, key)
        alive = task is not None and task.alive
        reason = "" if port else "not ready yet" if alive else " ".join(list(tasks.lines(key))[-2:]) or "it has ended"
        share = traffic.get(key, 0) if port else 0
        return RevisionStatus(key, port is not None, int(alive), share, reason, (task.pid,) if alive else ())

    def delete(self, name):
        for tasks in (self._revisions(name), Tasks(self._deployment(name))):
            for key in tasks.keys():
                tasks.stop(key)
        shutil.rmtree(self._deployment(name), ignore_errors=True)

    def _deployment(self, name):
        return self.folder / "deployments" / name

    def _revisions(self, name):
        return Tasks(self._deployment(name) / "revisions")

    def _traffic(self, name):
        return _read(self._deployment(name) / "routes.json").get("traffic", {})

    def _ready_port(self, name, revision):
        """Return the port of a revision that is ready; what an earlier process of it has written does not count."""
        task = self._revisions(name).look(revision)
        state = _read(self._deployment(name) / "state" / revision / "server.json")
        mine = task is not None and task.alive and state.get("pid") == task.pid
        return state["port"] if mine and _answers(state["port"], "/v2/health/ready") else None


def _answers(port, path):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _read(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
