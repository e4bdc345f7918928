"""How a run fares, as a value: it travels, is shown in words, and nothing else is taken for it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudai.errors import IntegrityError
from cloudai.training.performance import Performance

NUMBER = st.floats(0, 1e18)
PERFORMANCES = st.builds(
    Performance,
    at=NUMBER,
    steps=st.integers(0, 10**9),
    rows_per_second=NUMBER,
    tokens_per_second=NUMBER,
    step_p50=NUMBER,
    waiting=st.floats(0, 1),
    flops_per_second=NUMBER,
    peak=NUMBER,
    memory=st.integers(0, 2**50),
    memory_limit=st.integers(0, 2**50),
    gpu=st.text(max_size=20),
    gpu_busy=st.none() | st.floats(0, 1),
)


@given(seen=PERFORMANCES)
def test_it_comes_back_from_json_and_can_be_shown(seen):
    assert Performance.parse(json.loads(json.dumps(seen.to_json()))) == seen
    bundle = seen._repr_mimebundle_()
    assert "cannot be shown" not in bundle["text/plain"]
    assert "<table" in bundle["text/html"]


@pytest.mark.parametrize(
    "value",
    [None, [], "fast", {"at": "now"}, {"at": 1.0, "steps": True}, {"at": float("nan")}, {"at": -1}, {"at": 1, "gpu": ["x"]},
     {"at": 1, "gpu": "x" * 1000}],
)  # fmt: skip
def test_what_is_none_is_refused(value):
    with pytest.raises(IntegrityError):
        Performance.parse(value)


def test_what_a_newer_worker_says_beside_is_left_out():
    assert Performance.parse({"at": 1.0, "steps": 3, "temperature": 80}) == Performance(at=1.0, steps=3)


def test_a_gpu_is_said_with_its_mfu():
    seen = Performance(
        at=0.0, steps=9, rows_per_second=512.0, tokens_per_second=196_608.0, step_p50=0.0625, step_p95=0.07, waiting=0.013,
        stalled=0.004, flops_per_second=150e12, peak=300e12, peak_of="the bfloat16 peak of NVIDIA X", gpu="NVIDIA X",
        gpu_memory=30 * 2**30, gpu_memory_limit=80 * 2**30, gpu_busy=0.98, memory=2**30, memory_limit=2**37,
    )  # fmt: skip
    assert dict(seen.facts()) == {
        "throughput": "512 rows/s, 197 k tokens/s; a step takes 62 ms, 95 of 100 at most 70 ms",
        "waiting for data": "1.3% of the time",
        "checkpoints cost": "0.4% of the time",
        "MFU": "150 TFLOP/s, 50.0% of the bfloat16 peak of NVIDIA X",
        "memory": "1 of 128 GiB",
        "GPU": "NVIDIA X, 30 of 80 GiB, busy 98% of the time",
    }
    assert seen.utilisation == 0.5


def test_what_is_not_known_is_blank():
    assert Performance(at=0.0).facts() == []
    assert Performance(at=0.0, steps=3, flops_per_second=1e9).utilisation is None
    assert "arithmetic" not in dict(Performance(at=0.0, steps=3, peak=1e9).facts())
