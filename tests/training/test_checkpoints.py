"""Checkpoints: whole or not there, checked when read, the one before the last kept."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cloudai.artifacts.store import Store
from cloudai.artifacts.trees import Snapshot
from cloudai.errors import SpecError
from cloudai.training.checkpoints import Checkpoints, Writer
from tests.conftest import wait_until


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def part(step, rank):
    snapshot = Snapshot()
    snapshot.take({"shared": {"step": step} if rank == 0 else None, "own": rank})
    return snapshot


def save(checkpoints, step, ranks=1):
    checkpoints.commit(step, [checkpoints.write_part(step, rank, part(step, rank)) for rank in range(ranks)])


def test_the_newest_comes_back(store):
    checkpoints = Checkpoints(store, keep=2)
    assert checkpoints.latest() is None
    for step in (1, 20, 3):
        save(checkpoints, step)
    found = checkpoints.latest()
    assert (found.step, found.shared, found.own) == (20, {"step": 20}, 0)


def test_each_rank_gets_the_shared_part_and_its_own(store):
    checkpoints = Checkpoints(store, keep=2)
    save(checkpoints, 5, ranks=3)
    assert [(checkpoints.latest(r).shared["step"], checkpoints.latest(r).own) for r in range(3)] == [(5, 0), (5, 1), (5, 2)]
    assert checkpoints.latest(7).own is None


def test_only_the_last_are_kept(store):
    checkpoints = Checkpoints(store, keep=2)
    for step in range(5):
        save(checkpoints, step)
    assert checkpoints.steps() == [3, 4]


def test_one_that_was_never_committed_does_not_count_and_goes_away(store):
    checkpoints = Checkpoints(store, keep=2)
    save(checkpoints, 1)
    checkpoints.write_part(2, 0, part(2, 0))
    assert checkpoints.latest().step == 1
    save(checkpoints, 3)
    save(checkpoints, 4)
    assert checkpoints.steps() == [3, 4]


@pytest.mark.parametrize("damage", ["cut", "flip", "missing part", "broken manifest"])
def test_a_damaged_one_falls_back_to_the_one_before(store, damage, caplog):
    checkpoints = Checkpoints(store, keep=2)
    save(checkpoints, 1)
    save(checkpoints, 2)
    damaged, manifest = "checkpoints/step-000000000002/rank-0.safetensors", "checkpoints/step-000000000002/manifest.json"
    data = store.read(damaged)
    if damage == "cut":
        store.write(damaged, data[: len(data) // 2])
    elif damage == "flip":
        store.write(damaged, data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing part":
        store.remove(damaged)
    else:
        store.write(manifest, b'{"step": 2')
    assert checkpoints.latest().step == 1
    assert "going back to the one before" in caplog.text


def test_all_damaged_is_a_fresh_start(store):
    checkpoints = Checkpoints(store, keep=2)
    save(checkpoints, 1)
    store.write("checkpoints/step-000000000001/rank-0.safetensors", b"")
    assert checkpoints.latest() is None


class Slow(Checkpoints):
    """Checkpoints on a store that takes its time: until it is let."""

    def __init__(self, store, keep):
        super().__init__(store, keep)
        self.let = threading.Event()

    def write_part(self, step, rank, part):
        assert self.let.wait(10)
        return super().write_part(step, rank, part)


def test_what_changes_while_a_checkpoint_is_written_is_not_in_it(store):
    slow = Slow(store, keep=2)
    writer = Writer(slow, 0, lambda step, digests: slow.commit(step, digests), alone=False)
    state = {"weights": np.zeros(4)}
    writer.begin(1, {"shared": state, "own": None})
    assert writer.writing
    assert slow.latest() is None
    state["weights"] += 1
    slow.let.set()
    writer.settle([writer.digest()])
    writer.wait()
    assert writer.idle
    assert slow.latest().shared["weights"].tolist() == [0.0] * 4
    writer.begin(2, {"shared": state, "own": None})
    writer.settle([writer.digest()])
    writer.wait()
    assert slow.latest().shared["weights"].tolist() == [1.0] * 4, "the memory of the first is used again"


def test_what_cannot_be_saved_is_an_error_at_once(store):
    writer = Writer(Checkpoints(store, keep=2), 0, lambda step, digests: None, alone=True)
    with pytest.raises(SpecError, match=r"tree\.shared is a object"):
        writer.begin(1, {"shared": object(), "own": None})
    assert writer.idle


def test_a_store_that_takes_nothing_leaves_a_checkpoint_out(tmp_path, caplog):
    store = Store(str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    checkpoints = Checkpoints(store, keep=2)
    writer = Writer(checkpoints, 0, lambda step, digests: checkpoints.commit(step, digests), alone=False)
    writer.begin(1, {"shared": {}, "own": None})
    digest = writer.digest()
    assert digest == ""
    writer.settle([digest])
    writer.wait()
    assert "the checkpoint of step 1 is left out" in caplog.text
    (tmp_path / "run" / "checkpoints").unlink()
    writer.begin(2, {"shared": {}, "own": None})
    writer.settle([writer.digest()])
    writer.wait()
    assert checkpoints.latest().step == 2


def test_alone_a_part_counts_as_soon_as_it_is_written(store):
    checkpoints = Checkpoints(store, keep=2)
    writer = Writer(checkpoints, 0, lambda step, digests: checkpoints.commit(step, digests), alone=True)
    writer.begin(1, {"shared": {"a": 1}, "own": None})
    assert not writer.undecided
    wait_until(lambda: writer.idle)
    assert checkpoints.latest().shared == {"a": 1}


def test_a_damaged_one_is_not_kept_in_place_of_a_whole_one(store):
    checkpoints = Checkpoints(store, keep=1)
    save(checkpoints, 8)
    save(Checkpoints(store, keep=2), 10)
    store.write("checkpoints/step-000000000010/rank-0.safetensors", b"")
    store.write("checkpoints/notes.txt", b"somebody else's")
    assert checkpoints.latest().step == 8
    save(checkpoints, 9)
    assert checkpoints.steps() == [9]
    assert store.exists("checkpoints/notes.txt")
