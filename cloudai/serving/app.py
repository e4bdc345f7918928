"""The model server's HTTP face: the Open Inference Protocol v2 over REST, metrics, and the flush of kept samples."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from cloudai import __version__
from cloudai.display import nearest
from cloudai.errors import DataError, RequestError, SpecError
from cloudai.serving import protocol
from cloudai.serving.asgi import Application, Exchange, HttpError, LostClientError, json_bytes
from cloudai.serving.engine import Engine, InferenceError, Servable
from cloudai.serving.metrics import ServerMetrics, exposition
from cloudai.serving.samples import SampleLog
from cloudai.specs.serving import ServerLimits

__all__ = ["ModelApplication"]

_REASONS = {408: "timeout", 429: "overloaded", 500: "model", 503: "draining", 504: "timeout"}
_logger = logging.getLogger(__name__)
T = TypeVar("T")


class ModelApplication(Application):
    """Serves one version of one model.

    Parameters
    ----------
    servable : Servable
        The model.
    name : str
        Its name in URLs and metrics.
    limits : ServerLimits
        What is taken on; more is refused at once.
    threads : int
        How many requests are computed at the same time.
    instance : str
        The metrics' label ``instance``.
    open_samples : callable
        Makes the log of sampled rows from the function that counts dropped ones.
    check : callable
        Refuses a request that may not be answered.

    Raises
    ------
    SpecError
        If the signature cannot be served: a dtype that the protocol does not know, or an array without a batch axis.
    """

    def __init__(
        self,
        servable: Servable,
        *,
        name: str,
        limits: ServerLimits,
        threads: int,
        instance: str,
        open_samples: Callable[[Callable[[int], None]], SampleLog],
        check: Callable[[Exchange], None],
    ) -> None:
        super().__init__(max_in_flight=limits.max_in_flight, check=check)
        _check_servable(servable)
        self._model, self._name, self._limits = servable, name, limits
        self._engine = Engine(servable, threads=threads)
        self._metrics = ServerMetrics(
            model_name=name, version=servable.version, instance=instance, in_flight=lambda: self.in_flight
        )
        self._samples = open_samples(self._metrics.dropped)
        self._routes = self._table()

    async def start(self) -> None:
        """Nothing to do: the model is in memory already."""

    async def stop(self) -> None:
        """Write the last samples."""
        self._engine.close()
        await asyncio.to_thread(self._samples.close)

    def describe(self) -> dict[str, Any]:
        """Name the model."""
        return {"ready": not self.draining, "model": self._name, "version": self._model.version}

    async def answer(self, exchange: Exchange) -> None:
        """Find the handler by path, then by method."""
        route = self._routes.get(exchange.path)
        if route is None:
            raise self._unknown(exchange.path)
        method, handler = route
        if exchange.method != method:
            raise HttpError(
                405, f"{exchange.path} takes {method} only", fix=f"use {method}", headers=[(b"allow", method.encode())]
            )
        await handler(exchange)

    def _table(self) -> dict[str, tuple[str, Callable[[Exchange], Awaitable[None]]]]:
        routes: dict[str, tuple[str, Callable[[Exchange], Awaitable[None]]]] = {
            "/v2": ("GET", self._server),
            "/v2/health/live": ("GET", self._live),
            "/v2/health/ready": ("GET", self._ready),
            "/metrics": ("GET", self._show_metrics),
            "/internal/flush": ("POST", self._flush),
        }
        for path in (f"/v2/models/{self._name}", f"/v2/models/{self._name}/versions/{self._model.version}"):
            routes[path] = ("GET", self._describe_model)
            routes[f"{path}/ready"] = ("GET", self._ready)
            routes[f"{path}/infer"] = ("POST", self._infer)
        return routes

    def _unknown(self, path: str) -> HttpError:
        here = f"{self._name} {self._model.version}"
        if path.startswith("/v2/models/"):
            models = [route for route in self._routes if route.startswith("/v2/models/")]
            return HttpError(404, f"there is no model at {path[:200]}; here is {here}", fix=nearest(path[:200], models))
        return HttpError(404, f"there is nothing at {path[:200]}", fix="the protocol begins at /v2")

    async def _server(self, exchange: Exchange) -> None:
        about = {"name": "cloudai", "version": __version__, "extensions": []}
        await exchange.reply(200, json_bytes(about))

    async def _live(self, exchange: Exchange) -> None:
        await exchange.reply(200, json_bytes({"live": True}))

    async def _ready(self, exchange: Exchange) -> None:
        """Answer both words: the specification's text says ``ready``, its JSON says ``live``."""
        ready = not self.draining
        body = {"name": self._name, "ready": ready, "live": True}
        await exchange.reply(200 if ready else 503, json_bytes(body))

    async def _describe_model(self, exchange: Exchange) -> None:
        about = protocol.model_metadata(self._name, self._model.version, self._model.signature)
        await exchange.reply(200, json_bytes(about))

    async def _show_metrics(self, exchange: Exchange) -> None:
        text, kind = exposition(self._metrics.registry, (exchange.header(b"accept") or b"").decode("latin-1"))
        await exchange.reply(200, text, kind=kind)

    async def _flush(self, exchange: Exchange) -> None:
        try:
            await asyncio.to_thread(self._samples.flush)
        except OSError as error:
            raise HttpError(500, f"the samples cannot be written: {error.strerror}", fix="make room on the disk") from None
        await exchange.reply(200, b"{}")

    async def _infer(self, exchange: Exchange) -> None:
        begun = time.perf_counter()
        try:
            with self.admit():
                answer, rows = await self._predict(exchange)
                self._metrics.answered(time.perf_counter() - begun, rows)
                await exchange.reply(200, answer)
        except HttpError as error:
            self._metrics.failed(_REASONS.get(error.status, "invalid"))
            raise
        except LostClientError:
            self._metrics.failed("lost_client")
            raise

    async def _predict(self, exchange: Exchange) -> tuple[bytes, int]:
        """Read, compute and write one prediction within the time of one request."""
        _check_content(exchange)
        deadline = asyncio.get_running_loop().time() + self._limits.timeout
        body = await _within(deadline, exchange.read(self._limits.max_body), _too_slow)
        try:
            request = protocol.decode_request(body, self._model.signature)
            kept = self._samples.draw(request.inputs)
            outputs = await _within(deadline, self._engine.infer(request.inputs, rows=request.rows), self._too_late)
            answer = protocol.encode_response(
                self._name, self._model.version, outputs, asked=request.outputs, request_id=request.id
            )
        except RequestError as error:
            raise HttpError(400, error.what, fix=error.fix) from None
        except (InferenceError, DataError) as error:
            _logger.exception("request %s: the model failed", exchange.id, exc_info=error.__cause__ or error)
            raise HttpError(500, "the model failed", fix=f"look into the server's log for {exchange.id}") from None
        if kept is not None:
            self._samples.keep(exchange.id, kept, outputs, rows=request.rows)
        return answer, request.rows

    def _too_late(self) -> HttpError:
        seconds = self._limits.timeout
        return HttpError(504, f"the model did not answer within {seconds:g} s", fix="send fewer rows, or raise the timeout")


def _too_slow() -> HttpError:
    return HttpError(408, "the body did not arrive in time", fix="send it at once")


async def _within(deadline: float, work: Awaitable[T], error: Callable[[], HttpError]) -> T:
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError:
        raise error() from None


def _check_content(exchange: Exchange) -> None:
    kind = (exchange.header(b"content-type") or b"application/json").split(b";")[0].strip().lower()
    coding = (exchange.header(b"content-encoding") or b"identity").strip().lower()
    if kind != b"application/json" or coding != b"identity":
        given = kind.decode("latin-1") if coding == b"identity" else f"content-encoding {coding.decode('latin-1')}"
        raise HttpError(415, f"the body is {given[:80]}", fix="send plain JSON with -H 'content-type: application/json'")


def _check_servable(servable: Servable) -> None:
    signature = servable.signature
    if not signature.inputs or not signature.outputs:
        raise SpecError(f"the model {servable.name} has no inputs or no outputs", fix="give it a signature with both")
    for spec in (*signature.inputs, *signature.outputs):
        protocol.datatype(spec.dtype)
        if spec.shape[:1] != (-1,):
            raise SpecError(f"the model {servable.name} has {spec} without a batch axis", fix="let its first length be -1")
