"""Over how many workers a run may be spread, and what its result says when that has changed."""

from __future__ import annotations

import pytest

import cloudai
from cloudai.artifacts import trees
from cloudai.artifacts.store import Store
from cloudai.errors import SpecError
from cloudai.training import sizes
from cloudai.training.checkpoints import Checkpoints
from cloudai.training.journal import Journal
from tests.flow import work


def own_loop(context):
    return None


@pytest.fixture
def folder(tmp_path):
    return Store(str(tmp_path))


def test_a_range_keeps_the_batch_whole():
    policy = cloudai.ScalingPolicy(num_workers=(1, 4))
    assert (policy.smallest, policy.largest, policy.is_elastic) == (1, 4, True)
    assert policy.sizes(64) == (1, 2, 4)
    assert cloudai.ScalingPolicy(num_workers=3).sizes(64) == ()
    assert cloudai.ScalingPolicy.parse(policy.model_dump_json()) == policy


@pytest.mark.parametrize("given", [(4, 1), (0, 2), (1, 2, 3), (1.5, 2), "two", 0])
def test_what_is_no_number_of_workers_is_refused(given):
    with pytest.raises(SpecError):
        cloudai.ScalingPolicy(num_workers=given)


def test_the_verb_refuses_what_cannot_be_shared(home):
    module, data = work.network(), work.data()
    with pytest.raises(SpecError, match=r"batch_size=32 cannot be split over \(3, 3\) workers"):
        cloudai.train(module, data, num_workers=(3, 3))
    with pytest.raises(SpecError, match="both say how many"):
        cloudai.train(module, data, num_workers=2, scaling=cloudai.ScalingPolicy())
    with pytest.raises(SpecError, match="scaling= is a int"):
        cloudai.train(module, data, scaling=2)
    with pytest.raises(SpecError, match="holds for modules"):
        cloudai.train(own_loop, scaling=cloudai.ScalingPolicy(num_workers=2, strategy="fsdp"))


def test_the_place_needs_room_for_the_fewest(home):
    planned = cloudai.plan(work.network(), work.data(), num_workers=(1, 64))
    assert planned.needs.workers == 1
    assert planned.offer is not None


def save(folder, step):
    """Commit a checkpoint as a worker does."""
    checkpoints, snapshot = Checkpoints(folder, 2), trees.Snapshot()
    snapshot.take({"shared": {"step": step}, "own": None})
    assert checkpoints.commit(step, [checkpoints.write_part(step, 0, snapshot)])


def test_a_run_that_stayed_as_it_was_is_exact(folder):
    sizes.note_size(folder, 2)
    save(folder, 10)
    sizes.note_size(folder, 2)
    assert sizes.resized(folder) == ""


def test_work_that_is_done_again_does_not_count(folder):
    sizes.note_size(folder, 2)
    folder.write("checkpoints/step-000000000010/rank-0.safetensors", b"never committed")
    sizes.note_size(folder, 1)
    assert sizes.resized(folder) == ""


def test_a_run_that_went_on_with_another_number_says_so(folder):
    sizes.note_size(folder, 2)
    save(folder, 10)
    sizes.note_size(folder, 1)
    sizes.note_size(folder, 2)
    assert sizes.resized(folder).startswith("it was resized: it had 2, then 1, then 2 workers")


def test_an_attempt_that_was_killed_before_its_first_checkpoint_hides_no_size(folder):
    sizes.note_size(folder, 4)
    Journal(folder, 1, {"checkpoint": 10}).close()
    save(folder, 10)
    sizes.note_size(folder, 2)
    Journal(folder, 2, {}).close()  # whose status knows of no checkpoint
    sizes.note_size(folder, 2)
    assert sizes.resized(folder).startswith("it was resized: it had 4, then 2 workers")
