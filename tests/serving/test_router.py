"""The router as a real process in front of real server processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloudai.drivers.samples import read_samples
from tests.serving.processes import ask, body_of

INFER = "/v2/models/scaler/infer"


@pytest.fixture(scope="module")
def fleet(start_once):
    """A router with two revisions: a doubles, b triples."""
    servers = {"a": start_once.server("a", factor=2), "b": start_once.server("b", factor=3)}
    router = start_once.router(max_body=50_000, timeout=1.0)
    for served in (*servers.values(), router):
        served.wait_until_ready()
    return router, servers


@pytest.fixture
def router(fleet):
    router, servers = fleet
    router.route({"a": 100, "b": 0}, servers)
    return router


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_it_passes_requests_and_answers_on(router):
    answer = router.infer([[1.5, 0]], headers={"x-request-id": "mine", "x-cloudai-revision": "forged"}, id="7")
    assert (answer.status, answer.y, answer.json["id"]) == (200, [3.0], "7")
    assert (answer.headers["x-cloudai-revision"], answer.headers["x-request-id"]) == ("a", "mine")
    assert router.get("/v2/models/scaler").json["versions"] == ["1.2.0"]
    assert router.get("/v2").headers["x-cloudai-revision"] == "a"
    assert ask(router.port, "HEAD", "/v2").status == 200


def test_the_request_id_is_the_samples_id(router, fleet):
    begun = time.time() - 1
    made = router.infer([[1, 0]]).headers["x-request-id"]
    fleet[1]["a"].post("/internal/flush")
    blocks = read_samples(fleet[1]["a"].folder / "samples", begun, 1000)
    assert made in {identity for block in blocks for identity in block.ids}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [("{", {}, 400), ("{}", {"content-type": "text/plain"}, 415), (" " * 60_000, {}, 413), (body_of([[1, -1]]), {}, 500)],
)
def test_errors_come_through_with_revision_and_id(router, body, headers, status):
    answer = ask(router.port, "POST", INFER, body, headers)
    assert (answer.status, bool(answer.json["error"])) == (status, True)
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert answer.headers.get("x-cloudai-revision") == (None if status == 413 else "a")


@pytest.mark.parametrize(
    "path",
    [
        "/internal/flush",
        "/%69nternal/flush",
        "//internal/flush",
        "/v2/../internal/flush",
        "/v2/%2e%2e/internal/flush",
        "/v2/..%2finternal/flush",
        "/v2/models/scaler/../../../internal/flush",
        "/",
        "/v2x",
    ],
)
def test_only_the_protocol_is_forwarded(router, path):
    answer = ask(router.port, "POST", path)
    assert answer.status == 404
    assert "x-cloudai-revision" not in answer.headers


@contextlib.contextmanager
def raw_backend(answer):
    """Answer one request with these bytes and hang up; yields the port and what was received."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        received = []

        def once():
            connection, _ = listener.accept()
            received.append(connection.recv(65536).decode())
            connection.sendall(answer)
            connection.close()

        thread = threading.Thread(target=once)
        thread.start()
        yield listener.getsockname()[1], received
        thread.join()


def test_headers_of_one_connection_are_not_forwarded(fleet):
    router, _ = fleet
    lines = ["connection: close, x-hop", "x-hop: 1", "x-end: 2", "x-request-id: forged", "content-length: 2"]
    with raw_backend("\r\n".join(["HTTP/1.1 200 OK", *lines, "", "ok"]).encode()) as (port, received):
        router.route({"raw": 100}, {"raw": port})
        headers = {
            "connection": "keep-alive, x-mine",
            "x-mine": "1",
            "te": "trailers",
            "x-other": "2",
            "expect": "100-continue",
        }
        answer = ask(router.port, "GET", "/v2/a%20b?q=%2F", None, headers)
    sent = received[0].lower()
    assert sent.startswith("get /v2/a%20b?q=%2f http/1.1")
    assert "x-other: 2" in sent
    assert not any(name in sent for name in ("x-mine", "te: ", "expect"))
    assert (answer.body, answer.headers["x-end"]) == (b"ok", "2")
    assert "x-hop" not in answer.headers
    assert answer.headers["x-request-id"] != "forged"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", b"220 smtp\r\n\r\n"])
def test_a_revision_that_breaks_off_before_its_answer_gives_503(fleet, answer):
    router, _ = fleet
    with raw_backend(answer) as (port, _):
        router.route({"raw": 100}, {"raw": port})
        refused = router.infer([[1, 0]])
    assert (refused.status, refused.json["error"]) == (503, "the revision raw broke off")


def test_an_answer_that_breaks_off_in_the_middle_does_not_look_whole(fleet):
    router, _ = fleet
    with raw_backend(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}") as (port, _):
        router.route({"raw": 100}, {"raw": port})
        assert router.infer([[1, 0]]).status == 503  # of a prediction nothing was passed on yet
        with pytest.raises(http.client.IncompleteRead):
            router.get("/v2/models/scaler")


def test_traffic_is_split_by_share_and_the_next_request_sees_a_new_table(fleet):
    router, servers = fleet
    router.route({"a": 70, "b": 30}, servers)
    chosen = Counter()
    for i in range(400):
        answer = router.infer([[1, 0]], headers={"x-request-id": f"r{i}"})
        chosen[answer.headers["x-cloudai-revision"]] += 1
        assert answer.y == [{"a": 2.0, "b": 3.0}[answer.headers["x-cloudai-revision"]]]
    assert abs(chosen["b"] - 120) < 5 * np.sqrt(400 * 0.3 * 0.7)
    for i in range(20):
        revision = "ab"[i % 2]
        router.route({revision: 100}, servers)
        assert router.infer([[1, 0]]).headers["x-cloudai-revision"] == revision


def test_a_malformed_table_leaves_the_last_one_in_force(router):
    assert router.infer([[1, 0]]).headers["x-cloudai-revision"] == "a"
    (router.folder / "routes.json").write_text('{"traffic": {"b": 1')
    assert router.infer([[1, 0]]).headers["x-cloudai-revision"] == "a"
    assert "the last table stays in force" in router.log.read_text()


def test_a_revision_that_does_not_listen_is_passed_over_while_others_have_traffic(fleet):
    router, servers = fleet
    with_dead = {**servers, "dead": free_port()}
    router.route({"dead": 60, "b": 40}, with_dead)
    assert {router.infer([[1, 0]]).headers["x-cloudai-revision"] for _ in range(20)} == {"b"}
    router.route({"dead": 100, "b": 0}, with_dead)
    answer = router.infer([[1, 0]])
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.headers["x-cloudai-revision"] == "dead"


def test_a_revision_that_is_too_slow_gives_504_and_is_not_asked_twice(router, fleet):
    router.route({"a": 50, "b": 50}, fleet[1])
    answer = router.infer([[5, 1.4]], headers={"x-request-id": "slow"})
    assert (answer.status, answer.headers["x-cloudai-revision"] in "ab") == (504, True)
    assert "did not answer within 1 s" in answer.json["error"]


def test_a_revision_that_dies_gives_503_at_once(start, fleet):
    router, servers = fleet
    mortal = start.server("mortal").wait_until_ready()
    router.route({"mortal": 50, "a": 50}, {"mortal": mortal, **servers})
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(router.infer([[1, 0.6]]))) for _ in range(12)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    mortal.kill()
    for thread in threads:
        thread.join()
    by_revision = {(answer.headers["x-cloudai-revision"], answer.status) for answer in answers}
    assert ("mortal", 503) in by_revision
    assert {status for revision, status in by_revision if revision == "mortal"} == {503}
    assert router.infer([[1, 0]]).headers["x-cloudai-revision"] == "a"


def test_health_says_whether_there_is_traffic(start):
    router = start.router("empty").wait_until_ready()
    assert router.get("/v2/health/live").status == 200
    assert router.get("/v2/health/ready").status == 503
    answer = router.infer([[1, 0]])
    assert (answer.status, answer.json["error"]) == (503, "no revision has traffic yet")
    router.route({}, {})
    assert router.get("/v2/health/ready").status == 503
    router.route({"a": 100}, {"a": free_port()})
    assert router.get("/v2/health/ready").json == {"ready": True, "live": True}


def test_metrics_count_by_revision_and_code(router):
    def counts():
        families = text_string_to_metric_families(router.get("/metrics").body.decode())
        samples = [sample for family in families for sample in family.samples]
        found = Counter()
        for sample in samples:
            if sample.name in {"cloudai_requests_total", "cloudai_request_duration_seconds_count"}:
                found[sample.name, sample.labels["revision"], sample.labels.get("code")] = sample.value
        return found

    before = counts()
    router.infer([[1, 0]])
    router.post(INFER, "{")
    gained = counts() - before
    assert gained == {
        ("cloudai_requests_total", "a", "200"): 1,
        ("cloudai_requests_total", "a", "400"): 1,
        ("cloudai_request_duration_seconds_count", "a", None): 2,
    }


def test_a_taken_port_ends_it_with_code_3_and_two_lines(router, tmp_path):
    argv = ["-m", "cloudai.serving.router", "--state", str(tmp_path), "--port", str(router.port)]
    ended = subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 3
    assert ended.stderr.splitlines() == [
        f"the port {router.port} cannot be taken: Address already in use",
        "Fix: give another port, or 0 for a free one",
    ]


def test_it_drains_and_comes_back_on_its_port(start, fleet):
    servers = fleet[1]
    router = start.router("again")
    router.route({"a": 100}, servers)
    router.wait_until_ready()
    answers = []
    pending = threading.Thread(target=lambda: answers.append(router.infer([[1, 0.8]])))
    pending.start()
    time.sleep(0.2)
    router.terminate()
    time.sleep(0.1)
    assert router.get("/v2/health/ready").status == 503
    pending.join()
    assert answers[0].status == 200
    assert router.exit_code() == 0
    again = start.router("again", port=router.port).wait_until_ready()
    assert again.infer([[1, 0]]).status == 200


class Load:
    """Clients that ask without a pause, each on one connection kept alive, and note what they are answered."""

    def __init__(self, port, clients=8):
        self.port, self.answers, self.troubles = port, Counter(), []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(i,)) for i in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, client):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        number = 0
        while not self._over.is_set():
            number += 1
            x, pause = float(client * 1000 + number % 1000), 0.03 if number % 10 == 0 else 0
            try:
                connection.request("POST", INFER, body_of([[x, pause]]))
                answer = connection.getresponse()
                body, revision = json.loads(answer.read()), answer.getheader("x-cloudai-revision")
                right = answer.status == 200 and body["outputs"][0]["data"] == [x * FACTORS[revision]]
                self.answers[revision] += 1
                if not right:
                    self.troubles.append((answer.status, revision, body))
            except Exception as error:
                self.troubles.append(repr(error))
                connection.close()
        connection.close()


FACTORS = {"v1": 2.0, "v2": 3.0, "v3": 5.0}


def test_no_request_is_lost_while_traffic_moves_and_revisions_come_and_go(start):
    servers = {name: start.server(name, factor=FACTORS[name], threads=4) for name in ("v1", "v2")}
    router = start.router()
    for server in servers.values():
        server.wait_until_ready()
    router.route({"v1": 100}, servers)
    router.wait_until_ready()
    with Load(router.port) as load:
        for i in range(60):  # switch and split
            router.route([{"v2": 100}, {"v1": 90, "v2": 10}, {"v1": 100}][i % 3], servers)
            time.sleep(0.02)
        router.route({"v2": 100, "v1": 0}, servers)
        servers["v1"].terminate()  # at once: what was sent to it before must still be answered
        assert servers["v1"].exit_code() == 0
        servers["v3"] = start.server("v3", factor=FACTORS["v3"]).wait_until_ready()
        router.route({"v2": 50, "v3": 50}, servers)
        time.sleep(0.3)
        router.route({"v3": 100}, servers)
        servers["v2"].terminate()
        assert servers["v2"].exit_code() == 0
        time.sleep(0.2)
    assert load.troubles == []
    assert set(load.answers) == {"v1", "v2", "v3"}
    assert sum(load.answers.values()) > 300


def test_a_killed_revision_costs_only_what_was_sent_to_it_before_its_end_was_noticed(start):
    servers = {name: start.server(name, factor=FACTORS[name]).wait_until_ready() for name in ("v1", "v2")}
    router = start.router()
    router.route({"v1": 50, "v2": 50}, servers)
    router.wait_until_ready()
    with Load(router.port) as load:
        time.sleep(0.4)
        servers["v1"].kill()
        time.sleep(0.2)
        noticed = load.answers["v1"]
        time.sleep(0.4)
    assert {status for status, *_ in load.troubles} <= {503}
    assert load.answers["v1"] == noticed  # not asked any more, though it still has traffic
    assert load.answers["v2"] > 100
