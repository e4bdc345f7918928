"""New versions under steady load: good, slow, failing and subtly wrong ones let in by themselves, while processes are killed.

Run: python recipes/benchmarks/rollout.py [--quick] [--seed N]. Tiny ONNX models behind a real router; every version gets its
traffic by steps, watched by guards on errors, latency, drift and mirrored requests. In some rollouts the router, a replica of
either version, the supervisor or the kernel that asked for it is killed (-9). How to read it: docs/explanation/benchmarks.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import Aim, Report, machine, temporary_home

if TYPE_CHECKING:
    import cloudai

PACKAGES = ("cloudai", "onnxruntime", "aiohttp", "uvicorn")
WIDTH, CLASSES = 8, 4
ALARM_RATE = 0.05
CLIENTS, PACE = 4, 0.05  # so many clients, each with a request every so many seconds
KINDS = {"good": 20, "slow": 10, "failing": 10, "wrong": 10}
QUICK = {"good": 1, "slow": 1, "failing": 1, "wrong": 1}
KILLS = ("router", "canary", "stable", "supervisor", "kernel")
AFTERMATH = 5.0  # seconds after a kill in which a lost request is counted as lost to it
WAIT = 180.0  # seconds for a rollout to end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one version of each kind, one kill: to see that it runs")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the versions, and of the kills")
    given = parser.parse_args()
    report = Report("rollout", given.quick)
    with temporary_home() as home:
        os.environ |= {"CLOUDAI_HOME": str(home / "cloudai"), "CLOUDAI_TRACKING": "none", "TMPDIR": str(home)}
        trials = planned(given.quick, random.Random(given.seed))
        with served(home) as (deployment, load):
            for number, trial in enumerate(trials):
                undergo(home, deployment, load, trial, number, quick=given.quick)
                say(f"{number + 1}/{len(trials)} {trial.label}: {trial.outcome} {trial.reason}")
        conclude(report, trials, load)
        report.show(machine(PACKAGES))


@dataclass
class Trial:
    """One version that is let in."""

    kind: str
    kill: str = ""
    revision: str = ""
    outcome: str = ""
    reason: str = ""
    share: float = 0.0
    """Of the requests between its first and the decision, in percent."""
    seconds: float = 0.0
    """From its first step to the decision."""

    @property
    def label(self) -> str:
        return f"{self.kind}, {self.kill} killed" if self.kill else self.kind

    @property
    def right(self) -> bool:
        return self.outcome == ("promoted" if self.kind == "good" else "rolled back")


def planned(quick: bool, chance: random.Random) -> list[Trial]:
    """Return the versions in their order; of each kind half have a process killed."""
    if quick:
        return [Trial(kind, "supervisor" if kind == "failing" else "") for kind in QUICK]
    kills = iter([KILLS[n % len(KILLS)] for n in range(sum(KINDS.values()))])
    trials = [Trial(kind, next(kills) if n % 2 else "") for kind, count in KINDS.items() for n in range(count)]
    chance.shuffle(trials)
    return trials


# ── the load ──


@dataclass(frozen=True)
class Sent:
    """What became of one request."""

    at: float
    revision: str
    status: int
    """0 where there was no answer at all."""


@dataclass
class Load:
    """Clients that ask at a steady pace, whatever happens."""

    url: str
    path: str
    token: str
    stopped: threading.Event = field(default_factory=threading.Event)
    sent: list[Sent] = field(default_factory=list)
    kills: list[tuple[float, str]] = field(default_factory=list)

    def run(self, seed: int) -> None:
        chance, connection = random.Random(seed), None
        host = self.url.removeprefix("http://")
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        due = time.time() + PACE * chance.random()
        while not self.stopped.wait(max(0.0, due - time.time())):
            due += PACE
            row = [round(chance.gauss(0.0, 1.0), 4) for _ in range(WIDTH)]
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": row}
            connection = connection or http.client.HTTPConnection(host, timeout=30)
            at = time.time()
            try:
                connection.request("POST", self.path, json.dumps({"inputs": [tensor]}), headers)
                answer = connection.getresponse()
                answer.read()
                self.sent.append(Sent(at, answer.getheader("x-cloudai-revision", ""), answer.status))
            except (OSError, http.client.HTTPException):
                connection.close()
                connection = None
                self.sent.append(Sent(at, "", 0))

    def lost(self, bad: set[str]) -> dict[str, int]:
        """Count the requests without a prediction, but for a bad version's own failures, by what was killed just before."""
        found: Counter[str] = Counter()
        for sent in self.sent:
            own = sent.status == 500 and sent.revision in bad
            if sent.status != 200 and not own:
                killed = [what for at, what in self.kills if at - 0.5 <= sent.at <= at + AFTERMATH]
                found[killed[-1] if killed else ""] += 1
        return dict(found)


@contextmanager
def served(home: Path) -> Iterator[tuple[cloudai.Deployment, Load]]:
    import cloudai

    deployment = cloudai.deploy(version(home, "good", 0), name="scores", lease="1h").wait()
    load = Load(deployment.url, "/v2/models/scores/infer", deployment.token_file.read_text().strip())
    clients = [threading.Thread(target=load.run, args=(n,), daemon=True) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield deployment, load
    finally:
        load.stopped.set()
        for client in clients:
            client.join()
        deployment.delete()


# ── the versions ──


def version(home: Path, kind: str, number: int) -> cloudai.Model:
    """Bring a version: scores of classes from a linear layer, and what is wrong with its kind."""
    import numpy as np

    import cloudai

    path = home / f"{kind}-{number}.onnx"
    write_onnx(path, kind, number)
    return cloudai.Model.from_onnx(path, name="scores", example={"x": np.zeros((2, WIDTH), "float32")})


def write_onnx(path: Path, kind: str, number: int) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = rng.normal(size=(WIDTH, CLASSES)).astype("float32") + np.float32(1e-5 * number)
    constants = {"weights": weights, "first": np.array([0]), "second": np.array([1]), "high": np.array(1.0, "float32")}
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["linear"]),
        helper.make_node("Softmax", ["linear"], ["scores"], axis=1),
        helper.make_node("Gather", ["x", "first"], ["column"], axis=1),
        helper.make_node("Greater", ["column", "high"], ["is_high"]),  # of one row in six
    ]
    if kind == "slow":
        constants["wide"] = (rng.normal(size=(WIDTH, 1500)) / 100).astype("float32")
        constants["square"] = (rng.normal(size=(1500, 1500)) / 100).astype("float32")
        constants["narrow"] = np.zeros((1500, CLASSES), "float32")
        nodes.append(helper.make_node("MatMul", ["x", "wide"], ["wide_0"]))
        nodes += [helper.make_node("MatMul", [f"wide_{n}", "square"], [f"wide_{n + 1}"]) for n in range(30)]
        nodes += [helper.make_node("MatMul", ["wide_30", "narrow"], ["nothing"])]
        nodes += [helper.make_node("Add", ["scores", "nothing"], ["y"])]
    elif kind == "failing":
        constants["table"] = np.zeros(1, "float32")  # there is no second entry
        nodes.append(helper.make_node("Cast", ["is_high"], ["place"], to=TensorProto.INT64))
        nodes.append(helper.make_node("Gather", ["table", "place"], ["entry"]))
        nodes.append(helper.make_node("Add", ["scores", "entry"], ["y"]))
    elif kind == "wrong":
        constants["shifted"] = np.roll(np.eye(CLASSES, dtype="float32"), 1, axis=0)
        nodes.append(helper.make_node("MatMul", ["scores", "shifted"], ["rolled"]))
        nodes.append(helper.make_node("Where", ["is_high", "rolled", "scores"], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", ["scores"], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, kind, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


# ── the rollouts ──


def undergo(home: Path, deployment: cloudai.Deployment, load: Load, trial: Trial, number: int, *, quick: bool) -> None:
    """Let a version in, kill what is to be killed, and note the decision."""
    import cloudai

    model = version(home, trial.kind, number + 1)
    if trial.kill == "kernel":
        ask_and_die(deployment.ref, f"{model.name}@{model.version}", quick=quick)
        load.kills.append((time.time(), "kernel"))
    else:
        deployment.canary(model, rollout=wanted(quick=quick), guards=guards())
    wait_until(lambda: progress(deployment, "baking", "rolled back", "promoted"), f"the {trial.label} version to be ready")
    if trial.kill not in ("", "kernel"):
        load.kills.append((time.time(), trial.kill))
        kill(deployment, trial.kill)
    wait_until(lambda: progress(deployment, "rolled back", "promoted", "held"), f"a decision on the {trial.label} version")
    canary = deployment._canary_asked  # noqa: SLF001
    found = deployment.progress
    assert found is not None
    trial.revision, trial.outcome, trial.reason = canary, found.phase, found.reason
    events = [(event.at, event.what) for event in deployment._ledger.events("deployment", deployment.name)]  # noqa: SLF001
    begun = [at for at, what in events if what.startswith("rollout baking: step 1 ")][-1]
    ended = [at for at, what in events if what.startswith(("rollout rolled back", "rollout promoted", "rollout held"))][-1]
    asked = [sent for sent in load.sent if begun <= sent.at <= ended]
    trial.seconds = ended - begun
    trial.share = 100 * sum(sent.revision == canary for sent in asked) / max(1, len(asked))
    with suppress(cloudai.errors.RunFailedError):
        deployment.wait(60)
    if not trial.right and trial.outcome != "rolled back":  # the next versions are to be compared with a good one
        deployment.rollback().wait(60)


def wanted(*, quick: bool) -> cloudai.Rollout:
    import cloudai

    return cloudai.Rollout(
        steps=(10, 50, 100),
        bake=1.5 if quick else 4,
        shadow=50,
        min_requests=25 if quick else 60,
        max_time="2m",
        alarm_rate=ALARM_RATE,
    )


def guards() -> list[cloudai.Guard]:
    import cloudai

    return [
        cloudai.Guard(watch="errors"),
        cloudai.Guard(watch="latency", quantile=0.9, margin=0.5),
        cloudai.Guard(watch="shadow", margin=0.02),
        cloudai.Guard(watch="drift"),
    ]


def ask_and_die(ref: str, model: str, *, quick: bool) -> None:
    """Ask for the rollout in another kernel, and kill that as soon as it has been asked for."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import cloudai, rollout, time
cloudai.attach({ref!r}).canary({model!r}, rollout=rollout.wanted(quick={quick}), guards=rollout.guards())
print("asked", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as kernel:
        assert kernel.stdout is not None
        kernel.stdout.readline()
        kernel.kill()


def kill(deployment: cloudai.Deployment, what: str) -> None:
    from cloudai.state.leader import supervisor_pid

    status: dict[str, Any] = dict(deployment._record.status)  # noqa: SLF001
    if what == "supervisor":
        pids = [supervisor_pid(deployment._ledger.home)]  # noqa: SLF001
    elif what == "router":
        pids = status["router"]
    else:
        revision = deployment.split.canary if what == "canary" else deployment.split.stable
        pids = next((row["pids"] for row in deployment.revisions if row["id"] == revision), [])[:1]
    for pid in pids:
        with suppress(ProcessLookupError):
            if pid:
                os.kill(pid, signal.SIGKILL)


def progress(deployment: cloudai.Deployment, *phases: str) -> bool:
    deployment.refresh()
    found = deployment.progress
    return found is not None and found.phase in phases


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT:g} s for {what}")
        time.sleep(0.05)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def conclude(report: Report, trials: list[Trial], load: Load) -> None:
    for trial in trials:
        if trial.kind != "good":
            report.add(f"{trial.kind}: first step → rolled back", "s", trial.seconds)
            report.add(f"{trial.kind}: requests it answered until then", "%", trial.share)
    good, bad = ([trial for trial in trials if (trial.kind == "good") is good] for good in (True, False))
    lost = load.lost({trial.revision for trial in bad})
    report.add("rollouts", "", len(trials))
    report.add("requests", "", len(load.sent))
    for what in KILLS:
        if killed := sum(1 for _, name in load.kills if name == what):
            report.add(f"lost to the {killed} × kill -9 of the {what}, which held them", "", lost.get(what, 0))
    report.aims.append(Aim("requests lost to the rollout itself", lost.get("", 0), 0))
    report.aims.append(Aim("bad versions that were not rolled back", sum(not trial.right for trial in bad), 0))
    report.aims.append(Aim("share of good versions rejected", sum(not trial.right for trial in good) / len(good), ALARM_RATE))
    if not report.quick:
        report.aims.append(Aim("rollouts", len(trials), 50, least=True))
    else:
        report.skipped["50 rollouts, and kills of router, replicas and kernel"] = "they take minutes: not with --quick"


if __name__ == "__main__":
    main()
