"""The model server's HTTP face: the Open Inference Protocol v2 over REST, metrics, and the flush of kept samples."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from cloudai import __version__
from cloudai.display import nearest
from cloudai.errors import DataError, RequestError
from cloudai.serving import binary, protocol
from cloudai.serving.asgi import Application, Exchange, HttpError, json_bytes
from cloudai.serving.metrics import ServerMetrics, exposition
from cloudai.serving.service import ModelService

__all__ = ["Handler", "ModelApplication"]

Handler = Callable[[Exchange], Awaitable[None]]
Routes = Mapping[str, tuple[str, Handler]]

_EXTENSIONS = ["binary_tensor_data"]
_JSON, _OCTETS = b"application/json", b"application/octet-stream"


class ModelApplication(Application):
    """Serves one or more models, or versions of one.

    Parameters
    ----------
    services : sequence of ModelService
        The models. Of several versions of one name, the first answers where no version is asked for.
    check : callable
        Refuses a request that may not be answered.
    more : sequence of mappings
        Further paths, with their method and handler.
    """

    def __init__(
        self, services: Sequence[ModelService], *, check: Callable[[Exchange], None], more: Sequence[Routes] = ()
    ) -> None:
        super().__init__(check=check)
        self._services = tuple(services)
        self._metrics = ServerMetrics(service.metrics for service in services)
        self._routes = self._table()
        for routes in more:
            self._routes |= routes

    @property
    def in_flight(self) -> int:
        """How many requests are being worked on."""
        return sum(service.in_flight for service in self._services)

    async def start(self) -> None:
        """Nothing to do: the models are in memory already."""

    async def stop(self) -> None:
        """Write the last samples."""
        for service in self._services:
            await service.stop()

    def describe(self) -> dict[str, Any]:
        """Name the first model."""
        first = self._services[0]
        return {"ready": not self.draining, "model": first.name, "version": first.version}

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

    def _table(self) -> dict[str, tuple[str, Handler]]:
        routes: dict[str, tuple[str, Handler]] = {
            "/v2": ("GET", self._server),
            "/v2/health/live": ("GET", self._live),
            "/v2/health/ready": ("GET", self._ready),
            "/metrics": ("GET", self._show_metrics),
            "/internal/flush": ("POST", self._flush),
        }
        for service in reversed(self._services):
            model = _ModelFace(self, service)
            versions = [other.version for other in self._services if other.name == service.name]
            for path in (f"/v2/models/{service.name}", f"/v2/models/{service.name}/versions/{service.version}"):
                routes[path] = ("GET", model.describer(versions))
                routes[f"{path}/ready"] = ("GET", self._ready)
                routes[f"{path}/infer"] = ("POST", model.infer)
        return routes

    def _unknown(self, path: str) -> HttpError:
        here = ", ".join(f"{service.name} {service.version}" for service in self._services)
        if path.startswith("/v2/models/"):
            models = [route for route in self._routes if route.startswith("/v2/models/")]
            return HttpError(404, f"there is no model at {path[:200]}; here is {here}", fix=nearest(path[:200], models))
        return HttpError(404, f"there is nothing at {path[:200]}", fix="the protocol begins at /v2")

    async def _server(self, exchange: Exchange) -> None:
        about = {"name": "cloudai", "version": __version__, "extensions": _EXTENSIONS}
        await exchange.reply(200, json_bytes(about))

    async def _live(self, exchange: Exchange) -> None:
        await exchange.reply(200, json_bytes({"live": True}))

    async def _ready(self, exchange: Exchange) -> None:
        """Answer both words: the specification's text says ``ready``, its JSON says ``live``."""
        ready = not self.draining
        body = {"name": self._services[0].name, "ready": ready, "live": True}
        await exchange.reply(200 if ready else 503, json_bytes(body))

    async def _show_metrics(self, exchange: Exchange) -> None:
        text, kind = exposition(self._metrics.registry, (exchange.header(b"accept") or b"").decode("latin-1"))
        await exchange.reply(200, text, kind=kind)

    async def _flush(self, exchange: Exchange) -> None:
        for service in self._services:
            await service.flush_samples()
        await exchange.reply(200, b"{}")


class _ModelFace:
    """What is asked of one model."""

    def __init__(self, application: Application, service: ModelService) -> None:
        self._application, self._service = application, service

    def describer(self, versions: list[str]) -> Handler:
        """Return the handler that describes the model."""
        about = protocol.model_metadata(self._service.name, versions, self._service.signature)

        async def describe(exchange: Exchange) -> None:
            await exchange.reply(200, json_bytes(about))

        return describe

    async def infer(self, exchange: Exchange) -> None:
        """Read, compute and write one prediction within the time of one request."""
        begun = time.perf_counter()
        self._application.check_accepting()
        service, limits = self._service, self._service.limits
        deadline = asyncio.get_running_loop().time() + limits.timeout
        try:
            with service.admitted(deadline):
                header_length = _header_length(exchange)
                body = await exchange.read(limits.max_body)
                try:
                    request = service.codec.decode(body, header_length)
                except RequestError as error:
                    raise HttpError(400, error.what, fix=error.fix) from None
                outputs = await service.predict(request, request_id=exchange.id)
                try:
                    pieces, head = service.codec.encode(outputs, request)
                except DataError as error:
                    raise service.failure(exchange.id, error) from None
                service.metrics.answered(time.perf_counter() - begun, request.rows)
                await _send(exchange, pieces, head)
        except HttpError as error:
            if error.status == 504 and not exchange.whole:
                raise HttpError(408, "the body did not arrive in time", fix="send it at once") from None
            raise


async def _send(exchange: Exchange, pieces: list[bytes | memoryview], head: int | None) -> None:
    if head is None:
        await exchange.reply(200, pieces[0])  # type: ignore[arg-type]  # the JSON is always bytes
    else:
        headers = [(binary.HEADER, str(head).encode())]
        await exchange.reply(200, b"".join(pieces), kind="application/octet-stream", headers=headers)


def _header_length(exchange: Exchange) -> int | None:
    """Return how long the JSON of the body is, where tensors follow it as bytes; refuse other kinds of bodies."""
    kind = (exchange.header(b"content-type") or _JSON).split(b";")[0].strip().lower()
    coding = (exchange.header(b"content-encoding") or b"identity").strip().lower()
    length = exchange.header(binary.HEADER)
    if coding != b"identity" or (kind != _JSON and not (kind == _OCTETS and length is not None)):
        given = kind.decode("latin-1") if coding == b"identity" else f"content-encoding {coding.decode('latin-1')}"
        raise HttpError(415, f"the body is {given[:80]}", fix="send plain JSON with -H 'content-type: application/json'")
    if length is None:
        return None
    if not length.isdigit() or len(length) > 12:
        raise HttpError(400, "Inference-Header-Content-Length is no length", fix="send how many bytes of the body are JSON")
    return int(length)
