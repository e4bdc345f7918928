"""OpenAI's chat completions and completions: requests in, texts out, whole or as they are written."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from cloudai.artifacts.servable import Servable
from cloudai.serving.asgi import Exchange, HttpError, LostClientError, json_bytes
from cloudai.serving.faces import Host, Routes
from cloudai.serving.generation import EngineBusyError, GenerationEngine, Piece, Sampling, Ticket
from cloudai.serving.openai_answers import DONE, Answer, ChatAnswer, CompletionAnswer, event
from cloudai.serving.openai_models import Models
from cloudai.serving.openai_prompts import Prompts
from cloudai.serving.openai_requests import ChatRequest, CompletionRequest

__all__ = ["WritingFace"]

_STREAM = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


@dataclass(frozen=True)
class _Order:
    """Texts to be written, and the answer that they become."""

    texts: Sequence[tuple[Sequence[int], Sampling, Sequence[int], int]]
    """Of each its prompt, how, what it goes on from, and which one of its prompt it is."""
    answer: Answer
    stream: bool
    tells_usage: bool


class WritingFace:
    """The paths of a model that writes texts.

    Parameters
    ----------
    engine : GenerationEngine
        Writes.
    prompts : Prompts
        Knows the model's tokens.
    """

    def __init__(self, host: Host, engine: GenerationEngine, prompts: Prompts) -> None:
        self._host, self._engine, self._prompts = host, engine, prompts
        self._models = Models(host)

    @classmethod
    def of(cls, servable: Servable, host: Host) -> WritingFace:
        """Make it for a model, with the engine that is there for it."""
        from cloudai.serving.generation_engines import engine_for

        prompts = Prompts(servable.model)  # type: ignore[attr-defined]
        return cls(host, engine_for(servable, host, prompts), prompts)

    def routes(self) -> Routes:
        """Return its paths."""
        return {
            **self._models.routes(),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._complete),
        }

    async def start(self) -> None:
        """Start the engine."""
        await self._engine.start()

    async def close(self) -> None:
        """End the engine."""
        await self._engine.close()

    async def _chat(self, exchange: Exchange) -> None:
        await self._answer(exchange, self._chat_order)

    async def _complete(self, exchange: Exchange) -> None:
        await self._answer(exchange, self._completion_order)

    async def _answer(self, exchange: Exchange, order_of: Callable[[bytes, str], _Order]) -> None:
        with self._host.admit():
            deadline = asyncio.get_running_loop().time() + self._host.limits.timeout
            body = await _within(deadline, exchange.read(self._host.limits.max_body))
            order = await asyncio.to_thread(order_of, body, exchange.id)  # a long prompt takes its time
            with self._written(exchange, order) as pieces:
                await (self._stream if order.stream else self._whole)(exchange, order, pieces, deadline)

    def _chat_order(self, body: bytes, identity: str) -> _Order:
        asked = ChatRequest.read(body)
        self._models.check(asked.model)
        prompt = self._prompts.of_chat([message.for_template() for message in asked.messages])
        sampling = asked.sampling(len(prompt), self._engine.context)
        answer = ChatAnswer(identity, asked.model, asked.n, len(prompt), self._prompts.word)
        texts = [(prompt, sampling, (), choice) for choice in range(asked.n)]
        return _Order(texts, answer, asked.stream, asked.tells_usage)

    def _completion_order(self, body: bytes, identity: str) -> _Order:
        asked = CompletionRequest.read(body)
        self._models.check(asked.model)
        given = asked.prompts
        prompts = [self._prompts.of_text(one) if isinstance(one, str) else self._prompts.of_tokens(one) for one in given]
        count, tokens = len(prompts) * asked.n, sum(map(len, prompts))
        texts = [
            (prompt, asked.sampling(len(prompt), self._engine.context), prompt, choice)
            for prompt in prompts
            for choice in range(asked.n)
        ]
        return _Order(texts, CompletionAnswer(identity, asked.model, count, tokens, self._prompts.word), asked.stream, asked.tells_usage)

    @contextlib.contextmanager
    def _written(self, exchange: Exchange, order: _Order) -> Iterator[_Pieces]:
        """Have the texts written while the context is open."""
        pieces, tickets = _Pieces(exchange), []
        try:
            for index, (prompt, sampling, opening, choice) in enumerate(order.texts):
                tickets.append(self._engine.write(prompt, sampling, pieces.taker(index), opening=opening, choice=choice))
            yield pieces
        except EngineBusyError as busy:
            raise _busy(busy) from None
        finally:
            pieces.close()
            _cancel(tickets)

    async def _whole(self, exchange: Exchange, order: _Order, pieces: _Pieces, deadline: float) -> None:
        while order.answer.unfinished:
            order.answer.add(*await _within(deadline, pieces.next(), self._too_late))
        await exchange.reply(200, json_bytes(order.answer.whole()))

    async def _stream(self, exchange: Exchange, order: _Order, pieces: _Pieces, deadline: float) -> None:
        """Send each piece as it comes; the head waits for the first one, so that what fails before has its own status."""
        index, piece = await _within(deadline, pieces.next(), self._too_late)
        await exchange.start(200, _STREAM)
        try:
            for part in order.answer.first_parts():
                await exchange.write(event(part), more=True)
            async for part in self._parts(order, index, piece, pieces):
                await exchange.write(event(part), more=True)
            await exchange.write(DONE, more=False)
        except HttpError as error:
            await exchange.write(event(error.for_openai()), more=False)
        except asyncio.CancelledError:
            ended = HttpError(503, "the server has ended", fix="send the request again")
            await exchange.write(event(ended.for_openai()), more=False)
            raise

    async def _parts(self, order: _Order, index: int, piece: Piece, pieces: _Pieces) -> AsyncIterator[dict]:
        answer, clock = order.answer, asyncio.get_running_loop()
        while True:
            answer.add(index, piece)
            if piece.text or piece.finish or piece.likelihoods:
                yield answer.part(index, piece, tells_usage=order.tells_usage)
            if not answer.unfinished:
                break
            silence = clock.time() + self._host.limits.timeout
            index, piece = await _within(silence, pieces.next(), self._too_late)
        if order.tells_usage:
            yield answer.usage_part()

    def _too_late(self) -> HttpError:
        seconds = self._host.limits.timeout
        fix = "stream the answer, ask for fewer tokens, or raise the timeout"
        return HttpError(504, f"the text was not written within {seconds:g} s", fix=fix)


class _Pieces:
    """The pieces of several texts in the order in which they come, as long as the client is there."""

    def __init__(self, exchange: Exchange) -> None:
        self._queue: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()
        self._gone = asyncio.create_task(exchange.gone())
        self._gone.add_done_callback(lambda _: self._queue.put_nowait(None))

    def taker(self, index: int) -> Callable[[Piece], None]:
        """Return what takes the pieces of one text."""
        return lambda piece: self._queue.put_nowait((index, piece))

    async def next(self) -> tuple[int, Piece]:
        """Return the next piece and its text's number.

        Raises
        ------
        LostClientError
            If the client has gone away.
        HttpError
            500 if the model has failed.
        """
        entry = await self._queue.get()
        if entry is None:
            raise LostClientError
        if entry[1].finish == "error":
            raise HttpError(500, "the model failed", fix="look into the server's log")
        return entry

    def close(self) -> None:
        """Stop to look whether the client is there."""
        self._gone.cancel()


def _cancel(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.cancel()


def _busy(busy: EngineBusyError) -> HttpError:
    seconds = math.ceil(busy.seconds)
    headers = [(b"retry-after", str(seconds).encode())]
    return HttpError(429, "too many texts wait already", fix=f"send the request again in {seconds} s", headers=headers)
