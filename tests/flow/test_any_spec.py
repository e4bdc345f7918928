"""Whatever is accepted runs on the simulated cloud; whatever is refused names the field and leaves nothing behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cloudai
from cloudai import errors
from cloudai.drivers.simulated.world import Machine, World, Zone
from cloudai.testing.simulation import Simulation

ROWS = 24
INPUTS = np.random.default_rng(0).normal(size=(ROWS, 3)).astype("float32")
BIG = Machine(cpus=64, memory="256GiB", gpus=8, gpu_type="A100")
WORLD = World(zones=[Zone.of(name="big", price=9.0, spot=3.0, machine=BIG, quota=64), Zone.of(name="small", price=0.1)])

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)

GOOD = {
    "loss": st.sampled_from(["cross_entropy"]),
    "optimizer": st.sampled_from(["adamw", "adam", "sgd"]),
    "lr": st.floats(1e-6, 0.5),
    "weight_decay": st.floats(0, 0.1),
    "epochs": st.integers(1, 3),
    "batch_size": st.sampled_from([1, 2, 4, 8, 24, 64, 1024]),
    "validation": st.floats(0, 0.9),
    "seed": st.integers(0, 2**32 - 1),
    "max_failures": st.integers(0, 5),
    "lease": st.none() | st.floats(7200, 1e9) | st.sampled_from(["24h", "3h 30m", "90m", "2d"]),
    "spot_policy": st.sampled_from(["on-demand", "spot"]),
    "config": st.dictionaries(st.text(max_size=8), PLAIN, max_size=3),
    "model_name": st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True),
    "checkpoint": st.builds(
        lambda every, keep: cloudai.CheckpointPolicy(every=every, keep=keep), st.floats(0, 1e6), st.integers(1, 9)
    ),
    "resources": st.builds(
        lambda cpus, gpus, kind: cloudai.Resources(cpus=cpus, gpus=gpus, gpu_type=kind),
        st.floats(0.1, 64),
        st.integers(0, 8),
        st.sampled_from(["", "A100"]),
    ),
}
"""Options that are right, whatever the others are."""

BAD = {
    "loss": ["hinge", "", None, 3],
    "optimizer": ["lion", None, ["adam"]],
    "lr": [0, -1.0, math.nan, math.inf, "fast", None],
    "weight_decay": [-1e-9, math.nan, "x"],
    "epochs": [0, -3, 1.5, "many", None],
    "batch_size": [0, -1, 2.5, None],
    "validation": [1.0, -0.1, math.nan, "half"],
    "seed": [-1, 2**32, "seed", None, 1.5],
    "max_failures": [-1, "often", None],
    "lease": ["tomorrow", -5, math.nan, math.inf, "5 parsecs", True],
    "spot_policy": ["cheap", None, True],
    "config": [{"f": object()}, {"x": {1, 2}}, {"x": math.nan}, {1: 2}, "lr=1", {"x": [{"y": b"z"}]}],
    "model_name": ["Digits", "a_b", "-a", "a" * 64, "a/b", "../x"],
    "num_workers": [0, -1, 4097, 1.5, "two"],
    "resources": ["a lot", 5, {"cpus": -1}, {"cores": 2}],
    "checkpoint": ["often", 7, {"every": "soon"}],
    "name": ["Run 1", "a" * 64, "run/1", "é", ""],
    "on": ["kubernets", "", None],
    "epocs": [3],
}
"""For each option, values that are wrong whatever the others are."""


@pytest.fixture(scope="module", autouse=True)
def simulation():
    with Simulation(WORLD) as running:
        yield running


def train(**options):
    targets = np.arange(ROWS) % 2
    return cloudai.train(torch.nn.Linear(3, 2), (INPUTS, targets), **{"on": "simulated", **options})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries({}, optional=GOOD))
def test_what_is_accepted_runs(options):
    run = train(**options).wait(progress=False)
    assert run.status.phase == "succeeded"
    assert run.model.predict(INPUTS).shape == (ROWS, 2)
    assert run.spec.model_validate_json(run.spec.model_dump_json()) == run.spec
    assert cloudai.attach(run.ref).spec == run.spec
    assert run.cost.amount > 0


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_is_refused_names_the_field_and_leaves_nothing(data):
    field = data.draw(st.sampled_from(sorted(BAD)))
    value = data.draw(st.sampled_from(BAD[field]))
    others = data.draw(st.fixed_dictionaries({}, optional={name: s for name, s in GOOD.items() if name != field}))
    before = [entry.record.ref for entry in cloudai.costs().entries]
    with pytest.raises(errors.CloudAIError) as caught:
        train(**{**others, field: value})
    assert {"on": "driver"}.get(field, field) in str(caught.value), str(caught.value)
    assert caught.value.fix
    assert [entry.record.ref for entry in cloudai.costs().entries] == before


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.floats(0.1, 200), st.integers(0, 20), st.sampled_from(["", "A100", "H100"]))
def test_what_no_machine_has_is_refused_with_what_it_lacks_and_the_rest_is_planned(workers, cpus, gpus, kind):
    fits = workers <= 64 and cpus <= 64 and gpus <= 8 and (kind != "H100" or not gpus)
    needs = cloudai.Resources(cpus=cpus, gpus=gpus, gpu_type=kind)
    plan = cloudai.plan(
        torch.nn.Linear(3, 2),
        (INPUTS, np.arange(ROWS) % 2),
        on="simulated",
        resources=needs,
        num_workers=workers,
        batch_size=workers,
    )
    assert (plan.offer is not None) == fits
    if not fits:
        with pytest.raises(errors.PlacementError, match="needs"):
            plan.apply()
