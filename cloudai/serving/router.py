"""The router: one process and one stable port for a deployment, in front of its revisions.

``python -m cloudai.serving.router --state FOLDER`` reads ``FOLDER/routes.json`` (see `RouteTable`) again whenever it is
replaced, from the next request on, and writes ``FOLDER/router.json``. Only ``/v2`` is forwarded, with the client's token.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import aiohttp
from pydantic import Field
from yarl import URL

from cloudai.serving.access import Access
from cloudai.serving.asgi import AGAIN, Application, Exchange, HttpError, json_bytes
from cloudai.serving.metrics import RouterMetrics, exposition
from cloudai.serving.process import ProcessOptions, errors_in_two_lines, read_arguments, run
from cloudai.serving.routes import RouteFile, RouteTable
from cloudai.specs.units import Bytes, Seconds

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
_NOT_FORWARDED = _HOP_BY_HOP | {b"host", b"content-length", b"expect", b"x-request-id"}
_NOT_RETURNED = _HOP_BY_HOP | {b"date", b"server", b"x-request-id", b"x-cloudai-revision"}
_logger = logging.getLogger(__name__)


class RouterOptions(ProcessOptions):
    """How a deployment is routed."""

    max_body: Bytes = Field(default=16 * 2**20, description="bytes of a request")
    max_in_flight: int = Field(default=1024, ge=1, description="requests at once; more are answered 429")
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
        self._metrics = RouterMetrics(in_flight=lambda: self.in_flight)

    @property
    def in_flight(self) -> int:
        """How many requests are being routed."""
        return self._in_flight

    async def start(self) -> None:
        """Open the pool of connections to the revisions."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
            timeout=aiohttp.ClientTimeout(total=self._options.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("accept", "accept-encoding", "user-agent", "content-type"),
        )

    async def stop(self) -> None:
        """Close the pool."""
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
        elif path == "/v2" or (path.startswith("/v2/") and ".." not in path.split("/")):
            await self._route(exchange)
        else:
            raise HttpError(404, f"there is nothing at {path[:200]}", fix="the protocol begins at /v2")

    def _table(self) -> RouteTable:
        return self._routes.current() or RouteTable({}, {})

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
        """Send the request to the chosen revision, or to the next one if nobody listens there."""
        begun, code, revision = time.perf_counter(), 499, ""  # 499: the client went away (nginx's code for it)
        try:
            with self._admitted():
                body = await exchange.read(self._options.max_body)
                table = self._table()  # after the body: during a slow upload the traffic may have been moved
                for revision in table.choose(exchange.id):
                    answered = await self._proxy(exchange, revision, table.ports[revision], body)
                    if answered is not None:
                        code = answered
                        return
                raise _nobody(table)
        except HttpError as error:
            code = error.status
            error.headers = (*error.headers, *_revision_header(revision))
            raise
        finally:
            self._metrics.routed(revision, code, time.perf_counter() - begun)

    async def _proxy(self, exchange: Exchange, revision: str, port: int, body: bytes) -> int | None:
        """Pass request and answer on and return the status; None if nothing was sent because nobody listens."""
        try:
            async with self._session.request(
                exchange.scope["method"],
                _url(exchange, port),
                headers=_forwarded(exchange),
                data=io.BytesIO(body) if body else None,
                allow_redirects=False,
            ) as answer:
                chunk = await answer.content.readany()  # before the head: a revision that dies here still gives a clean 503
                headers = _passed(answer.raw_headers, _NOT_RETURNED)
                await exchange.start(answer.status, [*headers, *_revision_header(revision)])
                while chunk:
                    await exchange.write(chunk, more=True)
                    chunk = await answer.content.readany()
                await exchange.write(b"", more=False)
                return answer.status
        except TimeoutError:
            what = f"the revision {revision} did not answer within {self._options.timeout:g} s"
            raise HttpError(504, what, fix="send fewer rows, or raise the timeout") from None
        except aiohttp.ClientConnectorError:
            _logger.warning("the revision %s does not listen on port %d", revision, port)
            return None
        except aiohttp.ClientError as error:
            _logger.warning("request %s: the revision %s broke off: %r", exchange.id, revision, error)
            what = f"the revision {revision} broke off"
            raise HttpError(503, what, fix="send the request again if it may be computed twice", headers=AGAIN) from None


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
    run(lambda _, access: RouterApplication(options, access), options, state_file="router.json")


if __name__ == "__main__":
    main()
