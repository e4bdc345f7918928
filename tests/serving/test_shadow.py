"""Mirrored requests: compared off the request's path, never seen by the client, and counted; and sticky keys."""

from __future__ import annotations

import json
import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloudai.drivers.protocols import Metric
from cloudai.serving.counters import read_counts
from cloudai.serving.protocol import encode_binary_request
from cloudai.serving.shadow import Answered, difference
from tests.conftest import wait_until


def answer(data, datatype="FP32", name="y", status=200):
    data = list(data)
    shape = [len(data), len(data[0])] if data and isinstance(data[0], list) else [len(data)]
    tensor = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    return Answered(status, json.dumps({"outputs": [tensor]}).encode())


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (answer([[1.0, 0.5]]), answer([[1.0, 0.5]]), 0.0),
        (answer([[1.0, 0.5]]), answer([[1.0, 0.25]]), 0.25),
        (answer([[1.0, 0.5], [10.0, 0.0]]), answer([[1.0, 0.5], [5.0, 0.0]]), 0.5),
        (answer([[0.0, 0.0]]), answer([[0.0, 0.0]]), 0.0),
        (answer([1, 2], "INT64"), answer([1, 3], "INT64"), math.inf),
        (answer(["a"], "BYTES"), answer(["b"], "BYTES"), math.inf),
        (answer([1.0]), answer([1.0, 2.0]), math.inf),
        (answer([1.0]), answer([1.0], name="z"), math.inf),
        (answer([1.0]), answer([1.0], status=500), math.inf),
        (answer([1.0]), Answered(200, b"no json"), math.inf),
    ],
)
def test_how_much_answers_differ(one, other, found):
    assert difference(one, other) == found


def test_binary_tensors_are_compared_as_numbers():
    import numpy as np

    def binary(value):
        body, length = encode_binary_request({"y": np.array([[value, 2.0]], "float32")})
        return Answered(200, body.replace(b'"inputs"', b'"outputs"'), length + 1)

    assert difference(binary(1.0), binary(1.0)) == 0.0
    assert difference(binary(1.0), binary(1.5)) == 0.25


@pytest.fixture(scope="module")
def pair(start_once):
    return [start_once.server(f"shadow-{factor}", factor=factor).wait_until_ready() for factor in (2, 3)]


@pytest.fixture
def router(start):
    return start.router().wait_until_ready()


def route(router, traffic, servers, **more):
    backends = {name: {"ports": [server.port]} for name, server in servers.items()}
    fresh = router.folder / "routes.fresh"
    fresh.write_text(json.dumps({"traffic": traffic, "backends": backends, **more}))
    fresh.replace(router.folder / "routes.json")


def counts(router):
    families = text_string_to_metric_families(router.get("/metrics").body.decode())
    return read_counts(Metric(s.name, s.value, s.labels) for family in families for s in family.samples)


def test_a_mirrored_request_is_compared_and_the_client_never_sees_it(router, pair):
    stable, canary = pair
    route(router, {"a": 100}, {"a": stable, "b": canary}, shadow={"b": 100})
    for _ in range(5):
        found = router.infer([[1, 0]])
        assert (found.status, found.y, found.headers["x-cloudai-revision"]) == (200, [2.0], "a")
    seen = wait_until(lambda: (found := counts(router)).get("b") and found["b"].compared == 5 and found["b"])
    assert seen.requests == 0, "mirrored requests are no traffic"
    assert seen.differing[0.2] == 5 and seen.differing[0.5] == 0, "3 differs from 2 by a third"


def test_nothing_but_predictions_is_mirrored_and_no_failed_one(router, pair):
    stable, canary = pair
    route(router, {"a": 100}, {"a": stable, "b": canary}, shadow={"b": 100})
    router.get("/v2/models/scaler")
    router.infer([[1, -1]])  # the model fails
    router.infer([[1, 0]], path="/v2/models/scaler/versions/1.2.0/infer")
    router.infer([[1, 0]])
    assert wait_until(lambda: (found := counts(router)).get("b") and found["b"].compared) == 1


def test_a_dead_shadow_harms_nobody_and_its_death_is_no_difference(router, pair):
    stable, _ = pair
    backends = {"a": {"ports": [stable.port]}, "b": {"ports": [9]}}
    (router.folder / "routes.json").write_text(json.dumps({"traffic": {"a": 100}, "backends": backends, "shadow": {"b": 100}}))
    assert router.infer([[1, 0]]).y == [2.0]
    wait_until(lambda: b'cloudai_shadow_dropped_total{revision="b"} 1.0' in router.get("/metrics").body)
    assert "b" not in counts(router)


def test_what_is_mirrored_is_not_kept_twice(start, pair):
    server, router = start.server("kept").wait_until_ready(), start.router("before").wait_until_ready()
    route(router, {"a": 100}, {"a": pair[0], "b": server}, shadow={"b": 100})
    router.infer([[1, 0]])
    wait_until(lambda: counts(router).get("b"))
    server.post("/internal/flush")
    assert not list((server.folder / "samples").glob("*.safetensors"))
    server.infer([[1, 0]])
    server.post("/internal/flush")
    assert list((server.folder / "samples").glob("*.safetensors"))


def sent_with(router, key):
    return router.infer([[1, 0]], headers={"x-user-id": key}).headers["x-cloudai-revision"]


def test_a_key_stays_with_its_revision_while_the_share_grows(router, pair):
    servers = dict(zip("ab", pair, strict=True))
    keys = [f"user-{n}" for n in range(40)]
    before = set()
    for share in (10, 40, 80, 100):
        route(router, {"a": 100 - share, "b": share}, servers, sticky="x-user-id")
        asked = {key: {sent_with(router, key) for _ in range(2)} for key in keys}
        assert all(len(revisions) == 1 for revisions in asked.values())
        after = {key for key, revisions in asked.items() if revisions == {"b"}}
        assert before <= after, "who has seen the new version goes on seeing it"
        before = after
    assert before == set(keys)
