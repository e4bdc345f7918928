"""A profile on demand: asked for in the run's folder, made of the next steps, and whole or not there."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from cloudai.artifacts.store import Store
from cloudai.training.meter import Meter
from cloudai.training.profiling import Profiler

MARK = "0123abcd"


@pytest.fixture
def folder(tmp_path):
    return Store(str(tmp_path))


def ask(folder, steps=3, mark=MARK):
    folder.write_json("profile.json", {"id": mark, "steps": steps})


def train(meter, steps):
    """Take steps whose names are found again in the trace."""
    for _ in range(steps):
        with torch.profiler.record_function("one step"):
            torch.ones(16, 16) @ torch.ones(16, 16)
        meter.ended(rows=16)


def events(folder, mark=MARK):
    trace = json.loads(gzip.decompress(folder.read(f"profiles/{mark}/trace.json.gz")))
    return [
        event for event in trace["traceEvents"] if event.get("name") == "one step" and event.get("cat") == "user_annotation"
    ]


def test_the_next_steps_are_recorded_and_no_others(folder):
    meter = Meter()
    profiler = Profiler(folder, meter)
    meter.begin()
    train(meter, 2)
    ask(folder, steps=3)
    profiler.look()
    train(meter, 10)
    assert not folder.exists(f"profiles/{MARK}/result.json")  # it is written in another thread than the loop's
    profiler.look()
    assert folder.exists(f"profiles/{MARK}/result.json")
    assert len(events(folder)) == 3
    assert "aten::mm" in folder.read(f"profiles/{MARK}/operators.txt").decode()
    assert meter.after_step is None


def test_what_was_made_is_not_made_again_and_the_next_one_is(folder):
    meter = Meter()
    profiler = Profiler(folder, meter)
    for mark in (MARK, "deadbeef"):
        ask(folder, steps=1, mark=mark)
        for _ in range(3):
            profiler.look()
            train(meter, 3)
        assert len(events(folder, mark)) == 1
    assert meter.after_step is None


def test_a_run_that_ends_first_leaves_the_steps_that_there_were(folder):
    meter = Meter()
    profiler = Profiler(folder, meter)
    ask(folder, steps=500)
    profiler.look()
    train(meter, 5)
    profiler.close()
    assert len(events(folder)) == 4  # it began after the step in which it was asked for


def test_a_worker_that_comes_back_makes_what_the_one_before_did_not(folder):
    ask(folder, steps=1)
    Profiler(folder, Meter()).look()  # killed before its next step
    meter = Meter()
    profiler = Profiler(folder, meter)
    profiler.look()
    train(meter, 3)
    profiler.look()
    assert len(events(folder)) == 1


@pytest.mark.parametrize("request_", [{"id": "../../etc", "steps": 3}, {"id": MARK, "steps": "many"}, {}])
def test_a_damaged_request_is_a_warning_and_no_profile(folder, request_, caplog):
    folder.write_json("profile.json", request_)
    meter = Meter()
    Profiler(folder, meter).look()
    assert meter.after_step is None
    assert "the profile cannot be made" in caplog.text


def test_recording_is_no_training(folder):
    now = [0.0]

    def clock():
        now[0] += 1.0  # each look at the clock takes a second
        return now[0]

    meter = Meter(clock)
    profiler = Profiler(folder, meter)
    ask(folder, steps=2)
    profiler.look()
    meter.begin()
    train(meter, 6)
    assert meter.figures().step_p95 == 1.0
