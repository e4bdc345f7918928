"""What the supervisor does for a run: start it, see how it fares, bring it back, end it.

`advance` looks once and acts once. What it is about to do is in the ledger before it does it, and drivers take the same
key twice, so whoever leads after a crash goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from cloudai.drivers import registry
from cloudai.drivers.protocols import Job, JobId, JobStatus, Needs, Offer
from cloudai.errors import CloudAIError, NotFoundError, StoreError
from cloudai.planning.plan import place
from cloudai.planning.spending import price_of
from cloudai.specs.training import TrainSpec
from cloudai.state.ledger import Ledger, Record
from cloudai.training.job import JOB, RunFiles
from cloudai.training.journal import JournalReader

__all__ = ["advance", "needs_of"]


def needs_of(spec: TrainSpec) -> Needs:
    """Return what a run needs of a place, in a driver's words."""
    wants = spec.resources
    return Needs(wants.cpus, wants.memory, wants.gpus, wants.gpu_type, spec.scaling.num_workers)


def advance(ledger: Ledger, record: Record) -> None:
    """Take a run one step further."""
    run = _Advance(ledger, record)
    try:
        run.step()
    except StoreError as error:
        run.wait_for_store(error)
    except CloudAIError as error:
        run.end("rejected" if record.phase == "queued" else "failed", reason=error.what, fix=error.fix)


class _Advance:
    def __init__(self, ledger: Ledger, record: Record) -> None:
        self.ledger, self.record = ledger, record
        self.spec = TrainSpec.model_validate(record.spec)
        self.files = RunFiles(self.spec)
        self.attempts: list[dict[str, Any]] = [dict(attempt) for attempt in record.status.get("attempts", [])]

    def step(self) -> None:
        """Look once and act once."""
        if not self.attempts:
            if self.record.desired.get("cancel"):
                self.end("cancelled", reason="cancelled before it started")
            else:
                self._place()
            return
        driver = registry.train_driver(self.spec.on)
        job = JobId(self.attempts[-1]["job"])
        try:
            status = driver.status(job)
        except NotFoundError:  # the supervisor before us died between its note and its deed
            self._submit()
            return
        if status.phase in ("starting", "running"):
            self._alive(status)
            if self.record.desired.get("cancel"):
                driver.cancel(job)
            return
        self._ended(status)

    def _place(self) -> None:
        """Choose a place, note it, and start the first attempt."""
        offer = place(registry.train_driver(self.spec.on), needs_of(self.spec), self.record)
        self.files.folder.write(JOB, self.spec.model_dump_json().encode())
        self.ledger.renew_lease("run", self.spec.name, self.spec.lease)
        self._start("starting", {"price": price_of(offer).to_json(), "place": offer.place}, "")

    def _start(self, phase: str, change: Mapping[str, Any], event: str) -> None:
        """Note a new attempt, then submit it."""
        number = len(self.attempts) + 1
        self.attempts.append({"job": f"{self.spec.name}.{number}", "number": number})
        self._observe(phase, change, event)
        self._submit()

    def _submit(self) -> None:
        attempt = self.attempts[-1]
        folder = self.record.desired.get("folder", "")
        argv = ["-m", "cloudai.training.worker", "--store", self.spec.store, "--run", self.spec.name]
        argv += ["--attempt", str(attempt["number"]), "--lease-file", str(self.ledger.lease_file("run", self.spec.name))]
        job = Job(attempt["job"], tuple(argv), _environment(self.spec), needs_of(self.spec), folder)
        offer = Offer(self.spec.on, str(self.record.status.get("place", "")), 0.0, "", "", "")
        registry.train_driver(self.spec.on).submit(job, offer, key=attempt["job"])

    def _alive(self, status: JobStatus) -> None:
        """Note that the attempt runs, once it reports."""
        before = dict(self.attempts[-1])
        self.attempts[-1].update(started=status.started_at, pid=status.pid)
        phase = "running" if self.record.phase == "running" or self._reports() else self.record.phase
        if phase != self.record.phase or before != self.attempts[-1]:
            self._observe(phase, {"waiting": ""}, "")

    def _reports(self) -> bool:
        """Whether this attempt's worker has written its status."""
        return bool(JournalReader(self.files.folder).status().get("attempt") == self.attempts[-1]["number"])

    def wait_for_store(self, error: StoreError) -> None:
        """Note that the store keeps us; what runs goes on, and what has not begun is rejected where waiting would not help."""
        if self.record.phase == "queued" and not error.temporary:
            fix = f"end the supervisor, which has the environment that it was started in (kill {os.getpid()}), and train again"
            self.end("rejected", reason=error.what, fix=fix)
        elif self.record.status.get("waiting") != error.what:
            change = {"waiting": error.what}
            self.ledger.observe("run", self.spec.name, self.record.phase, change, event=f"waiting: {error.what}")

    def _ended(self, status: JobStatus) -> None:
        self.attempts[-1].update(
            started=status.started_at, ended=status.ended_at or self.ledger.clock.now(), reason=status.reason
        )
        reader = JournalReader(self.files.folder)
        result, error = reader.result(), reader.error()
        if result is not None:
            self._succeeded(result)
        elif error is not None:
            self.end("failed", reason=error["what"], fix=error["fix"], frames=error["frames"])
        elif status.phase == "cancelled" or self.record.desired.get("cancel"):
            self.end("cancelled", reason="cancelled")
        elif self.ledger.lease_expired("run", self.spec.name):
            self.end("cancelled", reason="its lease has passed and nobody renewed it", fix="attach and train again with lease=")
        else:
            self._come_back(status)

    def _come_back(self, status: JobStatus) -> None:
        """Start the next attempt after a worker was killed or lost, unless that happened too often."""
        reason = status.reason or "the worker is gone"
        if len(self.attempts) > self.spec.failure.max_failures:
            fix = f"look at cloudai.attach('run/{self.spec.name}').logs(), or allow more with max_failures="
            self.end("failed", reason=f"{reason}, {len(self.attempts)} times", fix=fix)
            return
        checkpoint = JournalReader(self.files.folder).status().get("checkpoint")
        since = "the start" if checkpoint is None else f"step {checkpoint}"
        self._start("recovering", {"reason": reason}, f"{reason}; coming back from {since}")

    def _succeeded(self, result: Mapping[str, Any]) -> None:
        seconds = sum(attempt["ended"] - attempt["started"] for attempt in self.attempts if attempt.get("started"))
        model = result.get("model")
        if model is not None:
            self.ledger.add_model(model["name"], model["version"], model["uri"], model["digest"], self.spec.name)
        change = {
            "seconds": seconds,
            "reason": "",
            "waiting": "",
            "why_not_exact": result["why_not_exact"],
            "model": model,
        }
        self._observe("succeeded", change, "")

    def end(self, phase: str, **status: Any) -> None:
        """End the run in a phase, with its reason and fix."""
        self._observe(phase, {"waiting": "", **status}, f"{phase}: {status['reason']}")

    def _observe(self, phase: str, change: Mapping[str, Any], event: str) -> None:
        self.ledger.observe("run", self.spec.name, phase, {"attempts": self.attempts, **change}, event=event)


def _environment(spec: TrainSpec) -> dict[str, str]:
    """Return what a worker's environment needs: as many threads as it was given cores, and no calls home."""
    threads = str(max(1, round(spec.resources.cpus)))
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONUNBUFFERED": "1"}
