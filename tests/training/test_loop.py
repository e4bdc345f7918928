"""The built-in loop: interrupted anywhere and taken up again, it ends with the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudai.artifacts.store import Store
from cloudai.errors import DataError, SpecError
from cloudai.specs.training import Loop, TrainSpec, Work
from cloudai.training import examples, loop, randomness
from cloudai.training.checkpoints import Checkpoints
from cloudai.training.context import Context, Stopped

RNG = np.random.default_rng(0)
DATA = {"inputs": RNG.normal(size=(90, 6)).astype("float32"), "targets": RNG.integers(0, 3, 90)}


def spec(**options):
    return TrainSpec.of(
        name="t",
        model_name="t",
        work=Work(kind="module", rows=90),
        loop=Loop.of(**options),
        lease=60,
        store="",
        tracking="none",
    )


def network(kind="all"):
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(16, 3)
    )


class Interrupting(Context):
    """A context that saves at every step it is told to, and stops after a number of them."""

    saves: frozenset[int]
    stop_at: int

    def due(self):
        return self.fit_step() in self.saves or self.fit_step() == self.stop_at

    def stop_if_told(self):
        if self.fit_step() == self.stop_at:
            raise Stopped("told")


def run(folder, what, *, stop_at=-1, saves=frozenset()):
    """One attempt in a fresh state of the random generators, as a new process has; returns the module, or None."""
    torch.manual_seed(12345 + stop_at)
    randomness.seed_all(what.seed, 0)
    module = network()
    context = Interrupting(what, DATA, Checkpoints(Store(str(folder)), keep=2))
    context.stop_at, context.saves = stop_at, saves
    fit = loop._Fit(module, context)
    context.fit_step = lambda: fit.step
    try:
        return module, fit.run()
    except Stopped:
        return None, None


@pytest.fixture(scope="module", params=["adamw", "sgd", "adam"])
def undisturbed(request, tmp_path_factory):
    what = spec(epochs=4, batch_size=16, optimizer=request.param, weight_decay=0.01)
    module, metrics = run(tmp_path_factory.mktemp("calm"), what)
    return what, module.state_dict(), metrics


@given(stops=st.lists(st.integers(1, 19), max_size=3, unique=True), saves=st.sets(st.integers(1, 19), max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_interruptions_end_in_the_same_bits(undisturbed, tmp_path_factory, stops, saves):
    what, weights, metrics = undisturbed
    folder = tmp_path_factory.mktemp("interrupted")
    for stop in sorted(stops):
        run(folder, what, stop_at=stop, saves=frozenset(saves))
    module, found = run(folder, what)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert found == metrics


def test_the_rows_held_back_are_never_trained_on():
    parts = examples.split(100, 0.2, seed=3)
    assert len(parts.validation) == 20
    assert not set(parts.train.tolist()) & set(parts.validation.tolist())
    assert torch.equal(parts.train, examples.split(100, 0.2, seed=3).train)
    assert not torch.equal(parts.train, examples.split(100, 0.2, seed=4).train)


@pytest.mark.parametrize(
    ("name", "targets"),
    [("mse", RNG.normal(size=90)), ("l1", RNG.normal(size=90)), ("bce_with_logits", RNG.integers(0, 2, 90))],
)
def test_every_loss_learns(tmp_path, name, targets):
    what = spec(epochs=15, loss=name, lr=0.02)
    module = torch.nn.Linear(6, 1)
    seen = []
    context = Context(what, {**DATA, "targets": targets}, Checkpoints(Store(str(tmp_path)), 1))
    context.on_report = lambda step, metrics: seen.append(metrics)
    loop.fit(module, context)
    losses = [m["epoch_loss"] for m in seen if "epoch_loss" in m]
    assert losses[-1] < losses[0]


def test_without_rows_held_back_there_is_no_validation(tmp_path):
    context = Context(spec(epochs=1, validation=0), DATA, Checkpoints(Store(str(tmp_path)), 1))
    assert set(loop.fit(network(), context)) == {"epoch_loss"}


def test_classes_that_are_no_integers(tmp_path):
    context = Context(spec(), {**DATA, "targets": DATA["targets"] / 2}, Checkpoints(Store(str(tmp_path)), 1))
    with pytest.raises(DataError, match="needs classes"):
        loop.fit(network(), context)


@pytest.mark.parametrize(
    ("rows", "batch", "world", "steps"), [(81, 16, 1, 5), (82, 16, 1, 6), (10, 16, 1, 1), (1, 16, 1, 1), (35, 16, 2, 2)]
)
def test_a_rest_too_small_for_normalisation_joins_the_batch_before(rows, batch, world, steps):
    assert loop.batches_of(rows, batch, world) == steps


def test_ranks_share_each_batch_without_overlap(tmp_path):
    class Rank:
        def __init__(self, rank, world):
            self.rank, self.world_size = rank, world

        def gather(self, value):
            return [value]

        def any(self, flag):
            return flag

        def state(self, module, optimizer):
            return module.state_dict(), optimizer.state_dict()

        def device(self, spec):
            return torch.device("cpu")

        def wrap(self, module):
            return module

    fits = [
        loop._Fit(network(), Context(spec(batch_size=16), DATA, Checkpoints(Store(str(tmp_path / str(r))), 1), Rank(r, 2)))
        for r in range(2)
    ]
    batch = torch.arange(16)
    shares = [set(fit._shared(batch)[rank::2].tolist()) for rank, fit in enumerate(fits)]
    assert shares[0] | shares[1] == set(range(16))
    assert not shares[0] & shares[1]
    assert len(fits[0]._shared(torch.arange(7))) == 6, "equally many, so that no rank waits for ever"
    assert fits[0]._shared(torch.tensor([4])).tolist() == [4, 4]
    assert torch.equal(fits[0]._order(), fits[1]._order())


def test_a_context_reports_and_restores(tmp_path):
    what = spec()
    checkpoints = Checkpoints(Store(str(tmp_path)), keep=2)
    context = Context(what, None, checkpoints)
    module = torch.nn.Linear(2, 2)
    assert context.restore(module=module) == {}
    context.report({"loss": torch.tensor(0.5), "n": np.float32(3)}, checkpoint={"module": module, "epoch": 4})
    drawn = torch.rand(1)
    context.settle()
    other = torch.nn.Linear(2, 2)
    back = Context(what, None, checkpoints)
    assert back.restore(module=other) == {"epoch": 4}
    assert torch.equal(other.weight, module.weight)
    assert torch.equal(torch.rand(1), drawn), "the random state is part of a checkpoint"
    assert back.resumed_from == 0
    with pytest.raises(SpecError, match="no part 'modul'"):
        back.restore(modul=other)


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "loss is nan at step 0"), (float("inf"), "loss is inf"), ("low", "is a str")]
)
def test_a_metric_must_be_a_finite_number(tmp_path, value, message):
    with pytest.raises(DataError, match=message):
        Context(spec(), None, Checkpoints(Store(str(tmp_path)), 1)).report({"loss": value})


def test_a_stop_is_no_exception_that_a_user_would_catch(tmp_path):
    what = spec().model_copy(update={"work": Work(kind="function", entry="module:function")})
    context = Context(what, None, Checkpoints(Store(str(tmp_path)), 1), stop_reason=lambda: "told by SIGTERM")
    with pytest.raises(Stopped, match="told by SIGTERM"):
        try:
            context.report({"loss": 1.0})
        except Exception:
            pytest.fail("swallowed")


def fitted(folder, module, **options):
    """Train on the rows without dropout, and return the weights."""
    context = Context(spec(**{"epochs": 2, "batch_size": 16, **options}), DATA, Checkpoints(Store(str(folder)), 1))
    loop.fit(module, context)
    return module.state_dict()


def plain():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


@pytest.mark.parametrize("micro", [1, 5, 16, 99])
def test_steps_in_parts_learn_the_same(tmp_path, micro):
    whole = fitted(tmp_path / "whole", plain())
    parts = fitted(tmp_path / "parts", plain(), micro_batch=micro)
    assert all(torch.allclose(value, parts[name], atol=1e-5) for name, value in whole.items())


class Full(torch.nn.Module):
    """A module for which memory runs out with more than some rows, as on a GPU."""

    def __init__(self, most):
        super().__init__()
        self.most, self.inner, self.seen = most, network(), []

    def forward(self, inputs):
        if self.training:
            torch.rand(1)  # what was drawn before memory ran out must not count
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.seen.append(len(inputs))
        return self.inner(inputs)


def test_where_memory_runs_out_a_step_is_done_again_in_smaller_parts(tmp_path):
    module = Full(most=5)
    torch.manual_seed(7)
    full = fitted(tmp_path / "full", module, validation=0)
    assert max(module.seen) <= 5
    small = Full(most=99)
    torch.manual_seed(7)
    asked = fitted(tmp_path / "small", small, micro_batch=4, validation=0)
    assert all(torch.equal(value, asked[name]) for name, value in full.items()), "as if it had been asked for"


def test_one_row_that_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(DataError, match="1 rows at once do not fit into memory"):
        fitted(tmp_path, Full(most=0), validation=0)


def test_rates_rise_and_fall():
    steps = 100
    rates = {
        name: [loop.rate_at(step, steps, Loop.of(lr=0.1, lr_schedule=name, warmup=0.1)) for step in range(steps)]
        for name in ("constant", "linear", "cosine")
    }
    for found in rates.values():
        assert found[:10] == pytest.approx([0.01 * (step + 1) for step in range(10)])
        assert max(found) == pytest.approx(0.1)
    assert set(rates["constant"][10:]) == {0.1}
    for name in ("linear", "cosine"):
        assert all(before > after > 0 for before, after in zip(rates[name][10:], rates[name][11:], strict=False))
        assert rates[name][-1] < 0.002


def test_gradients_are_shortened(tmp_path):
    before = plain().state_dict()
    after = fitted(tmp_path, plain(), optimizer="sgd", lr=1.0, max_grad_norm=1e-6, epochs=1)
    moved = sum(float((after[name] - value).norm()) ** 2 for name, value in before.items()) ** 0.5
    assert 0 < moved <= 5.001e-6, "five steps of at most a millionth"


def test_bfloat16_computes_less_precisely_and_keeps_its_weights(tmp_path):
    exact, rough = fitted(tmp_path / "a", plain()), fitted(tmp_path / "b", plain(), precision="bfloat16")
    assert all(value.dtype == torch.float32 for value in rough.values())
    assert any(not torch.equal(value, rough[name]) for name, value in exact.items())
    assert all(torch.allclose(value, rough[name], atol=0.02) for name, value in exact.items())
