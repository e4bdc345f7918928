"""What the engine computes together, and what it keeps apart."""

from __future__ import annotations

import asyncio
import threading
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.errors import RequestError
from cloudai.serving.asgi import HttpError
from cloudai.serving.engine import Engine, InferenceError
from cloudai.serving.protocol import InferenceRequest
from cloudai.serving.samples import SampleLog
from cloudai.serving.service import ModelService
from cloudai.serving.trial import Trial, run_trial
from cloudai.specs.serving import ServerLimits
from tests.serving.asking import infer

QUICK = Trial(independent=True, seconds={1: 1e-5, 2: 1e-5, 4: 1e-5, 8: 1e-5})
SLOW = Trial(independent=True, seconds={1: 1e-2, 2: 1e-2, 4: 1e-2, 8: 1e-2})


class Doubler:
    """Doubles its rows and remembers how many came together; a 7 cannot be taken, a 13 makes it fail."""

    name, version = "m", "1"

    def __init__(self, width=1):
        self.signature = Signature((TensorSpec("x", "float32", (-1, width)),), (TensorSpec("y", "float32", (-1, width)),))
        self.calls, self.free = [], threading.Event()
        self.free.set()

    def infer(self, inputs):
        self.free.wait(5)
        self.calls.append(len(inputs["x"]))
        if (inputs["x"] == 7).any():
            raise RequestError("no 7", fix="give another")
        if (inputs["x"] == 13).any():
            raise ValueError("13")
        return {"y": inputs["x"] * 2}


def rows(*values, width=1):
    return {"x": np.repeat(np.float32([values]).T, width, axis=1)}


async def ask_all(engine, *requests):
    asked = [infer(engine, inputs, rows=len(inputs["x"])) for inputs in requests]
    return [
        answer if isinstance(answer, BaseException) else answer["y"][:, 0].tolist()
        for answer in await asyncio.gather(*asked, return_exceptions=True)
    ]


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario(), 10))


def test_who_is_alone_and_quick_is_answered_at_once():
    async def scenario():
        return infer(Engine(Doubler(), threads=1, trial=QUICK), rows(3), rows=1).done()

    assert run(scenario) is True


def test_what_comes_in_one_turn_of_the_loop_is_computed_together():
    model = Doubler()

    async def scenario():
        return await ask_all(Engine(model, threads=1, trial=QUICK), *(rows(i) for i in range(7)))

    assert run(scenario) == [[2 * i] for i in range(7)]
    assert model.calls == [1, 6]


def test_what_comes_while_a_batch_is_computed_is_the_next_batch():
    model = Doubler()

    async def scenario():
        engine = Engine(model, threads=1, trial=SLOW)
        model.free.clear()
        first = asyncio.ensure_future(ask_all(engine, rows(1)))
        await asyncio.sleep(0.01)
        rest = asyncio.ensure_future(ask_all(engine, *(rows(i) for i in range(2, 14) if i not in (7, 13))))
        await asyncio.sleep(0)
        assert engine.waiting == 10
        model.free.set()
        return await first, await rest

    run(scenario)
    assert model.calls == [1, 8, 2]


def test_a_request_that_is_larger_than_a_batch_is_computed_whole():
    model = Doubler()

    async def scenario():
        return await ask_all(Engine(model, threads=1, trial=SLOW), rows(*range(100, 120)), rows(1), rows(2))

    assert run(scenario)[1:] == [[2], [4]]
    assert model.calls == [20, 2]


def test_without_a_trial_or_where_rows_influence_each_other_each_is_computed_alone():
    for trial in (None, Trial(independent=False, seconds={1: 1e-5})):
        model = Doubler()

        async def scenario(model=model, trial=trial):
            return await ask_all(Engine(model, threads=1, trial=trial), rows(1), rows(2, 3), rows(4))

        assert run(scenario) == [[2], [4, 6], [8]]
        assert model.calls == [1, 2, 1]


@pytest.mark.parametrize(("bad", "kind"), [(7, RequestError), (13, InferenceError)])
@pytest.mark.parametrize("trial", [QUICK, SLOW])
def test_one_that_cannot_be_computed_harms_no_other(bad, kind, trial):
    async def scenario():
        return await ask_all(Engine(Doubler(), threads=1, trial=trial), rows(1), rows(2), rows(bad), rows(3))

    one, two, wrong, three = run(scenario)
    assert [one, two, three] == [[2], [4], [6]]
    assert isinstance(wrong, kind)


def test_requests_of_other_shapes_are_other_batches_the_oldest_first():
    model = Doubler(width=-1)

    async def scenario():
        engine = Engine(model, threads=1, trial=SLOW)
        model.free.clear()
        first = asyncio.ensure_future(ask_all(engine, rows(0)))
        await asyncio.sleep(0.01)
        mixed = asyncio.ensure_future(ask_all(engine, *(rows(i, width=1 + i % 2) for i in range(1, 7))))
        await asyncio.sleep(0)
        model.free.set()
        await first
        return await mixed

    assert run(scenario) == [[2 * i] for i in range(1, 7)]
    assert model.calls == [1, 3, 3]


def test_nobody_computes_what_nobody_waits_for():
    model = Doubler()

    async def scenario():
        engine = Engine(model, threads=1, trial=SLOW)
        model.free.clear()
        first = infer(engine, rows(1), rows=1)
        await asyncio.sleep(0.01)
        given_up = [infer(engine, rows(2), rows=1) for _ in range(3)]
        last = infer(engine, rows(3), rows=1)
        for answer in given_up:
            answer.cancel()
        await asyncio.sleep(0)
        model.free.set()
        await first
        await last

    run(scenario)
    assert model.calls == [1, 1]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    turns=st.lists(st.booleans(), min_size=30, max_size=30),
    trial=st.sampled_from([QUICK, SLOW, None]),
    threads=st.integers(1, 3),
)
def test_whatever_comes_together_each_gets_his_own_rows(sizes, turns, trial, threads):
    async def scenario():
        engine = Engine(Doubler(), threads=threads, trial=trial)
        asked = []
        for number, size in enumerate(sizes):
            asked.append(infer(engine, rows(*(100 * number + 20 + place for place in range(size))), rows=size))
            if turns[number]:
                await asyncio.sleep(0)
        answers = await asyncio.gather(*asked)
        engine.close()
        return [answer["y"][:, 0].tolist() for answer in answers]

    assert run(scenario) == [[2 * (100 * number + 20 + place) for place in range(size)] for number, size in enumerate(sizes)]


EXAMPLE = {"x": np.float32([[1], [2], [3]])}


def test_a_trial_shows_how_long_batches_take_and_that_rows_do_not_influence_each_other():
    trial = run_trial(Doubler(), EXAMPLE, most=8)
    assert trial.independent
    assert sorted(trial.seconds) == [1, 2, 4, 8]


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: x - x.mean(),
        lambda x: x * np.arange(1, len(x) + 1, dtype="float32")[:, None],
        lambda x: np.repeat(x.max(keepdims=True), len(x), axis=0),
    ],
)
def test_a_trial_shows_that_rows_influence_each_other(answer):
    model = Doubler()
    model.infer = lambda inputs: {"y": answer(inputs["x"])}
    trial = run_trial(model, EXAMPLE, most=8)
    assert not trial.independent
    assert sorted(trial.seconds) == [1]


def test_a_model_that_fails_on_its_example_is_served_without_batches(caplog):
    trial = run_trial(Doubler(), {"x": np.float32([[13]])}, most=8)
    assert trial == Trial()
    assert "fails on its own example" in caplog.text


def test_the_wait_grows_with_what_waits_and_falls_again():
    model = Doubler()

    async def scenario():
        engine = Engine(model, threads=1, trial=SLOW)
        alone = engine.wait
        model.free.clear()
        asked = [infer(engine, rows(i), rows=1) for i in range(100, 180)]
        await asyncio.sleep(0.01)
        crowded = engine.wait
        model.free.set()
        await asyncio.gather(*asked)
        return alone, crowded, engine.wait

    alone, crowded, after = run(scenario)
    assert alone == pytest.approx(0.01)
    assert crowded == pytest.approx(0.01 * 10, rel=0.3)  # ten batches of eight
    assert after < crowded / 2


def test_who_is_alone_is_computed_whatever_is_expected_so_that_a_slow_spell_is_not_for_ever(tmp_path):
    model = Doubler()

    async def scenario():
        log = SampleLog(tmp_path / "samples", rate=0.0, max_bytes=1000, dropped=lambda rows: None)
        service = ModelService(
            model, example=EXAMPLE, name="m", limits=ServerLimits(target_latency=0.05), threads=1, instance="x",
            open_samples=lambda dropped: log,
        )  # fmt: skip
        for _ in range(200):
            service.engine._times.learn(1, 10.0)  # the machine was busy with something else
        assert service.engine.wait > 0.05
        loop = asyncio.get_running_loop()
        for number in range(1000):
            answered = asyncio.Event()
            place = service.admit(loop.time() + 5, lambda place, answered=answered: answered.set())
            with pytest.raises(HttpError, match="an answer would take") if service.engine.wait > 0.05 else nullcontext():
                service.admit(loop.time() + 5, lambda place: None).leave()
            place.ask(InferenceRequest(None, rows(3), (), 1), str(number))
            await answered.wait()
            if service.engine.wait < 0.05:
                break
        await service.stop()
        return service.engine.wait

    assert run(scenario) < 0.05
