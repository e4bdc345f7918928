"""The model server as a real process on loopback."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloudai.drivers.samples import read_samples
from tests.serving.processes import MODEL, Served, ask, body_of

INFER = "/v2/models/scaler/infer"
SECRET = 6789.0


@pytest.fixture(scope="module")
def server(start_once) -> Served:
    return start_once.server(max_body=100_000, timeout=1.2, threads=2).wait_until_ready()


def slowly(server, seconds, **more):
    """Send a request that takes a while, from a thread, and return its future."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(server.infer, [[1, seconds]], **more)
    pool.shutdown(wait=False)
    wait_for(lambda: metric(server, "ml_inference_in_flight") > 0)
    return future


def wait_for(condition, timeout=10.0):
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def metric(server, name, **labels):
    for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(name)


def test_it_describes_itself_in_the_protocols_words(server):
    assert server.get("/v2").json["name"] == "cloudai"
    assert server.get("/v2/health/live").json["live"] is True
    assert server.get("/v2/health/ready").json["ready"] is True
    for path in ("/v2/models/scaler", "/v2/models/scaler/versions/1.2.0"):
        about = server.get(path).json
        assert (about["name"], about["versions"]) == ("scaler", ["1.2.0"])
        assert about["outputs"][1] == {"name": "row", "datatype": "INT64", "shape": [-1]}
        assert server.get(f"{path}/ready").json["ready"] is True
    assert server.state == {
        "pid": server.process.pid, "port": server.port, "url": f"http://127.0.0.1:{server.port}",
            "ready": True, "model": "scaler", "version": "1.2.0",
    }  # fmt: skip


@pytest.mark.parametrize("path", [INFER, "/v2/models/scaler/versions/1.2.0/infer"])
def test_it_predicts_and_echoes_the_id(server, path):
    answer = server.infer([[1.5, 0], [2, 0]], path, id="mine")
    assert answer.json == {
        "model_name": "scaler",
        "model_version": "1.2.0",
        "id": "mine",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2], "data": [3.0, 4.0]},
            {"name": "row", "datatype": "INT64", "shape": [2], "data": [0, 1]},
        ],
    }


def test_it_gives_the_outputs_that_are_asked_for(server):
    answer = server.infer([[1, 0]], outputs=[{"name": "row"}])
    assert [output["name"] for output in answer.json["outputs"]] == ["row"]


def test_a_sane_request_id_is_kept_and_another_is_replaced(server):
    assert server.infer([[1, 0]], headers={"x-request-id": "a.b:c-1"}).headers["x-request-id"] == "a.b:c-1"
    for bad in ("a b", "x" * 65, "<script>", "é"):
        made = server.infer([[1, 0]], headers={"x-request-id": bad.encode("latin-1")}).headers["x-request-id"]
        assert made != bad
        assert len(made) == 32


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "what"),
    [
        ("POST", INFER, "{", {}, 400, "not JSON"),
        ("POST", INFER, body_of([[1, 0]]).replace("FP32", "FP64"), {}, 400, "takes FP32"),
        ("POST", INFER, body_of([[-1.0, -4]]), {}, 400, "out of the model's range"),
        ("POST", INFER, body_of([[float("nan"), 0]]), {}, 400, "NaN"),
        ("POST", INFER, "{}", {"content-type": "application/octet-stream"}, 415, "application/octet-stream"),
        ("POST", INFER, "{}", {"content-type": "application/x-www-form-urlencoded"}, 415, "form"),
        ("POST", INFER, "{}", {"content-encoding": "gzip"}, 415, "gzip"),
        ("GET", INFER, None, {}, 405, "takes POST"),
        ("POST", "/v2", "{}", {}, 405, "takes GET"),
        ("GET", "/v2/models/scalr", None, {}, 404, "no model at /v2/models/scalr"),
        ("POST", "/v2/models/scaler/versions/9/infer", "{}", {}, 404, "scaler 1.2.0"),
        ("GET", "/v2/models/scaler/../scaler", None, {}, 404, "no model"),
        ("GET", "/", None, {}, 404, "begins"),
        ("GET", "/internal/flush", None, {}, 405, "takes POST"),
    ],
)
def test_a_bad_request_is_refused_with_the_fix(server, method, path, body, headers, status, what):
    answer = ask(server.port, method, path, body, headers)
    assert answer.status == status
    assert what in answer.json["error"] + answer.json["fix"]
    assert answer.json["fix"]
    assert answer.json["request_id"] == answer.headers["x-request-id"]


def test_json_with_a_charset_and_head_requests_are_fine(server):
    answer = ask(server.port, "POST", INFER, body_of([[1, 0]]), {"content-type": "Application/JSON; charset=utf-8"})
    assert answer.status == 200
    assert ask(server.port, "HEAD", "/v2/health/live").status == 200


def talk(port, data):
    """Send raw bytes and return the status line of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
        raw.sendall(data)
        return raw.recv(65536).split(b"\r\n")[0].decode()


def test_a_too_large_body_is_refused_before_it_arrives(server):
    head = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 200000\r\n\r\n"
    assert talk(server.port, head.encode()) == "HTTP/1.1 413 Request Entity Too Large"


def test_a_too_large_body_without_a_length_is_refused_while_it_arrives(server):
    head = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    assert talk(server.port, head + chunk * 4) == "HTTP/1.1 413 Request Entity Too Large"


def test_a_client_that_sends_a_too_large_body_anyway_reads_the_answer(server):
    answer = ask(server.port, "POST", INFER, b" " * 5_000_000)
    assert (answer.status, answer.json["error"]) == (413, "the body is larger than 100000 bytes")


def test_a_body_that_does_not_arrive_is_given_up(server):
    head = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"
    assert talk(server.port, head.encode()) == "HTTP/1.1 408 Request Timeout"


def test_a_client_that_goes_away_is_counted_and_harms_nothing(server):
    before = metric(server, "ml_inference_errors_total", reason="lost_client")
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{{".encode())
    wait_for(lambda: metric(server, "ml_inference_errors_total", reason="lost_client") == before + 1)
    assert metric(server, "ml_inference_in_flight") == 0


@pytest.mark.parametrize("how", [-1, -2, -3, -5])
def test_a_failing_model_gives_500_without_a_word_of_the_payload(server, how):
    answer = server.infer([[SECRET, how], [SECRET, 0]], headers={"x-request-id": f"failed{how}"})
    assert answer.status == 500
    assert answer.json["request_id"] == f"failed{how}"
    assert str(SECRET) not in answer.body.decode()
    assert "Traceback" not in answer.body.decode()
    assert f"request failed{how}: the model failed" in server.log.read_text()
    assert server.infer([[1, 0]]).status == 200


def test_good_requests_leave_no_payload_in_the_log(server):
    assert server.infer([[4321.5, 0]]).status == 200
    assert "4321.5" not in server.log.read_text()
    assert "8643" not in server.log.read_text()


def test_a_model_that_takes_too_long_gives_504(server):
    begun = time.monotonic()
    answer = server.infer([[1, 1.5]])
    assert answer.status == 504
    assert 1.1 < time.monotonic() - begun < 1.5


def test_health_is_answered_while_the_model_computes(server):
    pending = [slowly(server, 0.5) for _ in range(3)]  # more than there are threads
    begun = time.monotonic()
    assert server.get("/v2/health/ready").status == 200
    assert time.monotonic() - begun < 0.3
    assert [future.result().status for future in pending] == [200] * 3


def test_metrics_have_the_contractual_names_and_labels(server):
    labels = {"model_name": "scaler", "version": "1.2.0", "instance": f"127.0.0.1:{server.port}"}
    before = metric(server, "ml_inference_latency_count"), metric(server, "ml_predictions_total")
    invalid = metric(server, "ml_inference_errors_total", reason="invalid")
    server.infer([[1, 0.02], [2, 0]])
    server.infer([])
    assert metric(server, "ml_inference_latency_count", **labels) == before[0] + 1
    assert metric(server, "ml_predictions_total", **labels) == before[1] + 2
    assert metric(server, "ml_inference_errors_total", **labels, reason="invalid") == invalid + 1
    families = {family.name: family for family in text_string_to_metric_families(server.get("/metrics").body.decode())}
    buckets = [sample for sample in families["ml_inference_latency"].samples if sample.name.endswith("_bucket")]
    assert 14 <= len(buckets) <= 16
    assert set(buckets[0].labels) == {"model_name", "version", "instance", "le"}


def test_answered_requests_are_kept_as_they_came_and_only_those(start):
    server = start.server().wait_until_ready()
    begun = time.time()
    server.infer([[1, 0], [2, 0]], headers={"x-request-id": "first"})
    server.infer([[3, -1]])
    server.infer([[4, 0]], headers={"x-request-id": "second"}, outputs=[{"name": "row"}])
    assert server.post("/internal/flush").status == 200
    blocks = read_samples(server.folder / "samples", begun - 1, 100)
    assert [identity for block in blocks for identity in block.ids] == ["first", "first", "second"]
    assert [row for block in blocks for row in block.inputs["x"].tolist()] == [[1, 0], [2, 0], [4, 0]]
    assert [y for block in blocks for y in block.outputs["y"]] == [2, 4, 8]
    server.infer([[5, 0]], headers={"x-request-id": "last"})
    assert server.terminate().exit_code() == 0  # what waits in memory is written at the end
    [block] = read_samples(server.folder / "samples", blocks[-1].times[-1], 100)
    assert block.ids.tolist() == ["last"]
    assert (server.folder / "samples").stat().st_mode & 0o077 == 0


def test_sampling_can_be_off(start):
    server = start.server(sample_rate=0).wait_until_ready()
    server.infer([[1, 0]])
    server.post("/internal/flush")
    assert read_samples(server.folder / "samples", 0, 100) == []


def test_too_many_requests_in_flight_are_refused_at_once(start):
    server = start.server(max_in_flight=2, threads=1).wait_until_ready()
    pending = [slowly(server, 0.6)]
    with ThreadPoolExecutor(1) as pool:
        pending.append(pool.submit(server.infer, [[1, 0.1]]))
        wait_for(lambda: metric(server, "ml_inference_in_flight") == 2)
        begun = time.monotonic()
        refused = server.infer([[1, 0]])
        assert time.monotonic() - begun < 0.3
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert [future.result().status for future in pending] == [200, 200]
    assert server.infer([[1, 0]]).status == 200


def test_sigterm_drains(start):
    server = start.server(drain_delay=0.4).wait_until_ready()
    pending = slowly(server, 1.2)
    server.terminate()
    wait_for(lambda: server.get("/v2/health/ready").status == 503)
    late = server.infer([[1, 0]])
    assert (late.status, late.headers["connection"]) == (200, "close")  # for those who do not know yet
    assert server.state["ready"] is False
    wait_for(lambda: server.infer([[1, 0]]).status == 503)
    assert server.infer([[1, 0]]).headers["retry-after"] == "1"
    assert server.get("/v2/health/live").status == 200
    assert pending.result().status == 200
    assert server.exit_code() == 0


def test_draining_does_not_wait_longer_than_it_is_told_to(start):
    server = start.server(drain_delay=0, drain_timeout=0.5).wait_until_ready()
    pending = slowly(server, 8.0)
    begun = time.monotonic()
    assert server.terminate().exit_code() == 0
    assert time.monotonic() - begun < 4
    assert (pending.result().status, pending.result().json["error"]) == (503, "the server has ended")


def test_who_is_told_twice_to_end_drains_nevertheless(start):
    server = start.server(drain_delay=0.5).wait_until_ready()
    pending = slowly(server, 1.0)
    server.terminate()
    wait_for(lambda: server.get("/v2/health/ready").status == 503)
    assert server.terminate().exit_code() == 0
    assert pending.result().status == 200


def test_ctrl_c_after_a_first_signal_ends_it_now(start):
    server = start.server(drain_delay=10).wait_until_ready()
    server.terminate()
    wait_for(lambda: server.get("/v2/health/ready").status == 503)
    begun = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.exit_code() == 128 + signal.SIGINT
    assert time.monotonic() - begun < 1


def test_it_ends_when_its_lease_is_past(start, tmp_path):
    lease = tmp_path / "lease.json"
    server = start.server(lease_file=str(lease), lease_interval=0.05).wait_until_ready()
    for text in ('{"until": null}', json.dumps({"until": time.time() + 100}), '{"unt'):
        lease.write_text(text)
        time.sleep(0.12)
        assert server.get("/v2/health/ready").status == 200
    lease.write_text(json.dumps({"until": time.time() - 1}))
    assert server.exit_code(5) == 0
    assert "the lease is past" in server.log.read_text()


def test_a_killed_server_leaves_its_port(start):
    first = start.server("first").wait_until_ready()
    first.infer([[1, 0]])
    first.kill()
    second = start.server("second", port=first.port).wait_until_ready()
    assert second.infer([[1, 0]]).status == 200


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        ({"host": "0.0.0.0"}, 1, "cannot listen on '0.0.0.0' without a token\nFix: use 127.0.0.1"),
        ({"port": None}, 3, "cannot be taken: Address already in use\nFix: give another port"),
    ],
)
def test_it_does_not_start_where_it_may_not_listen(server, tmp_path, change, code, what):
    options = {"state": str(tmp_path / "state"), **change}
    if "port" in change:
        options["port"] = server.port
    ended = subprocess.run([sys.executable, str(MODEL), "2", json.dumps(options)], capture_output=True, text=True, timeout=20)
    assert ended.returncode == code
    assert what in ended.stderr
    assert ended.stderr.count("\n") == 2
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("arguments", "what"), [(["--timeout", "soon"], "'soon' is not a duration"), ([], "no model in")])
def test_the_command_line_says_what_is_wrong_in_two_lines(tmp_path, arguments, what):
    argv = ["-m", "cloudai.serving.server", "--model", str(tmp_path), "--state", str(tmp_path / "state"), *arguments]
    ended = subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 1
    assert what in ended.stderr
    assert ended.stderr.count("\n") == 2
