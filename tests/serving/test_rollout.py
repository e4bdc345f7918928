"""The rollout's state machine, on a clock that the test moves: whatever is seen, there is a way back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai.errors import SpecError
from cloudai.serving.counters import Counts
from cloudai.serving.guards import Look
from cloudai.serving.rollout import Progress, Seen
from cloudai.serving.split import Split
from cloudai.specs.rollout import Guard, Rollout, RolloutOrder

ASKED = Split("v1", canary="v2")
STEPS = (1, 10, 50, 100)


def order(*guards, **options):
    given = {"steps": STEPS, "bake": 10, "min_requests": 50, "max_time": 1000} | options
    return RolloutOrder.new("o", Rollout(**given), guards)


def counted(requests, bad=0, slow=0):
    return Counts(requests, bad, bad, slower={0.01: requests, 0.012: slow, 0.1: slow})


def fine(share, requests=100, bad=0):
    new = round(requests * share / 100)
    return Seen(True, True, look=Look(share / 100, counted(new, min(bad, new)), counted(requests - new)))


def run(order, see, *, until=2000, progress=None, every=5):
    """Look every few seconds until it ends."""
    progress, now = progress or Progress.begun(order, 0), 0
    while not progress.ended and now < until:
        now += every
        progress = progress.after(order, see(progress), now)
    return progress, now


def test_a_good_version_goes_through_all_steps():
    seen = []

    def see(progress):
        share = progress.percent(wanted)
        seen.append(share)
        return fine(share, requests=2000)

    wanted = order()
    progress, _ = run(wanted, see)
    assert progress.phase == "promoted"
    assert sorted(set(seen)) == [0, *STEPS]
    assert seen == sorted(seen)
    assert progress.split(wanted, ASKED) == Split("v2", previous="v1")


@pytest.mark.parametrize("steps", [STEPS, (0, 100), (0, 5)])
def test_blue_green_and_shadow_are_steps_too(steps):
    wanted = order(Guard(watch="shadow"), steps=steps, shadow=100, min_requests=50)

    def see(progress):
        share = progress.percent(wanted)
        look = fine(share, 2000).look
        return Seen(True, True, look=replace(look, new=replace(look.new, compared=30, differing={0.1: 0})))

    progress, _ = run(wanted, see, until=300)
    assert progress.phase == ("promoted" if steps[-1] == 100 else "held")
    if steps[-1] != 100:
        assert "promote() or rollback()" in progress.reason
        assert progress.split(wanted, ASKED).traffic == {"v1": 95, "v2": 5}


def test_a_failing_version_is_thrown_out_and_says_why():
    wanted = order()
    progress, _ = run(wanted, lambda progress: fine(progress.percent(wanted), 1000, bad=5))
    assert progress.phase == "rolled back"
    assert progress.split(wanted, ASKED) == Split("v1")
    assert "of its requests failed" in progress.reason
    assert "against 0 of" in progress.numbers


def test_a_slow_version_is_compared_with_what_the_stable_one_was_before():
    wanted = order(Guard(watch="latency", quantile=0.95, margin=0.2))

    def see(progress):
        share = progress.percent(wanted) / 100
        new = round(1000 * share)
        return Seen(True, True, look=Look(share, counted(new, slow=new), counted(1000 - new, slow=20)))

    progress, _ = run(wanted, see)
    assert progress.phase == "rolled back"
    assert "took longer than 14.4 ms (the stable one's 12 ms, and 20%)" in progress.reason


def test_other_predictions_are_drift():
    rng = np.random.default_rng(0)
    wanted = order(Guard(watch="drift", margin=0.1), steps=(20, 100))

    def see(shift):
        def look(progress):
            share = progress.percent(wanted) / 100
            outputs = {"y": rng.normal(size=round(375 * (1 - share)))}, {"y": rng.normal(size=round(375 * share)) + shift}
            seen = fine(round(share * 100), 300).look
            return Seen(True, True, look=replace(seen, old_outputs=outputs[0], new_outputs=outputs[1]))

        return look

    assert run(wanted, see(0.0))[0].phase == "promoted"
    progress, _ = run(wanted, see(2.0))
    assert progress.phase == "rolled back"
    assert progress.reason.startswith("y: ")


def test_wrong_predictions_lower_the_accuracy():
    wanted = order(Guard(watch="accuracy"), steps=(50, 100))

    def see(wrong):
        return lambda progress: replace(fine(50), look=replace(fine(50).look, new_labelled=(50, wrong), old_labelled=(50, 5)))

    assert run(wanted, see(5))[0].phase == "promoted"
    assert "predictions with a label are wrong" in run(wanted, see(25))[0].reason


def test_mirrored_answers_that_differ_throw_it_out_before_any_client_sees_it():
    wanted = order(Guard(watch="shadow", margin=0.05), steps=(0, 10, 100), shadow=50)
    different = replace(fine(0).look, new=Counts(compared=20, differing={0.1: 12, 0.2: 0}))
    progress, _ = run(wanted, lambda progress: Seen(True, True, look=different))
    assert (progress.phase, progress.step) == ("rolled back", 0)
    assert "60.0% of its answers to mirrored requests differ" in progress.reason


def test_a_version_that_never_gets_ready_or_dies_again_and_again_is_thrown_out():
    never = run(order(ready_within=60), lambda progress: Seen(False, why="no such file"))[0]
    assert (never.phase, never.reason, never.numbers) == ("rolled back", "it was not ready within 1 min", "no such file")
    dying = run(order(), lambda progress: Seen(False, died=True, why="killed"))[0]
    assert dying.reason == "its process ended 3 times"
    assert run(order(), lambda progress: fine(progress.percent(order()), 2000))[0].phase == "promoted"


@pytest.mark.parametrize(("then", "phase"), [("hold", "held"), ("rollback", "rolled back")])
def test_what_happens_when_a_step_takes_too_long(then, phase):
    wanted = order(max_time=60, on_max_time=then)
    progress, _ = run(wanted, lambda progress: fine(1, 100), until=100)
    assert (progress.phase, progress.step) == (phase, 0)
    assert "has seen" in progress.reason
    assert "of 50 requests" in progress.reason


def test_it_proceeds_without_the_requests_where_that_was_asked_for():
    wanted = order(max_time=20, on_max_time="proceed")
    assert run(wanted, lambda progress: fine(progress.percent(wanted), 10))[0].phase == "promoted"


def test_pause_and_resume_and_a_held_one_goes_on():
    wanted = order(max_time=20)
    baking = run(wanted, lambda progress: fine(1, 10), until=10)[0]
    paused = baking.after(wanted.model_copy(update={"paused": True}), fine(1), 11)
    assert paused.phase == "paused"
    assert paused.after(wanted.model_copy(update={"paused": True}), fine(1), 500) == replace(
        paused, requests=paused.requests + 1, watches=paused.seeing(fine(1)).watches
    )
    assert paused.after(wanted, fine(1), 600).since == 600, "its step begins anew"
    held = run(wanted, lambda progress: fine(1, 10), until=40)[0]
    assert held.phase == "held"
    again = held.after(wanted.model_copy(update={"resumed": 1}), fine(1), 50)
    assert (again.phase, again.since, again.reason) == ("baking", 50, "")
    assert again.after(wanted.model_copy(update={"resumed": 1}), fine(1), 75).phase == "held"


def test_a_paused_version_can_still_be_thrown_out():
    wanted = order().model_copy(update={"paused": True})
    assert run(wanted, lambda progress: fine(1, 2000, bad=20))[0].phase == "rolled back"


def test_time_without_evidence_or_with_another_traffic_does_not_count():
    wanted = order(min_requests=0)
    start = Progress.begun(wanted, 0).after(wanted, fine(0), 1)
    for blind in (Seen(True, True), Seen(True, False, look=Look(0.01)), Seen(False, True, look=Look(0.01))):
        assert start.after(wanted, blind, 500).step == 0
        assert start.after(wanted, blind, 500).since == 500


seen = st.builds(
    lambda ready, routed, died, requests, bad, blind: Seen(
        ready, routed, died, look=None if blind else Look(0.1, counted(requests, min(bad, requests)), counted(10 * requests))
    ),
    st.booleans(),
    st.booleans(),
    st.sampled_from([False] * 9 + [True]),
    st.integers(0, 400),
    st.sampled_from([0] * 9 + [100]),
    st.sampled_from([False] * 4 + [True]),
)
said = st.sampled_from([{}] * 6 + [{"paused": True}, {"paused": False, "resumed": 1}])
looks = st.lists(st.tuples(seen, said, st.floats(0.1, 50)), max_size=40)
orders = st.builds(
    order,
    steps=st.sampled_from([STEPS, (0, 100), (5,), (0, 50)]),
    max_time=st.sampled_from([60, 1000]),
    on_max_time=st.sampled_from(["hold", "rollback", "proceed"]),
)


@settings(max_examples=60)
@given(orders, looks)
def test_whatever_is_seen_the_traffic_is_whole_the_share_grows_and_the_way_back_is_open(wanted, looks):
    progress, now, share = Progress.begun(wanted, 0), 0.0, 0
    for see, words, seconds in looks:
        now += seconds
        wanted = wanted.model_copy(update=words)
        before, progress = progress, progress.after(wanted, see, now)
        split = progress.split(wanted, ASKED)
        assert sum(split.traffic.values()) == 100
        if progress.phase != "rolled back":
            assert progress.percent(wanted) >= share, "a share only grows"
            share = progress.percent(wanted)
        if (before.phase, before.step) != (progress.phase, progress.step) and progress.phase in ("baking", "promoted"):
            assert see.ready or before.phase in ("paused", "held"), "no step without ready"
        back = split if progress.phase == "rolled back" else split.rollback()
        assert back.traffic == {"v1": 100}
        if before.ended:
            assert progress == before


@settings(max_examples=60)
@given(orders, looks)
def test_interrupted_anywhere_and_read_from_the_ledger_it_ends_the_same(wanted, looks):
    straight = interrupted = Progress.begun(wanted, 0)
    now = 0.0
    for see, words, seconds in looks:
        now += seconds
        wanted = wanted.model_copy(update=words)
        straight = straight.after(wanted, see, now)
        interrupted = Progress.from_json(json.loads(json.dumps(interrupted.after(wanted, see, now).to_json())))
        wanted = RolloutOrder.model_validate(json.loads(json.dumps(wanted.model_dump(mode="json"))))
    assert interrupted == straight


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rollout(steps=(10, 1)), "do not grow"),
        (lambda: Rollout(steps=()), "do not grow"),
        (lambda: Rollout(steps=(0, 101)), "do not grow"),
        (lambda: Rollout(bake="2h"), "must take 7200 s, and may take 3600 s"),
        (lambda: Rollout(sticky="x user"), "sticky"),
        (lambda: Guard(watch="drift", bound=0.1), "no bound on 'drift'"),
        (lambda: Guard(watch="errors", bound=1.5), "lets every request fail"),
        (lambda: Guard(watch="errors", margin=1.0), "no difference of shares"),
        (lambda: Guard(watch="speed"), "watch='speed'"),
        (lambda: RolloutOrder.new("o", Rollout(), ["errors"]), "is no guard"),
        (lambda: RolloutOrder.new("o", Rollout(), [Guard(watch="shadow")]), "none are mirrored"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(SpecError, match=message):
        make()
