"""The OpenAPI document, the page on which a person tries a model, and what a fuzzer that reads the document finds."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.serving.codec import Codec
from cloudai.serving.openapi import document
from cloudai.state.tokens import ensure_token
from tests.serving.processes import ask
from tests.widgets.lab import CHROMIUM, FLAGS

SIGNATURE = Signature(
    (TensorSpec("x", "float32", (-1, 2)), TensorSpec("text", "str", (-1,))),
    (TensorSpec("y", "float32", (-1,)), TensorSpec("ok", "bool", (-1,))),
)
EXAMPLE = {"x": np.float32([[1, 2], [3, 4]]), "text": np.array(["a", "b"], dtype=object)}


@pytest.fixture
def browser():
    driven = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with driven.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield launched
        launched.close()


def test_its_example_is_a_good_request():
    import json

    about = document([("m", "1.0.0", SIGNATURE, EXAMPLE)], needs_token=True)
    content = about["paths"]["/v2/models/m/infer"]["post"]["requestBody"]["content"]["application/json"]
    request = Codec("m", "1.0.0", SIGNATURE).decode(json.dumps(content["example"]).encode())
    assert request.inputs["x"].tolist() == [[1, 2]]
    assert about["security"] == [{"token": []}]
    assert about["paths"]["/v2/health/live"]["get"]["security"] == []


def test_the_page_is_open_and_the_document_is_not(start, tmp_path):
    token = tmp_path / "token"
    ensure_token(token)
    server = start.server(token_file=str(token)).wait_until_ready()
    page = server.get("/docs")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "scaler" not in page.body.decode()
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert server.get("/openapi.json").status == 401
    about = server.get("/openapi.json", authorization=f"Bearer {token.read_text().strip()}").json
    assert "/v2/models/scaler/infer" in about["paths"]


@pytest.mark.browser
def test_a_person_can_try_a_model_on_the_page(start, tmp_path, browser):
    token = tmp_path / "token"
    ensure_token(token)
    server = start.server(token_file=str(token)).wait_until_ready()
    page = browser.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(f"http://127.0.0.1:{server.port}/docs")
    page.get_by_text("Give the token of the deployment").wait_for()
    page.fill("#token", token.read_text().strip())
    page.click("#load")
    page.get_by_text("Ready.").wait_for()
    assert page.input_value("#path") == "POST /v2/models/scaler/infer"
    page.fill("#body", '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [21, 0]}]}')
    page.click("#send")
    page.get_by_text(re.compile("200 OK, .* ms")).wait_for()
    assert '"data": [\n    42\n   ]' in page.inner_text("#answer").replace("\u00a0", " ")
    page.screenshot(path=tmp_path / "page.png", full_page=True)  # to look at
    assert [problem for problem in problems if "401" not in problem] == []


def fuzz(server, examples):
    argv = [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{server.port}/openapi.json"]
    options = ["--max-examples", str(examples), "--phases", "examples,coverage,fuzzing", "--no-color", "--seed", "1"]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    return subprocess.run([*argv, *options, "--checks", checks], capture_output=True, text=True, timeout=200, check=False)


def test_a_fuzzer_finds_nothing(start):
    server = start.server(factor="plain", sample_rate=0).wait_until_ready()
    done = fuzz(server, 15)
    assert done.returncode == 0, done.stdout[-6000:]
    assert ask(server.port, "GET", "/v2/health/ready").status == 200
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_a_fuzzer_finds_nothing_in_a_long_time(start):
    server = start.server(factor="plain", sample_rate=0).wait_until_ready()
    done = fuzz(server, 400)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "Traceback" not in server.log.read_text()
