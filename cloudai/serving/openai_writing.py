"""OpenAI's chat completions and completions: requests in, texts out, whole or as they are written."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from cloudai.artifacts.text_models import TextModel
from cloudai.serving.asgi import Exchange, HttpError, json_bytes
from cloudai.serving.faces import Routes
from cloudai.serving.generation import EngineBusyError, GenerationEngine, Order, Piece
from cloudai.serving.generation_metrics import GenerationMetrics
from cloudai.serving.openai_answers import DONE, Answer, ChatAnswer, CompletionAnswer, event
from cloudai.serving.openai_models import Models
from cloudai.serving.openai_places import Seat
from cloudai.serving.openai_prompts import Prompts
from cloudai.serving.openai_requests import ChatRequest, CompletionRequest
from cloudai.serving.service import ModelService

__all__ = ["WritingFace"]

_STREAM = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
_CUT = HttpError(503, "the text was cut off: the server has ended, or it took too long", fix="send the request again")


@dataclass(frozen=True)
class _Asked:
    """Texts to be written, and the answer that they become."""

    orders: Sequence[Order]
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
    registry : CollectorRegistry
        What the engine counts.
    """

    def __init__(self, service: ModelService, engine: GenerationEngine, prompts: Prompts, registry: CollectorRegistry) -> None:
        self._service, self._engine, self._prompts, self.registry = service, engine, prompts, registry
        self._models = Models(service.name, service.version)

    @classmethod
    def of(cls, model: TextModel, service: ModelService) -> WritingFace:
        """Make it for a model, with the engine that is there for it."""
        from cloudai.serving.generation_engines import engine_for

        prompts, metrics = Prompts(model), GenerationMetrics(service.metrics.labels)
        engine = engine_for(model, prompts.text, metrics, service.limits)
        metrics.watch(engine)
        return cls(service, engine, prompts, metrics.registry)

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
        await self._answer(exchange, self._asked_chat)

    async def _complete(self, exchange: Exchange) -> None:
        await self._answer(exchange, self._asked_completion)

    async def _answer(self, exchange: Exchange, read: Callable[[bytes, str], _Asked]) -> None:
        begun, limits = time.perf_counter(), self._service.limits
        try:
            with Seat.taken(self._service) as seat:
                body = await exchange.read(limits.max_body)
                seat.place.request_id = exchange.id
                asked = await asyncio.to_thread(read, body, exchange.id)  # long prompts take their time
                async with exchange.attended():
                    with self._written(asked.orders) as pieces:
                        await (self._stream if asked.stream else self._whole)(exchange, asked, pieces, seat)
                exchange.notes = {**self._service.about, "rows": len(asked.orders), **asked.answer.usage}
                self._service.metrics.answered(time.perf_counter() - begun, len(asked.orders))
        except HttpError as error:
            raise _too_late(limits.timeout) if error.status == 504 else error from None

    def _asked_chat(self, body: bytes, identity: str) -> _Asked:
        asked = ChatRequest.read(body)
        self._models.check(asked.model)
        prompt = self._prompts.of_chat([message.for_template() for message in asked.messages])
        sampling = asked.sampling(len(prompt), self._engine.context)
        orders = [Order(prompt, sampling, choice=choice) for choice in range(asked.n)]
        answer = ChatAnswer(identity, asked.model, len(orders), len(prompt), self._prompts.word)
        return _Asked(orders, answer, asked.stream, asked.tells_usage)

    def _asked_completion(self, body: bytes, identity: str) -> _Asked:
        asked = CompletionRequest.read(body)
        self._models.check(asked.model)
        prompts = [
            self._prompts.of_text(prompt) if isinstance(prompt, str) else self._prompts.of_tokens(prompt)
            for prompt in asked.prompts
        ]
        orders = [
            Order(prompt, asked.sampling(len(prompt), self._engine.context), opening=prompt, choice=choice)
            for prompt in prompts
            for choice in range(asked.n)
        ]
        answer = CompletionAnswer(identity, asked.model, len(orders), sum(map(len, prompts)), self._prompts.word)
        return _Asked(orders, answer, asked.stream, asked.tells_usage)

    @contextlib.contextmanager
    def _written(self, orders: Sequence[Order]) -> Iterator[_Pieces]:
        """Have texts written while the context is open."""
        pieces, tickets = _Pieces(), []
        try:
            for index, order in enumerate(orders):
                tickets.append(self._engine.write(order, pieces.taker(index)))
            yield pieces
        except EngineBusyError as busy:
            raise _overloaded(busy) from None
        finally:
            for ticket in tickets:
                ticket.cancel()

    async def _whole(self, exchange: Exchange, asked: _Asked, pieces: _Pieces, seat: Seat) -> None:
        while asked.answer.unfinished:
            asked.answer.add(*await pieces.next())
        await exchange.reply(200, json_bytes(asked.answer.whole()))

    async def _stream(self, exchange: Exchange, asked: _Asked, pieces: _Pieces, seat: Seat) -> None:
        """Send each piece as it comes; the head waits for the first one, so that what fails before has its own status."""
        answer = asked.answer
        index, piece = await pieces.next()
        await exchange.start(200, _STREAM)
        try:
            await exchange.write(b"".join(map(event, answer.first_parts())), more=True)
            while True:
                seat.postpone()
                answer.add(index, piece)
                if piece.text or piece.finish or piece.likelihoods:
                    await exchange.write(event(answer.part(index, piece, tells_usage=asked.tells_usage)), more=True)
                if not answer.unfinished:
                    break
                index, piece = await pieces.next()
            usage = event(answer.usage_part()) if asked.tells_usage else b""
            await exchange.write(usage + DONE, more=False)
        except HttpError as error:
            await exchange.write(event(error.for_openai()), more=False)
            raise
        except asyncio.CancelledError:
            await exchange.write(event(_CUT.for_openai()), more=False)
            raise


class _Pieces:
    """The pieces of several texts in the order in which they come."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

    def taker(self, index: int) -> Callable[[Piece], None]:
        """Return what takes the pieces of one text."""
        return lambda piece: self._queue.put_nowait((index, piece))

    async def next(self) -> tuple[int, Piece]:
        """Return the next piece and its text's number.

        Raises
        ------
        HttpError
            500 if the model has failed.
        """
        index, piece = await self._queue.get()
        if piece.finish == "error":
            raise HttpError(500, "the model failed", fix="look into the server's log")
        return index, piece


def _overloaded(busy: EngineBusyError) -> HttpError:
    seconds = math.ceil(busy.seconds)
    headers = [(b"retry-after", str(seconds).encode())]
    return HttpError(429, "too many texts wait already", fix="send the request again a little later", headers=headers)


def _too_late(seconds: float) -> HttpError:
    fix = "stream the answer, ask for fewer tokens, or raise the timeout"
    return HttpError(504, f"the text was not written within {seconds:g} s", fix=fix)
