from __future__ import annotations

import pytest

from cloudai.errors import SpecError
from cloudai.specs.monitoring import DecisionPolicy, DriftPolicy, MonitorSpec


def test_the_defaults_are_a_sound_monitor():
    spec = MonitorSpec()
    assert (spec.every, spec.drift.alarm_rate, spec.drift.min_effect, spec.drift.min_rows) == (300.0, 0.01, 0.1, 100)
    assert (spec.decision.on_drift, spec.decision.on_fault, spec.decision.cool_down) == ("retrain", "page", 86400.0)


def test_a_spec_survives_json():
    spec = MonitorSpec.of(every="15m", drift={"alarm_rate": 0.001}, decision={"cool_down": "2h", "min_share": 0.1})
    assert MonitorSpec.parse(spec.model_dump_json()) == spec
    assert spec.decision.cool_down == 7200.0


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        (DriftPolicy, {"alarm_rate": 0}, "alarm_rate=0"),
        (DriftPolicy, {"alarm_rate": 0.9}, "alarm_rate=0.9"),
        (DriftPolicy, {"min_effect": -1}, "min_effect=-1"),
        (DriftPolicy, {"min_rows": 1}, "min_rows=1"),
        (DriftPolicy, {"alpha": 0.01}, "no field 'alpha'"),
        (DecisionPolicy, {"on_drift": "explode"}, "on_drift='explode'"),
        (DecisionPolicy, {"min_share": 1.5}, "min_share=1.5"),
        (MonitorSpec, {"every": "soon"}, "'soon' is not a duration"),
        (MonitorSpec, {"every": 0}, "every=0"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(kind, values, says):
    with pytest.raises(SpecError, match=says):
        kind.of(**values)
