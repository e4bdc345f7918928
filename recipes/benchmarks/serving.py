"""The model server beside its peers: the same model files, client and machine, in one run.

Run: python recipes/benchmarks/serving.py [--quick] [--models mlp minilm resnet18] [--servers cloudai plain …]. It needs wrk (a
system package). Peers that are not installed beside cloudai get a virtual environment of their own below --peers, made once.
How to read it: docs/explanation/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import HERE, Aim, Report, environment, machine, processes_of, temporary_home

SERVERS = ("cloudai", "server", "plain", "litserve", "bentoml", "mlserver", "ray", "ray fast")
"""cloudai is a deployment as users get it; server its model server alone; plain is what one writes by hand."""
INSTALLED_ALONE = {"litserve": ("litserve",), "bentoml": ("bentoml", "uvloop"), "mlserver": ("mlserver",)}
BATCHERS = ("litserve", "bentoml", "mlserver")
HTTP_TIMEOUT = 60.0
OCTETS = "application/octet-stream"
WRK = """
wrk.method = "POST"
wrk.body = io.open("{body}", "rb"):read("*a")
{headers}
done = function(summary, latency, requests)
  local errors = summary.errors
  local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("RESULT %d %d %d %.1f %.1f %.1f\\n", summary.requests, bad, summary.duration,
    latency:percentile(50), latency:percentile(99), latency.max))
end
"""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    models: tuple[str, ...]
    servers: tuple[str, ...]
    concurrency: tuple[int, ...]
    seconds: float
    rounds: int


FULL = Scale(("mlp", "minilm", "resnet18"), SERVERS, (1, 16, 64), 5.0, 2)
QUICK = Scale(("mlp",), ("cloudai", "server", "plain"), (1, 64), 1.0, 1)


@dataclass(frozen=True)
class Sent:
    """A request as every client sends it."""

    path: str
    body: bytes
    headers: Mapping[str, str]


@dataclass
class Running:
    """A server that answers.

    Attributes
    ----------
    url : str
        Without a path.
    started_in : float
        Seconds from its start to its first answer.
    memory : float
        MiB of all its processes, shared pages in proportion (PSS).
    """

    url: str
    started_in: float
    memory: float
    headers: Mapping[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a second for each figure, without peers to install")
    parser.add_argument("--models", nargs="+", choices=FULL.models)
    parser.add_argument("--servers", nargs="+", choices=SERVERS)
    parser.add_argument("--peers", type=Path, default=HERE.parents[1] / ".cloudai" / "bench-peers", help="their environments")
    asked = parser.parse_args()
    scale = QUICK if asked.quick else FULL
    models, servers = tuple(asked.models or scale.models), tuple(asked.servers or scale.servers)
    report = Report("serving", asked.quick)
    if shutil.which("wrk") is None:
        report.skipped["all"] = "wrk is not installed (apt-get install wrk)"
        report.show(machine(("cloudai",)))
        return
    with temporary_home() as home:
        os.environ.update(environment(home))
        os.environ["OMP_NUM_THREADS"] = "1"
        bench = Bench(report, home, scale, asked.peers)
        bench.measure(models, servers)
    add_ratios(report, models, servers, scale)
    add_aims(report, models, servers, scale)
    versions = {name: peer_version(asked.peers, name) for name in INSTALLED_ALONE if name in servers}
    report.show(machine(("cloudai", "onnxruntime", "uvicorn", "ray")) | versions)


class Bench:
    """Starts each server in turn and asks it."""

    def __init__(self, report: Report, home: Path, scale: Scale, peers: Path) -> None:
        self.report, self.home, self.scale, self.peers = report, home, scale, peers

    def measure(self, models: Sequence[str], servers: Sequence[str]) -> None:
        from serving_models import SHAPES, make_models

        made = make_models(self.home, {name: SHAPES[name] for name in models})
        for round_ in range(self.scale.rounds):
            for name, model in made.items():
                for server in servers if round_ % 2 == 0 else reversed(servers):  # none is always the first
                    self.one(server, name, model)

    def one(self, server: str, name: str, made: Any) -> None:
        """Measure one server with one model."""
        try:
            with self.running(server, made) as running:
                self.report.add(f"{name}: {server}, first answer", "s", running.started_in)
                self.report.add(f"{name}: {server}, memory", "MiB", running.memory)
                for form in ("JSON", "binary"):
                    sent = request_of(server, made.row, form)
                    if sent is None:
                        continue
                    check_answer(running, sent, made.answer, form, server)
                    for concurrency in self.scale.concurrency:
                        self.ask(running, sent, f"{name}: {server}, {form}, {concurrency}", concurrency)
        except (RuntimeError, subprocess.CalledProcessError, OSError) as error:
            self.report.skipped[f"{name}: {server}"] = str(error).strip().split("\n")[-1][:200]

    def ask(self, running: Running, sent: Sent, title: str, concurrency: int) -> None:
        script = self.home / "wrk.lua"
        (self.home / "body").write_bytes(sent.body)
        lines = [f'wrk.headers["{key}"] = "{value}"' for key, value in {**sent.headers, **running.headers}.items()]
        script.write_text(WRK.format(body=self.home / "body", headers="\n".join(lines)))
        wrk = ["wrk", "-t1", f"-c{concurrency}", f"-d{self.scale.seconds:g}s", "--timeout", "30s", "-s", str(script)]
        subprocess.run([*wrk[:3], "-d1s", *wrk[4:], running.url + sent.path], capture_output=True, check=True)  # warm
        out = subprocess.run([*wrk, running.url + sent.path], capture_output=True, text=True, check=True).stdout
        words = next(line.split()[1:] for line in out.splitlines() if line.startswith("RESULT"))
        requests, bad, duration, p50, p99 = (float(word) for word in words[:5])
        if bad:
            raise RuntimeError(f"{bad:.0f} of {requests:.0f} requests failed")
        self.report.add(f"{title}, requests", "/s", requests / duration * 1e6)
        self.report.add(f"{title}, p50", "ms", p50 / 1e3)
        self.report.add(f"{title}, p99", "ms", p99 / 1e3)
        print(f"{title}: {requests / duration * 1e6:.0f}/s, p50 {p50 / 1e3:.2f} ms, p99 {p99 / 1e3:.2f} ms", flush=True)

    @contextmanager
    def running(self, server: str, made: Any) -> Iterator[Running]:
        if server == "cloudai":
            with deployed(made, self.home) as running:
                yield running
            return
        port = free_port()
        folder = self.home / "side"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        argv, env = self.command(server, made, port, folder)
        with (folder / "log").open("wb") as log:
            begun = time.perf_counter()
            process = subprocess.Popen(argv, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True)
            try:
                sent = request_of(server, made.row, "JSON")
                assert sent is not None
                url = f"http://127.0.0.1:{port}"
                wait_for_answer(url, sent, process, folder / "log")
                yield Running(url, time.perf_counter() - begun, memory_of(process.pid), {})
            finally:
                end(process)

    def command(self, server: str, made: Any, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
        env = {**os.environ, "SIDE_FOLDER": str(folder)}
        if server == "server":
            options = ["--model", made.model.uri, "--name", "model", "--state", str(folder / "state"), "--port", str(port)]
            return [sys.executable, "-m", "cloudai.serving.server", *options], env
        name, _, fast = server.partition(" ")
        if fast:
            env |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
        python = peer_python(self.peers, name)
        return [python, str(HERE / "side_serving.py"), name, str(made.path), str(port)], env


@contextmanager
def deployed(made: Any, home: Path) -> Iterator[Running]:
    """Deploy a model as a user does."""
    import cloudai
    from cloudai.errors import CloudAIError

    begun = time.perf_counter()
    deployment = cloudai.deploy(made.model, name="model").wait()
    try:
        deployment.predict(made.row)
        started_in = time.perf_counter() - begun
        pids = [process.pid for process in processes_of(home)]
        token = deployment.token_file.read_text().strip()
        yield Running(
            deployment.url, started_in, sum(memory_of(pid, alone=True) for pid in pids), {"authorization": f"Bearer {token}"}
        )
    finally:
        deployment.delete()
        with suppress(CloudAIError):
            deployment.wait()


def request_of(server: str, row: np.ndarray, form: str) -> Sent | None:
    """Return a server's request for one row; None where it has none of that form."""
    name, kind = "input", {"f": "FP32", "i": "INT64"}[row.dtype.kind]
    entry: dict[str, Any] = {"name": name, "datatype": kind, "shape": list(row.shape)}
    if server in ("cloudai", "server", "mlserver"):
        path = "/v2/models/model/infer"
        if form == "JSON":
            body = json.dumps({"inputs": [{**entry, "data": row.ravel().tolist()}]}).encode()
            return Sent(path, body, {"content-type": "application/json"})
        if server == "mlserver":
            return None
        entry["parameters"] = {"binary_data_size": row.nbytes}
        head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
        return Sent(path, head + row.tobytes(), {"content-type": OCTETS, "inference-header-content-length": str(len(head))})
    if form == "JSON":
        return Sent("/predict", json.dumps({"data": row.tolist()}).encode(), {"content-type": "application/json"})
    return None if server in BATCHERS else Sent("/predict", row.tobytes(), {"content-type": OCTETS})


def post(url: str, sent: Sent, headers: Mapping[str, str] = {}) -> bytes:
    request = urllib.request.Request(url + sent.path, sent.body, {**sent.headers, **headers})
    with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT) as answer:
        return answer.read()


def check_answer(running: Running, sent: Sent, expected: np.ndarray, form: str, server: str) -> None:
    """Raise `RuntimeError` where a server does not compute what the others do."""
    body = post(running.url, sent, running.headers)
    if form == "binary":
        given = np.frombuffer(body[-expected.nbytes :], np.float32)
    else:
        answer = json.loads(body)
        if isinstance(answer, dict):
            answer = answer["outputs"][0]["data"] if "outputs" in answer else answer["data"]
        given = np.array(answer, np.float32)
    if given.size != expected.size or not np.allclose(given.ravel(), expected.ravel(), rtol=1e-3, atol=1e-4):
        raise RuntimeError(f"{server} answers something else")


def wait_for_answer(url: str, sent: Sent, process: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 120
    while True:
        with suppress(urllib.error.URLError, OSError):
            post(url, sent)
            return
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"it does not start: {log.read_text(errors='replace')[-400:]}")
        time.sleep(0.02)


def memory_of(pid: int, *, alone: bool = False) -> float:
    """Return the MiB of a process and its children, shared pages in proportion."""
    total = 0
    with suppress(psutil.Error):
        for process in (parent := psutil.Process(pid), *([] if alone else parent.children(recursive=True))):
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total / 2**20


def end(process: subprocess.Popen) -> None:
    """End a server and whatever it started, also where it leaves some of it behind."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for number, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    for child in children:
        with suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(children, timeout=5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def peer_python(peers: Path, name: str) -> str:
    """Return the interpreter of a peer, whose environment is made where it is missing."""
    if name not in INSTALLED_ALONE:
        return sys.executable
    python = peers / name / "bin" / "python"
    if not (peers / name / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(peers / name)], check=True)
        packages = [*INSTALLED_ALONE[name], "onnxruntime"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True, capture_output=True)
        (peers / name / "ready").touch()
    return str(python)


def peer_version(peers: Path, name: str) -> str:
    code = f"from importlib.metadata import version; print(version({name!r}))"
    python = peers / name / "bin" / "python"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False) if python.exists() else None
    return done.stdout.strip() if done is not None and done.returncode == 0 else "not installed"


def add_ratios(report: Report, models: Sequence[str], servers: Sequence[str], scale: Scale) -> None:
    """Add each row's throughput of cloudai over a peer's, and of the tails a peer's over cloudai's: above 1 is better."""
    figures = report.figures
    for model in models:
        for form in ("JSON", "binary"):
            for concurrency in scale.concurrency:
                ours = f"{model}: cloudai, {form}, {concurrency}"
                for peer in servers:
                    theirs = f"{model}: {peer}, {form}, {concurrency}"
                    if peer == "cloudai" or f"{theirs}, requests" not in figures or f"{ours}, requests" not in figures:
                        continue
                    row = f"{model}, {form}, {concurrency}: cloudai to {peer}"
                    report.add_ratio(f"{row}, throughput", figures[f"{ours}, requests"], figures[f"{theirs}, requests"])
                    report.add_ratio(f"{row}, p99", figures[f"{theirs}, p99"], figures[f"{ours}, p99"])


def add_aims(report: Report, models: Sequence[str], servers: Sequence[str], scale: Scale) -> None:
    ratios = report.ratios
    for concurrency in (16, 64):
        for peer in BATCHERS:
            aim(report, f"mlp, JSON, {concurrency}: cloudai to {peer}, throughput", 8.0)
    aim(report, "mlp, JSON, 64: cloudai to plain, throughput", 1.1)
    aim(report, "mlp, JSON, 1: cloudai to plain, throughput", 0.9)
    peers = [peer for peer in servers if peer not in ("cloudai", "server")]
    for what in ("throughput", "p99"):
        rows = {name: ratio for name, ratio in ratios.items() if name.endswith(what) and any(f"to {p}," in name for p in peers)}
        if rows:
            worst = min(rows, key=lambda name: rows[name])
            report.aims.append(Aim(f"least of all rows: {worst}", rows[worst], 1.0, least=True))


def aim(report: Report, name: str, least: float) -> None:
    if name in report.ratios:
        report.aims.append(Aim(name, report.ratios[name], least, least=True))


if __name__ == "__main__":
    main()
