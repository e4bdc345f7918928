"""Who may ask: real servers and a real router with a token file."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from cloudai.errors import RequestError
from cloudai.serving.access import OPEN_PATHS, Access
from cloudai.serving.asgi import Asked, Exchange, HttpError
from cloudai.serving.client import curl_line, predict
from cloudai.state.tokens import read_token, renew_token
from tests.serving.processes import MODEL, ask, body_of

INFER = "/v2/models/scaler/infer"
X = np.array([[1, 0]], "float32")
CLOSED = [
    ("GET", "/v2"), ("GET", "/metrics"), ("GET", "/v2/models/scaler"), ("GET", "/v2/models/scaler/ready"), ("POST", INFER),
    ("POST", "/internal/flush"), ("OPTIONS", INFER), ("GET", "/nothing"), ("GET", "//v2/health/live"),
    ("GET", "/v2/health/live/../../models/scaler"), ("GET", "/internal/ongoing"),
]  # fmt: skip


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "it's the token"
    renew_token(path)
    return path


@pytest.fixture(scope="module")
def server(start_once, token_file):
    return start_once.server(token_file=str(token_file)).wait_until_ready()


@pytest.fixture(scope="module")
def router(start_once, server, token_file):
    made = start_once.router(token_file=token_file).wait_until_ready()
    made.route({"a": 100}, {"a": server})
    return made


@pytest.fixture(params=["server", "router"])
def served(request, server, router):
    return {"server": server, "router": router}[request.param]


def bearer(token):
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_everything_but_health_needs_the_token(served, method, path):
    answer = ask(served.port, method, path, body_of(X.tolist()) if method == "POST" else None)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json["error"] == "the token is missing or wrong"
    assert "authorization: Bearer" in answer.json["fix"]


def test_health_is_open(served):
    for path in OPEN_PATHS:
        assert served.get(path).status == 200


def test_the_token_opens_both(served, token_file):
    token = read_token(token_file)
    for header in (f"Bearer {token}", f"bearer   {token} "):
        assert served.infer(X.tolist(), INFER, {"authorization": header}).status == 200
    url = f"http://127.0.0.1:{served.port}"
    assert predict(url, "scaler", {"x": X}, token=token)["y"].tolist() == [2]
    assert served.get("/metrics", **bearer(token)).status == 200


@pytest.mark.parametrize("change", [str.upper, lambda t: t[:-1], lambda t: t + "x", lambda t: "", lambda t: "é" + t])
def test_a_wrong_token_does_not(served, token_file, change):
    headers = {"authorization": f"Bearer {change(read_token(token_file))}".encode()}
    assert served.infer(X.tolist(), INFER, headers).status == 401
    with pytest.raises(RequestError, match="token is missing or wrong"):
        predict(f"http://127.0.0.1:{served.port}", "scaler", {"x": X}, token="A" * 43)


@pytest.mark.parametrize("scheme", ["Basic", "Token", ""])
def test_another_scheme_does_not(served, token_file, scheme):
    assert served.infer(X.tolist(), INFER, {"authorization": f"{scheme} {read_token(token_file)}"}).status == 401


def test_a_new_token_holds_from_the_next_request_on(served, token_file):
    old = read_token(token_file)
    assert served.infer(X.tolist(), INFER, bearer(old)).status == 200
    renew_token(token_file)
    assert served.infer(X.tolist(), INFER, bearer(old)).status == 401
    assert served.infer(X.tolist(), INFER, bearer(read_token(token_file))).status == 200


def test_while_the_file_is_gone_or_bad_the_last_token_stays(served, token_file):
    token = read_token(token_file)
    assert served.infer(X.tolist(), INFER, bearer(token)).status == 200
    for spoil in (token_file.unlink, lambda: token_file.write_text("short"), lambda: token_file.chmod(0o644)):
        spoil()
        assert served.infer(X.tolist(), INFER, bearer(token)).status == 200
        assert served.infer(X.tolist(), INFER, bearer("short")).status == 401
    renew_token(token_file)


def test_the_token_is_in_no_log_and_no_state(server, router, token_file):
    token = read_token(token_file)
    for served in (server, router):
        served.infer(X.tolist(), INFER, bearer(token + "x"))
        served.infer([[1, -1]], INFER, bearer(token))  # the model fails
        assert served.state["token_file"] == str(token_file)
        assert token not in served.log.read_text() + json.dumps(served.state)


def test_the_curl_line_holds_no_token_and_works_in_a_shell(served, token_file):
    line = curl_line(f"http://127.0.0.1:{served.port}", "scaler", {"x": X}, token_file=token_file)
    assert read_token(token_file) not in line
    answer = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=10)
    assert '"data":[2.0]' in answer.stdout


def test_the_check_takes_microseconds(token_file):
    access = Access(token_file)
    scope = {"method": "POST", "path": INFER, "headers": [(b"host", b"x"), (b"authorization", read_token(token_file).encode())]}
    scope["headers"][1] = (b"authorization", b"Bearer " + scope["headers"][1][1])
    exchange = Exchange(scope, None, None, closing=lambda: False)
    began = time.perf_counter()
    for _ in range(2000):
        access.check(exchange)
    assert (time.perf_counter() - began) / 2000 < 50e-6  # 3 µs on a calm machine


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "0.0.0.0:80", "169.254.169.254"])
def test_without_a_token_a_renamed_address_is_refused(start_once, host):
    """DNS rebinding: a page lets its own name point at 127.0.0.1 and asks in the browser of whoever reads it."""
    open_server = start_once.server("open").wait_until_ready()
    try:
        assert open_server.infer(X.tolist(), INFER, {"host": host}).status == 403
        assert open_server.infer(X.tolist(), INFER, {"host": f"LocalHost:{open_server.port}"}).status == 200
        assert open_server.infer(X.tolist(), INFER).status == 200
    finally:
        open_server.kill()


@pytest.mark.parametrize(("host", "local"), [("[::1]:80", True), ("[::1]", True), ("[fe80::1]:80", False), ("[fe80::1", False)])
def test_this_machine_has_a_name_in_ipv6(host, local):
    asked = Asked(INFER, [(b"host", host.encode())])
    if local:
        Access(None).check(asked)
    else:
        with pytest.raises(HttpError, match="another host"):
            Access(None).check(asked)


def test_with_a_token_it_may_be_reached_through_a_tunnel(served, token_file):
    headers = {"host": "models.example", **bearer(read_token(token_file))}
    assert served.infer(X.tolist(), INFER, headers).status == 200


def start_by_hand(tmp_path, **options):
    given = {"state": str(tmp_path), "port": 0, **options}
    return subprocess.Popen(
        [sys.executable, str(MODEL), "2", json.dumps(given)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (None, 0o600, "cannot be read: No such file"),
        ("x" * 43, 0o644, "others can read the token file"),
        ("x" * 43, 0o620, "others can read the token file"),
        ("short", 0o600, "holds no token of 16 letters"),
        ("two words that are long", 0o600, "holds no token"),
        ("", 0o600, "holds no token"),
    ],
)
def test_a_bad_token_file_is_two_lines_at_the_start(tmp_path, content, mode, says):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    out, _ = start_by_hand(tmp_path, token_file=str(path)).communicate(timeout=20)
    assert says in out
    assert "\nFix: " in out
    assert "Traceback" not in out


def test_a_link_is_not_read_as_a_token(tmp_path):
    renew_token(tmp_path / "real")
    (tmp_path / "token").symlink_to(tmp_path / "real")
    out, _ = start_by_hand(tmp_path, token_file=str(tmp_path / "token")).communicate(timeout=20)
    assert "cannot be read" in out
