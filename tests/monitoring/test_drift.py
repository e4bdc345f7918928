from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from cloudai.errors import IntegrityError, SpecError
from cloudai.monitoring.drift import Finding, Report, detect
from cloudai.specs.monitoring import DriftPolicy
from cloudai.statistics.profiles import Profile, columns_of

POLICY = DriftPolicy()


def compare(before, now, policy=POLICY) -> Report:
    reference = Profile.of(before)
    return Report.of(reference, reference.empty().updated(now), policy)


def one(report: Report, kind: str = "drift") -> Finding:
    (finding,) = [finding for finding in report.findings if finding.kind == kind]
    return finding


# False alarms


def continuous(rng, rows):
    return columns_of(rng.normal(size=(rows, 25)), "x")


def pixels(rng, rows):
    matrix = np.where(rng.random((rows, 40)) < 0.6, 0, rng.integers(0, 17, (rows, 40)))
    matrix[:, :4] = 0
    matrix[:, 4] = rng.random(rows) < 0.002
    return columns_of(matrix, "x")


def mixed(rng, rows):
    numbers = {f"n{i}": np.where(rng.random(rows) < i / 20, np.nan, rng.lognormal(size=rows)) for i in range(8)}
    weights = [1 / np.arange(1, levels + 1) ** 1.5 for levels in (2, 5, 20, 100)]
    choices = {f"c{len(w)}": rng.choice(len(w), rows, p=w / w.sum()).astype(str) for w in weights}
    return numbers | choices | {"flag": rng.random(rows) < 0.01, "id": rng.integers(0, 10**9, rows).astype(str)}


@pytest.mark.parametrize("rows", [(1437, 1000), (800, 800), (10_000, 200)], ids=str)
@pytest.mark.parametrize("columns", [continuous, pixels, mixed])
def test_false_alarms_stay_within_the_stated_rate(columns, rows):
    policy, windows, alarms = DriftPolicy(alarm_rate=0.05, min_effect=0), 80, 0
    for seed in range(windows):
        rng = np.random.default_rng([seed, *rows])
        alarms += compare(columns(rng, rows[0]), columns(rng, rows[1]), policy).state == "drift"
    assert alarms <= stats.binom.ppf(0.998, windows, policy.alarm_rate)


def test_the_tests_are_not_so_cautious_as_to_be_useless():
    policy, windows = DriftPolicy(alarm_rate=0.5, min_effect=0), 100
    rng = np.random.default_rng(0)
    alarms = sum(
        compare({"x": rng.normal(size=500)}, {"x": rng.normal(size=400)}, policy).state == "drift" for _ in range(windows)
    )
    assert 20 <= alarms <= 60


def test_a_certain_but_tiny_difference_in_a_million_rows_is_no_drift():
    rng = np.random.default_rng(0)
    report = compare({"x": rng.normal(size=1_000_000)}, {"x": rng.normal(0.02, size=1_000_000)})
    assert one(report).p_adjusted < 1e-9
    assert one(report).effect == pytest.approx(0.02, abs=0.005)
    assert report.state == "no drift"


# Power


@pytest.mark.parametrize("rows", [600, 1000, 2500])
def test_a_shift_of_three_features_of_64_is_found_and_exactly_these_are_named(rows):
    exact = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        before, now = rng.normal(size=(1437, 64)), rng.normal(size=(rows, 64))
        now[:, [3, 30, 63]] += 0.3
        exact += set(compare(columns_of(before, "x"), columns_of(now, "x")).drifted) == {"x[3]", "x[30]", "x[63]"}
    assert exact >= 23  # with Kolmogorov and Smirnov's test alone 20 at 600 rows


def test_the_digits_tell_a_shift_of_three_pixels():
    from sklearn.datasets import load_digits

    matrix = load_digits().data.astype("float32")
    rng = np.random.default_rng(0)
    now = matrix[rng.integers(0, len(matrix), 1000)]
    assert compare(columns_of(matrix[:1437], "x"), columns_of(now, "x")).state == "no drift"
    for pixel in (10, 20, 42):
        now[:, pixel] += 0.3 * matrix[:, pixel].std()
    report = compare(columns_of(matrix[:1437], "x"), columns_of(now, "x"))
    assert set(report.drifted) == {"x[10]", "x[20]", "x[42]"}
    assert all(finding.effect == pytest.approx(0.3, abs=0.1) for finding in report.findings[:3])


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (lambda rng, n: rng.normal(size=n), lambda rng, n: rng.normal(scale=1.4, size=n)),
        (lambda rng, n: rng.lognormal(0, 3, n), lambda rng, n: rng.lognormal(0, 3, n) + 0.5),
        (lambda rng, n: np.zeros(n), lambda rng, n: np.where(rng.random(n) < 0.1, 5.0, 0)),
        (lambda rng, n: np.full(n, 2023.0), lambda rng, n: np.full(n, 2024.0)),
        (
            lambda rng, n: np.where(rng.random(n) < 0.9, 0, rng.gamma(2, size=n)),
            lambda rng, n: np.where(rng.random(n) < 0.7, 0, rng.gamma(2, size=n)),
        ),
    ],
    ids=["wider", "heavy tail", "not all zero any more", "another constant", "more often not zero"],
)
def test_other_changes_than_a_shift_are_found(before, now):
    rng = np.random.default_rng(0)
    assert compare({"x": before(rng, 1437)}, {"x": now(rng, 1000)}).drifted == ("x",)


def test_the_effect_of_a_shift_is_the_shift():
    rng = np.random.default_rng(0)
    report = compare({"x": rng.gamma(3, 10, 20_000)}, {"x": rng.gamma(3, 10, 20_000) + 0.3 * math.sqrt(300)})
    assert one(report).effect == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("wild", [1e6, -1e308, np.inf])
@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("where", ["reference", "window"])
def test_one_wild_row_changes_no_verdict(wild, shift, where):
    rng = np.random.default_rng(4)
    before, now = {"x": rng.normal(size=1437), "z": np.zeros(1437)}, {"x": rng.normal(shift, size=1000), "z": np.zeros(1000)}
    clean = compare(before, now)
    for columns in (before,) if where == "reference" else (now,):
        columns["x"][7] = columns["z"][7] = wild
    report = compare(before, now)
    assert report.drifted == clean.drifted == (("x",) if shift else ())
    effects = [next(f.effect for f in r.findings if f.feature == "x") for r in (clean, report)]
    assert effects[1] == pytest.approx(effects[0], abs=0.02)


# Categories, missing values, schema


def test_changed_shares_of_categories_are_found_and_the_most_changed_is_named():
    before = {"plan": np.repeat(["free", "pro", "team"], [600, 200, 200])}
    now = {"plan": np.repeat(["free", "pro", "team"], [400, 350, 250])}
    finding = one(compare(before, now))
    assert finding.drifted
    assert finding.value == pytest.approx(0.2, abs=0.01)
    assert finding.change == "'free' in 60 % → 40 % of rows"


def test_a_new_category_is_named():
    colours = np.array(["red", "blue"] * 500)
    report = compare({"c": colours}, {"c": np.where(np.arange(1000) % 10 == 0, "purple", colours)})
    finding = one(report, "new_categories")
    assert finding.drifted
    assert finding.value == 0.1
    assert finding.change == "new categories such as 'purple' in 10 % of rows"


def test_a_column_of_ids_is_no_drift():
    report = compare({"id": np.arange(1000).astype(str)}, {"id": np.arange(5000, 6000).astype(str)})
    assert report.state == "no drift"


def test_more_missing_values_are_found():
    rng = np.random.default_rng(0)
    values = rng.normal(size=2000)
    report = compare({"x": values}, {"x": np.where(rng.random(2000) < 0.12, np.nan, values)})
    assert one(report, "missingness").drifted
    assert not one(report).drifted
    assert one(report, "missingness").change.startswith("missing in 0 % → 1")


def test_a_column_that_is_missing_altogether_drifts_by_its_missing_values():
    report = compare({"x": np.arange(500.0)}, {"x": np.full(500, np.nan)})
    assert one(report, "missingness").drifted
    assert one(report).summary == "x has no values in the window to compare."
    assert compare({"x": np.full(500, np.nan)}, {"x": np.full(500, np.nan)}).state == "no drift"
    assert one(compare({"x": np.full(500, np.nan)}, {"x": np.arange(500.0)}), "missingness").drifted


@pytest.mark.parametrize("value", [0.0, 7.0, np.inf, "a", True])
def test_a_constant_column_is_said_to_be_constant(value):
    report = compare({"x": np.full(500, value)}, {"x": np.full(300, value)})
    assert report.state == "no drift"
    assert one(report).p_value is None
    assert "in both" in one(report).summary


def test_absent_new_and_other_columns_are_schema_findings():
    before = {"a": np.arange(500.0), "b": np.arange(500.0), "c": np.array(["u", "v"] * 250)}
    report = compare(before, {"a": np.array(["1"] * 500), "c": before["c"], "d": np.zeros(500)})
    said = {finding.feature: finding.summary for finding in report.findings if finding.kind == "schema"}
    assert said == {
        "a": "a holds other values than numbers, in 100 % of rows.",
        "b": "b is absent: numbers in the reference.",
        "d": "d is new: the reference has no such column.",
    }
    assert set(report.drifted) == {"a", "b", "d"}


@pytest.mark.parametrize(("before", "now", "where"), [(500, 40, "window"), (500, 0, "window"), (40, 500, "reference")])
def test_too_few_rows_give_no_verdict(before, now, where):
    report = compare({"x": np.arange(float(before))}, {"x": np.full(now, 1e9)})
    assert report.state == "not enough rows"
    assert report.drifted == ()
    assert report.findings[0].summary == f"not enough rows in the {where}: {min(before, now)} < 100."


def test_profiles_of_different_references_are_refused():
    with pytest.raises(SpecError, match="different grids"):
        detect(Profile.of({"x": np.arange(500.0)}), Profile.of({"x": np.arange(900.0)}), POLICY)


# The report


@pytest.fixture(scope="module")
def report() -> Report:
    rng = np.random.default_rng(0)
    before = columns_of(rng.normal(size=(1000, 14)), "x") | {"<b>": np.array(["u", "v"] * 500)}
    now = columns_of(rng.normal(1, 1, (500, 14)), "x") | {"<b>": np.full(500, "w")}
    return compare(before, now)


def test_a_report_survives_json(report):
    again = Report.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False)))
    assert again == report


@pytest.mark.parametrize("broken", [{}, {"findings": [{}], "rows": 1, "reference_rows": 1, "policy": {}}, {"findings": 3}])
def test_a_broken_stored_report_is_an_integrity_error(broken):
    with pytest.raises(IntegrityError, match="stored"):
        Report.from_json(broken)


def test_a_report_reads_well(report):
    text = str(report)
    for words in (
        "state            drift",
        "500 in the window, 1,000 in the reference",
        "at most 1 % of windows",
        "more in .findings",
    ):
        assert words in text
    assert max(map(len, text.split("\n"))) <= 120
    assert repr(report).startswith("Report(drift in 15 of 15 features: <b>, ")
    assert "<th scope='row'>state</th>" in report._repr_mimebundle_()["text/html"]
    assert "<td><b>" not in report._repr_mimebundle_()["text/html"]


def test_findings_are_sorted_the_most_drifted_first(report):
    order = [(finding.drifted, finding.effect) for finding in report.findings]
    assert order == sorted(order, reverse=True)


def test_a_calm_report_says_so():
    rng = np.random.default_rng(0)
    calm = compare({"x": rng.normal(size=500)}, {"x": rng.normal(size=500)})
    assert repr(calm) == "Report(no drift; 500 rows)"
    assert "Features compared: 1, none has drifted." in str(calm)
    assert one(calm).summary.startswith("x has not drifted: mean ")
