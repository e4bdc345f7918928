"""Training on a stream: interrupted anywhere and taken up again, it ends with the same bits, and learns what arrays teach."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import cloudai
from cloudai.artifacts.store import Store
from cloudai.errors import DataError, SpecError
from cloudai.specs.training import Loop, TrainSpec, Work
from cloudai.training import randomness, tables
from cloudai.training.checkpoints import Checkpoints
from cloudai.training.context import Context, Solo, Stopped
from cloudai.training.stream_loop import _StreamFit
from cloudai.training.streaming import Stream
from tests.training.test_loop import network

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["parquet", "csv"])
def folder(request, tmp_path_factory):
    """Three files of 60 rows, of six columns and a class."""
    place = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    for number in range(3):
        frame = pd.DataFrame(rng.normal(size=(60, 6)), columns=list("abcdef"))
        frame["label"] = frame[list("abc")].to_numpy().argmax(axis=1)
        if request.param == "parquet":
            frame.to_parquet(place / f"{number}.parquet", row_group_size=8)
        else:
            frame.to_csv(place / f"{number}.csv", index=False)
    return place


def spec(**options):
    loop = Loop.of(**{"epochs": 3, "batch_size": 16, **options})
    work = Work(kind="module", rows=180)
    return TrainSpec.of(name="t", model_name="t", work=work, loop=loop, lease=60, store="", tracking="none")


class Interrupting(Context):
    """A context that saves at every third step, and stops after a number of them."""

    stop_at = -1

    def due(self):
        return self.step() % 3 == 0 or self.step() == self.stop_at

    def stop_if_told(self):
        if self.step() == self.stop_at:
            self.settle()
            raise Stopped("told")


def attempt(store, folder, what, stop_at=-1, group=None):
    """One attempt in a fresh state of the random generators, as a new process has; returns the module, or None."""
    torch.manual_seed(12345 + stop_at)
    group = group or Solo()
    randomness.seed_all(what.seed, group.rank)
    source = tables.survey(tables.Table(folder, target="label", stream=True), integers=False).source
    stream = Stream(source, what.loop, what.seed, rank=group.rank, world_size=group.world_size)
    context = Interrupting(what, stream.sample(100), Checkpoints(Store(str(store)), keep=2), group)
    context.stop_at = stop_at
    module = network()
    fit = _StreamFit(module, context, stream)
    context.step = lambda: fit.step
    try:
        metrics = fit.run()
    except Stopped:
        return None, None
    context.settle()
    return module, metrics


def test_any_interruptions_end_in_the_same_bits(tmp_path, folder):
    expected, metrics = attempt(tmp_path / "calm", folder, spec())
    for stop_at in (1, 7, 10, 20):  # in each epoch, and at the end of one
        assert attempt(tmp_path / "stopped", folder, spec(), stop_at) == (None, None)
    module, same = attempt(tmp_path / "stopped", folder, spec())
    assert same == metrics
    for name, tensor in expected.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name
    assert {"epoch_loss", "val_loss", "val_accuracy"} <= set(metrics)


def test_a_schedule_needs_a_number_of_steps(tmp_path, folder):
    what = spec(lr_schedule="linear")
    if next(folder.iterdir()).suffix == ".parquet":
        assert attempt(tmp_path, folder, what)[0] is not None
    else:
        with pytest.raises(SpecError, match="a number of steps that is not known beforehand"):
            attempt(tmp_path, folder, what)


def test_files_are_streamed_where_they_are_large_or_when_it_is_asked_for(folder, monkeypatch):
    def stream_of(**options):
        return tables.survey(tables.Table(folder, target="label", **options), integers=False).source.stream

    assert (stream_of(), stream_of(stream=True)) == (False, True)
    monkeypatch.setattr(tables, "_LARGE", 1e-9)
    assert (stream_of(), stream_of(stream=False)) == (True, False)


def train_nothing(context):
    """A loop of one's own."""
    return


def test_what_cannot_stream_says_so_at_once(home, folder):
    with pytest.raises(DataError, match="only modules that the built-in loop trains"):
        cloudai.train(train_nothing, cloudai.Table(folder, target="label", stream=True))
    with pytest.raises(DataError, match="has no column 'lable'"):
        cloudai.train(torch.nn.Linear(6, 3), cloudai.Table(folder, target="lable", stream=True))
    assert not cloudai.ps().entries


def test_a_streamed_run_makes_a_model_with_its_profile(home, folder):
    table = cloudai.Table(folder, target="label", stream=True)
    module = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    run = cloudai.train(module, table, name="streamed", epochs=10, lr=0.02).wait(120, progress=False)
    assert run.exact
    assert run.metrics["val_accuracy"] > 0.6
    assert run.model.features == tuple("abcdef")
    assert run.performance.steps == run.status.step
    assert "profile.bin" in run.model._manifest["files"]


ONE_OF_TWO = """
import sys
import torch, torch.distributed as dist
from cloudai.training.ranks import RayGroup
from tests.training.test_stream_loop import attempt, spec, weights_digest

class Two(RayGroup):
    def __init__(self, rank):
        self.rank, self.world_size, self._dist, self._strategy, self._sharding = rank, 2, dist, "ddp", None

    def device(self, spec):
        return torch.device("cpu")

rank, rendezvous, store, folder, stop_at = int(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5])
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
module, metrics = attempt(store, folder, spec(), stop_at, Two(rank))
print(weights_digest(module) if module is not None else "stopped")
"""


def weights_digest(module):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()


def two(tmp_path, store, folder, stop_at=-1):
    """Train with two real processes; returns what each printed last."""
    meeting = tmp_path / f"meeting-{store}-{stop_at}"
    command = [str(meeting), str(tmp_path / store), str(folder), str(stop_at)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", ONE_OF_TWO, str(rank), *command], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for rank in range(2)
    ]
    answers = [rank.communicate(timeout=200)[0].splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    return [lines[-1] for lines in answers]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["parquet"], indirect=True)
def test_two_workers_that_read_pieces_of_their_own_end_alike(tmp_path, folder):
    first, second = two(tmp_path, "calm", folder)
    assert first == second != "stopped"
