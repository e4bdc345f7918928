"""What a gRPC call asks of the HTTP application in the same process, and how it says the answer.

So a call meets the same check of its token, the same admission, deadline, routing and counts as a request over HTTP, and is
refused for the same reasons in the same words. Of a ``ModelInferRequest`` only the model's name is read: the application sees
``POST …/infer`` with the message as its body, and a router passes that on to a revision, which speaks HTTP only.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from grpc import StatusCode

from cloudai.serving import asgi
from cloudai.serving import grpc_messages as messages
from cloudai.serving.asgi import PROTOBUF, TIMEOUT, Application, Express, Headers, HttpError
from cloudai.serving.grpc_codec import parsed

__all__ = ["HEALTH", "METHODS", "SECURED", "STREAM", "Call", "Method", "RefusedError", "infer", "may_ask"]

SECURED = "/v2"
"""A path that is answered to whoever may ask for more than health."""

SERVICE = "inference.GRPCInferenceService"
_DROPPED = {"host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection", "expect"}
"""Metadata that would say something of an HTTP request that it knows nothing of."""
_RETURNED = (b"x-request-id", b"x-cloudai-revision", b"retry-after")
_CODES: Mapping[int, StatusCode] = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    408: StatusCode.DEADLINE_EXCEEDED,
    413: StatusCode.RESOURCE_EXHAUSTED,
    429: StatusCode.RESOURCE_EXHAUSTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}


@dataclass
class _Answer:
    """What the application answered."""

    status: int = 500
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple((name.decode(), value.decode("latin-1")) for name, value in self.headers if name in _RETURNED)


class RefusedError(Exception):
    """The call is refused, with a status and metadata of gRPC's."""

    def __init__(self, status: int, what: str, fix: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(f"{what}\nFix: {fix}")
        self.code = _CODES.get(status, StatusCode.INTERNAL)
        self.metadata = metadata


class Call:
    """One call of a client.

    Parameters
    ----------
    application : Application
        What answers.
    metadata : iterable of pairs
        Of the call.
    seconds : float or None
        How long the client will wait.
    client : str
        Its address.

    Attributes
    ----------
    metadata : tuple of pairs
        What the application's last answer says beside its body.
    """

    def __init__(
        self, application: Application, metadata: Iterable[tuple[str, str | bytes]], seconds: float | None, client: str
    ) -> None:
        self._application, self._client = application, client
        self._headers = _headers(metadata)
        if seconds is not None:
            self._headers.append((TIMEOUT, f"{seconds:.6f}".encode()))
        self.metadata: tuple[tuple[str, str], ...] = ()

    async def get(self, path: str) -> Any:
        """Return the JSON at a path."""
        return json.loads((await self._ask("GET", path)).body)

    async def is_ready(self, path: str) -> bool:
        """Whether the path says that it is ready."""
        return (await self._ask("GET", path, but=503)).status == 200

    async def post(self, path: str, body: bytes) -> bytes:
        """Return what is answered to a message."""
        return (await self._ask("POST", path, body)).body

    async def _ask(self, method: str, path: str, body: bytes = b"", *, but: int = 200) -> _Answer:
        """Ask the application as a client over HTTP would; a status beyond 200 and `but` is raised as `RefusedError`."""
        lane = self._application.express.get(quote(path).encode()) if method == "POST" else None
        if lane is not None:
            answer = await _answer_express(self._application, lane, _Express(path, self._headers, self._client), body)
        else:
            answer = await _answer(self._application, _scope(method, path, self._headers, self._client), body)
        self.metadata = answer.metadata
        if answer.status not in {200, but}:
            problem = json.loads(answer.body)
            raise RefusedError(answer.status, problem["error"], problem["fix"], answer.metadata)
        return answer


def may_ask(application: Application, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
    """Whether a call with this metadata may ask for more than health; known before its message is read."""
    try:
        application.check(asgi.Asked(SECURED, _headers(metadata)))
    except HttpError:
        return False
    return True


def _headers(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    headers = [(b"host", b"localhost"), (b"content-type", PROTOBUF)]  # no browser can be led here by a name
    for name, value in metadata:
        if name not in _DROPPED and name.encode() != TIMEOUT and isinstance(value, str):
            headers.append((name.encode(), value.encode("latin-1", "replace")))
    return headers


class _Express(asgi.Call):
    """A call on the application's express lane."""

    __slots__ = ("answer", "client")

    def __init__(self, path: str, headers: list[tuple[bytes, bytes]], client: str) -> None:
        super().__init__(path, headers)
        self.url = quote(path).encode()
        self.client = client
        self.answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()

    def finish(self, status: int, body: Sequence[bytes | memoryview], *, kind: bytes, headers: Headers = ()) -> None:
        """Hand the answer to who waits for it."""
        if not self.answer.done():
            self.answer.set_result(_Answer(status, ((b"x-request-id", self.id.encode()), *headers), b"".join(body)))


async def _answer_express(
    application: Application, lane: Callable[[asgi.Call], Express], call: _Express, body: bytes
) -> _Answer:
    """Ask on the express lane; where the client goes away, the task is cancelled, and the work dropped."""
    express = None
    try:
        application.check(call)
        express = lane(call)
        express.begin(body)
    except HttpError as error:
        call.refuse(error)
    answer = _Answer(499)  # nginx's code for a client that went away
    try:
        answer = await call.answer
    finally:
        if express is not None:
            express.lost()  # nothing, where it has been answered
        if application.accountants:
            application.account(call, "POST", answer.status, len(answer.body), call.client)
    return answer


async def _answer(application: Application, scope: Mapping[str, Any], body: bytes) -> _Answer:
    """Ask an ASGI application."""
    answer, chunks = _Answer(), []
    incoming = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Mapping[str, Any]:
        if not incoming:
            await asyncio.Event().wait()  # for ever: where the client goes away, the task is cancelled
        return incoming.pop()

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], tuple(message["headers"])
        else:
            chunks.append(message["body"])

    await application(scope, receive, send)
    task = asyncio.current_task()
    if task is not None and task.cancelling():  # the application has answered that it ended, which nobody hears
        raise asyncio.CancelledError
    answer.body = b"".join(chunks)
    return answer


def _scope(method: str, path: str, headers: list[tuple[bytes, bytes]], client: str) -> Mapping[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": b"",
        "headers": headers,
        "client": (client, 0),
    }


async def infer(request: bytes, call: Call) -> bytes:
    """Answer a ``ModelInferRequest``."""
    head = parsed(messages.ModelInferHead, request)
    return await call.post(f"{_path(head.model_name, head.model_version)}/infer", request)


async def _server_live(request: bytes, call: Call) -> bytes:
    return _written(messages.ServerLiveResponse(live=await call.is_ready("/v2/health/live")))


async def _server_ready(request: bytes, call: Call) -> bytes:
    return _written(messages.ServerReadyResponse(ready=await call.is_ready("/v2/health/ready")))


async def _server_metadata(request: bytes, call: Call) -> bytes:
    return _written(messages.ServerMetadataResponse(**await call.get("/v2")))


async def _model_ready(request: bytes, call: Call) -> bytes:
    asked = parsed(messages.ModelReadyRequest, request)
    return _written(messages.ModelReadyResponse(ready=await call.is_ready(f"{_path(asked.name, asked.version)}/ready")))


async def _model_metadata(request: bytes, call: Call) -> bytes:
    asked = parsed(messages.ModelMetadataRequest, request)
    return _written(messages.ModelMetadataResponse(**await call.get(_path(asked.name, asked.version))))


async def _health(request: bytes, call: Call) -> bytes:
    service = parsed(messages.HealthCheckRequest, request).service
    if service not in {"", SERVICE}:
        raise RefusedError(404, f"there is no service {service[:80]!r}", f"ask for {SERVICE!r}, or for none")
    ready = await call.is_ready("/v2/health/ready")
    return _written(messages.HealthCheckResponse(status=1 if ready else 2))  # SERVING, NOT_SERVING


def _path(name: str, version: str) -> str:
    return f"/v2/models/{name}/versions/{version}" if version else f"/v2/models/{name}"


def _written(message: Any) -> bytes:
    written: bytes = message.SerializeToString()
    return written


Method = Callable[[bytes, Call], Awaitable[bytes]]

HEALTH: Mapping[str, Method] = {
    f"/{SERVICE}/ServerLive": _server_live,
    f"/{SERVICE}/ServerReady": _server_ready,
    "/grpc.health.v1.Health/Check": _health,
}
"""What anybody may ask, as over HTTP."""

METHODS: Mapping[str, Method] = {
    f"/{SERVICE}/ServerMetadata": _server_metadata,
    f"/{SERVICE}/ModelReady": _model_ready,
    f"/{SERVICE}/ModelMetadata": _model_metadata,
    f"/{SERVICE}/ModelInfer": infer,
}
"""The others, each from message to message."""

STREAM = f"/{SERVICE}/ModelStreamInfer"
"""From messages to messages."""
