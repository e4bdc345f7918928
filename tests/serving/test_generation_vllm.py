"""What our side of vLLM does with what vLLM gives; vLLM itself needs a GPU, and is asked here only for its interface."""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace

import pytest

from cloudai.serving.generation import EngineBusyError, Order, Sampling
from cloudai.serving.generation_vllm import VllmEngine
from tests.serving import writers


class Watcher:
    def __init__(self):
        self.seen = []

    def first(self, seconds, prompt_tokens):
        self.seen.append(("first", prompt_tokens))

    def wrote(self, tokens):
        self.seen.append(("wrote", tokens))

    def ended(self, finish):
        self.seen.append(("ended", finish))


class Outputs:
    """Stands in for vLLM's engine: it gives what the test says, in the shape of its ``RequestOutput`` (as of vLLM 0.32)."""

    def __init__(self, *parts):
        self.parts, self.asked, self.closed = parts, [], asyncio.Event()

    async def generate(self, prompt, sampling_params, request_id):
        self.asked.append((prompt, sampling_params))
        try:
            for tokens, finish in self.parts:
                if tokens is None:
                    await asyncio.Event().wait()
                if finish == "broken":
                    raise RuntimeError("the engine is dead")
                logprobs = [{token: SimpleNamespace(logprob=-0.5), 9: SimpleNamespace(logprob=-0.1)} for token in tokens]
                output = SimpleNamespace(token_ids=tokens, finish_reason=finish, logprobs=logprobs)
                yield SimpleNamespace(outputs=[output])
        finally:
            self.closed.set()


def engine_with(outputs, watcher, most=4):
    engine = VllmEngine(writers.writer(), decode=writers.tokenizer().decode, ends=frozenset({0}), watcher=watcher, most=most)
    engine._engine = outputs
    engine._vllm = SimpleNamespace(
        TokensPrompt=lambda prompt_token_ids: prompt_token_ids,
        SamplingParams=lambda **options: options,
        sampling_params=SimpleNamespace(RequestOutputKind=SimpleNamespace(DELTA="delta")),
    )
    return engine


def tokens_of(text):
    return writers.tokenizer()(text)["input_ids"]


def follow(outputs, watcher, count=None, **options):
    """Return the pieces of a text; after `count` of them it is cancelled."""

    async def main():
        pieces, done = [], asyncio.Event()

        def take(piece):
            pieces.append(piece)
            if piece.finish or len(pieces) == count:
                done.set()

        engine = engine_with(outputs, watcher)
        text = engine.write(Order(tokens_of("abc"), Sampling(**{"max_tokens": 20} | options)), take)
        await asyncio.wait_for(done.wait(), 10)
        text.cancel()
        await asyncio.wait_for(outputs.closed.wait(), 10)
        await asyncio.wait([text.task])
        assert (engine.running, engine.waiting) == (0, 0)
        return pieces

    return asyncio.run(main())


def test_tokens_become_texts_and_its_reasons_ours():
    watcher = Watcher()
    outputs = Outputs((tokens_of("hé")[:2], None), ([*tokens_of("hé")[2:], 0], "stop"))
    pieces = follow(outputs, watcher, likelihoods=1, seed=3)
    assert [(piece.text, piece.tokens, piece.finish) for piece in pieces] == [("h", 2, None), ("é", 2, "stop")]
    assert pieces[0].likelihoods[0].best == ((9, -0.1),)
    assert watcher.seen == [("first", 3), ("wrote", 2), ("wrote", 2), ("ended", "stop")]
    prompt, asked = outputs.asked[0]
    assert prompt == tokens_of("abc")
    assert (asked["max_tokens"], asked["logprobs"], asked["detokenize"]) == (20, 1, False)
    assert [piece.finish for piece in follow(Outputs((tokens_of("ab"), "length")), Watcher())] == ["length"]


def test_a_stop_string_has_vllm_drop_the_text():
    watcher = Watcher()
    pieces = follow(Outputs((tokens_of("one END two"), None), (None, None)), watcher, stop=("END",))
    assert [(piece.text, piece.finish) for piece in pieces] == [("one ", "stop")]
    assert watcher.seen[-1] == ("ended", "stop")


def test_whoever_cancels_has_vllm_drop_the_text():
    watcher = Watcher()
    follow(Outputs((tokens_of("ab"), None), (None, None)), watcher, count=1)
    assert watcher.seen[-1] == ("ended", "cancelled")


def test_a_dead_engine_ends_the_text():
    watcher = Watcher()
    assert [piece.finish for piece in follow(Outputs(([], "broken")), watcher)] == ["error"]
    assert watcher.seen[-1] == ("ended", "error")


def test_more_texts_than_places_are_refused():
    async def main():
        engine = engine_with(Outputs((None, None)), Watcher(), most=1)
        text = engine.write(Order([1], Sampling(max_tokens=1)), lambda piece: None)
        with pytest.raises(EngineBusyError):
            engine.write(Order([1], Sampling(max_tokens=1)), lambda piece: None)
        text.cancel()
        await asyncio.wait([text.task])
        assert engine.waiting == 0

    asyncio.run(main())


def test_vllm_has_the_interface_that_is_used():
    vllm = pytest.importorskip("vllm")
    generate = inspect.signature(vllm.AsyncLLMEngine.generate).parameters
    assert list(generate)[1:4] == ["prompt", "sampling_params", "request_id"]
    assert {"model", "max_model_len", "disable_log_stats"} <= set(inspect.signature(vllm.AsyncEngineArgs).parameters)
    vllm.SamplingParams(max_tokens=1, detokenize=False, stop_token_ids=[0], logprobs=1, seed=1)
    assert vllm.sampling_params.RequestOutputKind.DELTA
