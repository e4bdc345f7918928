"""The router: one process and one stable port for a deployment, in front of its revisions.

``python -m cloudai.serving.router --state FOLDER`` reads ``FOLDER/routes.json`` (see `RouteTable`) again whenever it is
replaced, from the next request on, and writes ``FOLDER/router.json``. Only ``/v2`` and ``/v1`` are forwarded, with the
client's token.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import aiohttp
from pydantic import Field
from yarl import URL

from cloudai.serving.access import Access
from cloudai.serving.asgi import AGAIN, PROTOBUF, Application, Asked, Call, Exchange, ExpressLane, HttpError, json_bytes
from cloudai.serving.deadlines import Deadlines
from cloudai.serving.forwarding import NOT_FORWARDED, NOT_RETURNED, Forwarding, WholeExchange, passed, revision_header
from cloudai.serving.metrics import exposition
from cloudai.serving.page import PAGE, PAGE_HEADERS
from cloudai.serving.process import ProcessOptions, errors_in_two_lines, read_arguments, run
from cloudai.serving.replicas import Load, Replicas
from cloudai.serving.router_metrics import RouterMetrics
from cloudai.serving.routes import RouteFile, RouteTable
from cloudai.serving.shadow import HEADER as SHADOW
from cloudai.serving.shadow import Answered, Mirror
from cloudai.serving.upstream import Upstream
from cloudai.serving.wakeup import WaitingRoom
from cloudai.specs.units import Seconds
from cloudai.state import news

__all__ = ["RouterApplication", "RouterOptions", "main"]

_KEEP_ALIVE = 15  # seconds; shorter than the servers', so that it is the router who closes an idle connection
_logger = logging.getLogger(__name__)


class RouterOptions(ProcessOptions):
    """How a deployment is routed."""

    max_in_flight: int = Field(default=1024, ge=1, description="requests at once; more are answered 429")
    max_waiting: int = Field(default=256, ge=0, description="requests that wait for a replica; more are answered 429")
    timeout: Seconds = Field(
        default=35.0, description="seconds in which no part of an answer comes; longer than the servers', so that they say why"
    )


class RouterApplication(Application):
    """Sends each request to one revision, by the shares of the routing table."""

    def __init__(self, options: RouterOptions, access: Access) -> None:
        super().__init__(check=access.check)
        self.options = options
        self.upstream = Upstream()
        self.deadlines: Deadlines[Forwarding] = Deadlines()
        self._in_flight = 0
        self._whole: set[asyncio.Task[None]] = set()
        self._routes = RouteFile(options.state / "routes.json")
        self._replicas = Replicas()
        self._loads: defaultdict[str, Load] = defaultdict(Load)
        self._room = WaitingRoom(self._ports, options.news_file, most=options.max_waiting)
        self._metrics = RouterMetrics(in_flight=lambda: self.in_flight, waiting=self._room.waiting.total)
        self._room.on_cold_start = self._metrics.cold_started
        self._mirror = Mirror(self._metrics)

    @property
    def in_flight(self) -> int:
        """How many requests are being routed."""
        return self._in_flight

    @property
    def express(self) -> ExpressLane:
        """Predictions, but for those of a version by its name."""
        return _Predictions(self)

    def abandon(self) -> None:
        """Refuse what is still being worked on: the time to end is over."""
        for forwarding in self.deadlines.all():
            forwarding.refuse(HttpError(503, "the server has ended", fix="send the request again", headers=AGAIN))
        for task in self._whole:
            task.cancel()

    async def start(self) -> None:
        """Open the pool of connections to the revisions."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("accept", "accept-encoding", "user-agent", "content-type"),
        )

    async def stop(self) -> None:
        """Close the pool."""
        await self._mirror.stop()
        self.upstream.close()
        await self._session.close()

    def describe(self) -> dict[str, Any]:
        """Say whether requests should come here."""
        return {"ready": not self.draining}

    async def answer(self, exchange: Exchange) -> None:
        """Answer what is asked of the router itself, forward the rest of ``/v2`` and ``/v1``."""
        path = exchange.path
        if path == "/v2/health/live":
            await exchange.reply(200, json_bytes({"live": True}))
        elif path == "/v2/health/ready":
            ready = not self.draining and bool(self._table().traffic)
            await exchange.reply(200 if ready else 503, json_bytes({"ready": ready, "live": True}))
        elif path == "/metrics":
            text, kind = exposition(self._metrics.registry, (exchange.header(b"accept") or b"").decode("latin-1"))
            await exchange.reply(200, text, kind=kind)
        elif path == "/docs" and exchange.method == "GET":
            await exchange.reply(200, PAGE, kind="text/html; charset=utf-8", headers=PAGE_HEADERS)
        elif path == "/internal/ongoing" and exchange.method == "GET":
            await exchange.reply(200, json_bytes(self._ongoing()))
        elif path in ("/v2", "/openapi.json") or (path.startswith(("/v2/", "/v1/")) and ".." not in path.split("/")):
            await self._route(exchange)
        else:
            raise HttpError(404, f"there is nothing at {path[:200]}", fix="the protocol begins at /v2")

    def _table(self) -> RouteTable:
        return self._routes.current() or RouteTable({}, {})

    def _ports(self, revision: str) -> tuple[int, ...] | None:
        return self._table().ports.get(revision)

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Take a place among the requests in flight.

        Raises
        ------
        HttpError
            429 if there is none, 503 if no new work is taken.
        """
        self.check_accepting()
        if self._in_flight >= self.options.max_in_flight:
            what = f"{self._in_flight} requests are in flight already"
            raise HttpError(429, what, fix="send the request again a little later", headers=AGAIN)
        self._in_flight += 1

    def leave(self) -> None:
        """Give the place back."""
        self._in_flight -= 1

    def first_choice(self, call: Call) -> tuple[str, int] | None:
        """Return the revision and the port that should answer; None where it is not as simple as that."""
        table = self._table()
        if table.shadow or not table.traffic:
            return None
        revision = table.choose(call.id, _sticky_key(call, table))[0]
        port = next(self._replicas.in_order(table.ports[revision]), None)
        return None if port is None else (revision, port)

    def begin_asking(self, revision: str, port: int) -> None:
        """Count a request at a replica."""
        self._loads[revision].change(+1)
        self._replicas.begin(port)

    def end_asking(self, revision: str, port: int) -> None:
        """Count it no more."""
        self._loads[revision].change(-1)
        self._replicas.end(port)

    def heard_nobody(self, port: int) -> None:
        """Note that nobody listens there, and tell the supervisor, so that it looks at once."""
        if self._replicas.silent(port) and self.options.news_file is not None:
            news.tell(self.options.news_file)

    def broke(self, revision: str) -> None:
        """Count a request in the middle of which a revision broke off."""
        self._metrics.broke(revision)

    def count(self, revision: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._metrics.routed(revision, status, seconds)

    def route_whole(self, call: Call, body: bytes) -> None:
        """Route a call the way on which others are tried and waited for."""
        task = asyncio.create_task(self._route_whole(call, body))
        self._whole.add(task)
        task.add_done_callback(self._whole.discard)

    async def _route_whole(self, call: Call, body: bytes) -> None:
        exchange = WholeExchange(call, body)
        try:
            await self._route(exchange)
        except HttpError as error:
            await exchange.refuse(error)
        except asyncio.CancelledError:
            await exchange.refuse(HttpError(503, "the server has ended", fix="send the request again", headers=AGAIN))
        except Exception:
            _logger.exception("request %s failed", call.id)
            await exchange.refuse(HttpError(500, "the server failed", fix="look into its log for the request's id"))

    async def _route(self, exchange: Exchange) -> None:
        """Send the request to the chosen revision and count it."""
        asked = _Asked(time.perf_counter(), asyncio.get_running_loop().time() + self.options.timeout)
        try:
            with self._admitted():
                body = await exchange.read(self.options.max_body)
                async with _while_it_pays(exchange):
                    asked.code = await self._forward(exchange, body, asked)
        except HttpError as error:
            asked.code = error.status
            error.headers = (*error.headers, *revision_header(asked.revision))
            raise
        finally:
            self._metrics.routed(asked.revision, asked.code, time.perf_counter() - asked.begun)

    async def _forward(self, exchange: Exchange, body: bytes, asked: _Asked) -> int:
        """Have a replica of the chosen revision answer, or of the next one if nobody listens there; wait where nobody does."""
        while True:
            table = self._table()  # after the body: during a slow upload the traffic may have been moved
            chosen = table.choose(exchange.id, _sticky_key(exchange, table))
            asked.shadow = table.shadow
            for revision in chosen:
                asked.revision = revision
                with self._working_for(revision):
                    code = await self._ask(exchange, revision, table.ports[revision], body, asked)
                    if code is not None:
                        return code
                    if not table.ports[revision]:
                        break
            waits_for = next((revision for revision in chosen if not table.ports[revision]), chosen[0] if chosen else "")
            if not waits_for or not self._room.open:
                raise _nobody(table)
            asked.revision = waits_for
            with self._working_for(waits_for):
                await self._room.wait(waits_for, table.ports[waits_for], asked.deadline)

    async def _ask(self, exchange: Exchange, revision: str, ports: Sequence[int], body: bytes, asked: _Asked) -> int | None:
        """Return the status that a replica answered; None if none of them listens."""
        for port in self._replicas.in_order(ports):
            with self._replicas.asked(port):
                code = await self._proxy(exchange, revision, port, body, asked)
            if code is not None:
                return code
            self.heard_nobody(port)
        return None

    @contextlib.contextmanager
    def _working_for(self, revision: str) -> Iterator[None]:
        load = self._loads[revision]
        load.change(+1)
        try:
            yield
        finally:
            load.change(-1)

    def _ongoing(self) -> dict[str, float]:
        """Return how busy each revision is; who waits counts at once, and not only over time."""
        return {revision: max(load.mean(), self._room.waiting[revision]) for revision, load in self._loads.items()}

    async def _proxy(self, exchange: Exchange, revision: str, port: int, body: bytes, asked: _Asked) -> int | None:
        """Pass request and answer on and return the status; None if nothing was sent because nobody listens."""
        try:
            async with self._session.request(
                exchange.scope["method"],
                _url(exchange, port),
                headers=_forwarded(exchange),
                data=io.BytesIO(body) if body else None,
                allow_redirects=False,
                timeout=self._patience(exchange, asked),
            ) as answer:
                chunk = await answer.content.readany()  # before the head: a revision that dies here still gives a clean 503
                headers = passed(answer.raw_headers, NOT_RETURNED)
                await exchange.start(answer.status, [*headers, *revision_header(revision)])
                mirrored, kept = self._mirror.drawn(exchange, revision, asked.shadow), list[bytes]()
                while chunk:
                    await exchange.write(chunk, more=True)
                    if mirrored:
                        kept.append(chunk)
                    chunk = await answer.content.readany()
                await exchange.write(b"", more=False)
                if mirrored and answer.status == 200:
                    self._mirror.send(
                        mirrored, _answered(answer, b"".join(kept)), lambda: self._ask_again(exchange, mirrored, body)
                    )
                return answer.status
        except TimeoutError:
            what = f"the revision {revision} did not answer within {self.options.timeout:g} s"
            raise HttpError(504, what, fix="send fewer rows, or raise the timeout") from None
        except aiohttp.ClientConnectorError:
            _logger.warning("the revision %s does not listen on port %d", revision, port)
            return None
        except aiohttp.ClientError as error:
            _logger.warning("request %s: the revision %s broke off: %r", exchange.id, revision, error)
            self._metrics.broke(revision)
            what = f"the revision {revision} broke off"
            raise HttpError(503, what, fix="send the request again if it may be computed twice", headers=AGAIN) from None

    def _patience(self, exchange: Exchange, asked: _Asked) -> aiohttp.ClientTimeout:
        """Return how long a revision may take: a text as long as it goes on being written, all else until the deadline."""
        if exchange.path.startswith("/v1/"):
            return aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=self.options.timeout)
        return aiohttp.ClientTimeout(total=max(0.001, asked.deadline - asyncio.get_running_loop().time()))

    async def _ask_again(self, exchange: Exchange, revision: str, body: bytes) -> Answered | None:
        """Ask a mirrored request; None where nobody is there any more who could answer."""
        headers = [*_forwarded(exchange), (SHADOW.decode(), "1")]
        for port in self._replicas.in_order(self._ports(revision) or ()):
            try:
                with self._replicas.asked(port):
                    async with self._session.request(
                        "POST", _url(exchange, port), headers=headers, data=io.BytesIO(body)
                    ) as answer:
                        return _answered(answer, await answer.read())
            except aiohttp.ClientConnectorError:
                continue
            except aiohttp.ClientConnectionError:
                return None
        return None


class _Predictions:
    """The paths of the express lane."""

    def __init__(self, router: RouterApplication) -> None:
        self._router = router

    def get(self, url: bytes, /) -> Callable[[Call], Forwarding] | None:
        """Return what answers a prediction."""
        plain = url.startswith(b"/v2/models/") and url.endswith(b"/infer") and b".." not in url and b"%" not in url
        return self._open if plain else None

    def _open(self, call: Call) -> Forwarding:
        return Forwarding(self._router, call)


def _answered(answer: aiohttp.ClientResponse, body: bytes) -> Answered:
    length = answer.headers.get("inference-header-content-length", "")
    is_message = answer.content_type == PROTOBUF.decode()
    return Answered(answer.status, body, int(length) if length.isdigit() else None, is_message)


def _sticky_key(asked: Asked, table: RouteTable) -> str:
    return (asked.header(table.sticky.encode()) or b"").decode("latin-1") if table.sticky else ""


@dataclass
class _Asked:
    """What becomes of one request."""

    begun: float
    deadline: float
    """In the event loop's time."""
    revision: str = ""
    """The last one that was asked."""
    shadow: Mapping[str, float] = field(default_factory=dict)
    """The shares of requests that are mirrored, by revision."""
    code: int = 499
    """The status of the answer; 499 is nginx's code for a client that went away."""


def _while_it_pays(exchange: Exchange) -> contextlib.AbstractAsyncContextManager[None]:
    """Break off a text, which takes long, when its client goes away; for other requests to look costs more than it saves."""
    return exchange.attended() if exchange.path.startswith("/v1/") else contextlib.nullcontext()


def _url(exchange: Exchange, port: int) -> URL:
    """Build the backend's URL from the raw path, byte for byte: a path that changed on the way could lead elsewhere."""
    query = exchange.scope["query_string"]
    path = exchange.scope["raw_path"] + (b"?" + query if query else b"")
    return URL(f"http://127.0.0.1:{port}{path.decode('ascii')}", encoded=True)


def _forwarded(exchange: Exchange) -> list[tuple[str, str]]:
    headers = passed(exchange.scope["headers"], NOT_FORWARDED)
    return [*((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers), ("x-request-id", exchange.id)]


def _nobody(table: RouteTable) -> HttpError:
    what = "no revision answers" if table.traffic else "no revision has traffic yet"
    return HttpError(503, what, fix="send the request again a little later", headers=AGAIN)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Route a deployment."""
    parser = argparse.ArgumentParser("python -m cloudai.serving.router")
    with errors_in_two_lines():
        options, _ = read_arguments(RouterOptions, parser, arguments)
    run(lambda _, access: RouterApplication(options, access), options, state_file="router.json", kept=True)


if __name__ == "__main__":
    main()
