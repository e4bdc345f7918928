"""Connections to the servers behind a router, for requests that are whole and answers in one piece.

It speaks HTTP/1.1 to servers of ours on this machine, over httptools' parser, without a task for each request. What is
streamed, or goes anywhere else, is not its business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import httptools

__all__ = ["Answer", "Asking", "Upstream"]

_KEEP_ALIVE = 15.0
"""Seconds that an idle connection is kept; shorter than the servers', so that it is never they who close one."""

Headers = list[tuple[bytes, bytes]]


class Answer:
    """What a server answered, whole."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body


class Asking(Protocol):
    """Who asked, and is told once what became of it."""

    def answered(self, answer: Answer) -> None:
        """Take the answer."""

    def broke(self, *, unsent: bool) -> None:
        """Hear that the connection broke; `unsent` where it was never made, so that nobody can have begun to compute."""


class Upstream:
    """The connections to all servers, by port.

    Parameters
    ----------
    host : str
        Where they listen.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._idle: dict[int, list[_Connection]] = {}
        self._opening: set[asyncio.Task[None]] = set()

    def ask(self, port: int, request: bytes, asking: Asking) -> Callable[[], None]:
        """Send a request; return what gives it up: the server hears of that by its connection's end."""
        idle = self._idle.get(port)
        while idle:
            connection = idle.pop()
            if connection.usable:
                connection.send(request, asking)
                return connection.give_up
        opening = _Opening(self, port, request, asking)
        task = asyncio.get_running_loop().create_task(opening.run())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return opening.give_up

    def close(self) -> None:
        """Close what is idle, and break off the rest."""
        for task in self._opening:
            task.cancel()
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    async def connect(self, port: int) -> _Connection:
        """Open a connection; `OSError` where nobody listens."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self, port, loop), self._host, port)
        return connection

    def release(self, port: int, connection: _Connection) -> None:
        """Take a connection back."""
        self._idle.setdefault(port, []).append(connection)

    def forget(self, port: int, connection: _Connection) -> None:
        """Let go of a connection that has ended."""
        idle = self._idle.get(port, [])
        if connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(port, None)


class _Opening:
    """A request that waits for its connection."""

    def __init__(self, upstream: Upstream, port: int, request: bytes, asking: Asking) -> None:
        self._upstream, self._port, self._request, self._asking = upstream, port, request, asking
        self._connection: _Connection | None = None
        self._given_up = False

    async def run(self) -> None:
        """Connect and send."""
        try:
            connection = await self._upstream.connect(self._port)
        except OSError:
            if not self._given_up:
                self._asking.broke(unsent=True)
            return
        if self._given_up:
            self._upstream.release(self._port, connection)
        else:
            self._connection = connection
            connection.send(self._request, self._asking)

    def give_up(self) -> None:
        """Wait no more."""
        self._given_up = True
        if self._connection is not None:
            self._connection.give_up()


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self, upstream: Upstream, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self._upstream, self._port, self._loop = upstream, port, loop
        self._asking: Asking | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self._body: list[bytes] = []
        self._idle_since = 0.0
        self._closing: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> bool:
        """Whether a request can be sent on it."""
        assert self._transport is not None
        return not self._transport.is_closing()

    def send(self, request: bytes, asking: Asking) -> None:
        """Send a request on an idle connection."""
        assert self._transport is not None
        self._asking = asking
        self._transport.write(request)

    def give_up(self) -> None:
        """Break off, where an answer is still to come."""
        if self._asking is not None:
            self._asking = None
            self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        if self._transport is not None:
            self._transport.abort()

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # of a stream

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail()
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._closing is not None:
            self._closing.cancel()
        self._upstream.forget(self._port, self)
        self._fail()

    def _fail(self) -> None:
        if self._asking is not None:
            asking, self._asking = self._asking, None
            asking.broke(unsent=False)

    # httptools

    def on_message_begin(self) -> None:
        self._headers, self._body = [], []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._asking is None or status < 200:  # 1xx comes before the answer
            return
        answer = Answer(status, self._headers, self._body[0] if len(self._body) == 1 else b"".join(self._body))
        asking, self._asking = self._asking, None
        if self._parser.should_keep_alive():
            self._rest()
        else:
            self.close()
        asking.answered(answer)

    def _rest(self) -> None:
        """Be idle, for a while: one timer looks whether it was long enough, however often that begins anew."""
        self._idle_since = self._loop.time()
        self._upstream.release(self._port, self)
        if self._closing is None:
            self._closing = self._loop.call_later(_KEEP_ALIVE, self._look)

    def _look(self) -> None:
        self._closing = None
        rested = self._loop.time() - self._idle_since
        if self._asking is None and rested >= _KEEP_ALIVE:
            self._upstream.forget(self._port, self)
            self.close()
        else:
            self._closing = self._loop.call_later(max(0.1, _KEEP_ALIVE - rested), self._look)
