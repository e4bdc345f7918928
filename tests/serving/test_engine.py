from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.errors import RequestError
from cloudai.serving.engine import Engine, InferenceError
from tests.serving.asking import infer as infer_one

ONE = {"x": np.ones((3, 1), "float32")}


class Model:
    name, version = "m", "1"
    signature = Signature((TensorSpec("x", "float32", (-1, 1)),), (TensorSpec("y", "float32", (-1,)),))

    def __init__(self, infer):
        self.infer = infer


def infer(model, *, rows=3):
    async def scenario():
        return await infer_one(Engine(Model(model), threads=1), ONE, rows=rows)

    return asyncio.run(scenario())


def test_outputs_beyond_the_signature_are_left_out():
    assert list(infer(lambda inputs: {"extra": np.ones(9), "y": inputs["x"][:, 0]})) == ["y"]


@pytest.mark.parametrize(
    ("outputs", "what"),
    [
        ({}, "no output 'y'"),
        ({"y": np.ones(3)}, "float64"),
        ({"y": np.ones((3, 2), "float32")}, r"\[3, 2\]"),
        ({"y": np.ones(2, "float32")}, "2 rows of 'y' for 3"),
    ],
)
def test_an_answer_that_does_not_fit_the_signature_is_the_models_failure(outputs, what):
    with pytest.raises(InferenceError, match=what):
        infer(lambda _: outputs)


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), StopIteration(), KeyboardInterrupt()])
def test_whatever_the_model_raises_is_its_failure_and_ends_nothing(error):
    def fail(_):
        raise error

    with pytest.raises(InferenceError, match=type(error).__name__) as caught:
        infer(fail)
    assert caught.value.__cause__ is error


def test_a_request_error_of_the_model_is_the_clients():
    def refuse(_):
        raise RequestError("too big", fix="scale it")

    with pytest.raises(RequestError, match="too big"):
        infer(refuse)


def test_what_is_cancelled_while_it_waits_is_never_computed():
    calls, free = [], threading.Event()

    def slow(inputs):
        calls.append(1)
        free.wait(5)
        return {"y": inputs["x"][:, 0]}

    async def scenario():
        engine = Engine(Model(slow), threads=1)
        first = asyncio.ensure_future(infer_one(engine, ONE, rows=3))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(infer_one(engine, ONE, rows=3), 0.05)
        free.set()
        await first
        await infer_one(engine, ONE, rows=3)

    asyncio.run(scenario())
    assert len(calls) == 2
