from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import threading
import time

import numpy as np
import pytest

from cloudai.errors import DriverError, NotReadyError, RequestError
from cloudai.serving.client import curl_line, predict

X = np.array([[1, 0], [2, 0]], "float32")


@pytest.fixture(scope="module")
def server(start_once):
    return start_once.server(max_body=2000, timeout=0.5, drain_delay=0, drain_timeout=5).wait_until_ready()


@pytest.fixture(scope="module")
def url(server):
    return f"http://127.0.0.1:{server.port}"


@pytest.mark.parametrize("version", [None, "1.2.0"])
def test_it_predicts(url, version):
    outputs = predict(url + "/", "scaler", {"x": X}, version=version)
    assert outputs["y"].tolist() == [2, 4]
    assert outputs["y"].dtype == np.float32
    assert outputs["row"].dtype == np.int64


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({"model_name": "other/model"}, RequestError, "no model"),
        ({"version": "9"}, RequestError, "no model"),
        ({"arrays": {"z": X}}, RequestError, 'no input "z"'),
        ({"arrays": {"x": X.astype("float64")}}, RequestError, "takes FP32"),
        ({"arrays": {"x": X * np.nan}}, RequestError, "NaN"),
        ({"arrays": {"x": X.astype(str)}}, RequestError, "takes FP32"),
        ({"arrays": {"x": X.astype(complex)}}, RequestError, "cannot be served"),
        ({"arrays": {"x": np.zeros((500, 2), "float32")}}, RequestError, "larger than 2000 bytes"),
        ({"arrays": {"x": np.array([[1, -1]], "float32")}}, DriverError, "the model failed"),
        ({"arrays": {"x": np.array([[1, 0.8]], "float32")}}, DriverError, "did not answer"),
        ({"arrays": {"x": np.array([[1, 0.4]], "float32")}, "timeout": 0.1}, DriverError, "did not answer"),
        ({"url": "127.0.0.1:80"}, RequestError, "not an address"),
    ],
)
def test_each_trouble_has_its_error(url, change, error, what):
    call = {"url": url, "model_name": "scaler", "arrays": {"x": X}} | change
    with pytest.raises(error, match=what) as caught:
        predict(call.pop("url"), call.pop("model_name"), call.pop("arrays"), **call)
    assert caught.value.fix


def test_where_nobody_listens_it_is_not_ready():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(NotReadyError, match="nobody answers"):
            predict(f"http://127.0.0.1:{free.getsockname()[1]}", "scaler", {"x": X})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
        b"220 smtp\r\n\r\n",
    ],
)
def test_a_stranger_on_the_port_is_a_driver_error(answer):
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def once():
            connection, _ = stranger.accept()
            connection.recv(65536)
            connection.sendall(answer)
            connection.close()

        threading.Thread(target=once).start()
        with pytest.raises(DriverError):
            predict(f"http://127.0.0.1:{stranger.getsockname()[1]}", "scaler", {"x": X})


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_line_works_in_a_shell(url):
    answer = subprocess.run(curl_line(url, "scaler", {"x": X}), shell=True, capture_output=True, text=True, timeout=10)
    assert '"data":[2.0]' in answer.stdout


def test_the_curl_line_quotes_what_a_shell_would_read():
    words = shlex.split(curl_line("http://h:1", "a b'$(x)", {"it's": np.zeros((3, 1), "int8")}))
    assert words[2] == "http://h:1/v2/models/a%20b%27%24%28x%29/infer"
    assert '"name":"it\'s"' in words[-1]


def test_a_draining_server_is_not_ready(server, url):
    slow = threading.Thread(target=predict, args=(url, "scaler", {"x": np.array([[1, 0.45]], "float32")}))
    slow.start()
    time.sleep(0.1)
    server.terminate()
    time.sleep(0.1)
    with pytest.raises(NotReadyError, match="shutting down"):
        predict(url, "scaler", {"x": X})
    slow.join()
    assert server.exit_code() == 0
