"""The gate without Ray: who may pass, where a request goes, and what is said when a revision does not answer."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import load

from cloudai.serving.ray.gate import Begun, GateApplication, UnavailableError
from cloudai.serving.routes import RouteTable

TOKEN, KEY = "t" * 32, "k" * 32
CONFIG = {"traffic": {"a": 60, "b": 40}, "token": hashlib.sha256(TOKEN.encode()).hexdigest(),
          "desk": hashlib.sha256(KEY.encode()).hexdigest()}  # fmt: skip


class Replicas:
    """Answers as told for each revision: a text, or an error to raise before or amid it."""

    def __init__(self, **told):
        self.told = told
        self.scopes = []

    async def ask(self, revision, scope, body):
        self.scopes.append(dict(scope))
        told = self.told.get(revision, revision)
        if isinstance(told, Exception):
            raise told
        if told == "never":
            await asyncio.Event().wait()
        headers = [(b"content-type", b"text/plain"), (b"x-request-id", b"inner"), (b"connection", b"close")]
        yield Begun(200, headers, told.encode(), more=True)
        yield b"!"

    async def ask_all(self, revision, method, *arguments):
        if not revision:
            return [self.gate.count()]
        return [f"{method} of {revision}"] if method == "metrics" else [[b"one", b"two"], [b"three"]]


def gate(replicas, orders=None, **options):
    made = GateApplication(
        replicas, (orders if orders is not None else []).append, **{"max_body": 100, "timeout": 5.0, **options}
    )
    made.configure(CONFIG)
    replicas.gate = made
    return made


def ask(application, path="/v2/models/m/infer", *, token=TOKEN, method="POST", body=b"x", prefix="/app", query=b"", **headers):
    """Ask as Ray Serve does, and return status, headers and body."""

    async def run():
        sent, parts = [], [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            return parts.pop() if parts else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        given = [(b"authorization", f"Bearer {token}".encode())] if token else []
        given += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        where = {"path": prefix + path, "raw_path": (prefix + path).encode(), "root_path": prefix, "query_string": query}
        scope = {"type": "http", "method": method, "headers": given, **where}
        await application.below_prefix(scope, receive, send)
        return sent

    start, *rest = asyncio.run(run())
    return start["status"], dict(start["headers"]), b"".join(part["body"] for part in rest)


def test_a_request_goes_where_the_router_would_send_it_without_the_token():
    replicas = Replicas()
    application, table = gate(replicas), RouteTable({}, {"a": 60.0, "b": 40.0})
    for number in range(40):
        status, headers, body = ask(application, x_request_id=f"r{number}")
        chosen = table.choose(f"r{number}")[0]
        assert (status, body, headers[b"x-cloudai-revision"]) == (200, f"{chosen}!".encode(), chosen.encode())
        assert headers[b"x-request-id"] == f"r{number}".encode(), "the gate's own, not the replica's"
    assert {scope["path"] for scope in replicas.scopes} == {"/v2/models/m/infer"}, "the prefix is Ray Serve's matter"
    assert not any(name == b"authorization" for scope in replicas.scopes for name, _ in scope["headers"])


@pytest.mark.parametrize("token", ["", "wrong", KEY, hashlib.sha256(TOKEN.encode()).hexdigest()])
def test_nobody_passes_without_the_token(token):
    replicas = Replicas()
    assert ask(gate(replicas), token=token)[0] == 401
    assert ask(gate(replicas), "/nothing", token=token)[0] == 401
    assert not replicas.scopes


@pytest.mark.parametrize("token", ["", TOKEN, "wrong"])
def test_the_desk_is_the_drivers_alone(token):
    orders = []
    for path in ("/internal/orders", "/internal/metrics", "/internal/samples"):
        assert ask(gate(Replicas(), orders), path, token=token, body=b"{}")[0] == 401
    assert not orders


def test_the_driver_gives_orders_and_reads_how_replicas_fare():
    orders = []
    application = gate(Replicas(), orders)
    assert ask(application, "/internal/orders", token=KEY, body=b'{"app": "x"}')[0] == 200
    assert orders == [{"app": "x"}]
    metrics = ask(application, "/internal/metrics", token=KEY, method="GET", query=b"revision=a&revision=b")[2]
    assert json.loads(metrics) == [list(application.count()), ["", "metrics of a"], ["", "metrics of b"]]
    samples = load(ask(application, "/internal/samples", token=KEY, method="GET", query=b"revision=a&since=0.5&limit=9")[2])
    assert {name: bytes(content) for name, content in samples.items()} == {"a/0/0": b"one", "a/0/1": b"two", "a/1/0": b"three"}
    assert ask(application, "/internal/else", token=KEY)[0] == 404


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health_is_open(path):
    assert ask(gate(Replicas()), path, token="", method="GET")[0] == 200


def test_a_revision_that_nobody_answers_for_gives_its_requests_to_the_other():
    gone = UnavailableError("nobody is there", busy=False)
    status, headers, body = ask(gate(Replicas(a=gone)))
    assert (status, body, headers[b"x-cloudai-revision"]) == (200, b"b!", b"b")
    status, headers, body = ask(gate(Replicas(a=gone, b=gone)))
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert b"no revision answers" in body


def test_what_is_too_much_or_too_late_is_said():
    busy = UnavailableError("they are busy", busy=True)
    status, headers, _ = ask(gate(Replicas(a=busy, b=busy)))
    assert (status, headers[b"retry-after"]) == (429, b"1")
    assert ask(gate(Replicas()), body=b"x" * 101)[0] == 413
    status, _, body = ask(gate(Replicas(a="never", b="never"), timeout=0.05))
    assert status == 504
    assert b"within 0.05 s" in body
    broken = ConnectionError("it died")
    status, headers, body = ask(gate(Replicas(a=broken, b=broken)))
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert b"broke off" in body


def test_each_gate_counts_by_revision_and_status_what_it_sent_on():
    replicas = Replicas(b=ConnectionError("it died"))
    application = gate(replicas)
    chosen = [RouteTable({}, {"a": 60.0, "b": 40.0}).choose(f"r{number}")[0] for number in range(30)]
    for number in range(30):
        ask(application, x_request_id=f"r{number}")
    ask(application, token="wrong")
    _, text = application.count()
    counts = {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in ("cloudai_requests_total", "cloudai_request_duration_seconds_count")
    }
    assert counts == {
        (("code", "200"), ("revision", "a")): chosen.count("a"),
        (("code", "503"), ("revision", "b")): chosen.count("b"),
        (("revision", "a"),): chosen.count("a"),
        (("revision", "b"),): chosen.count("b"),
    }


def test_requests_with_the_same_header_stay_with_a_revision():
    application = gate(Replicas())
    application.configure({**CONFIG, "sticky": "x-user-id"})
    table = RouteTable({}, {"a": 60.0, "b": 40.0}, "x-user-id")
    for user in "uvwxyz":
        answers = {ask(application, x_user_id=user)[1][b"x-cloudai-revision"].decode() for _ in range(5)}
        assert answers == {table.choose("", user)[0]}


def test_a_new_table_holds_from_the_next_request_on():
    application = gate(Replicas())
    application.configure({**CONFIG, "traffic": {"b": 100}})
    assert {ask(application, x_request_id=f"r{n}")[2] for n in range(20)} == {b"b!"}
    application.configure({**CONFIG, "traffic": {}})
    assert ask(application)[0] == 503
    assert ask(application, "/v2/health/ready", token="", method="GET")[0] == 503
