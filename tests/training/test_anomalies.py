"""Anomalies: each is said for what it is about, once it is certain, and for nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudai.errors import IntegrityError
from cloudai.tracking import Row
from cloudai.training.anomalies import Anomaly, found
from cloudai.training.performance import Performance

GIB = 2**30
WELL = Performance(
    at=0.0,
    steps=1000,
    seconds=600.0,
    rows_per_second=500.0,
    step_p50=0.06,
    step_p95=0.07,
    waiting=0.02,
    stalled=0.01,
    memory=4 * GIB,
    memory_limit=16 * GIB,
    gpu="NVIDIA L4",
    gpu_memory=20 * GIB,
    gpu_memory_limit=24 * GIB,
    gpu_busy=0.97,
)


def looks(count, **change):
    return [replace(WELL, at=float(2 * i), **change) for i in range(count)]


def rows(**metrics):
    """Rows of metrics, a second apart."""
    return [
        Row(i, dict(zip(metrics, values, strict=True)), float(i))
        for i, values in enumerate(zip(*metrics.values(), strict=True))
    ]


def kinds(seen=(), reported=()):
    return [anomaly.kind for anomaly in found(list(seen), list(reported))]


WRONG = [
    ("waiting", {"waiting": 0.4}, "waits for data 40% of the time"),
    ("checkpoints", {"stalled": 0.12}, "checkpoints take 12% of the time"),
    ("gpu", {"gpu_busy": 0.2}, "busy only 20% of the time"),
    ("memory", {"memory": 15 * GIB}, "94% of the machine's memory"),
    ("gpu memory", {"gpu_memory": 23.5 * GIB}, "98% of the GPU's memory"),
]


@pytest.mark.parametrize(("kind", "change", "said"), WRONG)
def test_what_stays_wrong_is_said_with_its_numbers_and_since_when(kind, change, said):
    (anomaly,) = found([*looks(5), *[replace(look, at=look.at + 10) for look in looks(3, **change)]], [])
    assert anomaly.kind == kind
    assert said in anomaly.what
    assert anomaly.fix
    assert anomaly.since == 10.0


@pytest.mark.parametrize(("kind", "change", "said"), WRONG)
def test_a_hiccup_and_what_is_over_are_not_said(kind, change, said):
    assert kinds([*looks(5), *looks(2, **change)]) == []
    assert kinds([*looks(5, **change), *looks(1)]) == []


def test_a_run_that_fares_well_is_left_alone():
    assert kinds(looks(60), rows(loss=[2.3 * 0.98**i for i in range(200)])) == []
    assert kinds() == []


@pytest.mark.parametrize(
    "change",
    [
        {"stalled": 0.5, "seconds": 20.0},  # one checkpoint in a short time
        {"gpu_busy": None},
        {"gpu": "", "gpu_memory": 0, "gpu_memory_limit": 0, "gpu_busy": None},
        {"memory_limit": 0},
        {"waiting": 0.15},
    ],
)
def test_what_is_not_known_or_does_not_matter_is_not_said(change):
    assert kinds(looks(20, **change)) == []


def test_a_gpu_that_waits_for_data_is_said_to_wait_only():
    assert kinds(looks(5, waiting=0.7, gpu_busy=0.3)) == ["waiting"]


def test_a_speed_that_fell_by_half_is_said():
    assert kinds([*looks(12), *looks(3, rows_per_second=200.0)]) == ["slower"]


def test_a_speed_that_varies_is_not_said():
    assert kinds([*looks(12), *looks(3, rows_per_second=300.0)]) == []
    assert kinds([*looks(4), *looks(3, rows_per_second=200.0)]) == []  # too soon to know what is usual
    longer = {"rows_per_second": 100.0, "tokens_per_second": 50_000.0}
    assert kinds([*looks(12, tokens_per_second=50_000.0), *looks(3, **longer)]) == []  # the rows are longer


def test_a_loss_that_explodes_is_said():
    assert kinds(reported=rows(loss=[2.0] * 15 + [3.0, 8.0, 20.0, 50.0, 90.0])) == ["exploding"]


@given(noise=st.lists(st.floats(-0.3, 0.3), min_size=60, max_size=60))
def test_a_noisy_loss_that_falls_is_left_alone(noise):
    assert kinds(reported=rows(loss=[2.0 * 0.97**i * (1 + wobble) for i, wobble in enumerate(noise)])) == []


def test_a_loss_that_does_not_move_is_said():
    assert kinds(reported=rows(loss=[2.303 + 0.01 * (-1) ** i for i in range(60)])) == ["stuck"]


def test_a_loss_that_moved_and_then_stays_is_left_alone():
    assert kinds(reported=rows(loss=[2.3, 1.5, 1.0, 0.6] + [0.5] * 80)) == []
    assert kinds(reported=rows(loss=[2.3] * 40)) == []  # too soon
    assert kinds(reported=rows(loss=[2.3] * 30 + [1.2, 2.3] * 15)) == []  # it moves, if not for good


def test_overfitting_is_said():
    curve = rows(epoch_loss=[2.0, 1.5, 1.0, 0.7, 0.5, 0.3], val_loss=[2.0, 1.6, 1.5, 1.7, 1.8, 2.0])
    (anomaly,) = found([], curve)
    assert (anomaly.kind, anomaly.since) == ("overfitting", 3.0)
    assert "from 1.5 to 2" in anomaly.what


@pytest.mark.parametrize(
    ("loss", "measured"),
    [
        ([2.0, 1.5, 1.0, 0.7, 0.5, 0.3], [2.0, 1.6, 1.5, 1.45, 1.44, 1.43]),  # both fall
        ([2.0, 1.5, 1.0, 0.7, 0.5, 0.3], [2.0, 1.6, 1.5, 1.52, 1.51, 1.53]),  # noise
        ([2.0, 1.5, 1.0, 1.2, 1.5, 1.8], [2.0, 1.6, 1.5, 1.9, 2.2, 2.5]),  # both rise: it diverges
        ([2.0, 1.5, 1.0, 0.7, 0.5, 0.3], [2.0, 1.6, 1.5, 1.8, 1.9, 1.5]),  # it came back
        ([2.0, 1.5], [1.0, 2.0]),
    ],
)
def test_a_validation_loss_that_varies_is_left_alone(loss, measured):
    assert kinds(reported=rows(epoch_loss=loss, val_loss=measured)) == []


@given(values=st.lists(st.floats(-1e6, 1e6), max_size=80))
def test_any_curve_can_be_looked_at(values):
    found([], rows(loss=values, epoch_loss=values, val_loss=values[::-1]))


def test_an_anomaly_comes_back_from_json_and_nothing_else_does():
    anomaly = Anomaly("waiting", "training waits", "mend it", 5.0)
    assert Anomaly.parse(anomaly.to_json()) == anomaly
    assert "training waits" in str(anomaly)
    for value in (None, [], {}, {**anomaly.to_json(), "since": "today"}, {**anomaly.to_json(), "what": 3}):
        with pytest.raises(IntegrityError):
            Anomaly.parse(value)
