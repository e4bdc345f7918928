"""What the supervisor does for a run: start it, see how it fares, bring it back, end it.

`advance` looks once and acts once. What it is about to do is in the ledger before it does it, and drivers take the same
key twice, so whoever leads after a crash goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cloudai.artifacts.store import sha256
from cloudai.drivers import registry
from cloudai.drivers.protocols import Job, JobId, JobStatus, Needs, Offer, TrainDriver
from cloudai.errors import (
    CloudAIError,
    DriverError,
    IntegrityError,
    LedgerError,
    NotFoundError,
    NotReadyError,
    PlacementError,
    StoreError,
)
from cloudai.planning.plan import place
from cloudai.planning.silence import Silence, asks_again
from cloudai.planning.spending import price_of, spending
from cloudai.specs.confidential import redact, redacted
from cloudai.specs.training import TrainSpec
from cloudai.state.ledger import ENDED, Ledger, Record
from cloudai.training.hangs import HangWatch
from cloudai.training.job import JOB, LIMITED, PREEMPTED, RunFiles
from cloudai.training.journal import JournalReader
from cloudai.training.limits import Limits, spans_of
from cloudai.training.logs import LogCopies
from cloudai.training.notices import noted
from cloudai.training.tracked import mark_behind

__all__ = ["advance", "due", "needs_of"]

_MOST_REFUSALS = 10
"""So many places that were offered and then refused, one after the other, end a run."""

_PATIENCE = 900.0
"""Seconds that a driver may fail to answer before a run that never started is given up. A run that did start goes on."""

_watches: dict[str, HangWatch] = {}
"""What this process has seen of each job's heartbeats; who leads after it begins to watch anew."""

_logs = LogCopies()
"""When this process has copied which log."""

_SHORT = 60.0
"""Seconds of an attempt after which its machine is hardly the one that was to be taken away before."""

_DIGEST = 64  # hexadecimal digits of a SHA-256


def needs_of(spec: TrainSpec) -> Needs:
    """Return what a run needs of a place, in a driver's words."""
    wants = spec.resources
    return Needs(wants.cpus, wants.memory, wants.gpus, wants.gpu_type, spec.scaling.smallest, spec.scaling.is_elastic)


def due(ledger: Ledger, record: Record) -> float | None:
    """Return when time alone makes `advance` act, in unix time; None where only news from the driver or the user do."""
    again = asks_again(record.status)
    if again is not None:
        return again
    left, now = ledger.lease_left("run", _leased(record)), ledger.clock.now()
    attempts = record.status.get("attempts", [])
    moments = Limits.from_json(attempts[-1].get("limits")).moments(attempts[-1], now) if attempts else []
    return min(moments + ([] if left is None else [now + left]), default=None)


def advance(ledger: Ledger, record: Record) -> None:
    """Take a run one step further."""
    again = asks_again(record.status)
    if again is not None and ledger.clock.now() < again and not record.desired.get("cancel"):
        return
    run = _Advance(ledger, record)
    try:
        run.step()
        run.reached()
    except LedgerError:
        raise  # says nothing about the work; the next look goes on from what was written
    except StoreError as error:
        run.wait_for_store(error)
    except NotReadyError as error:
        run.wait(error)
    except DriverError as error:
        run.not_reached(error)
    except CloudAIError as error:
        run.give_up(error)


class _Advance:
    def __init__(self, ledger: Ledger, record: Record) -> None:
        self.ledger, self.record = ledger, record
        self.spec = TrainSpec.model_validate(record.spec)
        self.files = RunFiles(self.spec)
        self.attempts: list[dict[str, Any]] = [dict(attempt) for attempt in record.status.get("attempts", [])]
        self.leased = _leased(record)

    @property
    def started(self) -> bool:
        """Whether any attempt has been seen to run."""
        return any(attempt.get("started") for attempt in self.attempts)

    @property
    def _why_cancelled(self) -> str:
        """Why it is to end: a search says why it stops a trial."""
        wish = self.record.desired.get("cancel")
        return wish if isinstance(wish, str) else "cancelled"

    @property
    def _job_file(self) -> bytes:
        return self.spec.model_dump_json().encode()

    @property
    def driver(self) -> TrainDriver:
        return registry.train_driver(self.spec.on)

    def step(self) -> None:
        """Look once and act once."""
        if not self.attempts or "ended" in self.attempts[-1]:
            self._next_attempt()
            return
        job = JobId(self.attempts[-1]["job"])
        try:
            status = self.driver.status(job)
        except NotFoundError:  # the supervisor before us died between its note and its deed
            self._submit()
            return
        if status.phase in ("starting", "running"):
            if self.record.desired.get("cancel") or self.ledger.lease_expired("run", self.leased):
                self.driver.cancel(job)  # before the store is asked, which may be away
            self._alive(status)
            return
        self._ended(status)

    def _next_attempt(self) -> None:
        """Start the first attempt, or the one after an attempt that was lost."""
        if self.record.desired.get("cancel"):
            self.end("cancelled", reason=self._why_cancelled if self.attempts else "cancelled before it started")
        elif self.attempts and self._lease_passed():
            return
        else:
            self._start()

    def _start(self) -> None:
        """Choose a place, note a new attempt there, and submit it."""
        limits, now = Limits.from_json(self.record.desired.get("limits")), self.ledger.clock.now()
        if reason := limits.no_room(now):  # a deadline passes also for who waits for a place
            self._stop(limits, reason)
            return
        recorded = self.record.desired.get("offer") if not self.attempts else None
        offer = Offer(**recorded) if recorded else place(self.driver, needs_of(self.spec), spot=self.spec.spot_policy == "spot")
        limits.refuse_uncounted(offer)
        price = price_of(offer)
        limits = limits.at(spent=spending(spans_of(self.attempts), now).amount, per_hour=price.per_hour)
        if reason := limits.no_room(now):
            self._stop(limits, reason)
            return
        if not self.attempts and self.leased == self.spec.name:
            self.ledger.renew_lease("run", self.spec.name, self.spec.lease)
        self.files.folder.write(JOB, self._job_file)  # before the note: without it a worker could not begin
        number = max((attempt["number"] for attempt in self.attempts), default=0) + 1
        attempt = {"job": f"{self.spec.name}.{number}", "number": number, "offer": asdict(offer), "price": price.to_json()}
        self.attempts.append(attempt | ({"limits": limits.to_json()} if str(limits) else {}))
        phase = "starting" if number == 1 else "recovering"
        reason = self.record.status.get("lost", "")
        self._observe(phase, {"price": price.to_json(), "place": offer.place, "reason": reason, "fix": "", "waiting": None}, "")
        self._submit()

    def _submit(self) -> None:
        attempt = self.attempts[-1]
        folder = self.record.desired.get("folder", "")
        argv = ["-m", "cloudai.training.worker", "--store", self.spec.store, "--run", self.spec.name]
        argv += ["--attempt", str(attempt["number"]), "--lease-file", str(self.ledger.lease_file("run", self.leased))]
        argv += ["--digest", sha256(self._job_file)]
        if "limits" in attempt:
            argv += ["--limits", json.dumps(attempt["limits"])]
        job = Job(attempt["job"], tuple(argv), _environment(self.spec), needs_of(self.spec), folder)
        try:
            self.driver.submit(job, Offer(**attempt["offer"]), key=attempt["job"])
        except PlacementError as error:
            self._refused(error)

    def _refused(self, error: PlacementError) -> None:
        """Take back an attempt whose place was gone when it was asked for; the next look chooses again."""
        refusals = self.record.status.get("refusals", 0) + 1
        if refusals >= _MOST_REFUSALS:
            raise error
        self.attempts.pop()
        self._observe(self.record.phase, {"refusals": refusals}, f"{redact(error.what)}; choosing another place")
        if "offer" in self.record.desired:
            self.ledger.want("run", self.spec.name, {"offer": None})

    def _alive(self, status: JobStatus) -> None:
        """Note that the attempt runs, once it reports."""
        before = dict(self.attempts[-1])
        self.attempts[-1].update(started=status.started_at, pid=status.pid)
        phase = self.record.phase
        if before != self.attempts[-1]:
            self._observe(phase, {"refusals": 0}, "")
        self._enforce(phase, status)  # before the store is asked, which may be away
        if phase != "running" and self._reports():
            phase = "running"
            self._observe(phase, {"refusals": 0, "store": ""}, "")
        self._watch(phase)
        self._keep_log()

    @property
    def _watched(self) -> str:
        return f"{self.ledger.home}/{self.attempts[-1]['job']}"

    def _watch(self, phase: str) -> None:
        """End a worker that hangs, and tell what its machine's cloud says."""
        attempt, now = self.attempts[-1], self.ledger.clock.now()
        watch = _watches.setdefault(self._watched, HangWatch(self.spec))
        if not watch.due(now) or not attempt.get("started"):
            return
        said = JournalReader(self.files.folder).status()
        own = said if said.get("attempt") == attempt["number"] else None
        reason = watch.look(own, now)
        if reason:
            self._end_job(phase, "hang", reason)
        notice = (own or {}).get("notice", "")
        if notice and notice != attempt.get("notice"):
            attempt["notice"] = notice
            self._observe(phase, {}, f"warning: {redact(notice)}")

    def _enforce(self, phase: str, status: JobStatus) -> None:
        """Warn when a limit is near, and end a worker that goes on after it: it should have ended by itself."""
        limits, now = Limits.from_json(self.attempts[-1].get("limits")), self.ledger.clock.now()
        started = status.started_at or now
        if now >= limits.ends(started) or limits.is_billed(status.cost):
            self._end_job(phase, "limit", limits.reason(started, now))
        elif (warning := limits.warning(started, now)) and not self.attempts[-1].get("warned"):
            self.attempts[-1]["warned"] = True
            self._observe(phase, {}, f"warning: {warning}")

    def _end_job(self, phase: str, kind: str, reason: str) -> None:
        """Note why the present attempt must end, then end it; the next look sees that it has."""
        if "ending" not in self.attempts[-1]:
            self.attempts[-1]["ending"] = {"kind": kind, "reason": reason}
            self._observe(phase, {}, f"ending the worker: {reason}")
        self.driver.cancel(JobId(self.attempts[-1]["job"]))

    def _reports(self) -> bool:
        """Whether this attempt's worker has written its status."""
        return bool(JournalReader(self.files.folder).status().get("attempt") == self.attempts[-1]["number"])

    def wait_for_store(self, error: StoreError) -> None:
        """Note that the store keeps us; what runs goes on, and what has not begun is rejected where waiting would not help."""
        what = redact(error.what)
        over = bool(self.attempts) and "ended" in self.attempts[-1]
        if over and self.record.desired.get("cancel"):
            self.end("cancelled", reason=self._why_cancelled)
        elif over and self._lease_passed():
            return
        elif self.record.phase == "queued" and not error.temporary:
            fix = f"end the supervisor, which has the environment that it was started in (kill {os.getpid()}), and train again"
            self.end("rejected", reason=what, fix=fix)
        elif self.record.status.get("store") != what:
            self.ledger.observe("run", self.spec.name, self.record.phase, {"store": what}, event=f"waiting: {what}")

    def _ended(self, status: JobStatus) -> None:
        _watches.pop(self._watched, None)
        self._bill(status)
        reader = JournalReader(self.files.folder)
        result, error = reader.result(), reader.error()
        self._keep_log()  # after the store has answered
        if result is not None:
            self._succeeded(result)
        elif error is not None:
            self.end("failed", reason=error["what"], fix=error["fix"], frames=error["frames"])
        elif self.record.desired.get("cancel"):
            self.end("cancelled", reason=self._why_cancelled)
        elif self._lease_passed():
            return
        elif self._limited(status):
            self._stop(Limits.from_json(self.attempts[-1]["limits"]), self._why(status))
        elif status.phase == "cancelled" and "ending" not in self.attempts[-1]:
            self.end("cancelled", reason="cancelled")
        else:
            self._come_back(status)

    def _bill(self, status: JobStatus) -> None:
        """Note when the last attempt ended, why, and what its place says that it has cost."""
        ended = status.ended_at or self.ledger.clock.now()
        self.attempts[-1].update(started=status.started_at, ended=ended, reason=redact(status.reason), billed=status.cost)

    def _keep_log(self) -> None:
        _logs.keep(self.driver, self.attempts[-1], self.files.folder, self.ledger.clock.now())

    def _limited(self, status: JobStatus) -> bool:
        """Whether an attempt ended for a limit, by itself or by us."""
        attempt = self.attempts[-1]
        by_us = attempt.get("ending", {}).get("kind") == "limit" and status.phase != "succeeded"
        return "limits" in attempt and (by_us or status.exit_code == LIMITED)

    def _why(self, status: JobStatus) -> str:
        """Return why the last attempt ended: what we ended it for, or as its worker has said, or as its place says."""
        attempt, said = self.attempts[-1], JournalReader(self.files.folder).status()
        told = str(said.get("ending", "")) if said.get("attempt") == attempt["number"] else ""
        return redact(attempt.get("ending", {}).get("reason") or told or status.reason)

    def _stop(self, limits: Limits, reason: str) -> None:
        """End a run that has come to its limit, and say how it goes on."""
        said = JournalReader(self.files.folder).status()
        step, total = said.get("step"), said.get("total_steps")
        where = "" if step is None else f" at step {step}" + (f" of {total}" if total else "")
        self.end("stopped", reason=reason + where, fix=limits.fix(self.spec.name))

    def _lease_passed(self) -> bool:
        """End the run if its lease has passed; returns whether it has."""
        passed = self.ledger.lease_expired("run", self.leased)
        if passed:
            self.end("cancelled", reason="its lease has passed and nobody renewed it", fix="attach and train again with lease=")
        return passed

    def _come_back(self, status: JobStatus) -> None:
        """Start the next attempt after a worker was killed or lost, unless that happened too often."""
        reason, noticed = self._why(status) or "the worker is gone", status.exit_code == PREEMPTED or self._was_told()
        self.attempts[-1]["failure"] = status.phase != "preempted" and not noticed
        failures = sum(attempt.get("failure", False) for attempt in self.attempts)
        if failures > self.spec.failure.max_failures:
            fix = f"look at cloudai.attach('run/{self.spec.name}').logs(), or allow more with max_failures="
            self.end("failed", reason=f"{reason}, {failures} times", fix=fix)
            return
        checkpoint = JournalReader(self.files.folder).status().get("checkpoint")
        since = "the start" if checkpoint is None else f"step {checkpoint}"
        pause = self._pause() if noticed or not status.started_at else None
        change = {"reason": reason, "lost": reason, "taken": pause, "waiting": pause}
        self._observe("recovering", change, f"{reason}; coming back from {since}")
        if pause is None:
            self.record = self.ledger.get("run", self.spec.name)
            self._start()

    def _was_told(self) -> bool:
        """Whether the last attempt's machine was to be taken away: it may be gone before the worker has ended for it."""
        attempt = self.attempts[-1]
        notice = noted(self.files.folder, attempt["number"])
        if notice is not None:
            attempt.update(notice=notice.text, final=notice.final)
        return notice is not None and notice.final

    def _pause(self) -> dict[str, Any] | None:
        """Return when to come back after an attempt that was short: its machine would get a notice, its place be full again."""
        last, now = self.attempts[-1], self.ledger.clock.now()
        short = last["ended"] - (last.get("started") or last["ended"]) < _SHORT
        return Silence.after(self.record.status.get("taken"), now).to_json() if short else None

    def _succeeded(self, result: Mapping[str, Any]) -> None:
        seconds = sum(attempt["ended"] - attempt["started"] for attempt in self.attempts if attempt.get("started"))
        model = result.get("model")
        if model is not None:
            self._check_model(model)
            if self.leased == self.spec.name:  # of the trials of a search, the search records the best one's
                self.ledger.add_model(model["name"], model["version"], model["uri"], model["digest"], self.spec.name)
        change = {
            "seconds": seconds,
            "reason": "",
            "store": "",
            "waiting": None,
            "why_not_exact": result["why_not_exact"],
            "model": model,
            "outcome": result.get("outcome"),
        }
        self._observe("succeeded", change, "")

    def wait(self, error: NotReadyError) -> None:
        """Note why no place can be had now; the next look asks again."""
        waiting = Silence.after(self.record.status.get("waiting"), self.ledger.clock.now()).to_json()
        news = self.record.status.get("reason") != error.what
        change = redacted({"reason": error.what, "fix": error.fix, "waiting": waiting, "silence": None})
        self._observe(self.record.phase, change, f"waiting: {change['reason']}" if news else "")

    def reached(self) -> None:
        """Note that the driver answers again."""
        if self.record.status.get("silence"):
            record = self.ledger.get("run", self.spec.name)
            self.ledger.observe("run", self.spec.name, record.phase, {"silence": None}, event="the driver answers again")

    def not_reached(self, error: DriverError) -> None:
        """Note that the driver failed, and when to ask again; only a run that never started is given up for it."""
        now = self.ledger.clock.now()
        silence = Silence.after(self.record.status.get("silence"), now)
        if silence.lasts(now) > _PATIENCE and not self.started:
            self.give_up(error)
            return
        event = f"{redact(error.what)}; asking again" if silence.count == 1 else ""
        phase = "starting" if self.record.phase == "queued" else self.record.phase
        self.ledger.observe("run", self.spec.name, phase, {"silence": silence.to_json()}, event=event)

    def _check_model(self, model: Mapping[str, Any]) -> None:
        """Refuse to vouch for a model that lies elsewhere than this run may have put it."""
        name, version = model.get("name"), model.get("version")
        uri, digest = self.files.store.uri(f"models/{name}/{version}"), model.get("digest")
        own = name == self.spec.model_name and model.get("uri") == uri and isinstance(digest, str) and len(digest) == _DIGEST
        if not own:
            raise IntegrityError("the run's result names a model that is not its own", fix="see who can write to the store")

    def give_up(self, error: CloudAIError) -> None:
        """End the run for an error, and with it what may still run of it: nobody would look after that."""
        if self.attempts and "ended" not in self.attempts[-1]:
            with contextlib.suppress(CloudAIError):
                job = JobId(self.attempts[-1]["job"])
                self.driver.cancel(job)
                self._bill(self.driver.status(job))
                self._keep_log()
        self.end("failed" if self.started else "rejected", reason=error.what, fix=error.fix)

    def end(self, phase: str, **status: Any) -> None:
        """End the run in a phase, with its reason and fix."""
        status = redacted(status)
        self._observe(phase, {"store": "", "waiting": None, **status}, f"{phase}: {status['reason']}")

    def _observe(self, phase: str, change: Mapping[str, Any], event: str) -> None:
        if phase in ENDED:
            mark_behind(self.ledger.home, self.spec)
        self.ledger.observe("run", self.spec.name, phase, {"attempts": self.attempts, **change}, event=event)


def _leased(record: Record) -> str:
    """Return the name that has the lease: a trial goes on for as long as its search may."""
    return str(record.desired.get("parent") or record.name)


def _environment(spec: TrainSpec) -> dict[str, str]:
    """Return what a worker's environment needs: as many threads as it was given cores, and no calls home."""
    threads = str(max(1, round(spec.resources.cpus)))
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONUNBUFFERED": "1"}
