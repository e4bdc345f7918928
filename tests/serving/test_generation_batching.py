from __future__ import annotations

import asyncio

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cloudai.serving.generation import EngineBusyError, Order, Sampling
from cloudai.serving.generation_batching import BatchingEngine
from cloudai.serving.generation_rows import RowDecoder, TurnDecoder, decoder_for
from tests.serving import writers

MODEL = writers.llama()
TOKENIZER = writers.tokenizer()
CONTEXT = 96


class Watcher:
    def __init__(self):
        self.firsts, self.tokens, self.ends = [], 0, []

    def first(self, seconds, prompt_tokens):
        self.firsts.append(prompt_tokens)

    def wrote(self, tokens):
        self.tokens += tokens

    def ended(self, finish):
        self.ends.append(finish)


class Writing:
    """A text that an engine writes, as it comes."""

    def __init__(self, engine, order):
        self.pieces, self.changed = [], asyncio.Event()
        self.ticket = engine.write(order, self._take)

    def _take(self, piece):
        self.pieces.append(piece)
        self.changed.set()

    @property
    def ended(self):
        return bool(self.pieces and self.pieces[-1].finish)

    async def until(self, condition):
        while not condition():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 30)

    async def begun(self):
        await self.until(lambda: self.pieces)
        return self

    async def done(self):
        await self.until(lambda: self.ended)
        return "".join(piece.text for piece in self.pieces), self.pieces[-1].finish


def with_engine(work, decoder=None, **options):
    """Run `work(engine)` in an event loop with a running engine."""

    async def main():
        given = {"decode": TOKENIZER.decode, "ends": frozenset({0}), "context": CONTEXT, "watcher": Watcher(), **options}
        engine = BatchingEngine(decoder or decoder_for(MODEL, capacity=CONTEXT), **given)
        await engine.start()
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(main())


def order(prompt="abc", **options):
    tokens = TOKENIZER(prompt)["input_ids"] if isinstance(prompt, str) else prompt
    return Order(tokens, Sampling(**{"max_tokens": 12, "temperature": 0} | options))


ORDERS = st.builds(
    order,
    st.lists(st.integers(1, 256), min_size=1, max_size=40),
    max_tokens=st.integers(1, 24),
    temperature=st.sampled_from([0, 0, 0.7, 1.5]),
    top_p=st.sampled_from([1.0, 0.8]),
    seed=st.integers(0, 5),
    stop=st.sampled_from([(), ("a",), ("e", "\ufffd")]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
)


@settings(max_examples=5, deadline=None, phases=[Phase.generate])
@given(st.lists(st.tuples(ORDERS, st.integers(0, 6)), min_size=2, max_size=5))
def test_a_text_is_the_same_alone_and_in_any_company(asked):
    async def alone(engine):
        return [await Writing(engine, one).done() for one, _ in asked]

    async def together(engine):
        texts = []
        for one, pause in asked:  # the next one comes when the last one has so many pieces
            texts.append(Writing(engine, one))
            await texts[-1].until(lambda text=texts[-1], n=pause: len(text.pieces) >= n or text.ended)
        return [await text.done() for text in texts]

    expected = with_engine(alone)
    assert with_engine(together, most_running=4, most_waiting=8) == expected
    assert with_engine(together, decoder=TurnDecoder(MODEL)) == expected


def test_greedy_texts_are_those_of_generate_and_prompts_are_read_in_parts(monkeypatch):
    monkeypatch.setattr("cloudai.serving.generation_batching._PROMPT_TOKENS", 8)
    prompts = [[50 + n] * (1 + 7 * n) for n in range(5)]

    async def work(engine):
        texts = [Writing(engine, order(prompt, max_tokens=20)) for prompt in prompts]
        return [(await text.done())[0] for text in texts]

    for prompt, text in zip(prompts, with_engine(work), strict=True):
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 0}
        whole = MODEL.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :]
        assert text == TOKENIZER.decode(whole, skip_special_tokens=True)


def test_pieces_come_as_they_are_written_and_are_counted():
    watcher = Watcher()

    async def work(engine):
        text = Writing(engine, order(max_tokens=9))
        await text.done()
        assert [piece.tokens for piece in text.pieces] == [1] * 9
        assert [piece.finish for piece in text.pieces] == [None] * 8 + ["length"]

    with_engine(work, watcher=watcher, ends=frozenset())
    assert (watcher.firsts, watcher.tokens, watcher.ends) == ([3], 9, ["length"])


def test_a_cancelled_text_gives_its_place_to_the_next_one():
    watcher = Watcher()

    async def work(engine):
        long = await Writing(engine, order(max_tokens=80)).begun()
        waits, gone = Writing(engine, order()), Writing(engine, order("gone"))
        assert (engine.running, engine.waiting) == (1, 2)
        gone.ticket.cancel()
        long.ticket.cancel()
        many = len(long.pieces)
        await waits.done()
        assert len(long.pieces) == many
        assert gone.pieces == []
        assert (engine.running, engine.waiting) == (0, 0)

    with_engine(work, watcher=watcher, most_running=1, ends=frozenset())
    assert sorted(watcher.ends) == ["cancelled", "cancelled", "length"]


def test_what_would_wait_too_long_is_refused_at_once():
    async def work(engine):
        running = await Writing(engine, order(max_tokens=80)).begun()
        Writing(engine, order())
        with pytest.raises(EngineBusyError) as refused:
            Writing(engine, order())
        running.ticket.cancel()
        return refused.value.seconds

    assert with_engine(work, most_running=1, most_waiting=1, ends=frozenset()) >= 1

    async def impatient(engine):
        await Writing(engine, order(max_tokens=80)).done()  # shows how long a text holds a place
        assert engine._seconds > 0
        running = await Writing(engine, order(max_tokens=80)).begun()
        with pytest.raises(EngineBusyError):
            Writing(engine, order())
        running.ticket.cancel()

    with_engine(impatient, most_running=1, patience=1e-9, ends=frozenset())


def test_texts_wait_where_memory_would_not_hold_them_all():
    decoder = decoder_for(MODEL, capacity=CONTEXT)
    seen = []

    async def work(engine):
        texts = [Writing(engine, order(max_tokens=29)) for _ in range(6)]
        for text in texts:
            while not text.ended:
                await asyncio.wait_for(text.changed.wait(), 30)
                text.changed.clear()
                seen.append(engine.running)

    with_engine(work, decoder, memory=100 * decoder.token_bytes, ends=frozenset())  # 32 tokens each: three of them
    assert max(seen) == 3


class Breaking(RowDecoder):
    """Fails on a token."""

    def step(self, rows, tokens, starts):
        if any(7 in part for part in tokens):
            raise RuntimeError("no memory")
        return super().step(rows, tokens, starts)


def test_a_failure_ends_the_texts_that_it_met_and_no_others():
    watcher = Watcher()

    async def work(engine):
        before = await Writing(engine, order(max_tokens=60)).begun()
        failed = Writing(engine, order([7]))
        assert (await failed.done())[1] == "error"
        assert (await before.done())[1] == "error"
        return await Writing(engine, order()).done()

    expected = with_engine(lambda engine: Writing(engine, order()).done(), ends=frozenset())
    decoder = Breaking(MODEL, capacity=CONTEXT)
    assert with_engine(work, decoder, watcher=watcher, memory=10**9, ends=frozenset()) == expected
    assert watcher.ends == ["error", "error", "length"]


def test_the_end_drops_what_is_unfinished():
    async def work(engine):
        text = await Writing(engine, order(max_tokens=90)).begun()
        await engine.close()
        count = len(text.pieces)
        await asyncio.sleep(0)
        assert not engine._thread.is_alive()
        assert len(text.pieces) <= count + 1
        assert text.pieces[-1].finish is None

    with_engine(work, ends=frozenset())
