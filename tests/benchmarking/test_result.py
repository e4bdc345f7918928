"""The table: what was measured beside what others say, each marked as what it is, and blank where nothing is known."""

from __future__ import annotations

import json

import pytest

from cloudai import errors
from cloudai.benchmarking.measurement import Measurement, Percentiles
from cloudai.benchmarking.published import published
from cloudai.benchmarking.result import BenchmarkResult
from cloudai.benchmarking.workloads import WORKLOADS
from cloudai.planning import catalog
from cloudai.planning.spending import Price

LARGE = WORKLOADS["bert-large-squad@1"]
PRICE = Price(3.06, "USD", "a price list, 2026-06-18")


def measured(**change):
    values = {
        "workload": LARGE.ref,
        "digest": LARGE.digest,
        "mode": "window",
        "at": "2026-11-24T10:00:00+00:00",
        "device": "NVIDIA H100 80GB HBM3",
        "dtype": "bfloat16",
        "batch": 32,
        "micro_batch": 16,
        "steps": 60,
        "seconds": 6.0,
        "per_second": 320.0,
        "low": 310.0,
        "high": 330.0,
        "hours": LARGE.sequences / 320 / 3600,
        "hours_are": "extrapolated",
        "sequences": LARGE.sequences,
        "operations": 7.4e11,
        "mfu": 0.24,
        "peak": 989.4e12,
        "peak_as_of": "2026-11-24",
        "peak_bytes": 30 << 30,
        "peak_of": "GPU",
        "latency": Percentiles(p50=5.0, p95=5.5, p99=6.0, runs=200),
        "joules": 1.5,
        "joules_of": "NVML, the GPU alone",
        "f1": None,
        "exact_match": None,
        "versions": {"torch": "2.13"},
    }
    return Measurement(**{**values, **change})


def result(price=PRICE, **change):
    return BenchmarkResult(measured(**change), price, "this machine")


def test_hours_times_price_is_the_cost():
    own = result().rows[0]
    assert (own.kind, own.hours_are, own.epochs) == ("measured", "extrapolated", "3")
    assert own.hours == pytest.approx(0.2308, abs=1e-4)
    assert own.cost == pytest.approx(own.hours * 3.06)


def test_without_a_price_there_is_no_cost():
    found = result(price=None)
    assert (found.rows[0].cost, found.rows[0].price_per_hour) == (None, None)
    assert "not known" in str(found)


def test_published_hours_follow_from_their_speed_for_as_many_epochs():
    (row,) = [r for r in result().rows if r.per_second == 39.10]
    assert (row.kind, row.hours_are, row.epochs) == ("published", "extrapolated", "3")
    assert row.hours == pytest.approx(1.889, abs=0.001)
    assert (row.cost, row.price_per_hour) == (None, None)
    assert "DeepLearningExamples" in row.source
    assert row.source.endswith("2021-02 (latency: the mean)")


def test_ratios_are_among_equal_bits_only():
    rows = result().rows
    with_ratio = {row.dtype for row in rows if row.ratio is not None}
    assert with_ratio == {"FP16"}
    assert all(row.ratio == pytest.approx(320 / row.per_second) for row in rows if row.ratio is not None)
    in_32 = {row.dtype for row in result(dtype="float32").rows if row.ratio is not None}
    assert in_32 == {"FP32", "TF32"}


def test_claims_have_no_ratio_and_are_marked():
    claims = [row for row in result().rows if row.kind == "claimed-unverified"]
    assert [(row.platform, row.hours, row.cost) for row in claims] == [
        ("Google Cloud", 1.8, 6.26),
        ("Databricks", 1.9, 6.97),
        ("Amazon SageMaker", 2.1, 8.03),
        ("Azure", 2.3, 9.02),
    ]
    assert all(row.hours * row.price_per_hour == pytest.approx(row.cost, abs=0.02) for row in claims)
    assert all((row.ratio, row.hours_are, row.epochs) == (None, "claimed-unverified", "not said") for row in claims)
    assert str(result()).count("claimed-unverified") >= 4


@pytest.mark.parametrize(
    "change", [{"digest": "0" * 64}, {"workload": "bert-large-squad@7"}, {"workload": "digits-mlp-train@1"}]
)
def test_another_workload_stands_alone(change):
    assert len(result(**change).rows) == 1


def test_the_card_says_what_is_known_and_leaves_out_what_is_not():
    text = str(result())
    for said in (
        "320 sequences per second, 95 % between 310 and 330",
        "24.0% of 989.4 TFLOP/s in bfloat16, as published (2026-11-24)",
        "1.5 J",
        "30.00 GiB",
        "p99 6",
        "extrapolated",
    ):
        assert said in text
    assert "24.0% of 989.4 TFLOP/s in bfloat16, as published (2026-11-24)" in text
    bare = str(result(mfu=None, joules=None, low=None, high=None, latency=None))
    for left_out in ("MFU", "energy", "95 %", "latency, one"):
        assert left_out not in bare
    assert "90.68, 83.96" in str(result(f1=90.68, exact_match=83.96, hours_are="measured"))


def test_what_is_measured_has_no_mark_of_extrapolation():
    row = str(result(hours_are="measured", hours=1.0)).split("\n")
    assert [line for line in row if "this machine" in line and " 1* " in line] == []


def test_text_and_html_say_the_same_and_html_is_escaped():
    bundle = result(device="<b>GPU</b>")._repr_mimebundle_()
    assert "<b>GPU</b>" not in bundle["text/html"]
    assert "Amazon SageMaker" in bundle["text/html"]
    assert "Amazon SageMaker" in bundle["text/plain"]


def test_a_result_is_plain_json():
    back = json.loads(json.dumps(result().to_json(), allow_nan=False))
    assert Measurement(**back["measurement"]) == measured()
    assert len(back["rows"]) == 1 + len(published(LARGE.ref))


def test_every_published_row_has_a_source_and_a_known_workload():
    for ref in WORKLOADS:
        for row in published(ref):
            assert row.source
            assert row.kind == "claimed-unverified" or (row.date and row.per_second)


def test_a_machine_has_the_price_that_is_published():
    offer = catalog.offer_of("a2-highgpu-8g")
    assert (offer.price_per_hour, offer.driver) == (29.38708, "gcp")
    with pytest.raises(errors.NotFoundError, match="no price is published") as caught:
        catalog.offer_of("Standard_NC6s_v4")
    assert "Standard_NC6s_v3" in caught.value.fix
