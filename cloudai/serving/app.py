"""The model server's HTTP face: the Open Inference Protocol v2 over REST, metrics, and the flush of kept samples."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cloudai import __version__
from cloudai.display import nearest
from cloudai.errors import DataError, RequestError
from cloudai.serving import binary, openapi, page, protocol
from cloudai.serving.asgi import PROTOBUF, Application, Asked, Call, Exchange, ExpressLane, Headers, HttpError, json_bytes
from cloudai.serving.faces import Face
from cloudai.serving.metrics import ServerMetrics, exposition
from cloudai.serving.service import ModelService, Place
from cloudai.serving.shadow import HEADER as SHADOW

__all__ = ["Handler", "Inference", "ModelApplication", "show_page"]

Handler = Callable[[Exchange], Awaitable[None]]
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
    needs_token : bool
        Whether that asks for a token; the description of the interface says so.
    faces : sequence of Face
        What it speaks beside the Open Inference Protocol.
    """

    def __init__(
        self,
        services: Sequence[ModelService],
        *,
        check: Callable[[Asked], None],
        needs_token: bool,
        faces: Sequence[Face] = (),
    ) -> None:
        super().__init__(check=check)
        self.needs_token = needs_token
        self._services = tuple(services)
        self._metrics = ServerMetrics(service.metrics for service in services)
        self._express: dict[bytes, Callable[[Call], Inference]] = {}
        self._routes = self._table()
        self._faces = tuple(faces)
        for face in self._faces:
            self._metrics.registry.register(face.registry)
            self._routes |= {path: (method, self._taken(handler)) for path, (method, handler) in face.routes().items()}

    @property
    def in_flight(self) -> int:
        """How many requests are being worked on."""
        return sum(service.in_flight for service in self._services)

    @property
    def express(self) -> ExpressLane:
        """Predictions."""
        return self._express

    async def start(self) -> None:
        """Start the faces; the models are in memory already."""
        for face in self._faces:
            await face.start()

    def abandon(self) -> None:
        """Refuse what is still being worked on: the time to end is over."""
        for service in self._services:
            service.abandon()

    async def stop(self) -> None:
        """End the faces, and write the last samples."""
        for face in self._faces:
            await face.close()
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
            "/docs": ("GET", show_page),
            "/openapi.json": ("GET", self._openapi),
            "/internal/flush": ("POST", self._flush),
        }
        for service in reversed(self._services):
            model = _ModelFace(self, service)
            versions = [other.version for other in self._services if other.name == service.name]
            for path in (f"/v2/models/{service.name}", f"/v2/models/{service.name}/versions/{service.version}"):
                routes[path] = ("GET", model.describer(versions))
                routes[f"{path}/ready"] = ("GET", self._ready)
                routes[f"{path}/infer"] = ("POST", model.infer)
                self._express[f"{path}/infer".encode()] = model.open
        return routes

    def _taken(self, handler: Handler) -> Handler:
        async def answer(exchange: Exchange) -> None:
            self.check_accepting()
            await handler(exchange)

        return answer

    def _unknown(self, path: str) -> HttpError:
        here = ", ".join(f"{service.name} {service.version}" for service in self._services)
        if path.startswith("/v2/models/"):
            models = [route for route in self._routes if route.startswith("/v2/models/")]
            return HttpError(404, f"there is no model at {path[:200]}; here is {here}", fix=nearest(path[:200], models))
        faces = [route for route in self._routes if route.startswith("/v1/")]
        fix = nearest(path[:200], faces) if faces and path.startswith("/v1/") else "the protocol begins at /v2"
        return HttpError(404, f"there is nothing at {path[:200]}", fix=fix)

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

    async def _openapi(self, exchange: Exchange) -> None:
        models = [(service.name, service.version, service.signature, service.example) for service in self._services]
        await exchange.reply(200, json_bytes(openapi.document(models, needs_token=self.needs_token)))

    async def _flush(self, exchange: Exchange) -> None:
        for service in self._services:
            await service.flush_samples()
        await exchange.reply(200, b"{}")


async def show_page(exchange: Exchange) -> None:
    """Answer the page on which a person can try a model."""
    await exchange.reply(200, page.PAGE, kind="text/html; charset=utf-8", headers=page.PAGE_HEADERS)


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

    def open(self, call: Call) -> Inference:
        """Take a prediction on.

        Raises
        ------
        HttpError
            If that is refused already.
        """
        self._application.check_accepting()
        return Inference(self._service, call)

    async def infer(self, exchange: Exchange) -> None:
        """Answer a prediction that did not come on the express lane."""
        call = _AsgiCall(exchange)
        inference = self.open(call)
        reading = asyncio.create_task(exchange.read(inference.max_body))
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())  # also where nobody waits any more
        try:
            await asyncio.wait((reading, call.answer), return_when=asyncio.FIRST_COMPLETED)
            if not call.answer.done():
                inference.begin(await reading)
            status, body, kind, headers = await call.answer
        except HttpError as error:
            inference.refuse(error)
            raise
        finally:
            reading.cancel()
            inference.lost()  # nothing, where it has been answered
        await exchange.reply(status, body, kind=kind, headers=headers)


class Inference:
    """One prediction, from its head to its answer.

    Parameters
    ----------
    service : ModelService
        The model.
    call : Call
        The request.

    Raises
    ------
    HttpError
        If it is refused by what its head says, or for overload.
    """

    __slots__ = ("_call", "_codec", "_header_length", "_place", "_request", "_service", "max_body")

    def __init__(self, service: ModelService, call: Call) -> None:
        self._service, self._call = service, call
        limits = service.limits
        self.max_body = limits.max_body
        as_message = call.header(b"content-type") == PROTOBUF
        self._codec = service.grpc_codec if as_message else service.codec
        try:
            self._header_length = None if as_message else _header_length(call)
            seconds = call.seconds(limits.timeout)
            call.check_length(limits.max_body)
        except HttpError as error:
            service.refused(error)
            raise
        self._place = service.admit(asyncio.get_running_loop().time() + seconds, self._answer)

    def begin(self, body: bytes) -> None:
        """Have the request computed: its body is whole."""
        try:
            self._request = self._codec.decode(body, self._header_length)
        except RequestError as error:
            self._place.refuse(HttpError(400, error.what, fix=error.fix))
        else:
            self._call.notes = {**self._service.about, "rows": self._request.rows}
            self._place.ask(self._request, self._call.id, keep=self._call.header(SHADOW) is None)

    def refuse(self, error: HttpError) -> None:
        """End with this error."""
        self._place.refuse(error)

    def lost(self) -> None:
        """Give up: the client went away."""
        self._place.leave()

    def _answer(self, place: Place) -> None:
        if place.error is not None:
            self._call.refuse(place.error)
            return
        assert place.outputs is not None
        try:
            pieces, head = self._codec.encode(place.outputs, self._request)
        except DataError as error:
            failure = self._service.failure(self._call.id, error)
            self._service.refused(failure)
            self._call.refuse(failure)
            return
        self._service.metrics.answered(time.perf_counter() - self._call.begun, self._request.rows)
        if head is None:
            self._call.finish(200, pieces, kind=self._codec.kind)
        else:
            self._call.finish(200, pieces, kind=_OCTETS, headers=[(binary.HEADER, b"%d" % head)])


class _AsgiCall(Call):
    """A call whose answer goes the way of ASGI."""

    __slots__ = ("answer",)

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange.path, exchange.headers)
        self.url = exchange.path.encode()
        self.id, self.begun = exchange.id, exchange.begun
        self.answer: asyncio.Future[tuple[int, bytes, str, Headers]] = asyncio.get_running_loop().create_future()

    def finish(self, status: int, body: Sequence[bytes | memoryview], *, kind: bytes, headers: Headers = ()) -> None:
        """Hand the answer to who waits for it."""
        if not self.answer.done():
            self.answer.set_result((status, b"".join(body), kind.decode("latin-1"), headers))


def _header_length(asked: Asked) -> int | None:
    """Return how long the JSON of the body is, where tensors follow it as bytes; refuse other kinds of bodies."""
    kind = (asked.header(b"content-type") or _JSON).split(b";")[0].strip().lower()
    coding = (asked.header(b"content-encoding") or b"identity").strip().lower()
    length = asked.header(binary.HEADER)
    if coding != b"identity" or (kind != _JSON and not (kind == _OCTETS and length is not None)):
        given = kind.decode("latin-1") if coding == b"identity" else f"content-encoding {coding.decode('latin-1')}"
        raise HttpError(415, f"the body is {given[:80]}", fix="send plain JSON with -H 'content-type: application/json'")
    if length is None:
        return None
    if not length.isdigit() or len(length) > 12:
        raise HttpError(400, "Inference-Header-Content-Length is no length", fix="send how many bytes of the body are JSON")
    return int(length)
