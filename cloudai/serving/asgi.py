"""HTTP without a framework: one exchange of a request and its answer, and what every application of ours does with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = [
    "AGAIN",
    "PROTOBUF",
    "TIMEOUT",
    "Account",
    "Application",
    "Asked",
    "Call",
    "Exchange",
    "Express",
    "ExpressLane",
    "Headers",
    "HttpError",
    "LostClientError",
    "json_bytes",
    "too_large",
]

Headers = Iterable[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

AGAIN = ((b"retry-after", b"1"),)
"""The header of a refusal that is over soon."""

TIMEOUT = b"x-request-timeout"
"""The header that says how many seconds the client will wait."""
PROTOBUF = b"application/x-protobuf"
"""The content type of a message of gRPC that travels over HTTP."""

_NOTHING: Mapping[str, Any] = {}
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_logger = logging.getLogger(__name__)


class HttpError(Exception):
    """An answer that refuses: its status, what is wrong, and how to mend it; for OpenAI's clients also where, and a code."""

    def __init__(
        self, status: int, what: str, *, fix: str, headers: Headers = (), param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(what)
        self.status = status
        self.what = what
        self.fix = fix
        self.headers = tuple(headers)
        self.param, self.code = param, code

    def for_openai(self) -> dict[str, Any]:
        """Return the body that OpenAI's clients know."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": f"{self.what}; {self.fix}", "type": kind, "param": self.param, "code": self.code}}


class LostClientError(Exception):
    """The client went away before its request was whole."""


def json_bytes(value: Any) -> bytes:
    """Write compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


class Asked:
    """What every request says before its body.

    Attributes
    ----------
    path : str
        Decoded.
    headers : sequence of tuple
        All of them as they came, their names in lower case.
    id : str
        The client's ``x-request-id`` if it is sane (up to 64 of ``A-Z a-z 0-9 . _ : -``), else a new one.
    begun : float
        When its head was there, in `time.perf_counter`'s seconds.
    notes : mapping of str to Any
        What the one who answers has to say of it, for those who keep account of requests.
    """

    __slots__ = ("_headers", "begun", "headers", "id", "notes", "path")

    def __init__(self, path: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.begun = time.perf_counter()
        self.path = path
        self.notes: Mapping[str, Any] = _NOTHING
        self.headers = headers
        self._headers: dict[bytes, bytes] = dict(headers[::-1])
        self.id = _identity(self._headers.get(b"x-request-id"))

    def header(self, name: bytes) -> bytes | None:
        """Return the first header of that lower-case name."""
        return self._headers.get(name)

    def seconds(self, most: float) -> float:
        """Return how long the answer may take: `most`, or less where the client says so.

        Raises
        ------
        HttpError
            400 if it says so without a number.
        """
        given = self._headers.get(TIMEOUT)
        if given is None:
            return most
        try:
            seconds = float(given)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            raise HttpError(400, "x-request-timeout is no number of seconds", fix="send one such as 0.5")
        return min(most, seconds)

    def check_length(self, limit: int) -> None:
        """Raise `HttpError` 413 if the body will be longer than `limit` bytes, by what its head says."""
        if int(self._headers.get(b"content-length") or 0) > limit:
            raise too_large(limit)


@dataclass(slots=True)
class Account:
    """What became of one request, for those who keep account of them; never what was asked or answered.

    Attributes
    ----------
    id, method, path, route : str
        The route is the path, or its kind where there may be endless many.
    status : int
        Of the answer; 499 where the client went away before it.
    seconds : float
        From the head of the request to the answer.
    sent : int
        Bytes of the answer's body.
    client : str
        Its address.
    notes : mapping of str to Any
        What the one who answered has to say of it.
    header : callable
        Returns a header of the request.
    """

    id: str
    method: str
    path: str
    route: str
    status: int
    seconds: float
    sent: int
    client: str
    notes: Mapping[str, Any]
    header: Callable[[bytes], bytes | None]


class Call(Asked, ABC):
    """A request on the express lane: its body is whole before it is looked at, and its answer is written at once.

    Attributes
    ----------
    url : bytes
        The path and the query, as they came.
    """

    __slots__ = ("url",)

    url: bytes

    @abstractmethod
    def finish(self, status: int, body: Sequence[bytes | memoryview], *, kind: bytes, headers: Headers = ()) -> None:
        """Send the answer, whose body may lie in pieces."""

    def refuse(self, error: HttpError) -> None:
        """Answer with what is wrong."""
        problem = {"error": error.what, "fix": error.fix, "request_id": self.id}
        self.finish(error.status, [json_bytes(problem)], kind=b"application/json", headers=error.headers)


class Express(Protocol):
    """What answers a call, from its head on; made by a handler of the express lane, which may raise `HttpError`."""

    max_body: int
    """Bytes."""

    def begin(self, body: bytes) -> None:
        """Answer: the body is whole."""

    def refuse(self, error: HttpError) -> None:
        """End with this error."""

    def lost(self) -> None:
        """Give up: the client went away."""


class ExpressLane(Protocol):
    """What is taken on the express lane: POST to these raw paths."""

    def get(self, url: bytes, /) -> Callable[[Call], Express] | None:
        """Return what answers there; None where the request has to go the other way."""


class Exchange(Asked):
    """One request and its answer.

    Attributes
    ----------
    method : str
        HEAD counts as GET.
    status, sent : int
        Of the answer: its status, 0 before its head is on its way, and the bytes of its body.
    answered : bool
        Whether the answer is whole.
    """

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send, *, closing: Callable[[], bool]) -> None:
        super().__init__(scope["path"], scope["headers"])
        self.scope = scope
        self.method: str = "GET" if scope["method"] == "HEAD" else scope["method"]
        self.status = self.sent = 0
        self.answered = False
        self._receive, self._send, self._closing = receive, send, closing

    async def read(self, limit: int) -> bytes:
        """Read the whole body of at most `limit` bytes; a longer one is refused before, or while, it arrives.

        Raises
        ------
        HttpError
            413 if it is longer.
        LostClientError
            If the client went away.
        """
        self.check_length(limit)
        chunks, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise LostClientError
            size += len(message["body"])
            if size > limit:
                raise too_large(limit)
            chunks.append(message["body"])
            more = message["more_body"]
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    @contextlib.asynccontextmanager
    async def attended(self) -> AsyncIterator[None]:
        """End what is done inside when the client goes away; the request's body must have been read.

        Raises
        ------
        LostClientError
            If the client went away before its answer was whole.
        """
        task, lost = asyncio.current_task(), False

        def leave(watch: asyncio.Task[None]) -> None:
            nonlocal lost
            if not watch.cancelled() and not self.answered and task is not None:
                lost = task.cancel()

        watch = asyncio.create_task(self._gone())
        watch.add_done_callback(leave)
        try:
            yield
        except asyncio.CancelledError:
            if lost and task is not None and task.uncancel() == 0:
                raise LostClientError from None
            raise
        finally:
            watch.cancel()

    async def _gone(self) -> None:
        """Return when the client has gone away, or its answer is whole."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status and the headers, among them the request's id."""
        own = [(b"x-request-id", self.id.encode())]
        if self._closing():
            own.append((b"connection", b"close"))
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *own]})

    async def write(self, chunk: bytes, *, more: bool) -> None:
        """Send a part of the answer's body."""
        self.sent += len(chunk)
        self.answered = not more
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def reply(self, status: int, body: bytes, *, kind: str = "application/json", headers: Headers = ()) -> None:
        """Send a whole answer."""
        length = str(len(body)).encode()
        await self.start(status, [(b"content-type", kind.encode()), (b"content-length", length), *headers])
        await self.write(body, more=False)

    async def refuse(self, error: HttpError) -> None:
        """Answer with what is wrong, unless another answer is already on its way."""
        if not self.status:
            problem = {"error": error.what, "fix": error.fix, "request_id": self.id}
            if self.path.startswith("/v1/"):
                problem = error.for_openai()
            await self.reply(error.status, json_bytes(problem), headers=error.headers)


def _identity(given: bytes | None) -> str:
    if given is not None and _SANE_ID.fullmatch(given):
        return given.decode("ascii")
    return f"{random.getrandbits(128):032x}"  # no secret, and cheaper than a UUID


def too_large(limit: int) -> HttpError:
    """Return the refusal of a body."""
    return HttpError(413, f"the body is larger than {limit} bytes", fix="send fewer rows at once")


class Application(ABC):
    """An ASGI application that answers every request, also a failed one, with an id and in JSON.

    Parameters
    ----------
    check : callable
        Refuses a request that may not be answered, by raising `HttpError`.

    Attributes
    ----------
    draining : bool
        The process is about to end: not ready any more, and connections are closed after each answer.
    accepting : bool
        Whether new work is still taken; at the end of draining it is not.
    accountants : tuple of callable
        Told what became of each request.
    """

    def __init__(self, *, check: Callable[[Asked], None] = lambda asked: None) -> None:
        self.draining = False
        self.accepting = True
        self.accountants: tuple[Callable[[Account], None], ...] = ()
        self._check = check

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """How many requests are being worked on."""

    @abstractmethod
    async def answer(self, exchange: Exchange) -> None:
        """Answer one request, or raise `HttpError`."""

    @abstractmethod
    async def start(self) -> None:
        """Prepare, inside of the event loop."""

    @abstractmethod
    async def stop(self) -> None:
        """Let go of everything, inside of the event loop."""

    def abandon(self) -> None:  # noqa: B027  most have nothing that goes on without a task
        """Refuse what is still being worked on: the time to end is over."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Say what the state file shall say of this process."""

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        exchange = Exchange(scope, receive, send, closing=lambda: self.draining)
        try:
            self._check(exchange)
            await self.answer(exchange)
        except LostClientError:
            _logger.info("request %s: the client went away", exchange.id)
        except HttpError as error:
            await exchange.refuse(error)
        except asyncio.CancelledError:  # only the end of the process cancels, after all the time that it had
            await exchange.refuse(HttpError(503, "the server has ended", fix="send the request again", headers=AGAIN))
        except Exception:
            _logger.exception("request %s failed", exchange.id)
            await exchange.refuse(HttpError(500, "the server failed", fix="look into its log for the request's id"))
        finally:
            if self.accountants:
                client = str((scope.get("client") or ("",))[0])
                self.account(exchange, exchange.method, exchange.status or 499, exchange.sent, client)

    def account(self, asked: Asked, method: str, status: int, sent: int, client: str) -> None:
        """Tell the accountants of a request."""
        seconds = time.perf_counter() - asked.begun
        route = self.route_of(asked.path, status)
        account = Account(asked.id, method, asked.path, route, status, seconds, sent, client, asked.notes, asked.header)
        for accountant in self.accountants:
            accountant(account)

    def route_of(self, path: str, status: int) -> str:
        """Return the kind of a path; what does not exist is one kind, or whoever asks could make endless many."""
        return "none" if status == 404 else path

    @property
    def express(self) -> ExpressLane:
        """What is taken on the express lane, beside the way that every request can go."""
        return {}

    def check(self, asked: Asked) -> None:
        """Refuse, by raising `HttpError`, a request that may not be answered."""
        self._check(asked)

    def check_accepting(self) -> None:
        """Raise `HttpError` 503, which says when to come again, if no new work is taken."""
        if not self.accepting:
            raise HttpError(503, "the server is shutting down", fix="send the request again", headers=AGAIN)
