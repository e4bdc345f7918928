"""A real S3 to test against: moto's server, and before it a proxy that fails by plan and counts the requests.

``bucket`` gives the URL of a fresh bucket, behind the proxy ``s3``; the environment says where it is, as a user's would.
"""

from __future__ import annotations

import http.client
import logging
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import pytest

CANARY = "-".join(("canary", "Secret", "9f3b7c21d4"))
"""The secret key of these tests; no literal of that name, so that modules which import this one can be captured."""
_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}
_CODES = {500: "InternalError", 503: "SlowDown", 403: "SignatureDoesNotMatch"}


@dataclass
class Fault:
    """What goes wrong, with which requests, and how often.

    Kinds: a status; "cut" closes the connection before the request is passed on; "lost" after it was, so that only the
    answer is missing; "half" in the middle of the answer's body; "half sent" in the middle of the request's body; "stall"
    says nothing for `seconds`.
    """

    kind: int | Literal["cut", "lost", "half", "half sent", "stall"]
    times: int = 1_000_000
    method: str = ""
    path: str = ""
    seconds: float = 0.0
    until: float = float("inf")
    """A time of `time.monotonic`."""

    def hits(self, method: str, path: str) -> bool:
        if self.times <= 0 or time.monotonic() > self.until or self.method not in ("", method) or self.path not in path:
            return False
        self.times -= 1
        return True


@dataclass
class Faulty:
    """The proxy: its address, its plan, and what passed through it."""

    url: str
    plan: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    failed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, kind, **how) -> Fault:
        fault = Fault(kind, **how)
        with self.lock:
            self.plan.append(fault)
        return fault

    def mend(self) -> None:
        with self.lock:
            self.plan.clear()

    def count(self, method: str = "") -> int:
        with self.lock:
            return sum(1 for verb, _ in self.requests if method in ("", verb))

    def reset(self) -> None:
        with self.lock:
            self.plan.clear()
            self.requests.clear()
            self.failed = 0

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            found = next((fault for fault in self.plan if fault.hits(method, path)), None)
            self.failed += found is not None
            return found


def _handler(faulty: Faulty, upstream: tuple[str, int]) -> type[BaseHTTPRequestHandler]:  # noqa: C901  one class
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            """Say nothing."""

        def _pass_on(self) -> None:
            fault = faulty.next_fault(self.command, self.path)
            kind = fault.kind if fault else None
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length // 2 if kind == "half sent" else length)
            if kind in ("cut", "half sent"):
                return self._hang_up()
            if kind == "stall":
                time.sleep(fault.seconds)
                return self._hang_up()
            if isinstance(kind, int):
                return self._answer(kind, {"Content-Type": "application/xml"}, _error(kind))
            status, headers, answer = self._upstream(body)
            if kind == "lost":
                return self._hang_up()
            return self._answer(status, headers, answer, cut=kind == "half")

        def _upstream(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(*upstream, timeout=60)
            kept = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
            connection.request(self.command, self.path, body, kept)
            response = connection.getresponse()
            answer = response.read()
            connection.close()
            return response.status, dict(response.getheaders()), answer

        def _answer(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self._hang_up()

        def _hang_up(self) -> None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    return Handler


def _error(status: int) -> bytes:
    return f"<Error><Code>{_CODES[status]}</Code><Message>by plan</Message></Error>".encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """A client that has gone is nothing to tell of."""


@pytest.fixture(scope="session")
def _moto() -> Iterator[tuple[str, int]]:
    server = pytest.importorskip("moto.server", reason="needs moto[server]")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield running.get_host_and_port()
    running.stop()


@pytest.fixture(scope="session")
def _proxy(_moto) -> Iterator[Faulty]:
    faulty = Faulty("")
    server = _Server(("127.0.0.1", 0), _handler(faulty, _moto))
    faulty.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield faulty
    server.shutdown()
    server.server_close()


@pytest.fixture
def s3(_proxy, monkeypatch) -> Iterator[Faulty]:
    """The proxy, without faults so far; the environment leads to it."""
    _proxy.reset()
    values = {
        "ENDPOINT_URL": _proxy.url,
        "ACCESS_KEY_ID": "AKIATEST",
        "SECRET_ACCESS_KEY": CANARY,
        "DEFAULT_REGION": "us-east-1",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    yield _proxy
    _proxy.reset()


@pytest.fixture
def bucket(s3) -> str:
    """The URL of a fresh bucket."""
    return make_bucket(s3, f"test-{uuid.uuid4().hex[:12]}")


def make_bucket(s3: Faulty, name: str) -> str:
    """Make a bucket and return its URL."""
    urllib.request.urlopen(urllib.request.Request(f"{s3.url}/{name}", method="PUT")).close()
    s3.reset()
    return f"s3://{name}"
