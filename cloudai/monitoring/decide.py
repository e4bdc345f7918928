"""What to do about a report: a value that says why, and that others carry out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, get_args

from cloudai.display import Card, Shown, ago, duration
from cloudai.errors import IntegrityError, SpecError
from cloudai.monitoring.drift import Finding, Report, evidence_table, named
from cloudai.specs.monitoring import Action, DecisionPolicy

__all__ = ["Decision", "decide"]


@dataclass(frozen=True, repr=False)
class Decision(Shown):
    """What is to be done, and why.

    Attributes
    ----------
    kind : {"hold", "retrain", "page"}
        Go on, train anew on current data, or call a person.
    reason : str
        One sentence.
    evidence : tuple of Finding
        What it stands on, the strongest first.
    request : Mapping[str, Any]
        What whoever carries it out is asked for, as plain JSON: the verb and the features concerned. Empty for "hold".
    at : datetime
        When it was made, with its time zone.
    """

    kind: Action
    reason: str
    at: datetime
    evidence: tuple[Finding, ...] = ()
    request: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Decision({self.kind}: {self.reason})"

    def card(self) -> Card:
        """Show the decision, its reason and its evidence."""
        facts = [("why", self.reason), ("at", self.at.isoformat(sep=" ", timespec="seconds"))]
        if self.request:
            facts.append(("asks", f"to {self.request['verb']}, because of {named(self.request['features'])}"))
        tables = [evidence_table(self.evidence)] if self.evidence else []
        return Card(f"Decision: {self.kind}", facts, tables=tables)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        evidence = [finding.to_json() for finding in self.evidence]
        words = {"kind": self.kind, "reason": self.reason, "at": self.at.isoformat()}
        return {**words, "evidence": evidence, "request": dict(self.request)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        """Read what `to_json` returned.

        Raises
        ------
        IntegrityError
            If it is not that.
        """
        try:
            if data["kind"] not in get_args(Action):
                raise ValueError(f"unknown kind {data['kind']!r}")
            if data["request"] and not {"verb", "features"} <= set(data["request"]):
                raise ValueError(f"the request {data['request']!r} asks for nothing")
            evidence = tuple(Finding.from_json(item) for item in data["evidence"])
            return cls(data["kind"], str(data["reason"]), datetime.fromisoformat(data["at"]), evidence, dict(data["request"]))
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"the stored decision cannot be read: {error!r}", fix="check the window again") from None


def decide(report: Report, policy: DecisionPolicy, history: Sequence[Decision], now: datetime) -> Decision:
    """Decide what to do about a window.

    Parameters
    ----------
    report : Report
        The window beside the reference.
    policy : DecisionPolicy
        What is done about what, and how often.
    history : Sequence[Decision]
        Earlier decisions, in any order: an action is not asked for again within the policy's `cool_down`.
    now : datetime
        The time, with its time zone.

    Raises
    ------
    SpecError
        If `now` has no time zone.

    Examples
    --------
    >>> from datetime import UTC
    >>> from cloudai.specs.monitoring import DriftPolicy
    >>> decide(Report((), 500, 2000, DriftPolicy()), DecisionPolicy(), [], datetime(2026, 1, 1, tzinfo=UTC))
    Decision(hold: none of the 0 features has drifted in 500 rows)
    """
    if now.tzinfo is None:
        raise SpecError(f"{now.isoformat()} has no time zone", fix="give datetime.now(timezone.utc)")
    evidence = tuple(finding for finding in report.findings if finding.drifted)
    if not evidence:
        return Decision("hold", _calm(report), now, report.findings if report.state == "not enough rows" else ())
    action, reason = _wanted(report, evidence, policy)
    waiting = _cooling(action, policy, history, now)
    if waiting:
        return Decision("hold", f"{reason}; {waiting}", now, evidence)
    request = {} if action == "hold" else {"verb": action, "features": list(report.drifted)}
    return Decision(action, reason, now, evidence, request)


def _calm(report: Report) -> str:
    if report.state == "not enough rows":
        return report.findings[0].change
    return f"none of the {len(report.features)} features has drifted in {report.rows} rows"


def _wanted(report: Report, evidence: Sequence[Finding], policy: DecisionPolicy) -> tuple[Action, str]:
    """Choose the action, as if it had not been asked for yet, and say why."""
    faults = list(dict.fromkeys(finding.feature for finding in evidence if finding.kind in ("schema", "missingness")))
    if faults:
        return policy.on_fault, f"the input itself is at fault in {named(faults)}"
    share = len(report.drifted) / len(report.features)
    reason = f"{len(report.drifted)} of {len(report.features)} features drifted: {named(report.drifted)}"
    if share < policy.min_share:
        return "hold", f"{reason}; to {policy.on_drift} would need {policy.min_share:.0%} of them"
    return policy.on_drift, reason


def _cooling(action: Action, policy: DecisionPolicy, history: Sequence[Decision], now: datetime) -> str:
    """Say when the action was last asked for, if that is too recent to ask again."""
    times = [decision.at for decision in history if decision.kind == action]
    if action == "hold" or not times:
        return ""
    passed = (now - max(times)).total_seconds()
    if passed >= policy.cool_down:
        return ""
    return f"the last {action} was {ago(max(passed, 0.0))}, the next may be after {duration(policy.cool_down)}"
