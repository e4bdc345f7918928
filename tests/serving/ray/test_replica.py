"""A replica without Ray: the model server's own application, asked without a port."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from safetensors import safe_open

from cloudai.serving.protocol import encode_request
from cloudai.serving.ray.replica import Replica, answered

ARGV = ("-m", "cloudai.testing.server", "--revision", "v1", "--name", "m")
ROWS = encode_request({"x": np.zeros((3, 1), "float32")})


def scope(method, path):
    headers = [(b"content-type", b"application/json"), (b"x-request-id", b"r1")]
    return {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}


class Kept(Replica):
    """Ends only when it is told: Ray Serve awaits ``__del__``, Python does not."""

    def __del__(self):
        """Do nothing."""


async def replica(*more):
    made = Kept.__new__(Kept)
    await made.__init__([*ARGV, *more])
    return made


async def said(made, method, path, body=b""):
    begun, *more = [part async for part in made.answer(scope(method, path), body)]
    return begun.status, dict(begun.headers), b"".join([begun.body, *more])


def test_it_answers_counts_and_keeps_as_the_server_does(tmp_path):
    async def act():
        made = await replica()
        status, headers, body = await said(made, "POST", "/v2/models/m/infer", ROWS)
        assert (status, headers[b"x-request-id"]) == (200, b"r1")
        assert json.loads(body)["outputs"][0]["shape"] == [3]
        assert (await said(made, "POST", "/v2/models/m/infer", b"{"))[0] == 400
        assert (await said(made, "GET", "/v2/models/other"))[0] == 404
        assert "ml_predictions_total" in await made.metrics()
        assert await made.samples(0.0, 0) == []
        files = await made.samples(0.0, 10)
        folder = made._folder
        await Replica.__del__(made)
        assert not folder.exists(), "what it kept goes with it"
        return files

    (content,) = asyncio.run(act())
    (tmp_path / "kept").write_bytes(content)
    with safe_open(tmp_path / "kept", framework="np") as kept:
        assert kept.get_tensor("0/input/x").shape == (3, 1)


def test_a_server_that_ends_at_its_start_says_why():
    with pytest.raises(RuntimeError, match="this server crashes"):
        asyncio.run(replica("--behave", "crash"))


def test_parts_come_as_they_are_made_and_an_answer_that_breaks_off_is_an_error():
    async def stream(_scope, receive, send):
        assert (await receive())["body"] == b"in"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"a", b"b"):
            await send({"type": "http.response.body", "body": part, "more_body": True})

    async def act():
        parts = answered(stream, scope("POST", "/"), b"in")
        begun, second = await anext(parts), await anext(parts)
        assert (begun.body, begun.more, second) == (b"a", True, b"b")
        with pytest.raises(RuntimeError, match="broke off"):
            await anext(parts)

    asyncio.run(asyncio.wait_for(act(), 10))
