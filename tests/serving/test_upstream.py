"""The router's connections, against raw servers in the same event loop."""

from __future__ import annotations

import asyncio

import pytest

from cloudai.serving.upstream import Upstream

REQUEST = b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\nhi"
GOOD = b"HTTP/1.1 200 OK\r\nX-Kind: a\r\ncontent-length: 3\r\n\r\nyes"


class Asked:
    def __init__(self):
        self.outcome = asyncio.get_running_loop().create_future()

    def answered(self, answer):
        self.outcome.set_result((answer.status, answer.body))
        self.headers = answer.headers

    def broke(self, *, unsent):
        self.outcome.set_result("unsent" if unsent else "broken")


def with_server(handle, scenario):
    """Run `scenario` with the port of a server that calls `handle` for each connection."""

    async def run():
        writers = []

        async def handle_and_close(reader, writer):
            writers.append(writer)
            try:
                await handle(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(handle_and_close, "127.0.0.1", 0)
        upstream = Upstream()
        try:
            return await asyncio.wait_for(scenario(upstream, server.sockets[0].getsockname()[1]), 10)
        finally:
            upstream.close()
            server.close()

    return asyncio.run(run())


async def ask(upstream, port):
    asked = Asked()
    upstream.ask(port, REQUEST, asked)
    return await asked.outcome


async def answer_all(reader, writer, answer=GOOD):
    while await reader.read(65536):
        writer.write(answer)


def test_connections_are_used_again():
    connections = []

    async def handle(reader, writer):
        connections.append(1)
        await answer_all(reader, writer)

    async def scenario(upstream, port):
        return [await ask(upstream, port) for _ in range(5)]

    assert with_server(handle, scenario) == [(200, b"yes")] * 5
    assert len(connections) == 1


def test_requests_at_the_same_time_have_a_connection_each():
    async def scenario(upstream, port):
        return await asyncio.gather(*(ask(upstream, port) for _ in range(20)))

    assert with_server(answer_all, scenario) == [(200, b"yes")] * 20


def test_an_answer_may_come_in_pieces_and_after_a_1xx():
    async def handle(reader, writer):
        while await reader.read(65536):
            for byte in b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD:
                writer.write(bytes([byte]))
                await writer.drain()

    async def scenario(upstream, port):
        return [await ask(upstream, port) for _ in range(2)]

    assert with_server(handle, scenario) == [(200, b"yes")] * 2


def test_a_connection_that_is_to_be_closed_is_not_used_again():
    answer = b"HTTP/1.1 503 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

    async def handle(reader, writer):
        await reader.read(65536)
        writer.write(answer)

    async def scenario(upstream, port):
        return [await ask(upstream, port) for _ in range(3)]

    assert with_server(handle, scenario) == [(503, b"")] * 3


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", b"what?\r\n\r\n"])
def test_a_server_that_breaks_off_is_told_from_one_that_does_not_listen(words):
    async def handle(reader, writer):
        await reader.read(65536)
        writer.write(words)

    async def scenario(upstream, port):
        return await ask(upstream, port), await ask(upstream, 1)

    assert with_server(handle, scenario) == ("broken", "unsent")


def test_a_connection_that_the_server_closed_while_it_was_idle_is_not_used():
    async def handle(reader, writer):
        await reader.read(65536)
        writer.write(GOOD)
        await writer.drain()

    async def scenario(upstream, port):
        first = await ask(upstream, port)
        await asyncio.sleep(0.05)
        return first, await ask(upstream, port)

    assert with_server(handle, scenario) == ((200, b"yes"), (200, b"yes"))


def test_a_request_that_is_given_up_ends_its_connection():
    ended = asyncio.Event

    async def scenario(upstream, port):
        asked = Asked()
        give_up = upstream.ask(port, REQUEST, asked)
        await arrived.wait()
        give_up()
        await gone.wait()
        return asked.outcome.done()

    async def handle(reader, writer):
        await reader.read(65536)
        arrived.set()
        assert await reader.read(65536) == b""
        gone.set()

    arrived, gone = ended(), ended()
    assert with_server(handle, scenario) is False
