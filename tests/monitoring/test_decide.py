from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from cloudai.errors import IntegrityError, SpecError
from cloudai.monitoring.decide import Decision, decide
from cloudai.monitoring.drift import Finding, Report
from cloudai.specs.monitoring import DecisionPolicy, DriftPolicy

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
POLICY = DecisionPolicy()


def finding(feature: str, kind: str = "drift", *, drifted: bool = True) -> Finding:
    return Finding(feature, kind, "ks", 0.2, 1e-9, 2e-9, 0.5, drifted, "mean 1 → 2")


def report(*findings: Finding, rows: int = 500) -> Report:
    return Report(findings, rows, 2000, DriftPolicy())


CALM = report(finding("a", drifted=False), finding("b", drifted=False))
DRIFT = report(finding("a"), *(finding(name, drifted=False) for name in "bcdefghij"))


def test_without_drift_it_holds():
    decision = decide(CALM, POLICY, [], NOW)
    assert (decision.kind, dict(decision.request), decision.at) == ("hold", {}, NOW)
    assert decision.reason == "none of the 2 features has drifted in 500 rows"


def test_drift_asks_for_a_retraining_with_its_evidence():
    decision = decide(DRIFT, POLICY, [], NOW)
    assert decision.kind == "retrain"
    assert decision.reason == "1 of 10 features drifted: a"
    assert decision.evidence == (finding("a"),)
    assert decision.request == {"verb": "retrain", "features": ["a"]}


@pytest.mark.parametrize("kind", ["schema", "missingness"])
def test_a_fault_in_the_input_calls_a_person_also_beside_drift(kind):
    decision = decide(report(finding("a"), finding("b", kind)), POLICY, [], NOW)
    assert decision.kind == "page"
    assert decision.reason == "the input itself is at fault in b"


def test_too_few_rows_hold_and_say_so():
    few = report(Finding("", "rows", "rows", 40.0, None, None, 0.0, False, "not enough rows in the window: 40 < 100"), rows=40)
    decision = decide(few, POLICY, [], NOW)
    assert decision.kind == "hold"
    assert decision.reason == "not enough rows in the window: 40 < 100"


def test_the_policy_names_the_actions():
    assert decide(DRIFT, DecisionPolicy(on_drift="page"), [], NOW).kind == "page"
    assert decide(report(finding("a", "schema")), DecisionPolicy(on_fault="retrain"), [], NOW).kind == "retrain"
    held = decide(DRIFT, DecisionPolicy(on_drift="hold"), [], NOW)
    assert (held.kind, held.reason, dict(held.request)) == ("hold", "1 of 10 features drifted: a", {})


def test_a_small_share_of_drifted_features_can_be_let_pass():
    assert decide(DRIFT, DecisionPolicy(min_share=0.1), [], NOW).kind == "retrain"
    held = decide(DRIFT, DecisionPolicy(min_share=0.2), [], NOW)
    assert held.kind == "hold"
    assert held.reason == "1 of 10 features drifted: a; to retrain would need 20% of them"


def test_an_action_is_not_asked_for_again_while_it_cools_down():
    policy = DecisionPolicy.of(cool_down="2h")
    first = decide(DRIFT, policy, [], NOW)
    history = [first]
    held = decide(DRIFT, policy, history, NOW + timedelta(minutes=90))
    assert held.kind == "hold"
    assert held.reason.endswith("the last retrain was 1 h 30 min ago, the next may be after 2 h")
    history.append(held)  # holding does not prolong the waiting
    assert decide(DRIFT, policy, history, NOW + timedelta(hours=2)).kind == "retrain"


def test_cooling_down_counts_from_the_latest_and_for_each_action_alone():
    policy = DecisionPolicy.of(cool_down="2h")
    earlier, later = (decide(DRIFT, policy, [], NOW - timedelta(hours=hours)) for hours in (5, 1))
    for history in ([earlier, later], [later, earlier]):
        assert decide(DRIFT, policy, history, NOW).kind == "hold"
    assert decide(report(finding("a", "schema")), policy, [later], NOW).kind == "page"
    assert decide(DRIFT, DecisionPolicy(cool_down=0), [later], NOW).kind == "retrain"


def test_a_clock_that_went_back_does_not_start_a_second_retraining():
    ahead = decide(DRIFT, POLICY, [], NOW + timedelta(minutes=5))
    assert decide(DRIFT, POLICY, [ahead], NOW).kind == "hold"


def test_a_time_without_zone_is_refused():
    with pytest.raises(SpecError, match="time zone"):
        decide(CALM, POLICY, [], datetime(2026, 5, 4))


def test_a_decision_survives_json():
    decision = decide(DRIFT, POLICY, [], NOW)
    assert Decision.from_json(json.loads(json.dumps(decision.to_json()))) == decision


@pytest.mark.parametrize(
    "broken", [{}, {"kind": "explode"}, {"kind": "hold", "reason": "", "at": "soon", "evidence": [], "request": {}}]
)
def test_a_broken_stored_decision_is_an_integrity_error(broken):
    with pytest.raises(IntegrityError, match="stored decision"):
        Decision.from_json(broken)


def test_a_decision_reads_well():
    decision = decide(DRIFT, POLICY, [], NOW)
    assert repr(decision) == "Decision(retrain: 1 of 10 features drifted: a)"
    assert str(decision) == (
        "Decision: retrain\n"
        "  why   1 of 10 features drifted: a\n"
        "  at    2026-05-04 12:00:00+00:00\n"
        "  asks  to retrain, because of a\n"
        "  feature  effect  adjusted p  change\n"
        "  ───────  ──────  ──────────  ──────────\n"
        "  a        0.5 σ   2e-09       mean 1 → 2"
    )
    assert "Decision: retrain" in decision._repr_mimebundle_()["text/html"]
