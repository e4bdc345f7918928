"""What the supervisor does for a deployment: make what is there what should be there, one look at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cloudai.drivers import registry
from cloudai.drivers.protocols import DeploymentStatus, Needs, Offer, Revision, RevisionId, ServeDriver
from cloudai.errors import CloudAIError, DriverError, LedgerError, NotReadyError, PlacementError
from cloudai.planning.plan import place
from cloudai.planning.silence import Silence, asks_again
from cloudai.planning.spending import price_of
from cloudai.serving import steering
from cloudai.serving.exposure import router_options
from cloudai.serving.scaling import policy_of, to_driver
from cloudai.serving.steering import Routing, steer
from cloudai.serving.upkeep import Upkeep, next_change
from cloudai.specs.confidential import redact, redacted
from cloudai.specs.serving import DeploySpec
from cloudai.state.ledger import Ledger, Record
from cloudai.state.tokens import ensure_token, read_token, token_digest, token_path

__all__ = ["advance", "due", "needs_of"]

_MOST_CRASHES = 5
"""A revision that ended this often without ever being ready is not started again."""


_PATIENCE = 2.0
"""Seconds for which an error may come again and again before a deployment is "failing"."""

_DRIVER_PATIENCE = 60.0
"""The same, where it is the driver that does not answer."""


def needs_of(spec: DeploySpec) -> Needs:
    """Return what a deployment needs of a place, in a driver's words."""
    wants = spec.resources
    return Needs(wants.cpus, wants.memory, wants.gpus, wants.gpu_type)


def due(ledger: Ledger, record: Record) -> float | None:
    """Return when time alone makes `advance` act, in unix time: the next try after an error, or the end of the lease."""
    again = asks_again(record.status)
    if again is not None:
        return again
    left, now = ledger.lease_left("deployment", record.name), ledger.clock.now()
    ends = None if left is None else now + left
    scales = next_change(policy_of(record), record.status.get("upkeep", {}))
    return min((moment for moment in (ends, scales, steering.due(record, now)) if moment is not None), default=None)


def advance(ledger: Ledger, record: Record) -> None:
    """Take a deployment one step further."""
    again = asks_again(record.status)
    if again is not None and ledger.clock.now() < again and not record.desired.get("delete"):
        return
    deployment = _Advance(ledger, record)
    try:
        deployment.step()
    except LedgerError:
        raise  # says nothing about the work; the next look goes on from what was written
    except CloudAIError as error:
        deployment.failed(error)


class _Advance:
    def __init__(self, ledger: Ledger, record: Record) -> None:
        self.ledger, self.record = ledger, record
        self.spec = DeploySpec.model_validate(record.spec)

    @property
    def driver(self) -> ServeDriver:
        return registry.serve_driver(self.spec.on)

    def step(self) -> None:
        """Look once and act once."""
        name = self.spec.name
        started = "price" in self.record.status
        if self.record.desired.get("delete") or (started and self.ledger.lease_expired("deployment", name)):
            reason = "" if self.record.desired.get("delete") else "its lease has passed and nobody renewed it"
            ended = self._delete(name) if started else self.ledger.clock.now()
            token_path(self.ledger.home, name).unlink(missing_ok=True)
            self._observe("deleted", {"reason": reason, "url": "", "ended": ended})
            return
        if not started:
            self._place()
            return
        if (models := self._models()) is not None:
            self._reconcile(models)

    def _delete(self, name: str) -> float:
        """Note the last bill, which nobody can tell afterwards; take everything down; return when it ended, in unix time."""
        bill = self._bill(self.driver.inspect(name))
        if bill:
            self._observe(self.record.phase, bill)
        self.driver.delete(name)
        return float(bill.get("billed_at") or self.record.status.get("billed_at") or self.ledger.clock.now())

    def failed(self, error: CloudAIError) -> None:
        """Note an error; what was a moment's weakness is over at the next look."""
        now = self.ledger.clock.now()
        key = "waiting" if isinstance(error, NotReadyError) else "silence"
        silence = Silence.after(self.record.status.get(key), now)
        patience = _DRIVER_PATIENCE if isinstance(error, DriverError) else _PATIENCE
        phase = "starting" if self.record.phase == "queued" else self.record.phase
        if key == "waiting":  # no place is free: to wait is no failure
            phase = self.record.phase
        elif silence.lasts(now) >= patience:
            phase = "failing"
        heard = {"wish": self.record.desired.get("wish")} if phase == "failing" else {}
        self._observe(
            phase, redacted({"reason": error.what, "fix": error.fix, "silence": None, key: silence.to_json(), **heard})
        )

    def _place(self) -> None:
        recorded = self.record.desired.get("offer")
        try:
            offer = Offer(**recorded) if recorded else place(self.driver, needs_of(self.spec))
        except PlacementError as error:
            self._observe("rejected", redacted({"reason": error.what, "fix": error.fix}))
            return
        self.ledger.renew_lease("deployment", self.spec.name, self.spec.lease)
        started = self.ledger.clock.now()
        self._observe(
            "starting",
            {"price": price_of(offer).to_json(), "place": offer.place, "started": started, "waiting": None, "silence": None},
        )

    def _models(self) -> Mapping[str, Mapping[str, str]] | None:
        """Return the model of each revision; None while one still has to come out of its run."""
        models: dict[str, Mapping[str, str]] = dict(self.record.desired["revisions"])
        for revision, entry in models.items():
            if "run" not in entry:
                continue
            run = self.ledger.get("run", entry["run"])
            if run.phase == "succeeded" and run.status.get("model"):
                models[revision] = run.status["model"]
            elif run.ended:
                reason = f"the run {run.name!r} {run.phase} and left no model"
                self._observe("rejected", {"reason": reason, "fix": "train it again and deploy that run"})
                return None
            else:
                return None
        return models

    def _reconcile(self, models: Mapping[str, Mapping[str, str]]) -> None:
        found = self.driver.inspect(self.spec.name)
        routing = steer(self.ledger, self.record, found)
        split = routing.split
        up = {str(revision.id): revision for revision in found.revisions}
        upkeep = Upkeep(self.driver, policy_of(self.record), self.record.status.get("upkeep", {}))
        crashes = {rev: n for rev, n in self.record.status.get("crashes", {}).items() if rev not in up or not up[rev].ready}
        crashes |= {rev: _MOST_CRASHES for rev in up if upkeep.deaths(rev) >= _MOST_CRASHES and not up[rev].ready}
        untold = self._untold()
        for revision in sorted(split.kept):
            ended = revision in up and not (up[revision].replicas or up[revision].ready or upkeep.is_asleep(revision))
            if untold or revision not in up or ended or not found.pids:
                if crashes.get(revision, 0) >= _MOST_CRASHES:
                    continue
                crashes[revision] = crashes.get(revision, 0) + ended
                self._apply(revision, models[revision])
        if untold:
            self._observe(self.record.phase, {"told": untold})
        tended = [revision for revision in found.revisions if crashes.get(revision.id, 0) < _MOST_CRASHES]
        upkeep.tend(self.spec.name, replace(found, revisions=tuple(tended)), split, self.ledger.clock.now())
        if not routing.is_so(found) and all(revision in up and up[revision].ready for revision in routing.traffic):
            routing.apply(self.driver, self.spec.name)
            found = self.driver.inspect(self.spec.name)
        for left in found.revisions:
            if left.id not in split.kept and (left.replicas or left.ready) and not left.traffic:
                self.driver.retire(self.spec.name, left.id)
        self._note(found, routing, crashes, upkeep)

    def _untold(self) -> str:
        """Return what a place elsewhere has not been told of: another token, or another number of replicas."""
        path = token_path(self.ledger.home, self.spec.name)
        if self.driver.capabilities.here or not path.exists():  # servers here read the token's file by themselves
            return ""
        wanted = json.dumps([token_digest(read_token(path)), self.record.desired.get("autoscaling")])
        return wanted if wanted != self.record.status.get("told") else ""

    def _apply(self, revision: str, model: Mapping[str, str]) -> None:
        limits, token = self.spec.limits, token_path(self.ledger.home, self.spec.name)
        ensure_token(token)
        argv = ["-m", "cloudai.serving.server", "--model", model["uri"], "--digest", model["digest"], "--name", self.spec.name]
        argv += ["--max-body", str(limits.max_body), "--max-in-flight", str(limits.max_in_flight)]
        argv += ["--timeout", str(limits.timeout), "--sample-rate", str(limits.sample_rate)]
        argv += ["--max-batch", str(limits.max_batch), "--runtime", self.spec.runtime]
        argv += ["--target-latency", str(limits.target_latency)] if limits.target_latency is not None else []
        argv += ["--payload-log", self.spec.payload_log] if self.spec.payload_log else []
        argv += ["--lease-file", str(self.ledger.lease_file("deployment", self.spec.name)), "--token-file", str(token)]
        threads = str(max(1, round(self.spec.resources.cpus)))
        env = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        if not self.driver.capabilities.elsewhere:
            argv += ["--news-file", str(self.ledger.news_file("deployment", self.spec.name))]
        scaling = to_driver(policy_of(self.record))
        wanted = Revision(
            RevisionId(revision), tuple(argv), env, needs_of(self.spec), self.spec.port, scaling, router_options(self.spec)
        )
        self.driver.apply(self.spec.name, wanted, key=f"{self.spec.name}/{revision}")

    def _note(self, found: DeploymentStatus, routing: Routing, crashes: Mapping[str, int], upkeep: Upkeep) -> None:
        """Write down what is there beside what should be."""
        rows = [
            {
                "id": r.id,
                "ready": r.ready,
                "replicas": r.replicas,
                "ready_replicas": r.ready_replicas,
                "traffic": r.traffic,
                "reason": redact(r.reason),
                "pids": list(r.pids),
            }
            for r in found.revisions
            if r.id in routing.split.kept or r.replicas
        ]
        settled = found.ready and routing.is_so(found) and not routing.rolling and upkeep.is_done(found, routing.split)
        settled = settled and all(row["ready"] for row in rows if row["id"] in routing.split.kept)
        broken = [row for row in rows if crashes.get(str(row["id"]), 0) >= _MOST_CRASHES and not row["ready"]]
        phase = "failing" if broken else "ready" if settled else "updating" if found.ready else "starting"
        reason = f"{broken[0]['id']} does not start: {broken[0]['reason']}" if broken else upkeep.trouble(found)
        processes = {"url": found.url, "grpc_url": found.grpc_url, "revisions": rows, "router": list(found.pids)}
        wish = self.record.desired.get("wish")
        status = {**processes, "reason": reason, "crashes": dict(crashes), "silence": None, "waiting": None, "wish": wish}
        status["upkeep"] = upkeep.to_json()
        if phase != self.record.phase or any(self.record.status.get(key) != value for key, value in status.items()):
            self._observe(phase, {**status, **self._bill(found)})

    def _bill(self, found: DeploymentStatus) -> dict[str, float]:
        """Return what the place says that it has cost so far, and when it said so."""
        return {} if found.cost is None else {"billed": found.cost, "billed_at": self.ledger.clock.now()}

    def _observe(self, phase: str, change: Mapping[str, Any]) -> None:
        self.ledger.observe("deployment", self.spec.name, phase, change)
