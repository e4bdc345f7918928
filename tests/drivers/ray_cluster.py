"""A real Ray cluster beside the tests: its own processes, ports, folder and token, and as many nodes as a test wants."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import psutil

from tests.conftest import wait_until

RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


class Cluster:
    """Nodes of one cluster; the first one is its head."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix="cr", dir="/tmp"))  # Ray's sockets lie in it, and their paths must be short
        self.port, self.dashboard = free_port(), free_port()
        self.nodes: list[subprocess.Popen] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLOUDAI_", "RAY_", "PYTHONPATH"))}
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "AUTOSCALER_METRIC_PORT": "-1"}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**kept, **quiet, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def start_head(self, cpus: int) -> None:
        dashboard = ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard), "--include-dashboard", "true"]
        self._start("--head", "--port", str(self.port), "--temp-dir", str(self.folder / "t"), *dashboard, cpus=cpus)
        wait_until(self.answers, timeout=120, what="the cluster's dashboard")

    def start_node(self, cpus: int) -> subprocess.Popen:
        """Start another machine; Ray gives up after half a minute, which a busy machine may need, so it is tried again."""
        before = self.alive()
        for _ in range(3):
            node = self._start("--address", f"127.0.0.1:{self.port}", cpus=cpus)
            wait_until(lambda: self.alive() > before or node.poll() is not None, timeout=120, what="another node")  # noqa: B023
            if node.poll() is None:
                return node
        raise AssertionError((self.folder / f"node-{len(self.nodes) - 1}.log").read_text())

    def _start(self, *options: str, cpus: int) -> subprocess.Popen:
        agent = ["--dashboard-agent-listen-port", str(free_port())]  # all nodes have the same address here
        size = [*agent, "--num-cpus", str(cpus), "--object-store-memory", str(80 * 2**20), "--disable-usage-stats", "--block"]
        log = (self.folder / f"node-{len(self.nodes)}.log").open("wb")
        node = subprocess.Popen(
            [RAY, "start", *options, *size], env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        self.nodes.append(node)
        return node

    def read(self, path: str, token: str | None = None) -> bytes:
        known = self.token if token is None else token
        request = urllib.request.Request(f"{self.address}{path}", headers={"Authorization": f"Bearer {known}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return b"usageByNode" in self.read("/api/cluster_status") and self.alive() > 0
        return False

    def alive(self) -> int:
        return self.read("/api/v0/nodes").count(b'"ALIVE"')

    def kill(self, node: subprocess.Popen) -> None:
        """Let a machine fail: all its processes at once, without a word."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        node.wait(20)

    def kill_machines(self) -> None:
        """Let every machine but the head fail."""
        for node in self.nodes[1:]:
            if node.poll() is None:
                self.kill(node)
        wait_until(lambda: self.alive() == 1, timeout=120, what="the head to notice")

    def stop(self) -> None:
        for node in reversed(self.nodes):
            if node.poll() is None:
                self.kill(node)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(node.pid, signal.SIGKILL)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("RAY_AUTH_TOKEN") == self.token or str(self.folder) in " ".join(process.cmdline()):
                    process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
