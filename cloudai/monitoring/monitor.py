"""A monitor: the handle of a watch that goes on by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cloudai.artifacts.inputs import arrays_for, named_columns
from cloudai.artifacts.model import Model
from cloudai.display import Card, Table, duration
from cloudai.drivers import registry
from cloudai.drivers.protocols import Sample
from cloudai.errors import CloudAIError, DataError, LedgerError, SpecError
from cloudai.monitoring.decide import Decision, decide
from cloudai.monitoring.drift import Finding, Report
from cloudai.planning.silence import Silence, asks_again
from cloudai.serving.deployment import Deployment
from cloudai.specs.confidential import redacted
from cloudai.specs.monitoring import MonitorSpec
from cloudai.state.handles import Handle
from cloudai.state.ledger import Ledger, Record
from cloudai.statistics.profiles import Profile

__all__ = ["Monitor", "advance", "due"]

_MOST_ROWS = 1_000_000
"""Rows of one window that are looked at, the oldest first."""
_KEPT_WINDOWS = 100
_SHOWN = 5


class Monitor(Handle):
    """A watch over a deployment, made by `cloudai.monitor` and found again with `cloudai.attach`.

    The supervisor looks at each window as it ends; `check` looks now.
    """

    def __init__(self, ledger: Ledger, record: Record) -> None:
        self.spec = MonitorSpec.model_validate(record.spec["policy"])
        self.deployment = Deployment(ledger, ledger.get("deployment", record.spec["deployment"]))
        super().__init__(ledger, record)

    def __repr__(self) -> str:
        return f"Monitor({self.name!r}, of={self.deployment.name!r})"

    def _read(self, record: Record) -> None:
        """Everything is in the record."""

    @property
    def reports(self) -> list[Report]:
        """The reports of the last windows, the oldest first."""
        return [Report.from_json(window["report"]) for window in self._record.status.get("windows", [])]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the last window showed."""
        reports = self.reports
        return reports[-1].findings if reports else ()

    @property
    def decisions(self) -> list[Decision]:
        """The decisions about the last windows, the oldest first."""
        return [Decision.from_json(window["decision"]) for window in self._record.status.get("windows", [])]

    def check(self, data: Any = None) -> Report:
        """Compare current data with the reference, now.

        Parameters
        ----------
        data : array or mapping of str to array, optional
            Rows to compare; by default what the deployment has answered since the last window.

        Returns
        -------
        Report
            With the findings, the stated false-alarm rate and the verdict. It is not kept: only windows are.

        Raises
        ------
        DataError
            If the data holds no row.
        SpecError
            If the model has no reference profile.
        """
        model = self.deployment.model
        reference = _reference(model)
        if data is None:
            samples = _samples(self.deployment, since=_last_window(self._record))
            current = _profile_samples(reference, samples, model)
        else:
            current = _profile_arrays(reference, arrays_for(model.signature, data, model.features), model)
        return Report.of(reference, current, self.spec.drift)

    def decide(self, report: Report) -> Decision:
        """Say what to do about a report, with regard to what was decided before."""
        return decide(report, self.spec.decision, self.decisions, _utc(self._ledger.clock.now()))

    def stop(self) -> None:
        """End the watch. Nothing happens where it has ended."""
        if not self.ended:
            self._want(stop=True)

    def card(self) -> Card:
        """Show the last window, what was decided, and what counts as drift."""
        windows = self._record.status.get("windows", [])
        reason = self._record.status.get("reason", "")
        fix = self._record.status.get("fix", "")
        facts = [
            ("phase", self.phase + (f": {reason}" if reason else "")),
            *([("fix", fix)] if fix else []),
            ("watches", f"{self.deployment.name}, a window every {duration(self.spec.every)}"),
            ("false alarms", f"in at most {self.spec.drift.alarm_rate:.2%} of windows without drift"),
            ("windows", f"{self._record.status.get('count', 0)} so far"),
        ]
        rows = [(_clock(w["at"]), str(w["report"]["rows"]), r.state, d.kind, d.reason) for w, r, d in self._recent(windows)]
        tables = [Table(("window", "rows", "state", "decision", "why"), rows)] if rows else []
        return Card(f"Monitor {self.name}", facts, tables=tables, notes=[f"as of {self.age}"])

    def _recent(self, windows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Report, Decision]]:
        last = windows[-_SHOWN:]
        return [(w, Report.from_json(w["report"]), Decision.from_json(w["decision"])) for w in last]


def advance(ledger: Ledger, record: Record) -> None:
    """Take a monitor one step further; what fails is noted, and tried again after a while."""
    again = asks_again(record.status)
    if again is not None and ledger.clock.now() < again and not record.desired.get("stop"):
        return
    try:
        _step(ledger, record)
    except LedgerError:
        raise  # says nothing about the watch; the next look goes on from what was written
    except CloudAIError as error:
        _failed(ledger, record, error)


def _failed(ledger: Ledger, record: Record, error: CloudAIError) -> None:
    """Note why a look failed, and when to try again."""
    silence = Silence.after(record.status.get("silence"), ledger.clock.now())
    change = redacted({"reason": error.what, "fix": error.fix, "silence": silence.to_json()})
    event = f"{change['reason']}; trying again" if record.status.get("reason") != change["reason"] else ""
    ledger.observe("monitor", record.name, record.phase, change, event=event)


def _step(ledger: Ledger, record: Record) -> None:
    """Look at the window that has just ended, if one has."""
    deployment = ledger.get("deployment", record.spec["deployment"])
    if record.desired.get("stop") or deployment.ended:
        reason = "" if record.desired.get("stop") else f"the deployment {deployment.name!r} is {deployment.phase}"
        ledger.observe("monitor", record.name, "stopped", {"reason": reason, "fix": ""})
        return
    spec = MonitorSpec.model_validate(record.spec["policy"])
    if ledger.clock.now() - _last_window(record) < spec.every or not deployment.status.get("url"):
        if record.phase == "queued" or record.status.get("silence"):
            ledger.observe("monitor", record.name, "watching", {"reason": "", "fix": "", "silence": None})
        return
    _look(ledger, record, Deployment(ledger, deployment), spec)


def due(ledger: Ledger, record: Record) -> float | None:
    """Return when the present window ends, in unix time; None where nothing answers that could be watched."""
    again = asks_again(record.status)
    if again is not None:
        return again
    deployment = ledger.get("deployment", record.spec["deployment"])
    every = MonitorSpec.model_validate(record.spec["policy"]).every
    return _last_window(record) + every if deployment.status.get("url") else None


def _look(ledger: Ledger, record: Record, deployment: Deployment, spec: MonitorSpec) -> None:
    """Look at one window and write down what it showed and what should be done."""
    model = deployment.model
    reference = _reference(model)
    until = ledger.clock.now()
    samples = _samples(deployment, since=_last_window(record))
    report = Report.of(reference, _profile_samples(reference, samples, model), spec.drift)
    windows = list(record.status.get("windows", []))
    history = [Decision.from_json(window["decision"]) for window in windows]
    decision = decide(report, spec.decision, history, _utc(until))
    windows.append({"at": until, "until": until, "report": report.to_json(), "decision": decision.to_json()})
    change = {"windows": windows[-_KEPT_WINDOWS:], "count": record.status.get("count", 0) + 1, "until": until}
    change |= {"reason": "", "fix": "", "silence": None}
    event = f"{report.state}: {decision.kind}" if decision.kind != "hold" else ""
    ledger.observe("monitor", record.name, "watching", change, event=event)


def _last_window(record: Record) -> float:
    return float(record.status.get("until", record.created))


def _samples(deployment: Deployment, since: float) -> list[Sample]:
    """Read what was answered since a time."""
    driver = registry.telemetry_driver(deployment.spec.on)
    return list(driver.samples(deployment.name, since=_utc(since), limit=_MOST_ROWS))


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _reference(model: Model) -> Profile:
    if model.profile is None:
        raise SpecError(
            f"{model.name} {model.version} has no reference profile: it was trained without data=",
            fix="pass data= to train, so that the monitor knows what the model was trained on",
        )
    return model.profile


def _profile_samples(reference: Profile, samples: Sequence[Sample], model: Model) -> Profile:
    current = reference.empty()
    for sample in samples:
        current = current.updated(named_columns(sample.inputs, model.signature, model.features))
    return current


def _profile_arrays(reference: Profile, arrays: Mapping[str, np.ndarray], model: Model) -> Profile:
    if not len(next(iter(arrays.values()))):
        raise DataError("the data is empty", fix="give at least one row")
    return reference.empty().updated(named_columns(arrays, model.signature, model.features))


def _clock(at: float) -> str:
    return _utc(at).strftime("%H:%M:%S")
