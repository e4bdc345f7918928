"""The bench on which a driver is tested: how a new object of it is made, jobs of each kind, and how time passes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import signal
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cloudai.clock import SYSTEM, Clock
from cloudai.drivers.protocols import Job, JobId, Needs, Offer, Revision, RevisionId
from cloudai.drivers.registry import guarded

__all__ = ["Bench", "is_running"]

T = TypeVar("T")

_ECHO = "import json, os, sys; print(json.dumps([sys.argv[2:], {n: os.environ.get(n) for n in json.loads(sys.argv[1])}]))"
_PRINT = "import sys; print(*sys.argv[1:], sep='\\n')"
_ENDLESS = "import time; print('up', flush=True); time.sleep(600)"


class Bench:
    """What the suites need of a driver under test; subclass it and write `connect`.

    Everything else fits a driver that starts real processes. A driver that runs no Python, such as a simulated one, gives
    jobs and revisions of its own and a clock that it advances.

    Attributes
    ----------
    clock : Clock
        The time that the driver goes by. To wait, the suites call its `pause`.
    patience : float
        For how many seconds of that clock a condition may take to come true.
    step : float
        How many seconds pass between two looks.
    """

    clock: Clock = SYSTEM
    patience: float = 60.0
    step: float = 0.02

    def connect(self) -> Any:
        """Return a new driver object that knows nothing of the others, as a new process would have it."""
        raise NotImplementedError("a bench says how to connect")

    @functools.cached_property
    def driver(self) -> Any:
        """One driver object for the bench itself, guarded as the registry would."""
        return self.guarded()

    def guarded(self) -> Any:
        """Return a new driver object as the rest of cloudai would see it."""
        driver = self.connect()
        return guarded(driver, getattr(driver, "name", "?"))

    def until(self, condition: Callable[[], T], what: str) -> T:
        """Let time pass until a condition holds, and return its value.

        Raises
        ------
        AssertionError
            If it does not come true in time.
        """
        deadline = self.clock.now() + self.patience
        while not (value := condition()):
            if self.clock.now() > deadline:
                raise AssertionError(f"{what} did not happen within {self.patience:g} s")
            self.clock.pause(self.step)
        return value

    def name(self, stem: str) -> str:
        """Return a name that nothing else has, also not from an earlier run."""
        return f"{stem}-{secrets.token_hex(4)}"

    @functools.cached_property
    def shared(self) -> str:
        """The name of the deployment that most tests of a bench share."""
        return self.name("shared")

    def footprint(self) -> frozenset[Hashable]:
        """Return what the driver has started, in any words: by default the processes that come from this one."""
        import psutil

        return frozenset(process.pid for process in psutil.Process().children(recursive=True))

    def close(self) -> None:
        """End what is left; call it when the bench is taken down."""
        with contextlib.suppress(Exception):
            self.driver.delete(self.shared)

    # ── jobs ──

    def succeeding_job(self, name: str) -> Job:
        """Return a job that ends by itself with exit code 0."""
        return Job(name, ("-c", "pass"))

    def failing_job(self, name: str, code: int) -> Job:
        """Return a job that ends by itself with another exit code."""
        return Job(name, ("-c", f"raise SystemExit({code})"))

    def printing_job(self, name: str, lines: Sequence[str]) -> Job:
        """Return a job that writes these lines and ends with exit code 0."""
        return Job(name, ("-c", _PRINT, *lines))

    def endless_job(self, name: str) -> Job:
        """Return a job that runs until it is ended."""
        return Job(name, ("-c", _ENDLESS))

    def echoing_job(self, name: str, words: Sequence[str], env: Mapping[str, str], ask: Sequence[str]) -> Job | None:
        """Return a job that writes ``[words, {name: value}]`` as JSON: its arguments, and the variables asked for.

        None where the driver starts no process.
        """
        return Job(name, ("-c", _ECHO, json.dumps(list(ask)), *words), env)

    def interrupt(self, job_id: JobId) -> bool:
        """Kill a running job from outside, as a machine's failure would; False where the bench cannot."""
        pid = self.driver.status(job_id).pid
        return pid is not None and _kill(pid)

    def impossible(self) -> Needs:
        """Return needs that no place of the driver can meet."""
        return Needs(cpus=1e7, memory=2**70)

    def gone(self, offer: Offer) -> Offer:
        """Return an offer that cannot be had any more."""
        return replace(offer, available=False, why_not="it is gone")

    # ── deployments ──

    def ready_revision(self, deployment: str, revision: str) -> Revision:
        """Return a revision that becomes ready."""
        return self._revision(deployment, revision, "ready")

    def stuck_revision(self, deployment: str, revision: str) -> Revision:
        """Return a revision that stays alive and never becomes ready."""
        return self._revision(deployment, revision, "stuck")

    def crashing_revision(self, deployment: str, revision: str) -> Revision:
        """Return a revision that ends before it is ready."""
        return self._revision(deployment, revision, "crash")

    def _revision(self, deployment: str, revision: str, behave: str) -> Revision:
        argv = ("-m", "cloudai.testing.server", "--revision", revision, "--behave", behave, "--name", deployment)
        return Revision(RevisionId(revision), (*argv, "--drain-delay", "0.1"))

    def kill_revision(self, deployment: str, revision: RevisionId) -> bool:
        """Kill a revision from outside; False where the bench cannot."""
        found = next(r for r in self.driver.inspect(deployment).revisions if r.id == revision)
        killed = [_kill(pid) for pid in found.pids]
        return bool(killed) and all(killed)

    def ask(self, deployment: str) -> RevisionId | None:
        """Send one request of one row to a deployment and return the revision that answered; None where the bench cannot.

        Raises
        ------
        Exception
            If the request is not answered.
        """
        import numpy as np

        from cloudai.serving import client

        status = self.driver.inspect(deployment)
        answers = client.predict(status.url, deployment, {"x": np.zeros((1, 1), "float32")})
        return _by_number(int(answers["answer"][0]), [revision.id for revision in status.revisions])


def _by_number(number: int, revisions: Sequence[RevisionId]) -> RevisionId:
    """Return the revision whose server answers with this number."""
    return next(
        (revision for revision in revisions if zlib.crc32(revision.encode()) == number), RevisionId(f"unknown {number}")
    )


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def is_running(pid: int) -> bool:
    """Whether a process of this machine is alive; one that nobody has waited for yet is not."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
