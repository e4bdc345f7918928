"""Every public object comes back the same from JSON, from the ledger, or by its name."""

from __future__ import annotations

import json
import string
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cloudai
from cloudai import errors
from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.drivers.protocols import Needs, Offer
from cloudai.drivers.simulated.world import Crash, Fate, LostAnswer, Machine, Outage, Preemption, World, Zone
from cloudai.monitoring.decide import Decision
from cloudai.monitoring.drift import Finding, Report
from cloudai.planning.estimate import Estimate
from cloudai.planning.plan import Plan
from cloudai.serving.split import Split
from cloudai.specs.limits import Budget
from cloudai.specs.monitoring import DecisionPolicy, DriftPolicy, MonitorSpec
from cloudai.specs.resources import Resources, ScalingPolicy
from cloudai.specs.rollout import Guard, Rollout
from cloudai.specs.schedule import ScheduleSpec, TableSpec
from cloudai.specs.search import Choice, Range, Search
from cloudai.specs.serving import AutoscalingPolicy, DeploySpec, ServerLimits
from cloudai.specs.texts import Lora, TextTask
from cloudai.specs.training import CheckpointPolicy, FailurePolicy, Loop, Source, SourceFile, TrainSpec, Work
from cloudai.state.ledger import Ledger
from cloudai.statistics.profiles import Profile
from cloudai.testing.simulation import Simulation

TEXT = st.text(max_size=12)
NAME = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
SECONDS = st.floats(0, 1e9)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)

resources = st.builds(
    Resources, cpus=st.floats(0.01, 1e4), memory=st.integers(0, 2**50), gpus=st.integers(0, 64), gpu_type=TEXT
)
limits = st.builds(
    ServerLimits,
    max_body=st.integers(0, 2**40),
    max_in_flight=st.integers(1, 10**6),
    timeout=SECONDS,
    sample_rate=st.floats(0, 1),
)
autoscaling = st.builds(
    AutoscalingPolicy,
    min_replicas=st.integers(0, 8),
    max_replicas=st.integers(8, 1024),
    target_ongoing_requests=st.floats(0.1, 1e4),
    upscale_delay=SECONDS,
    downscale_delay=SECONDS,
    downscale_to_zero_delay=st.none() | SECONDS,
)
drift = st.builds(DriftPolicy, alarm_rate=st.floats(1e-9, 0.5), min_effect=st.floats(0, 10), min_rows=st.integers(2, 10**9))
actions = st.sampled_from(["hold", "retrain", "page"])
decision_policy = st.builds(DecisionPolicy, on_drift=actions, on_fault=actions, min_share=st.floats(0, 1), cool_down=SECONDS)
checkpoint = st.builds(CheckpointPolicy, every=SECONDS, keep=st.integers(1, 100))
workers = st.integers(1, 4096)
scaling = st.builds(
    ScalingPolicy,
    num_workers=workers | st.tuples(workers, workers).map(lambda pair: (min(pair), max(pair))),
    strategy=st.sampled_from(["ddp", "fsdp"]),
    check_every=SECONDS,
)
budget = st.builds(Budget, amount=st.floats(1e-6, 1e9), currency=st.sampled_from(["USD", "EUR"]), warn_at=st.floats(0.01, 1))
lora = st.builds(
    Lora,
    rank=st.integers(1, 512),
    alpha=st.floats(1e-3, 1e3),
    dropout=st.floats(0, 0.99),
    targets=st.none() | st.lists(TEXT, max_size=2).map(tuple),
)
train_spec = st.builds(
    TrainSpec,
    name=NAME,
    model_name=NAME,
    work=st.builds(
        Work,
        kind=st.sampled_from(["function", "module", "benchmark"]),
        entry=TEXT,
        code=TEXT,
        source=st.none()
        | st.builds(
            Source,
            format=st.sampled_from(["csv", "jsonl", "parquet"]),
            files=st.lists(st.builds(SourceFile, path=TEXT, size=st.integers(0, 2**50), version=TEXT), max_size=2).map(tuple),
            target=TEXT,
            inputs=st.lists(TEXT, max_size=3).map(tuple),
            kinds=st.dictionaries(TEXT, st.sampled_from(["bool", "int", "float", "text"]), max_size=3),
        ),
        rows=st.integers(0, 10**12),
        features=st.lists(TEXT, max_size=3).map(tuple),
        text=st.builds(TextTask, task=st.sampled_from(["causal-lm", "embeddings"]), lora=st.none() | lora),
    ),
    config=st.dictionaries(TEXT, PLAIN, max_size=3),
    loop=st.builds(Loop, lr=st.floats(1e-12, 10), epochs=st.integers(1, 10**6), validation=st.floats(0, 0.99)),
    seed=st.integers(0, 2**32 - 1),
    resources=resources,
    scaling=scaling,
    spot_policy=st.sampled_from(["on-demand", "spot"]),
    checkpoint=checkpoint,
    failure=st.builds(FailurePolicy, max_failures=st.integers(0, 100), hang=st.none() | st.floats(0.1, 1e6)),
    budget=st.none() | budget,
    deadline=st.none() | st.floats(0.1, 1e9) | st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC)),
    lease=st.none() | SECONDS,
    store=TEXT,
    tracking=TEXT,
)
deploy_spec = st.builds(
    DeploySpec, name=NAME, port=st.integers(0, 65535), resources=resources, limits=limits, lease=st.none() | SECONDS
)
monitor_spec = st.builds(MonitorSpec, every=st.floats(0.1, 1e9), drift=drift, decision=decision_policy)
domain = st.one_of(
    st.lists(PLAIN, min_size=1, max_size=3).map(lambda values: Choice(values=tuple(values))),
    st.tuples(st.sampled_from(["uniform", "log_uniform", "integers"]), st.integers(1, 99)).map(
        lambda pair: Range(kind=pair[0], low=pair[1], high=pair[1] + 1)
    ),
)
search = st.builds(
    Search,
    space=st.dictionaries(TEXT, domain, min_size=1, max_size=3),
    trials=st.integers(1, 1000),
    mode=st.sampled_from(["min", "max"]),
    grace=st.none() | st.integers(1, 99),
)
schedule = st.builds(
    ScheduleSpec,
    cron=st.sampled_from(["0 3 * * *", "*/5 9-17 * jan mon-fri"]),
    timezone=st.sampled_from(["UTC", "Europe/Berlin"]),
    train=train_spec,
    table=st.none() | st.builds(TableSpec, source=st.lists(TEXT, max_size=2).map(tuple), target=TEXT),
    search=st.none() | search,
)
price = st.floats(0, 1e6)
zone = st.builds(
    Zone,
    name=st.text(min_size=1, max_size=12),
    price=price,
    spot=st.lists(st.tuples(SECONDS, st.none() | price), max_size=3).map(tuple),
    machine=st.builds(Machine, cpus=st.floats(0.1, 1000), gpus=st.integers(0, 16), gpu_type=TEXT),
    boot=SECONDS,
)
world = st.builds(
    World,
    zones=st.lists(zone, max_size=2).map(tuple),
    preemptions=st.lists(st.builds(Preemption, at=SECONDS, zone=TEXT), max_size=2).map(tuple),
    crashes=st.lists(st.builds(Crash, after=SECONDS, exit_code=st.integers(1, 255), reason=TEXT), max_size=2).map(tuple),
    lost_answers=st.lists(st.builds(LostAnswer, act=st.just("submit"), nth=st.integers(1, 9)), max_size=2).map(tuple),
    outages=st.lists(st.builds(Outage, start=SECONDS, end=SECONDS), max_size=2).map(tuple),
    fates=st.lists(st.builds(Fate, revision=TEXT, error_rate=st.floats(0, 1)), max_size=2).map(tuple),
)
guard = st.builds(
    Guard,
    watch=st.sampled_from(["errors", "latency", "drift", "shadow", "accuracy"]),
    margin=st.floats(0, 0.99),
    quantile=st.floats(0.01, 0.99),
    tolerance=st.floats(0.01, 1),
)
rollout = st.builds(
    Rollout,
    steps=st.sets(st.integers(0, 100), min_size=1, max_size=5).map(lambda shares: tuple(sorted(shares))),
    bake=st.floats(0, 60),
    shadow=st.integers(0, 100),
    sticky=st.sampled_from(["", "x-user-id"]),
    alarm_rate=st.floats(0.001, 0.5),
    min_requests=st.integers(0, 10**6),
    max_time=st.floats(60, 1e6),
    on_max_time=st.sampled_from(["hold", "rollback", "proceed"]),
    ready_within=st.floats(1, 1e6),
)
SPECS = {
    Resources: resources,
    Guard: guard,
    Rollout: rollout,
    ServerLimits: limits,
    AutoscalingPolicy: autoscaling,
    DriftPolicy: drift,
    DecisionPolicy: decision_policy,
    Budget: budget,
    CheckpointPolicy: checkpoint,
    ScalingPolicy: scaling,
    Lora: lora,
    TrainSpec: train_spec,
    DeploySpec: deploy_spec,
    MonitorSpec: monitor_spec,
    Search: search,
    ScheduleSpec: schedule,
    World: world,
}

number = st.floats(allow_nan=False, allow_infinity=False)
finding = st.builds(
    Finding,
    feature=TEXT,
    kind=st.sampled_from(["drift", "missingness", "new_categories", "schema", "rows"]),
    statistic=TEXT,
    value=number,
    p_value=st.none() | st.floats(0, 1),
    p_adjusted=st.none() | st.floats(0, 1),
    effect=number,
    drifted=st.booleans(),
    change=TEXT,
)
report = st.builds(Report, st.lists(finding, max_size=3).map(tuple), st.integers(0, 10**9), st.integers(0, 10**9), drift)
decision = st.builds(
    Decision,
    kind=actions,
    reason=TEXT,
    at=st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC)),
    evidence=st.lists(finding, max_size=2).map(tuple),
    request=st.just({}) | st.fixed_dictionaries({"verb": actions, "features": st.lists(TEXT, max_size=3)}),
)
tensor_spec = st.builds(
    TensorSpec, TEXT, st.sampled_from(["float32", "int64", "bool"]), st.lists(st.integers(-1, 9), max_size=3).map(tuple)
)
signature = st.builds(Signature, st.lists(tensor_spec, max_size=2).map(tuple), st.lists(tensor_spec, max_size=2).map(tuple))
split = st.builds(Split, TEXT, TEXT, st.integers(0, 100), TEXT)
offer = st.builds(Offer, TEXT, TEXT, price, TEXT, TEXT, TEXT, st.booleans(), st.booleans(), TEXT, st.booleans())
estimate = st.builds(Estimate, st.none() | SECONDS, st.none() | SECONDS, TEXT)
plan = st.builds(
    lambda title, offers, needs, estimate, spot: Plan(
        title, needs, offers[0] if offers else None, tuple(offers), estimate, lambda: None, spot
    ),
    TEXT,
    st.lists(offer, max_size=3),
    st.builds(Needs, st.floats(0.1, 99), st.integers(0, 2**40), st.integers(0, 9), TEXT, st.integers(1, 99)),
    estimate,
    st.booleans(),
)
VALUES = {Report: report, Decision: decision, Signature: signature, Split: split, Plan: plan, Finding: finding}

BY_NAME = {"Run", "Benchmark", "Deployment", "Monitor", "Model", "Schedule"}
"""Handles come back by their name: `attach`, `load_model`."""

ONLY_THERE = {
    "Context": "it is the worker's side of a run, and lives as long as the worker",
    "Table": "what is recorded of it is a Source, which comes back with the run's spec",
}


def through_json(value):
    return json.loads(json.dumps(value, allow_nan=False))


@pytest.mark.parametrize("kind", SPECS, ids=lambda kind: kind.__name__)
def test_specs_come_back_from_json_and_from_the_ledger(kind, tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    count = iter(range(10**6))

    @given(SPECS[kind])
    def check(spec):
        assert kind.parse(spec.model_dump_json()) == spec
        name = f"spec-{next(count)}"
        ledger.create("run", name, spec.model_dump(mode="json"), {})
        assert kind.model_validate(ledger.get("run", name).spec) == spec

    check()


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
def test_values_come_back_from_json(kind):
    @given(VALUES[kind])
    def check(value):
        back = kind.from_json(through_json(value.to_json()))
        assert back == value
        assert str(back) == str(value)

    check()


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50), st.text(string.ascii_letters, min_size=1, max_size=5))
def test_profiles_come_back_from_their_bytes(values, name):
    profile = Profile.of({name: np.array(values)})
    assert Profile.from_bytes(profile.to_bytes()).to_bytes() == profile.to_bytes()


def test_a_plan_that_was_read_back_shows_the_same_and_cannot_be_applied():
    data = np.zeros((30, 3)), np.zeros(30, int)
    with Simulation():
        made = cloudai.plan(torch.nn.Linear(3, 2), data, on="simulated")
        back = Plan.from_json(through_json(made.to_json()))
        assert back.explain() == made.explain()
        assert through_json(made.to_json())["cost"] == pytest.approx(list(made.cost))
        with pytest.raises(errors.NotReadyError, match="read back"):
            back.apply()
    with pytest.raises(errors.IntegrityError, match="cannot be read"):
        Plan.from_json({"title": "x"})


def nothing(context):
    """Work that is done at once."""


def test_handles_come_back_by_their_name_in_the_same_state():
    data = np.random.default_rng(0).normal(size=(300, 3)), np.arange(300) % 2
    with Simulation() as simulation:
        run = cloudai.train(torch.nn.Linear(3, 2), data, on="simulated", model_name="small", epochs=1).wait(progress=False)
        deployment = cloudai.deploy(run, on="simulated").wait(3600)
        watch = cloudai.monitor(deployment, every="5m")
        simulation.advance("11m")
        searched = cloudai.train(
            torch.nn.Linear(3, 2), data, on="simulated", model_name="best", search=Search({"lr": Choice(values=(0.1, 0.2))})
        )
        nightly = cloudai.train(nothing, schedule="0 3 * * *", on="simulated", name="nightly")
        simulation.advance("2h")
        for handle in (run, deployment, watch, searched, nightly):
            back = cloudai.attach(handle.ref)
            assert type(back) is type(handle)
            assert back.spec == handle.spec
            assert (back.phase, asdict_or_none(back, "status")) == (handle.phase, asdict_or_none(handle, "status"))
        assert cloudai.load_model("small").digest == run.model.digest


def asdict_or_none(handle, attribute):
    return asdict(getattr(handle, attribute)) if hasattr(handle, attribute) else None


def test_no_public_class_is_forgotten():
    public = {name for name in cloudai.__all__ if isinstance(getattr(cloudai, name), type)}
    told = {kind.__name__ for kind in (*SPECS, *VALUES)} | BY_NAME | set(ONLY_THERE)
    assert public <= told
