"""What the supervisor does for a search: begin trials, follow them, stop the weak, keep the best model.

Trials are runs like any other, taken further as such; a search only looks at them. It decides from what trials have reported,
not from when it looked, and notes a trial before it records it, so whoever leads after a crash goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from cloudai.artifacts.model import Model
from cloudai.artifacts.saving import MANIFEST, write_model
from cloudai.artifacts.store import Store
from cloudai.errors import CloudAIError, IntegrityError, LedgerError, NotFoundError, StoreError
from cloudai.specs.confidential import redact, redacted
from cloudai.specs.training import TrainSpec
from cloudai.state.ledger import Ledger, Record
from cloudai.training.job import RunFiles
from cloudai.training.journal import JournalReader, Row
from cloudai.training.limits import Limits
from cloudai.training.run import run_spending
from cloudai.training.search.halving import goes_on, is_rung
from cloudai.training.search.shares import share
from cloudai.training.search.trials import TrialState, parent_of, reports_of, search_of, states_of, trial_spec

__all__ = ["advance"]

_FAILED = "with its search, which failed"
_FACTS = ("kind", "signature", "metrics", "features", "labels")


def advance(ledger: Ledger, record: Record) -> None:
    """Take a search one step further."""
    search = _Advance(ledger, record)
    try:
        search.step()
    except LedgerError:
        raise  # says nothing about the work; the next look goes on from what was written
    except StoreError as error:
        search.wait_for_store(error)
    except CloudAIError as error:
        search.give_up(error)


class _Advance:
    def __init__(self, ledger: Ledger, record: Record) -> None:
        self.ledger, self.record = ledger, record
        self.base = TrainSpec.model_validate(record.spec)
        self.search = search_of(record)
        self.drawn = self.search.drawn(self.base.seed)
        self.trials = states_of(record)
        self._noted = deepcopy(self.trials)

    @property
    def under_way(self) -> list[TrialState]:
        """The trials that have not ended."""
        return [trial for trial in self.trials if trial.under_way]

    def step(self) -> None:
        """Look once and act once."""
        over = self._why_over()
        if over:  # before the store is asked, which may be away
            self._end_all(over)
            return
        for trial in self.under_way:
            self._follow(trial)
        if self._exhausted and not self.under_way:
            self._stop()
        elif len(self.under_way) < self.search.parallel and not self._exhausted and self._waiting:
            self._begin()
        elif not self.under_way:
            self._finish()

    @property
    def _limits(self) -> Limits:
        return Limits.from_json(self.record.desired.get("limits"))

    @property
    def _exhausted(self) -> bool:
        """Whether a trial has come to the present limits, so that none is begun before they are others."""
        return "exhausted" in self.record.status and self.record.status["exhausted"] == self.record.desired.get("limits")

    @property
    def _waiting(self) -> int:
        """How many trials can still be begun, or go on after a limit."""
        return len(self.drawn) - len(self.trials) + sum(trial.phase == "limited" for trial in self.trials)

    def _spec(self, trial: TrialState) -> TrainSpec:
        return trial_spec(self.base, trial.parameters, self.trials.index(trial) + 1)

    def _begin(self) -> None:
        """Note the next trial, then record it."""
        if not self.trials:
            self.ledger.renew_lease("run", self.base.name, self.base.lease)
        trial = next((trial for trial in self.trials if trial.phase == "limited"), None) or self._next()
        limits = self._share_of(trial)
        if limits is None:
            self._exhaust()
            return
        trial.phase, trial.reason, trial.fix, trial.limits = "running", "", "", limits.to_json()
        if trial not in self.trials:
            self.trials.append(trial)
        self._note("")
        self._follow(trial)

    def _next(self) -> TrialState:
        drawn = self.drawn[len(self.trials)]
        return TrialState(trial_spec(self.base, drawn, len(self.trials) + 1).name, drawn)

    def _share_of(self, trial: TrialState) -> Limits | None:
        """Return what a trial may cost that is to begin or to go on; None where nothing is left."""
        others = [other for other in self.trials if other is not trial]
        runs = {other.name: Limits.from_json(other.limits).budget for other in others if other.under_way}
        reserved = {name: budget.amount for name, budget in runs.items() if budget is not None}
        ended = sum(self._spent(other) for other in others if not other.under_way)
        free = min(self.search.parallel - len(runs), self._waiting)
        return share(self._limits, self._spent(trial), ended, reserved, free)

    def _spent(self, trial: TrialState) -> float:
        child = self._child(trial)
        return 0.0 if child is None else run_spending(child, self.ledger.clock.now()).amount

    def _exhaust(self) -> None:
        """Note that the present limits are reached: what runs goes on within its own, and nothing else is begun."""
        self._observe("running", {"exhausted": self.record.desired.get("limits")}, "")
        self.record = self.ledger.get("run", self.base.name)

    def _stop(self) -> None:
        """End a search that has come to its limit, and say how it goes on."""
        done = sum(trial.phase not in ("limited", "running") for trial in self.trials)
        limited = (f"{trial.name}: {trial.reason}" for trial in self.trials if trial.phase == "limited")
        reason = f"{done} of {len(self.drawn)} trials are done with {self._limits}; {next(limited, 'nothing is left')}"
        self._observe("stopped", {"reason": reason, "fix": self._limits.fix(self.base.name)}, f"stopped: {reason}")

    def _record(self, trial: TrialState) -> None:
        wanted = {"folder": self.record.desired.get("folder", ""), "offer": None, "parent": self.base.name}
        wanted["limits"] = trial.limits
        spec = self._spec(trial).model_dump(mode="json")
        self.ledger.create("run", trial.name, spec, wanted, anywhere=self.record.anywhere, home=self.record.home)

    def _follow(self, trial: TrialState) -> None:
        """See how a trial fares, judge what it has reported, and note its end."""
        child = self._child(trial)
        if child is None:  # the supervisor before us died between its note and its deed; or a run has that name
            self._record(trial)
            return
        if child.phase == "stopped" and child.desired.get("limits") != trial.limits:
            wanted = {"limits": trial.limits, "cancel": False}
            self.ledger.revive("run", trial.name, wanted, event="goes on with its search")
            return
        spec = TrainSpec.model_validate(child.spec)
        try:
            reports = reports_of(spec, self.search.metric, ended=child.ended, since=child.created)
            self._judge(trial, spec, reports)
            if child.ended:
                self._close(trial, child, spec, reports)
        except IntegrityError as error:  # one trial's journal is not the others'
            if child.ended:
                trial.phase, trial.reason, trial.fix = "failed", error.what, error.fix
        self._note(_told(trial, self.search.metric))
        if trial.stopping and not child.desired.get("cancel"):
            self.ledger.want("run", trial.name, {"cancel": trial.reason})

    def _judge(self, trial: TrialState, spec: TrainSpec, reports: list[Row]) -> None:
        """Judge a trial at each rung that it has come to, until it is found too weak."""
        grace, most = self.search.grace, _most_reports(spec, self.search.metric)
        if grace is None:
            return
        for count, row in enumerate(reports, start=1):
            if trial.stopping or count >= most:
                return
            if count > trial.judged and is_rung(count, grace, self.search.reduction):
                self._at_rung(trial, count, row)

    def _at_rung(self, trial: TrialState, count: int, row: Row) -> None:
        value, rung = row.metrics[self.search.metric], str(count)
        others = [other for other in self.trials if other is not trial and rung in other.rungs]
        before = [other.rungs[rung] for other in others]
        trial.rungs[rung], trial.judged, trial.value, trial.step = value, count, value, row.step
        if goes_on(value, before, self.search.mode, self.search.reduction):
            return
        if any(other.phase == "succeeded" or (other.under_way and not other.stopping) for other in others):
            share = f"best 1/{self.search.reduction} of {len(before) + 1}"
            trial.reason = f"stopped early at step {row.step}: {self.search.metric} {value:.4g} is not among the {share}"

    def _close(self, trial: TrialState, child: Record, spec: TrainSpec, reports: list[Row]) -> None:
        """Take down how a trial ended."""
        if trial.stopping:
            trial.phase = "stopped"
            return
        if reports:
            trial.value, trial.step = reports[-1].metrics[self.search.metric], reports[-1].step
        trial.phase, trial.reason, trial.fix = child.phase, child.status.get("reason", ""), child.status.get("fix", "")
        if child.phase == "stopped":
            trial.phase = "limited"
            self._exhaust()
        if child.phase == "succeeded":
            result = JournalReader(RunFiles(spec).folder).result() or {}
            trial.value = result.get("metrics", {}).get(self.search.metric, trial.value)
            if trial.value is None:
                trial.phase, trial.reason = "failed", f"it never reported {self.search.metric!r}"
                trial.fix = "name a metric that the function reports in Search(metric=…)"

    def _why_over(self) -> str:
        """Say why the search is to end before all trials have; empty where it goes on."""
        if self.record.desired.get("cancel"):
            return "cancelled"
        return "its lease has passed and nobody renewed it" if self.ledger.lease_expired("run", self.base.name) else ""

    def _end_all(self, why: str) -> None:
        """End what is under way; then the search has ended too."""
        for trial in self.under_way:
            child = self._child(trial)
            if child is None or child.ended:
                trial.phase = child.phase if child is not None else "cancelled"
            elif not child.desired.get("cancel"):
                self.ledger.want("run", trial.name, {"cancel": f"with its search: {why}"})
        self._note("")
        if not self.under_way:
            fix = "" if why == "cancelled" else "attach and train again with lease="
            self._observe("cancelled", {"reason": why, "fix": fix}, f"cancelled: {why}")

    def _finish(self) -> None:
        """Keep the model of the best trial as that of the search, and the others' no longer."""
        done = [trial for trial in self.trials if trial.phase == "succeeded"]
        if not done:
            self._failed()
            return
        sign = -1.0 if self.search.mode == "max" else 1.0
        best = min(done, key=lambda trial: sign * (trial.value or 0.0))
        if "best" not in self.record.status:
            why = self.ledger.get("run", best.name).status.get("why_not_exact", "")
            kept = {"best": best.name, "model": self._model_of(best), "why_not_exact": why or self._side_by_side}
            self._observe("running", kept, "")  # before the others' are removed, and with them where it came from
        for trial in self.trials:
            self._remove_model(trial)
        self._observe("succeeded", {"reason": "", "store": ""}, f"succeeded: the best trial is {best.name}")

    def _remove_model(self, trial: TrialState) -> None:
        """Remove the version that a trial made, and nothing else that lies under its name: that may be a user's."""
        child = self._child(trial)
        if child is not None and (model := child.status.get("model")):
            store, folder = Store(self.base.store), f"models/{model['name']}"
            store.remove(f"{folder}/{model['version']}")
            store.remove(f"{folder}/claims/{model['version']}.json")
            if not store.walk(folder):
                store.remove(folder)  # of this machine's disk, where it stays when it is empty

    @property
    def _side_by_side(self) -> str:
        one_by_one = self.search.parallel == 1 or self.search.grace is None
        return "" if one_by_one else "trials ran side by side: which one is stopped early depends on which came first"

    def _model_of(self, best: TrialState) -> dict[str, str] | None:
        """Write the best trial's model under the search's own name; None where it made none."""
        entry = self.ledger.get("run", best.name).status.get("model")
        if entry is None:
            return None
        model = Model.open(entry["uri"], entry["digest"])
        folder = Store(model.uri)
        manifest = json.loads(folder.read_verified(MANIFEST, model.digest))
        files = {name: folder.read_verified(name, about["sha256"]) for name, about in manifest["files"].items()}
        facts = {name: manifest[name] for name in _FACTS if name in manifest}
        facts["lineage"] = {**manifest["lineage"], "run": self.base.name, "trial": best.name}
        name = self.base.model_name
        uri, digest = write_model(Store(self.base.store), name, files, facts, run=self.base.name)
        if not digest:
            raise IntegrityError(f"another model lies at {uri}", fix="see who can write to the store")
        version = uri.rpartition("/")[2]
        self.ledger.add_model(name, version, uri, digest, self.base.name)
        return {"name": name, "version": version, "uri": uri, "digest": digest}

    def _failed(self) -> None:
        """End a search of which no trial succeeded, with the first error."""
        first = next((trial for trial in self.trials if trial.phase in ("failed", "rejected")), self.trials[0])
        frames = self.ledger.get("run", first.name).status.get("frames", "")
        reason = f"no trial succeeded; {first.name} {first.phase}: {first.reason or first.phase}"
        self._observe("failed", {"reason": reason, "fix": first.fix, "frames": frames}, f"failed: {reason}")

    def wait_for_store(self, error: StoreError) -> None:
        """Note that the store keeps us, where waiting helps: what runs goes on, and the next look tries again."""
        if not error.temporary:
            self.give_up(error)
            return
        what = redact(error.what)
        if self.record.status.get("store") != what:
            self._observe(self.record.phase, {"store": what}, f"waiting: {what}")

    def give_up(self, error: CloudAIError) -> None:
        """End what is under way and then the search, for an error."""
        for trial in self.under_way:
            child = self._child(trial)
            trial.phase, trial.reason = "cancelled", _FAILED  # now: nobody looks after it once the search has ended
            if child is not None and child.ended:
                trial.phase, trial.reason = child.phase, child.status.get("reason", "")
            elif child is not None:
                self.ledger.want("run", child.name, {"cancel": _FAILED})
        status = redacted({"reason": error.what, "fix": error.fix})
        self._observe("failed", status, f"failed: {status['reason']}")

    def _child(self, trial: TrialState) -> Record | None:
        """Return the record of a trial; None where there is none of ours."""
        try:
            child = self.ledger.get("run", trial.name)
        except NotFoundError:
            return None
        return child if parent_of(child) == self.base.name else None

    def _note(self, event: str) -> None:
        """Write down what became of the trials, where that is news."""
        if self.trials != self._noted:
            self._observe("running", {"store": ""}, event)
            self._noted = deepcopy(self.trials)

    def _observe(self, phase: str, change: Mapping[str, Any], event: str) -> None:
        trials = [trial.to_json() for trial in self.trials]
        self.ledger.observe("run", self.base.name, phase, {"trials": trials, **change}, event=redact(event))


def _told(trial: TrialState, metric: str) -> str:
    """Return what is to be said of a trial, where it is news."""
    if trial.under_way:
        return f"{trial.name} is to be {trial.reason}" if trial.stopping else ""
    if trial.phase == "succeeded":
        return f"{trial.name} succeeded: {metric} {trial.value:.4g}"
    return f"{trial.name} {trial.phase}" + (f": {trial.reason}" if trial.phase != "stopped" and trial.reason else "")


def _most_reports(spec: TrainSpec, metric: str) -> float:
    """Return after how many reports a trial is at its end, where there is nothing left to be saved; infinite where unknown."""
    of_epochs = spec.work.kind != "function" and metric != "loss"
    return spec.loop.epochs if of_epochs else float("inf")
