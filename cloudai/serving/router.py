"""The router: one process and one stable port for a deployment, in front of its revisions.

``python -m cloudai.serving.router --state FOLDER`` reads ``FOLDER/routes.json`` (see `RouteTable`) again whenever it is
replaced, from the next request on, and writes ``FOLDER/router.json``. Only ``/v2`` is forwarded, with the client's token.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import aiohttp
from pydantic import Field
from yarl import URL

from cloudai.serving.access import Access
from cloudai.serving.asgi import AGAIN, Application, Exchange, HttpError, json_bytes
from cloudai.serving.metrics import exposition
from cloudai.serving.process import ProcessOptions, errors_in_two_lines, read_arguments, run
from cloudai.serving.replicas import Load, Replicas
from cloudai.serving.router_metrics import RouterMetrics
from cloudai.serving.routes import RouteFile, RouteTable
from cloudai.serving.shadow import HEADER as SHADOW
from cloudai.serving.shadow import Answered, Mirror
from cloudai.serving.wakeup import WaitingRoom
from cloudai.specs.units import Bytes, Seconds
from cloudai.state import news

__all__ = ["RouterApplication", "RouterOptions", "main"]

_KEEP_ALIVE = 15  # seconds; shorter than the servers', so that it is the router who closes an idle connection
_HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}  # RFC 9110, section 7.6.1
_NOT_FORWARDED = _HOP_BY_HOP | {b"host", b"content-length", b"expect", b"x-request-id", SHADOW}
_NOT_RETURNED = _HOP_BY_HOP | {b"date", b"server", b"x-request-id", b"x-cloudai-revision"}
_logger = logging.getLogger(__name__)


class RouterOptions(ProcessOptions):
    """How a deployment is routed."""

    max_body: Bytes = Field(default=16 * 2**20, description="bytes of a request")
    max_in_flight: int = Field(default=1024, ge=1, description="requests at once; more are answered 429")
    max_waiting: int = Field(default=256, ge=0, description="requests that wait for a replica; more are answered 429")
    timeout: Seconds = Field(
        default=35.0, description="seconds for one request; longer than the servers', so that they say why"
    )


class RouterApplication(Application):
    """Sends each request to one revision, by the shares of the routing table."""

    def __init__(self, options: RouterOptions, access: Access) -> None:
        super().__init__(check=access.check)
        self._options = options
        self._in_flight = 0
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
        await self._session.close()

    def describe(self) -> dict[str, Any]:
        """Say whether requests should come here."""
        return {"ready": not self.draining}

    async def answer(self, exchange: Exchange) -> None:
        """Answer what is asked of the router itself, forward the rest of ``/v2``."""
        path = exchange.path
        if path == "/v2/health/live":
            await exchange.reply(200, json_bytes({"live": True}))
        elif path == "/v2/health/ready":
            ready = not self.draining and bool(self._table().traffic)
            await exchange.reply(200 if ready else 503, json_bytes({"ready": ready, "live": True}))
        elif path == "/metrics":
            text, kind = exposition(self._metrics.registry, (exchange.header(b"accept") or b"").decode("latin-1"))
            await exchange.reply(200, text, kind=kind)
        elif path == "/internal/ongoing" and exchange.method == "GET":
            await exchange.reply(200, json_bytes(self._ongoing()))
        elif path == "/v2" or (path.startswith("/v2/") and ".." not in path.split("/")):
            await self._route(exchange)
        else:
            raise HttpError(404, f"there is nothing at {path[:200]}", fix="the protocol begins at /v2")

    def _table(self) -> RouteTable:
        return self._routes.current() or RouteTable({}, {})

    def _ports(self, revision: str) -> tuple[int, ...] | None:
        return self._table().ports.get(revision)

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        self.check_accepting()
        if self._in_flight >= self._options.max_in_flight:
            what = f"{self._in_flight} requests are in flight already"
            raise HttpError(429, what, fix="send the request again a little later", headers=AGAIN)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def _route(self, exchange: Exchange) -> None:
        """Send the request to the chosen revision and count it."""
        asked = _Asked(time.perf_counter(), asyncio.get_running_loop().time() + self._options.timeout)
        try:
            with self._admitted():
                body = await exchange.read(self._options.max_body)
                asked.code = await self._forward(exchange, body, asked)
        except HttpError as error:
            asked.code = error.status
            error.headers = (*error.headers, *_revision_header(asked.revision))
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
            if self._replicas.silent(port) and self._options.news_file is not None:
                news.tell(self._options.news_file)  # so that it is replaced at once, and not at the supervisor's next look
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
                timeout=aiohttp.ClientTimeout(total=max(0.001, asked.deadline - asyncio.get_running_loop().time())),
            ) as answer:
                chunk = await answer.content.readany()  # before the head: a revision that dies here still gives a clean 503
                headers = _passed(answer.raw_headers, _NOT_RETURNED)
                await exchange.start(answer.status, [*headers, *_revision_header(revision)])
                mirrored, kept = self._mirror.drawn(exchange, revision, asked.shadow), list[bytes]()
                while chunk:
                    await exchange.write(chunk, more=True)
                    if mirrored:
                        kept.append(chunk)
                    chunk = await answer.content.readany()
                await exchange.write(b"", more=False)
                if mirrored and answer.status == 200:
                    answered = Answered(200, b"".join(kept), _json_bytes(answer))
                    self._mirror.send(mirrored, answered, lambda: self._ask_again(exchange, mirrored, body))
                return answer.status
        except TimeoutError:
            what = f"the revision {revision} did not answer within {self._options.timeout:g} s"
            raise HttpError(504, what, fix="send fewer rows, or raise the timeout") from None
        except aiohttp.ClientConnectorError:
            _logger.warning("the revision %s does not listen on port %d", revision, port)
            return None
        except aiohttp.ClientError as error:
            _logger.warning("request %s: the revision %s broke off: %r", exchange.id, revision, error)
            self._metrics.broke(revision)
            what = f"the revision {revision} broke off"
            raise HttpError(503, what, fix="send the request again if it may be computed twice", headers=AGAIN) from None

    async def _ask_again(self, exchange: Exchange, revision: str, body: bytes) -> Answered | None:
        """Ask a mirrored request; None where nobody is there any more who could answer."""
        headers = [*_forwarded(exchange), (SHADOW.decode(), "1")]
        for port in self._replicas.in_order(self._ports(revision) or ()):
            try:
                with self._replicas.asked(port):
                    async with self._session.request(
                        "POST", _url(exchange, port), headers=headers, data=io.BytesIO(body)
                    ) as answer:
                        return Answered(answer.status, await answer.read(), _json_bytes(answer))
            except aiohttp.ClientConnectorError:
                continue
            except aiohttp.ClientConnectionError:
                return None
        return None


def _json_bytes(answer: aiohttp.ClientResponse) -> int | None:
    length = answer.headers.get("inference-header-content-length", "")
    return int(length) if length.isdigit() else None


def _sticky_key(exchange: Exchange, table: RouteTable) -> str:
    return (exchange.header(table.sticky.encode()) or b"").decode("latin-1") if table.sticky else ""


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


def _url(exchange: Exchange, port: int) -> URL:
    """Build the backend's URL from the raw path, byte for byte: a path that changed on the way could lead elsewhere."""
    query = exchange.scope["query_string"]
    path = exchange.scope["raw_path"] + (b"?" + query if query else b"")
    return URL(f"http://127.0.0.1:{port}{path.decode('ascii')}", encoded=True)


def _forwarded(exchange: Exchange) -> list[tuple[str, str]]:
    headers = _passed(exchange.scope["headers"], _NOT_FORWARDED)
    return [*((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers), ("x-request-id", exchange.id)]


def _passed(headers: Iterable[tuple[bytes, bytes]], dropped: set[bytes]) -> list[tuple[bytes, bytes]]:
    """Drop headers that are for one connection only: the known ones and those that Connection names."""
    lowered = [(name.lower(), value) for name, value in headers]
    named = {token.strip().lower() for name, value in lowered if name == b"connection" for token in value.split(b",")}
    return [(name, value) for name, value in lowered if name not in dropped and name not in named]


def _revision_header(revision: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-cloudai-revision", revision.encode("latin-1", "replace"))] if revision else []


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
