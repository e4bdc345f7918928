"""Who keeps account of requests: the access log, traces, and the events of kept requests, with real processes."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cloudai.drivers.samples import Answer
from cloudai.errors import SpecError
from cloudai.serving.access_log import AccessLog
from cloudai.serving.asgi import Account
from cloudai.serving.events import EventLog
from cloudai.serving.tracing import tracing_asked
from tests.serving.processes import ask, body_of

INFER = "/v2/models/scaler/infer"


@pytest.fixture
def collector():
    """A server that keeps what is posted to it."""
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            posted.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.posted, server.url = posted, f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


def test_the_access_log_has_a_line_for_each_request_and_no_payload(start, tmp_path):
    log = tmp_path / "access.jsonl"
    server = start.server(access_log=str(log)).wait_until_ready()
    server.infer([[4321.5, 0]], headers={"x-request-id": "one"})
    server.infer([[1, -1]], headers={"x-request-id": "two"})
    ask(server.port, "POST", "/v2/nothing", "{}", {"x-request-id": "three"})
    server.get("/v2/health/live")
    assert server.terminate().exit_code() == 0  # what waits in memory is written
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["id"], line["method"], line["path"], line["status"]) for line in lines[:3]] == [
        ("one", "POST", INFER, 200), ("two", "POST", INFER, 500), ("three", "POST", "/v2/nothing", 404),
    ]  # fmt: skip
    assert lines[3]["path"] == "/v2/health/live"
    assert all(line["seconds"] > 0 and line["sent"] > 0 and line["client"] == "127.0.0.1" for line in lines)
    assert "4321" not in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def account(number):
    return Account(f"r{number}", "GET", "/x", "/x", 200, 0.1, 5, "", {}, lambda name: None)


def test_a_long_access_log_begins_anew_and_keeps_the_one_before(tmp_path):
    log = AccessLog(tmp_path / "log", max_bytes=1000)
    for number in range(30):
        log(account(number))
        log.flush()
    log.close()
    assert (tmp_path / "log").stat().st_size < 1300
    assert (tmp_path / "log.1").stat().st_size < 1300
    last = (tmp_path / "log.1").read_text() + (tmp_path / "log").read_text()
    assert json.loads(last.splitlines()[-1])["id"] == "r29"


def test_requests_are_traced_where_the_environment_names_a_collector(start, collector, monkeypatch):
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    server = start.server().wait_until_ready()
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    server.infer([[1, 0], [2, 0]], headers={"traceparent": f"00-{trace}-{parent}-01", "x-request-id": "traced"})
    server.infer([[1, 0]], headers={"traceparent": f"00-{trace}-{parent}-00"})  # its caller does not want it traced
    ask(server.port, "POST", INFER, body_of([[1, -1]]))
    server.terminate().exit_code()
    spans = []
    for path, _, body in collector.posted:
        assert path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            spans += [span for scope in resource.scope_spans for span in scope.spans]
    assert len(spans) == 2
    attributes = {a.key: a.value.string_value or a.value.int_value for a in spans[0].attributes}
    assert (spans[0].trace_id.hex(), spans[0].parent_span_id.hex()) == (trace, parent)
    assert spans[0].name == f"POST {INFER}"
    assert attributes.items() >= {
        "http.response.status_code": 200, "ml.model.name": "scaler", "ml.rows": 2, "cloudai.request.id": "traced",
    }.items()  # fmt: skip
    assert spans[0].end_time_unix_nano > spans[0].start_time_unix_nano
    assert spans[1].status.code == 2  # an error


def test_tracing_can_be_switched_off():
    assert not tracing_asked({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "TRUE"})


def test_kept_requests_are_events_with_the_id_that_joins_labels(start, collector, tmp_path):
    file = tmp_path / "events.jsonl"
    for target in (collector.url, str(file)):
        server = start.server(f"to-{len(target)}", payload_log=target).wait_until_ready()
        server.infer([[1.5, 0]], headers={"x-request-id": "mine"})
        server.post("/internal/flush")
    [(_, headers, body)] = collector.posted
    assert headers["content-type"] == "application/cloudevents-batch+json"
    by_http, in_file = json.loads(body), [json.loads(line) for line in file.read_text().splitlines()]
    for request, response in (by_http, in_file):
        assert request["id"] == response["id"] == "mine"
        assert (request["specversion"], request["source"]) == ("1.0", "/models/scaler/versions/1.2.0")
        assert request["type"] == "org.kubeflow.serving.inference.request"
        assert request["data"]["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 0]}
        assert response["type"] == "org.kubeflow.serving.inference.response"
        assert response["data"]["outputs"][0]["data"] == [3.0]
    assert file.stat().st_mode & 0o077 == 0


def test_events_that_cannot_be_delivered_are_counted_and_harm_nothing(caplog):
    import numpy as np

    dropped = []
    log = EventLog("http://127.0.0.1:1/", model="m", version="1", dropped=dropped.append)
    log([Answer("a", 0.0, {"x": np.ones((3, 1), "float32")}, {"y": np.array([1, np.nan, 2], "float32")}, 3)])
    assert dropped == [3]
    assert "payload events are lost" in caplog.text


@pytest.mark.parametrize("target", ["s3://bucket/x", "/no/such/folder/x"])
def test_events_go_to_http_or_a_file_only(target):
    with pytest.raises(SpecError, match="cannot go"):
        EventLog(target, model="m", version="1", dropped=lambda rows: None)


def test_a_file_of_events_begins_anew_where_it_is_too_long(tmp_path):
    import numpy as np

    log = EventLog(str(tmp_path / "e"), model="m", version="1", dropped=lambda rows: None, max_bytes=100)
    for _ in range(3):
        log([Answer("a", 0.0, {"x": np.ones((1, 1), "float32")}, {"y": np.ones(1, "float32")}, 1)])
    assert len((tmp_path / "e").read_text().splitlines()) == 2
    assert len((tmp_path / "e.1").read_text().splitlines()) == 2
