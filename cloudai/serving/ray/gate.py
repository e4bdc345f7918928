"""The gate of a deployment on Ray Serve: it looks at the token and sends each request to the revision that is to answer.

It is the only part of a deployment that Ray Serve shows over HTTP, and does there what the router does on one machine. What it
goes by is its ``user_config``, which Ray Serve keeps and gives to each replica, also to one that takes a lost one's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs

import numpy as np
from safetensors.numpy import save

from cloudai.serving.access import OPEN_PATHS
from cloudai.serving.asgi import AGAIN, Application, Asked, Exchange, HttpError, Receive, Send, json_bytes
from cloudai.serving.metrics import exposition
from cloudai.serving.router_metrics import RouterMetrics
from cloudai.serving.routes import RouteTable

__all__ = ["Begun", "GateApplication", "GateConfig", "Revisions", "UnavailableError"]

_MAX_IN_FLIGHT = 1024
_DESK = "/internal/"
"""What begins so is asked by the driver alone, with a key of its own."""
_MAX_ORDER = 1 << 20
_LOST_CLIENT = 499  # nginx's code for it
_logger = logging.getLogger(__name__)


class UnavailableError(Exception):
    """No replica of a revision takes the request now, and none has begun with it."""

    def __init__(self, what: str, *, busy: bool) -> None:
        super().__init__(what)
        self.busy = busy


@dataclass(frozen=True)
class Begun:
    """How an answer begins: most are whole with it, and cross the cluster in one piece."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    more: bool
    """Whether there are further parts of the body."""


class Revisions(Protocol):
    """How the gate reaches the replicas."""

    def ask(self, revision: str, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[Any]:
        """Yield `Begun`, and then what there is more of the body.

        `UnavailableError` before anything else where no replica takes the request; `ConnectionError` where one broke off.
        """
        ...

    async def ask_all(self, revision: str, method: str, *arguments: Any) -> list[Any]:
        """Call a method of each replica, and return what those who answer in time say; of no revision, of each gate."""
        ...


class GateConfig:
    """What the gate goes by.

    Parameters
    ----------
    value : mapping
        ``traffic`` (revision → percent), ``sticky`` (the header by whose value a revision is chosen), ``token`` and ``desk``
        (the SHA-256 of the deployment's token and of the driver's key, in hex: who reads a configuration can check a token by
        them, and not tell it), and what only the driver reads.
    """

    def __init__(self, value: Mapping[str, Any]) -> None:
        traffic = {str(name): float(share) for name, share in sorted(value["traffic"].items()) if share}
        self.table = RouteTable({}, traffic, str(value.get("sticky", "")))
        self._token, self._desk = str(value["token"]), str(value["desk"])

    def check(self, exchange: Asked) -> None:
        """Let a request pass, or refuse it.

        Raises
        ------
        HttpError
            401 without the token, or at the driver's desk without the driver's key.
        """
        if exchange.path in OPEN_PATHS:
            return
        scheme, _, given = (exchange.header(b"authorization") or b"").partition(b" ")
        wanted = self._desk if exchange.path.startswith(_DESK) else self._token
        digest = hashlib.sha256(given.strip()).hexdigest()
        if scheme.lower() != b"bearer" or not hmac.compare_digest(digest, wanted):
            fix = "send 'authorization: Bearer ' and what the file deployment.token_file holds"
            raise HttpError(401, "the token is missing or wrong", fix=fix, headers=[(b"www-authenticate", b"Bearer")])


class GateApplication(Application):
    """Sends each request to one revision, by its share of the traffic.

    Parameters
    ----------
    revisions : Revisions
        How the replicas are reached.
    carry_out : callable
        Does what the driver orders, in a thread; it may take a while.
    max_body : int
        Bytes of a request.
    timeout : float
        Seconds until an answer begins; longer than the servers' for one, so that they say why.
    """

    def __init__(
        self, revisions: Revisions, carry_out: Callable[[Mapping[str, Any]], None], *, max_body: int, timeout: float
    ) -> None:
        super().__init__(check=self._check_access)
        self._revisions, self._carry_out = revisions, carry_out
        self._max_body, self._timeout = max_body, timeout
        self._config: GateConfig | None = None
        self._in_flight = 0
        self._metrics = RouterMetrics(in_flight=lambda: self._in_flight, waiting=lambda: 0.0)  # Ray Serve's handles wait
        self._instance = f"{socket.gethostname()}/gate-{secrets.token_hex(4)}"

    @property
    def in_flight(self) -> int:
        """How many requests are being sent on."""
        return self._in_flight

    def configure(self, value: Mapping[str, Any]) -> None:
        """Go by another configuration from the next request on."""
        self._config = GateConfig(value)
        _logger.info("traffic: %s", self._config.table.traffic)

    def count(self) -> tuple[str, str]:
        """Return who counts here, and what was counted, in Prometheus' format."""
        return self._instance, exposition(self._metrics.registry, "")[0].decode()

    async def start(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""

    def describe(self) -> dict[str, Any]:
        """Say whether requests should come here."""
        return {"ready": bool(self._table.traffic)}

    async def below_prefix(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer as Ray Serve asks: under the deployment's own prefix, and about the start and the end of the replica."""
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        prefix = scope.get("root_path", "")
        raw = scope.get("raw_path") or scope["path"].encode()
        inner = {"path": scope["path"].removeprefix(prefix) or "/", "raw_path": raw.removeprefix(prefix.encode()) or b"/"}
        await self({**scope, **inner, "headers": [(bytes(k), bytes(v)) for k, v in scope["headers"]]}, receive, send)

    def _check_access(self, exchange: Asked) -> None:
        if self._config is None:
            raise HttpError(503, "the gate has only just begun", fix="send the request again", headers=AGAIN)
        self._config.check(exchange)

    @property
    def _table(self) -> RouteTable:
        return self._config.table if self._config else RouteTable({}, {})

    async def answer(self, exchange: Exchange) -> None:
        """Answer what is asked of the gate itself, and send the rest of ``/v2`` and ``/v1`` on."""
        path = exchange.path
        if path == "/v2/health/live":
            await exchange.reply(200, json_bytes({"live": True}))
        elif path == "/v2/health/ready":
            ready = bool(self._table.traffic)
            await exchange.reply(200 if ready else 503, json_bytes({"ready": ready, "live": True}))
        elif path == "/v2" or (path.startswith(("/v2/", "/v1/")) and ".." not in path.split("/")):
            await self._route(exchange)
        elif path.startswith(_DESK):
            await self._serve_driver(exchange)
        else:
            raise HttpError(404, f"there is nothing at {path[:200]}", fix="the protocol begins at /v2")

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._in_flight >= _MAX_IN_FLIGHT:
            what = f"{self._in_flight} requests are in flight already"
            raise HttpError(429, what, fix="send the request again a little later", headers=AGAIN)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def _route(self, exchange: Exchange) -> None:
        """Send the request to the chosen revision, or to the next one if that has no replica that takes it."""
        begun, code, revision, busy = time.perf_counter(), _LOST_CLIENT, "", False
        try:
            with self._admitted():
                body = await exchange.read(self._max_body)
                table = self._table  # after the body: meanwhile the traffic may have been moved
                for revision in table.choose(exchange.id, _sticky_key(exchange, table)):
                    try:
                        code = await self._send_on(exchange, revision, body)
                        return
                    except UnavailableError as error:
                        _logger.warning("the revision %s: %s", revision, error)
                        if busy := error.busy:
                            break
                raise _nobody(table, busy=busy)
        except HttpError as error:
            code = error.status
            error.headers = (*error.headers, *_revision_header(revision))
            raise
        finally:
            self._metrics.routed(revision, code, time.perf_counter() - begun)

    async def _send_on(self, exchange: Exchange, revision: str, body: bytes) -> int:
        """Pass request and answer on, and return the status."""
        answer = self._revisions.ask(revision, _told(exchange), body)
        try:
            async with asyncio.timeout(self._timeout):  # until it begins: how long a stream may go on is the server's to say
                begun: Begun = await anext(answer)
            await exchange.start(begun.status, [*_passed(begun.headers), *_revision_header(revision)])
            await exchange.write(begun.body, more=begun.more)
            if begun.more:
                async for part in answer:
                    await exchange.write(part, more=True)
                await exchange.write(b"", more=False)
            return begun.status
        except TimeoutError:
            what = f"the revision {revision} did not answer within {self._timeout:g} s"
            raise HttpError(504, what, fix="send fewer rows, or raise the timeout") from None
        except ConnectionError as error:
            _logger.warning("request %s: the revision %s broke off: %s", exchange.id, revision, error)
            self._metrics.broke(revision)
            what = f"the revision {revision} broke off"
            raise HttpError(503, what, fix="send the request again if it may be computed twice", headers=AGAIN) from None

    async def _serve_driver(self, exchange: Exchange) -> None:
        asked = parse_qs(exchange.scope["query_string"].decode("ascii", "replace"))
        revisions = asked.get("revision", [])
        if exchange.path == f"{_DESK}orders" and exchange.method == "POST":
            order = json.loads(await exchange.read(_MAX_ORDER))
            await asyncio.to_thread(self._carry_out, order)
            await exchange.reply(200, b"{}")
        elif exchange.path == f"{_DESK}metrics":
            gates, *texts = await asyncio.gather(
                self._revisions.ask_all("", "count"),
                *(self._revisions.ask_all(revision, "metrics") for revision in revisions),
            )
            counted = [*gates, *(("", text) for replicas in texts for text in replicas)]
            await exchange.reply(200, json_bytes(counted))
        elif exchange.path == f"{_DESK}samples":
            since, limit = float(asked["since"][0]), int(asked["limit"][0])
            found = await asyncio.gather(*(self._revisions.ask_all(rev, "samples", since, limit) for rev in revisions))
            await exchange.reply(200, _packed(dict(zip(revisions, found, strict=True))), kind="application/octet-stream")
        else:
            raise HttpError(404, f"there is nothing at {exchange.path[:200]}", fix="update cloudai on both sides")


def _sticky_key(exchange: Exchange, table: RouteTable) -> str:
    return (exchange.header(table.sticky.encode()) or b"").decode("latin-1") if table.sticky else ""


def _told(exchange: Exchange) -> dict[str, Any]:
    """Return what a replica is told of a request; the token stays here."""
    known = ("type", "method", "path", "raw_path", "query_string", "http_version", "scheme")
    headers = [(name, value) for name, value in exchange.scope["headers"] if name not in (b"authorization", b"x-request-id")]
    told = {name: exchange.scope[name] for name in known if name in exchange.scope}
    return {**told, "headers": [*headers, (b"x-request-id", exchange.id.encode())]}


def _passed(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Drop what the gate says itself, and what is about one connection."""
    return [(name, value) for name, value in headers if name.lower() not in (b"x-request-id", b"connection")]


def _revision_header(revision: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-cloudai-revision", revision.encode("latin-1", "replace"))] if revision else []


def _nobody(table: RouteTable, *, busy: bool) -> HttpError:
    if busy:
        return HttpError(429, "all replicas are busy", fix="send the request again a little later", headers=AGAIN)
    what = "no revision answers" if table.traffic else "no revision has traffic yet"
    return HttpError(503, what, fix="send the request again a little later", headers=AGAIN)


def _packed(found: Mapping[str, Sequence[Sequence[bytes]]]) -> bytes:
    """Put files together, each named by its revision, its replica and its number."""
    return save(
        {
            f"{revision}/{replica}/{number}": np.frombuffer(content, np.uint8)
            for revision, replicas in found.items()
            for replica, files in enumerate(replicas)
            for number, content in enumerate(files)
        }
    )
