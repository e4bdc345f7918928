"""uvicorn's HTTP protocol with what it lacks: limits on heads, one write for each answer, and an express lane.

Almost all requests of a model server are of one kind: POST to a known path, with a body of known length that is there at once,
and an answer in one piece. ASGI costs such a request a task, an event and four messages, which is more than the model does
where it is small. The express lane answers it from the parser's callbacks. Everything else goes the way of ASGI.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from cloudai.serving.asgi import Application, Call, Express, Headers, HttpError, too_large

__all__ = ["uvicorn_config"]

_MAX_HEAD = 32 * 1024
"""Bytes of a request's line and headers; more are answered 431. Common servers take 8 to 64 KiB."""
_HEAD_SECONDS = 10.0
"""How long a head may take to arrive, from the connection or its first byte on; then the connection is closed."""
_KEEP_ALIVE = 75
"""Seconds that an idle connection stays open; longer than the router's, so that no request meets one that is being closed."""
_HELD_AT_MOST = 64 * 1024
"""Bytes of a body that are copied to be written in one piece with their head."""


def uvicorn_config(application: Application) -> uvicorn.Config:
    """Return how uvicorn serves an application of ours."""
    return uvicorn.Config(
        application,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=1,
    )


class _Unheard:
    """What uvicorn sets for a cycle that waits for more of its request; a call does not wait."""

    def set(self) -> None:
        """Nothing."""


class _HeadTooLargeError(Exception):
    """The line and headers of a request are longer than is taken."""


class _Call(Call):
    """A request on the express lane, in the place of uvicorn's own cycle of request and response."""

    __slots__ = ("_body", "_protocol", "_size", "express", "keep_alive", "response_complete")

    message_event = _Unheard()
    disconnected = False

    def __init__(self, protocol: _Protocol, path: bytes, headers: list[tuple[bytes, bytes]], *, keep_alive: bool) -> None:
        super().__init__(path.partition(b"?")[0].decode("ascii"), headers)
        self.url = path
        self.keep_alive = keep_alive
        self.response_complete = False
        self.express: Express | None = None
        self._protocol = protocol
        self._body: list[bytes] = []
        self._size = 0

    def open(self, application: Application, lane: Callable[[Call], Express]) -> None:
        """Find what answers, or refuse."""
        try:
            application.check(self)
            self.express = lane(self)
        except HttpError as error:
            self.refuse(error)

    def feed(self, chunk: bytes) -> None:
        """Take a part of the body."""
        if self.response_complete or self.express is None:
            return
        self._size += len(chunk)
        if self._size > self.express.max_body:
            self.express.refuse(too_large(self.express.max_body))
        else:
            self._body.append(chunk)

    def begin(self) -> None:
        """Answer: the body is whole."""
        if self.express is not None and not self.response_complete:
            self.express.begin(self._body[0] if len(self._body) == 1 else b"".join(self._body))

    def finish(self, status: int, body: Sequence[bytes | memoryview], *, kind: bytes, headers: Headers = ()) -> None:
        """Send the answer in one piece."""
        if not self.response_complete:
            self.response_complete = True
            self._protocol.finish(self, status, [(b"content-type", kind), *headers], body)


class _Protocol(HttpToolsProtocol):
    """One connection."""

    _awaited: asyncio.TimerHandle | None = None
    _in_head = _too_large = _on_lane = False
    _head_bytes = 0
    _call: _Call | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_OneWrite(transport, self.loop))  # type: ignore[arg-type]
        self._application: Application = self.config.app  # type: ignore[assignment]
        self._lane = self._application.express
        self._in_head = True
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        if self._call is not None and self._call.express is not None and not self._call.response_complete:
            self._call.response_complete = True
            self._call.express.lost()
            if self._application.accountants:
                self._account(self._call, 499, 0)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self.parser is not None:
            if self._head_bytes > _MAX_HEAD:
                self._too_large = True
                self.send_400_response("")
            elif self._awaited is None:
                self._await_head()

    def on_message_begin(self) -> None:
        self._in_head = True
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_came()
        if self._head_bytes > _MAX_HEAD:  # or it came with its body
            self._too_large = sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > _MAX_HEAD
            if self._too_large:
                raise _HeadTooLargeError
        self._head_bytes = 0
        self._on_lane = self._takes_express()
        if not self._on_lane:
            url, headers, expects = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()  # makes the scope, which the express lane does without
            self.url, self.expect_100_continue = url, expects
            self.headers.extend(headers)
            super().on_headers_complete()

    def _takes_express(self) -> bool:
        """Answer the request on the express lane, if that takes it and no other request is being answered."""
        lane = self._lane.get(self.url)
        if lane is None or self.expect_100_continue or self.parser.get_method() != b"POST":
            return False
        if self.cycle is not None and not self.cycle.response_complete:
            return False
        keep_alive = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        self._call = _Call(self, self.url, self.headers, keep_alive=keep_alive)
        self.cycle = self._call  # type: ignore[assignment]
        self._call.open(self._application, lane)
        return True

    def on_body(self, body: bytes) -> None:
        if self._on_lane and self._call is not None:
            self._call.feed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._on_lane and self._call is not None:
            self._call.begin()
        else:
            super().on_message_complete()

    def finish(self, call: _Call, status: int, headers: Headers, body: Sequence[bytes | memoryview]) -> None:
        """Write a whole answer to a call."""
        keep_alive = call.keep_alive and not self._application.draining
        own = (STATUS_LINE[status], sum(map(len, body)), call.id.encode(), b"" if keep_alive else b"connection: close\r\n")
        lines = [b"%b: %b\r\n" % line for line in (*self.server_state.default_headers, *headers)]
        if self.transport.is_closing():
            return
        self.transport.write(b"".join([b"%bcontent-length: %d\r\nx-request-id: %b\r\n%b" % own, *lines, b"\r\n", *body]))
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()
        if self.flow.write_paused:  # who does not read his answers is not asked for more requests
            self.flow.pause_reading()
        if self._application.accountants:
            self._account(call, status, own[1])

    def _account(self, call: _Call, status: int, sent: int) -> None:
        self._application.account(call, "POST", status, sent, self.client[0] if self.client else "")

    def resume_writing(self) -> None:
        super().resume_writing()
        self.flow.resume_reading()

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection, also where the client has not read its last answer and never will."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too much of it, in our words; uvicorn calls this for whatever it cannot read."""
        status, what, fix = 400, "this is no HTTP/1.1", "look at what sends it; TLS and HTTP/2 are not taken here"
        if self._too_large:
            status, what, fix = 431, f"the headers are longer than {_MAX_HEAD} bytes", "send fewer or shorter ones"
        body = json.dumps({"error": what, "fix": fix}).encode()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._in_head = False
        self._head_came()
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def _await_head(self) -> None:
        self._awaited = self.loop.call_later(_HEAD_SECONDS, self._give_up)

    def _head_came(self) -> None:
        if self._awaited is not None:
            self._awaited.cancel()
            self._awaited = None

    def _give_up(self) -> None:
        self._awaited = None
        self.transport.abort()


class _OneWrite:
    """A transport that writes a head together with what follows it: one system call and one packet in place of two."""

    __slots__ = ("_held", "_loop", "_transport", "abort", "get_extra_info", "is_closing", "pause_reading", "resume_reading")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held = b""
        self.abort, self.is_closing, self.get_extra_info = transport.abort, transport.is_closing, transport.get_extra_info
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading

    def write(self, data: bytes) -> None:
        """Write, or hold what looks like a head until the next write, at the latest until the loop's next turn."""
        if self._held:
            data = self._joined(data)
        elif data.endswith(b"\r\n\r\n"):
            self._held = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)

    def _joined(self, data: bytes) -> bytes:
        held, self._held = self._held, b""
        if len(data) <= _HELD_AT_MOST:
            return held + data
        self._transport.write(held)
        return data

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)
