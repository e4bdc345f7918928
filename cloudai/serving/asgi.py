"""HTTP without a framework: one exchange of a request and its answer, and what every application of ours does with it."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

__all__ = ["AGAIN", "Application", "Exchange", "HttpError", "LostClientError", "json_bytes"]

Headers = Iterable[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

AGAIN = ((b"retry-after", b"1"),)
"""The header of a refusal that is over soon."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_logger = logging.getLogger(__name__)


class HttpError(Exception):
    """An answer that refuses: its status, what is wrong, and how to mend it."""

    def __init__(self, status: int, what: str, *, fix: str, headers: Headers = ()) -> None:
        super().__init__(what)
        self.status = status
        self.what = what
        self.fix = fix
        self.headers = tuple(headers)


class LostClientError(Exception):
    """The client went away before its request was whole."""


def json_bytes(value: Any) -> bytes:
    """Write compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


class Exchange:
    """One request and its answer.

    Attributes
    ----------
    method, path : str
        HEAD counts as GET; the path is decoded.
    id : str
        The client's ``x-request-id`` if it is sane (up to 64 of ``A-Z a-z 0-9 . _ : -``), else a new one.
    started : bool
        Whether the head of the answer is on its way, so that no other answer can be given any more.
    whole : bool
        Whether the body has been read to its end.
    """

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send, *, closing: Callable[[], bool]) -> None:
        self.scope = scope
        self.method: str = "GET" if scope["method"] == "HEAD" else scope["method"]
        self.path: str = scope["path"]
        self.started = self.whole = False
        self._receive, self._send, self._closing = receive, send, closing
        self.id = _identity(self.header(b"x-request-id"))

    def header(self, name: bytes) -> bytes | None:
        """Return the first header of that lower-case name."""
        return next((value for key, value in self.scope["headers"] if key == name), None)

    async def read(self, limit: int) -> bytes:
        """Read the whole body of at most `limit` bytes; a longer one is refused before, or while, it arrives.

        Raises
        ------
        HttpError
            413 if it is longer.
        LostClientError
            If the client went away.
        """
        if int(self.header(b"content-length") or 0) > limit:
            raise _too_large(limit)
        chunks, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise LostClientError
            size += len(message["body"])
            if size > limit:
                raise _too_large(limit)
            chunks.append(message["body"])
            more = message["more_body"]
        self.whole = True
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status and the headers, among them the request's id."""
        own = [(b"x-request-id", self.id.encode())]
        if self._closing():
            own.append((b"connection", b"close"))
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *own]})

    async def write(self, chunk: bytes, *, more: bool) -> None:
        """Send a part of the answer's body."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def reply(self, status: int, body: bytes, *, kind: str = "application/json", headers: Headers = ()) -> None:
        """Send a whole answer."""
        length = str(len(body)).encode()
        await self.start(status, [(b"content-type", kind.encode()), (b"content-length", length), *headers])
        await self.write(body, more=False)

    async def refuse(self, error: HttpError) -> None:
        """Answer with what is wrong, unless another answer is already on its way."""
        if not self.started:
            problem = {"error": error.what, "fix": error.fix, "request_id": self.id}
            await self.reply(error.status, json_bytes(problem), headers=error.headers)


def _identity(given: bytes | None) -> str:
    if given is not None and _SANE_ID.fullmatch(given):
        return given.decode("ascii")
    return f"{random.getrandbits(128):032x}"  # no secret, and a sixth of the cost of a UUID


def _too_large(limit: int) -> HttpError:
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
    """

    def __init__(self, *, check: Callable[[Exchange], None] = lambda exchange: None) -> None:
        self.draining = False
        self.accepting = True
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

    def check_accepting(self) -> None:
        """Raise `HttpError` 503, which says when to come again, if no new work is taken."""
        if not self.accepting:
            raise HttpError(503, "the server is shutting down", fix="send the request again", headers=AGAIN)
