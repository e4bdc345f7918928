"""The rule of halving: its rungs, and the same decisions as Ray Tune's scheduler."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai.training.search.halving import goes_on, is_rung


@given(st.integers(1, 50), st.integers(2, 5), st.integers(1, 5000))
def test_rungs_are_grace_times_powers_of_the_reduction(grace, reduction, reports):
    assert is_rung(reports, grace, reduction) == (reports in {grace * reduction**k for k in range(20)})


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_first_at_a_rung_goes_on_and_a_worse_second_does_not(mode):
    better, worse = (0.1, 0.2) if mode == "min" else (0.2, 0.1)
    assert goes_on(better, [], mode, 3)
    assert goes_on(better, [worse], mode, 3)
    assert not goes_on(worse, [better], mode, 3)


def ours(reports, *, grace, reduction, mode, most):
    """Decide as a search does, for reports of trials in the order in which they come."""
    counts, rungs, stopped = {}, {}, []
    for trial, value in reports:
        if trial in stopped:
            continue
        count = counts[trial] = counts.get(trial, 0) + 1
        if count < most and is_rung(count, grace, reduction):
            before = rungs.setdefault(count, [])
            if not goes_on(value, before, mode, reduction):
                stopped.append(trial)
            before.append(value)
    return stopped


def rays(reports, *, grace, reduction, mode, most):
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import AsyncHyperBandScheduler

    scheduler = AsyncHyperBandScheduler(
        time_attr="t", metric="value", mode=mode, grace_period=grace, reduction_factor=reduction, max_t=most
    )
    trials, counts, stopped = {}, {}, []
    for name, value in reports:
        if name in stopped:
            continue
        if name not in trials:
            trials[name] = Trial("none", stub=True, trial_id=f"trial-{name}")
            scheduler.on_trial_add(None, trials[name])
        counts[name] = counts.get(name, 0) + 1
        if counts[name] >= most:
            continue  # its end: Ray says stop to whoever comes there, and so does nobody else
        decision = scheduler.on_trial_result(None, trials[name], {"t": counts[name], "value": value})
        stopped += [name] * (decision == "STOP")
    return stopped


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.floats(-5, 5, width=16)), max_size=150),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([2, 3, 4]),
    st.sampled_from(["min", "max"]),
)
def test_ray_tune_decides_the_same(reports, grace, reduction, mode):
    pytest.importorskip("ray.tune")
    options = {"grace": grace, "reduction": reduction, "mode": mode, "most": 100}
    assert ours(reports, **options) == rays(reports, **options)
