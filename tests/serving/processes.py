"""Real serving processes for the tests of this room."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

MODEL = Path(__file__).with_name("served_model.py")
WRITER = Path(__file__).with_name("served_writer.py")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def y(self):
        return {output["name"]: output["data"] for output in self.json["outputs"]}["y"]


def ask(port, method, path, body=None, headers=None, *, timeout=20):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def body_of(x, **more):
    rows = [list(row) for row in x]
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": rows}], **more})


def _listed(servers):
    return servers if isinstance(servers, list) else [servers]


class Served:
    """A real process that serves, with its state folder and its log."""

    def __init__(self, folder, state_file, argv):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.state_file, self.log = folder, folder / state_file, folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, *argv], stdout=log, stderr=subprocess.STDOUT)

    @property
    def state(self):
        return json.loads(self.state_file.read_text())

    def wait_until_ready(self):
        until = time.monotonic() + 20
        while not self.state_file.exists() or not self._is_mine(self.state["pid"]):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)
        self.port = self.state["port"]
        return self

    def _is_mine(self, pid):
        """Whether it is our process, or its child: a router is kept by its parent."""
        return pid == self.process.pid or (psutil.pid_exists(pid) and psutil.Process(pid).ppid() == self.process.pid)

    def get(self, path, **headers):
        return ask(self.port, "GET", path, None, headers)

    def post(self, path, body="", **headers):
        return ask(self.port, "POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def infer(self, x, path="/v2/models/scaler/infer", headers=None, **more):
        return ask(self.port, "POST", path, body_of(x, **more), headers)

    def route(self, traffic, servers):
        backends = {name: {"ports": [getattr(one, "port", one) for one in _listed(server)]} for name, server in servers.items()}
        fresh = self.folder / "routes.fresh"
        fresh.write_text(json.dumps({"traffic": traffic, "backends": backends}))
        fresh.replace(self.folder / "routes.json")

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self

    def exit_code(self, timeout=20):
        return self.process.wait(timeout)

    def kill(self):
        children = psutil.Process(self.process.pid).children() if self.process.poll() is None else []
        for pid in (self.process.pid, *(child.pid for child in children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Starter:
    def __init__(self, root):
        self.root, self.started = root, []

    def server(self, name="server", *, factor=2, **options):
        given = {"state": str(self.root / name), "drain_delay": 0.2} | options
        return self._start(self.root / name, "server.json", [str(MODEL), str(factor), json.dumps(given)])

    def writer(self, name="writer", *, kind="writer", **options):
        given = {"state": str(self.root / name), "drain_delay": 0.2} | options
        return self._start(self.root / name, "server.json", [str(WRITER), kind, json.dumps(given)])

    def router(self, name="router", **options):
        given = {"state": str(self.root / name), "drain_delay": 0.2} | options
        words = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        return self._start(self.root / name, "router.json", ["-m", "cloudai.serving.router", *words])

    def _start(self, folder, state_file, argv):
        self.started.append(Served(folder, state_file, argv))
        return self.started[-1]

    def stop(self):
        for served in self.started:
            served.kill()
