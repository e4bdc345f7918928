"""The verb: a benchmark is a run, with a handle at once, that is found again, comes back and can be ended."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering

import cloudai
from cloudai import errors
from cloudai.artifacts.store import Store
from cloudai.benchmarking.measurement import Measurement
from cloudai.benchmarking.work import _Bench, _Counted
from cloudai.benchmarking.workloads import WORKLOADS
from cloudai.drivers.simulated.world import World, Zone
from cloudai.testing.simulation import Simulation
from cloudai.training import execution
from cloudai.training.context import Solo, Stopped
from cloudai.training.job import STOPPED, SUCCEEDED, RunFiles
from cloudai.training.stopping import Stop
from tests.benchmarking.test_squad import ASKED, content, tokenizer
from tests.conftest import kill, wait_until

ONE = cloudai.Resources.of(cpus=1)
DIGITS = WORKLOADS["digits-mlp-train@1"]


def test_it_is_measured_found_again_and_checked(home):
    started = cloudai.benchmark("digits-mlp-train", seconds=1.0, price_per_hour=0.5, resources=ONE)
    with pytest.raises(errors.NotReadyError, match=r"is (queued|starting|running)"):
        _ = started.result
    assert "digits-mlp-train@1" in str(started)
    pid = wait_until(lambda: started.status.pid, what="the worker")
    kill(pid)
    found = started.wait(120, progress=False).result
    assert started.status.attempt == 2
    measured = found.measurement
    assert (measured.workload, measured.digest, measured.hours_are) == (DIGITS.ref, DIGITS.digest, "extrapolated")
    assert measured.hours == pytest.approx(DIGITS.sequences / measured.per_second / 3600)
    assert measured.steps >= 2
    assert measured.latency.runs == 200
    assert measured.micro_batch == measured.batch == 32
    assert found.rows[0].cost == pytest.approx(0.5 * measured.hours)
    back = cloudai.attach(started.ref)
    assert isinstance(back, cloudai.Benchmark)
    assert back.result.measurement == measured
    assert str(back) == str(found)
    with pytest.raises(errors.NotReadyError, match="makes no model"):
        _ = back.model

    file = home / "store" / "runs" / started.name / "benchmark.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "per_second": 1e9}))
    spoilt = cloudai.attach(started.ref)
    assert "its progress may be old" in str(spoilt)
    with pytest.raises(errors.IntegrityError):
        _ = spoilt.result


def test_a_store_that_is_away_does_not_keep_it_from_being_found(monkeypatch):
    def away(*_):
        raise errors.StoreError("the store is away", fix="wait", temporary=True)

    with Simulation():
        started = cloudai.benchmark("digits-mlp-train", on="simulated", seconds=0.1)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "read_verified", away)
            back = cloudai.attach(started.wait(3600, progress=False).ref)
            assert "its progress may be old: the store is away" in str(back)
            with pytest.raises(errors.StoreError, match="is away"):
                _ = back.result
        assert back.result.measurement.per_second > 0


def test_it_goes_on_for_as_long_as_a_run_does_or_for_ever():
    with Simulation():
        leases = [cloudai.benchmark("digits-mlp-train", on="simulated", **given).spec.lease for given in ({}, {"lease": None})]
    assert leases == [24 * 3600, None]


def test_it_can_be_ended(home):
    started = cloudai.benchmark("digits-mlp-train", seconds=600.0)
    assert started.spec.resources.cpus == os.cpu_count()
    wait_until(lambda: (started.status.step or 0) > 0, what="the window")
    started.cancel()
    wait_until(lambda: started.ended, what="its end")
    with pytest.raises(errors.RunFailedError, match="cancelled"):
        _ = started.result


@pytest.mark.parametrize("ref", [ref for ref in WORKLOADS if ref != "bert-large-squad@1"])
def test_every_small_workload_gives_a_row(ref, monkeypatch):
    architecture = dict(WORKLOADS[ref].architecture)
    if "vocab_size" in architecture:
        architecture |= {"vocab_size": 99, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
    small = {"length": min(16, WORKLOADS[ref].length), "batch_size": 4, "architecture": architecture}
    monkeypatch.setattr("cloudai.benchmarking.workloads._ALL", [WORKLOADS[ref].model_copy(update=small)])
    with Simulation():
        found = cloudai.benchmark(ref, on="simulated", seconds=0.1).wait(3600, progress=False).result
    own, measured = found.rows[0], found.measurement
    assert len(found.rows) == 1
    assert own.per_second > 0
    assert measured.low is None or measured.low <= measured.per_second
    assert measured.operations > 1e4
    assert measured.latency.p50 > 0
    assert measured.digest != WORKLOADS[ref].digest


@pytest.fixture
def squad_files(tmp_path):
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (tmp_path / name).write_bytes(content())
    words = tokenizer()
    shape = {**WORKLOADS["bert-tiny-squad@1"].architecture, "vocab_size": len(words)}
    torch.manual_seed(0)
    BertForQuestionAnswering(BertConfig(**shape)).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model"), (tmp_path / "train-v1.1.json", tmp_path / "dev-v1.1.json")


def test_a_full_run_trains_and_answers(squad_files):
    model, data = squad_files
    with Simulation():
        started = cloudai.benchmark("bert-tiny-squad", mode="full", model=model, data=data, seconds=0.5, on="simulated")
        measured = started.wait(3600, progress=False).result.measurement
    assert (measured.mode, measured.hours_are, measured.sequences) == ("full", "measured", 9)
    assert measured.steps == 3
    assert 0 <= measured.exact_match <= measured.f1 <= 100
    assert any("your data gives 3 sequences" in note for note in measured.notes)
    assert "val_loss" not in started.metrics
    assert started.metrics["epoch"] == 3


@pytest.mark.parametrize("lost_in", ["the training", "what comes after it"])
def test_an_interrupted_full_run_counts_the_time_of_all_attempts(squad_files, monkeypatch, lost_in):
    loss, answered, told, calls = _Counted.loss, _Bench._answered, [], []

    def slow_loss(self, *given):
        calls.append(time.sleep(0.1))
        if lost_in == "the training" and not told:
            told.append("told by SIGTERM")
        return loss(self, *given)

    def killed(self, *given):
        if lost_in != "the training" and not told:
            told.append("told by SIGTERM")
            self.context.settle()
            raise Stopped(told[0])
        return answered(self, *given)

    model, data = squad_files
    monkeypatch.setattr(_Counted, "loss", slow_loss)
    monkeypatch.setattr(_Bench, "_answered", killed)
    with Simulation():
        started = cloudai.benchmark("bert-tiny-squad", mode="full", model=model, data=data, seconds=0.1, on="simulated")
        spec, folder = started.spec, RunFiles(started.spec).folder
        assert execution.execute(spec, 1, Solo(), Stop(lambda: told[-1] if told else "")) == STOPPED
        assert execution.execute(spec, 2, Solo(), Stop()) == SUCCEEDED
        measured = Measurement.model_validate(folder.read_json("benchmark.json"))
    assert len(calls) == 3, "nothing was done twice"
    assert (measured.steps, measured.sequences, measured.hours_are) == (3, 9, "measured")
    assert measured.seconds >= 0.3
    assert measured.hours == pytest.approx(measured.seconds / 3600)
    assert measured.per_second == pytest.approx(9 / measured.seconds)
    assert measured.micro_batch == 3
    assert any("was interrupted" in note for note in measured.notes)


def test_a_model_of_another_architecture_is_refused(squad_files, tmp_path):
    model, data = squad_files
    with Simulation():
        started = cloudai.benchmark("bert-large-squad", mode="full", model=model, data=data, on="simulated")
        with pytest.raises(errors.RunFailedError, match="num_hidden_layers is 2"):
            started.wait(3600, progress=False)


BAD = {
    "an unknown workload": ({"workload": "bert-huge"}, "there is no workload"),
    "an unknown mode": ({"mode": "half"}, "mode"),
    "an unknown device": ({"device": "tpu"}, "device='tpu'"),
    "no price": ({"price_per_hour": -1}, "price_per_hour=-1"),
    "an endless price": ({"price_per_hour": float("inf")}, "price_per_hour=inf"),
    "an unknown machine": ({"price_per_hour": "p9.large"}, "no price is published"),
    "no time": ({"seconds": 0}, "seconds"),
    "data for a window": ({"data": ("a", "b")}, "mode='full'"),
    "a full run of digits": ({"mode": "full"}, "has no full run"),
    "a full run without data": ({"workload": "bert-tiny-squad", "mode": "full"}, "a full run needs"),
    "files that are not there": (
        {"workload": "bert-tiny-squad", "mode": "full", "model": "m", "data": ("a", "b")},
        "a cannot be",
    ),
    "a GPU that is not there": ({"device": "gpu", "on": "local"}, "GPU"),
    "an unknown driver": ({"on": "moon"}, "moon"),
    "two places": ({"device": "cpu", "resources": ONE}, "both say where"),
    "a bad name": ({"name": "Not A Name"}, "is not a name"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_at_once_and_nothing_is_left(case, home):
    change, said = BAD[case]
    if case == "a GPU that is not there" and torch.cuda.is_available():
        pytest.skip("there is one")
    options = {"workload": "digits-mlp-train", **change}
    with pytest.raises(errors.CloudAIError, match=said) as caught:
        cloudai.benchmark(options.pop("workload"), **options)
    assert caught.value.fix
    assert not (home / "store").exists()
    assert len(cloudai.costs()) == 0


def test_the_price_is_that_of_the_place_where_the_user_says_nothing(home):
    zones = (Zone(name="zone-a", price=2.5),)
    with Simulation(World(zones=zones)):
        priced = cloudai.benchmark("digits-mlp-train", on="simulated", seconds=0.1).wait(3600, progress=False).result
    assert priced.price.per_hour == 2.5
    assert priced.rows[0].cost == pytest.approx(2.5 * priced.measurement.hours)
    assert "zone-a" in priced.rows[0].platform


@pytest.mark.slow
def test_a_full_run_that_is_killed_goes_on_and_says_so(home, squad_files):
    model, (train, dev) = squad_files
    train.write_bytes(content(ASKED * 60))
    options = {"mode": "full", "model": model, "data": (train, dev), "seconds": 0.5}
    started = cloudai.benchmark("bert-tiny-squad", **options)
    wait_until(lambda: started.status.checkpoint, timeout=120, what="a checkpoint")
    kill(started.status.pid)
    measured = started.wait(200, progress=False).result.measurement
    assert (started.status.attempt, measured.hours_are, measured.sequences) == (2, "measured", 540)
    assert any("interrupted" in note for note in measured.notes)
    assert measured.hours == pytest.approx(540 / measured.per_second / 3600, rel=0.01)
