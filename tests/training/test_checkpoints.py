"""Checkpoints: whole or not there, checked when read, the one before the last kept."""

from __future__ import annotations

import pytest

from cloudai.artifacts.store import Store
from cloudai.artifacts.trees import Snapshot
from cloudai.training.checkpoints import Checkpoints


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
