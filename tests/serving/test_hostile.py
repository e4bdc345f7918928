"""Clients that break the rules: each is refused or cut off cleanly, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import numpy as np
import psutil
import pytest
import uvicorn

from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.serving import http
from cloudai.serving.app import ModelApplication
from cloudai.serving.samples import SampleLog
from cloudai.serving.service import ModelService
from cloudai.specs.serving import ServerLimits
from tests.serving.processes import ask, body_of

INFER = "/v2/models/scaler/infer"


@pytest.fixture(scope="module")
def server(start_once):
    return start_once.server(factor="plain", max_body=100_000, timeout=2, sample_rate=0).wait_until_ready()


def head_of(length, *more):
    return "\r\n".join([f"POST {INFER} HTTP/1.1", "host: localhost", f"content-length: {length}", *more, "", ""]).encode()


def talk(server, data, *, answers=1):
    """Send raw bytes and return what comes back: so many answers, or all until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        answer = b""
        try:
            raw.sendall(data)
            while answer.count(b"HTTP/1.1 ") < answers or not answer.endswith(b"}"):
                if not (part := raw.recv(65536)):
                    break
                answer += part
        except (ConnectionResetError, BrokenPipeError):
            pass
        return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head_of(2, f"x-long: {'a' * 40_000}") + b"{}", b"431"),
        (head_of(2, *(f"x-{i}: {'a' * 1000}" for i in range(60))) + b"{}", b"431"),
        (b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 as TLS begins", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", b"400"),
        (b"\r\n\r\n\r\n nonsense \0\0\0", b"400"),
    ],
)
def test_what_is_no_good_http_is_refused_in_json(server, data, status):
    answer = talk(server, data)
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
    problem = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert problem["error"]
    assert problem["fix"]
    assert ask(server.port, "POST", INFER, body_of([[1, 0]])).status == 200


def test_headers_that_are_just_short_enough_are_taken(server):
    answer = talk(server, head_of(len(body_of([[1, 0]])), f"x-long: {'a' * 30_000}") + body_of([[1, 0]]).encode())
    assert answer.startswith(b"HTTP/1.1 200")


def test_requests_one_after_the_other_on_one_connection_are_answered_in_order(server):
    bodies = [body_of([[i, 0]], id=str(i)).encode() for i in range(50)]
    answer = talk(server, b"".join(head_of(len(body)) + body for body in bodies), answers=50)
    found = [json.JSONDecoder().raw_decode(text)[0]["id"] for text in answer.decode().split("\r\n\r\n")[1:]]
    assert found == [str(i) for i in range(50)]


def test_a_body_in_chunks_is_read_whole(server):
    body = body_of([[1, 0]]).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"
    head = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    assert talk(server, head + chunks).startswith(b"HTTP/1.1 200")


def test_a_client_that_waits_to_be_told_to_go_on_is_told(server):
    body = body_of([[1, 0]]).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        raw.sendall(head_of(len(body), "expect: 100-continue"))
        assert raw.recv(100).startswith(b"HTTP/1.1 100")
        raw.sendall(body)
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")


def test_clients_that_come_and_go_leave_nothing(server):
    process = psutil.Process(server.process.pid)
    ask(server.port, "POST", INFER, body_of([[1, 0]]))
    before = process.num_fds()
    for size in (0, 10, 90):
        for _ in range(30):
            with socket.create_connection(("127.0.0.1", server.port)) as raw:
                raw.sendall(head_of(100) + b" " * size)
    assert ask(server.port, "POST", INFER, body_of([[1, 0]])).status == 200
    assert process.num_fds() <= before + 1
    text = server.get("/metrics").body.decode()
    assert "ml_inference_in_flight{instance" in text
    [line] = [line for line in text.splitlines() if line.startswith("ml_inference_in_flight{")]
    assert line.endswith(" 0.0")


class Wide:
    """Answers each row with a thousand numbers."""

    name, version = "scaler", "1"
    signature = Signature((TensorSpec("x", "float32", (-1, 2)),), (TensorSpec("y", "float32", (-1, 1000)),))

    calls = 0

    def infer(self, inputs):
        Wide.calls += 1
        return {"y": np.zeros((len(inputs["x"]), 1000), "float32")}


def in_process(tmp_path, scenario):
    """Run `scenario` with the port of a server in the same event loop, and its application."""

    async def run():
        log = SampleLog(tmp_path / "samples", rate=0.0, max_bytes=1000, dropped=lambda rows: None)
        service = ModelService(
            Wide(), example=None, name="scaler", limits=ServerLimits(timeout=5), threads=1, instance="x",
            open_samples=lambda dropped: log,
        )  # fmt: skip
        application = ModelApplication([service], check=lambda asked: None, needs_token=False)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(http.uvicorn_config(application))
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            return await asyncio.wait_for(scenario(listener.getsockname()[1], server), 20)
        finally:
            server.should_exit = server.force_exit = True
            await serving
            await application.stop()

    return asyncio.run(run())


def test_a_head_that_does_not_end_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(http, "_HEAD_SECONDS", 0.2)

    async def scenario(port, server):
        ended = []
        for words in (b"", b"POST /", head_of(5)[:-2]):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(words)
            try:
                ended.append(await asyncio.wait_for(reader.read(), 5))
            except ConnectionResetError:
                ended.append(b"")
            writer.close()
        return ended

    assert in_process(tmp_path, scenario) == [b"", b"", b""]


def test_who_does_not_read_his_answers_is_not_answered_for_ever(tmp_path, monkeypatch):
    request = head_of(len(body_of([[1, 0]]))) + body_of([[1, 0]]).encode()

    async def scenario(port, server):
        loop = asyncio.get_running_loop()
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        await loop.sock_connect(raw, ("127.0.0.1", port))
        Wide.calls = before = 0
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(loop.sock_sendall(raw, request * 5000), 5)  # for 20 MB of answers, which nobody reads
        while before < Wide.calls:
            before = Wide.calls
            await asyncio.sleep(0.3)
        waiting = [connection.transport._transport.get_write_buffer_size() for connection in server.server_state.connections]
        raw.close()
        return before, max(waiting)

    answered, waiting = in_process(tmp_path, scenario)
    assert answered < 4000
    assert waiting < 2_000_000
