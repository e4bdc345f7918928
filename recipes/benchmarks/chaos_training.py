"""What happens to a training when its machines fail: every fault at a random moment, and the very same weights in the end.

Run: python recipes/benchmarks/chaos_training.py [--quick] [--seed N]. A module and a transformer are trained, with one worker
and with two, each once undisturbed and once with faults: workers, supervisor and whole trees of processes killed (-9), a worker
told to end (SIGTERM) or frozen (SIGSTOP), a store that takes nothing for seconds, a checkpoint that is cut off. How to read it:
docs/explanation/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from measure import Aim, Report, machine, processes_of, temporary_home

if TYPE_CHECKING:
    import cloudai

PACKAGES = ("cloudai", "torch", "transformers", "ray")
CHECKPOINT_EVERY = 1.0
HANG = 5.0
EPOCHS = {"module": 300, "text": 30}
"""So many take about half a minute with one worker on a quiet machine; the faults need that long."""
WAIT = 240.0  # seconds for anything to come true
FULL = {"module": (1, 2), "text": (1, 2)}
QUICK = {"module": (1,)}
FAULTS_OF_ONE = ("worker", "supervisor", "tree", "terminate", "freeze", "store", "cut")
FAULTS_OF_TWO = ("worker", "rank", "tree", "cut")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three faults on a module with one worker: to see that it runs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the order of the faults")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    report = Report("chaos_training", given.quick)
    with temporary_home() as home:
        os.environ |= {"CLOUDAI_HOME": str(home / "cloudai"), "CLOUDAI_TRACKING": "none", "TMPDIR": str(home)}
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        total = Totals()
        for kind, sizes in (QUICK if given.quick else FULL).items():
            for workers in sizes:
                faults = list(FAULTS_OF_ONE if workers == 1 else FAULTS_OF_TWO)[: 3 if given.quick else None]
                chance.shuffle(faults)
                Ordeal(home, kind, workers, chance, report, total, quick=given.quick).undergo(faults)
        if given.quick:
            report.skipped["two workers, and a transformer"] = "they take minutes: not with --quick"
        conclude(report, total)
        report.show(machine(PACKAGES))


@dataclass
class Totals:
    """What all runs came to."""

    faults: int = 0
    ended: int = 0
    equal: int = 0
    runs: int = 0
    excess: list[float] = field(default_factory=list)
    """Seconds of work lost beyond what is allowed, for each fault after which a worker came back."""


class Ordeal:
    """One kind of work on so many workers: undisturbed, then disturbed."""

    def __init__(
        self, home: Path, kind: str, workers: int, chance: random.Random, report: Report, total: Totals, *, quick: bool
    ) -> None:
        self.home, self.kind, self.workers, self.chance, self.report, self.total = home, kind, workers, chance, report, total
        self.quick = quick
        self.label = f"{kind}, {workers} worker{'s' if workers > 1 else ''}"
        self.run: cloudai.Run | None = None

    def undergo(self, faults: list[str]) -> None:
        say(f"{self.label}: undisturbed")
        calm = self.train("calm").wait(WAIT * 4, progress=False)
        weights = weights_of(calm)
        say(f"{self.label}: with {', '.join(faults)}")
        self.run = self.train("hurt")
        for number, fault in enumerate(faults):
            self.await_steps(number)
            self.total.faults += 1
            FAULTS[fault](self)
            if self.run.ended:
                break
        self.total.runs += 1
        self.run.wait(WAIT * 4, progress=False)
        self.total.ended += self.run.phase == "succeeded"
        self.total.equal += weights_of(self.run) == weights

    def train(self, name: str) -> cloudai.Run:
        import cloudai

        epochs = EPOCHS[self.kind] // (4 if self.quick or self.workers > 1 else 1)
        work, data, options = (module_work if self.kind == "module" else text_work)(self.home)
        policy = cloudai.CheckpointPolicy(every=CHECKPOINT_EVERY)
        return cloudai.train(
            work, data, name=f"{name}-{self.kind}-{self.workers}", model_name=f"chaos-{self.kind}-{self.workers}",
            num_workers=self.workers, checkpoint=policy, max_failures=100, hang=HANG, epochs=epochs, **options,
        )  # fmt: skip

    # ── looking ──

    @property
    def record(self) -> dict[str, Any]:
        """What the ledger says of the run."""
        assert self.run is not None
        return dict(self.run._record.status)  # noqa: SLF001  the process numbers are nobody's business but a benchmark's

    def worker(self) -> dict[str, Any]:
        """Return what the worker says of itself, as it is now in the store."""
        from cloudai.training.job import RunFiles

        assert self.run is not None
        return dict(RunFiles(self.run.spec).folder.read_json("status.json") or {})

    def checkpoint(self) -> tuple[int, float]:
        """Return the step of the newest whole checkpoint, and the unix time of its state; -1 where there is none."""
        steps = sorted(self.checkpoints().glob("step-*/manifest.json"), reverse=True)
        for manifest in steps:
            with suppress(OSError, ValueError):
                found = json.loads(manifest.read_text())
                return found["step"], found["at"]
        return -1, 0.0

    def checkpoints(self) -> Path:
        assert self.run is not None
        return Path(self.run.spec.store) / "runs" / self.run.name / "checkpoints"

    def await_steps(self, number: int) -> None:
        """Wait until this attempt has stepped and saved, and then for a moment at random."""
        begun = time.time()

        def saved() -> bool:
            worker = self.worker()
            return bool(
                worker.get("attempt") == self.attempts() and worker.get("first_step_at") and self.checkpoint()[1] > begun
            )

        wait_until(lambda: self.refreshed().ended or saved(), f"steps before fault {number} of {self.label}")
        time.sleep(self.chance.uniform(0.0, 2 * CHECKPOINT_EVERY))

    def refreshed(self) -> cloudai.Run:
        assert self.run is not None
        self.run.refresh()
        return self.run

    def attempts(self) -> int:
        """Return how often the run was started, by what the ledger says now."""
        self.refreshed()
        return max((attempt["number"] for attempt in self.record.get("attempts", [])), default=0)

    # ── disturbing ──

    def pid(self) -> int:
        """Return the process of the present attempt."""
        self.refreshed()
        return int(self.record["attempts"][-1]["pid"])

    def recovered(self, fault: str, at: float, attempt: int) -> None:
        """Wait for the next attempt's first step, and note how long that took and how much was lost."""
        step, taken_at = self.checkpoint()
        wait_until(lambda: self.attempts() > attempt or self.refreshed().ended, f"another attempt after {fault}")
        wait_until(
            lambda: (
                self.refreshed().ended or (self.worker().get("attempt", 0) > attempt and self.worker().get("first_step_at"))
            ),
            f"the first step after {fault}",
        )
        worker = self.worker()
        if worker.get("first_step_at") and worker.get("attempt", 0) > attempt:
            self.report.add(f"fault → first new step, {self.workers} worker(s)", "s", worker["first_step_at"] - at)
            self.report.add(f"… of these, {fault}, {self.workers} worker(s)", "s", worker["first_step_at"] - at)
        if taken_at and worker.get("resumed_from") == step:
            lost = at - taken_at
            self.report.add("work lost", "s", max(0.0, lost))
            self.total.excess.append(lost - CHECKPOINT_EVERY)
        say(f"  {fault}: back at step {worker.get('resumed_from')}")


def kill_worker(ordeal: Ordeal) -> None:
    attempt, at = ordeal.attempts(), time.time()
    kill(ordeal.pid(), signal.SIGKILL)
    ordeal.recovered("worker killed", at, attempt)


def kill_rank(ordeal: Ordeal) -> None:
    attempt = ordeal.attempts()
    ranks = [process for process in processes_of(ordeal.home) if "RayTrainWorker" in name_of(process)]
    at = time.time()
    kill(ordeal.chance.choice(ranks).pid, signal.SIGKILL)
    ordeal.recovered("rank killed", at, attempt)


def kill_supervisor(ordeal: Ordeal) -> None:
    """Kill the controller; the worker goes on, and another controller takes over."""
    before = {process.pid for process in supervisors(ordeal)}
    at = time.time()
    for pid in before:
        kill(pid, signal.SIGKILL)
    wait_until(lambda: ordeal.refreshed() and {p.pid for p in supervisors(ordeal)} - before, "another supervisor")
    ordeal.report.add("supervisor killed → another leads", "s", time.time() - at)
    say("  supervisor killed: another leads")


def kill_tree(ordeal: Ordeal) -> None:
    attempt, at = ordeal.attempts(), time.time()
    for process in processes_of(ordeal.home):
        if process.pid != os.getpid():
            kill(process.pid, signal.SIGKILL)
    ordeal.recovered("whole tree killed", at, attempt)


def terminate_worker(ordeal: Ordeal) -> None:
    attempt, at = ordeal.attempts(), time.time()
    kill(ordeal.pid(), signal.SIGTERM)
    ordeal.recovered("worker told to end", at, attempt)


def freeze_worker(ordeal: Ordeal) -> None:
    attempt, at = ordeal.attempts(), time.time()
    kill(ordeal.pid(), signal.SIGSTOP)
    ordeal.recovered(f"worker frozen, noticed after {HANG:g} s", at, attempt)


def fail_store(ordeal: Ordeal) -> None:
    """Let no checkpoint be written for some seconds: a file stands where their folder was. Nothing may end for it."""
    attempt, folder = ordeal.attempts(), ordeal.checkpoints()
    with moved_away(folder):
        time.sleep(3 * CHECKPOINT_EVERY)
    wait_until(
        lambda: ordeal.refreshed().ended or ordeal.checkpoint()[1] > time.time() - 1.0, "a checkpoint after the store's failure"
    )
    if not ordeal.refreshed().ended and ordeal.attempts() != attempt:
        raise RuntimeError("a store that fails for seconds ended the worker")
    say("  store failed: the worker went on")


def cut_checkpoint(ordeal: Ordeal) -> None:
    """Cut off the newest checkpoint after its worker was killed: the one before must do."""
    attempt, at = ordeal.attempts(), time.time()
    kill(ordeal.pid(), signal.SIGSTOP)  # so that it writes no other
    step, _ = ordeal.checkpoint()
    part = ordeal.checkpoints() / f"step-{step:012d}" / "rank-0.safetensors"
    with suppress(FileNotFoundError):
        os.truncate(part, part.stat().st_size // 2)
    kill(ordeal.pid(), signal.SIGKILL)
    ordeal.recovered("worker killed, its checkpoint cut off", at, attempt)


FAULTS: dict[str, Callable[[Ordeal], None]] = {
    "worker": kill_worker,
    "rank": kill_rank,
    "supervisor": kill_supervisor,
    "tree": kill_tree,
    "terminate": terminate_worker,
    "freeze": freeze_worker,
    "store": fail_store,
    "cut": cut_checkpoint,
}


@contextmanager
def moved_away(folder: Path) -> Iterator[None]:
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.write_text("")
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)


def kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def supervisors(ordeal: Ordeal) -> list[psutil.Process]:
    return [process for process in processes_of(ordeal.home) if "cloudai.agents.supervisor" in name_of(process)]


def name_of(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT:g} s for {what}")
        time.sleep(0.02)


def weights_of(run: cloudai.Run) -> str:
    """Return the digest of the file with a run's final weights."""
    files = run.model._manifest["files"]  # noqa: SLF001
    return str(next(files[name]["sha256"] for name in ("module.safetensors", "model.safetensors") if name in files))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ── the work ──


def module_work(home: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Return a module with dropout and batch norm, and data."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    width = 512
    layers = [torch.nn.Linear(64, width), torch.nn.BatchNorm1d(width), torch.nn.ReLU(), torch.nn.Dropout(0.2)]
    module = torch.nn.Sequential(*layers, torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 8))
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(4096, 64)).astype("float32")
    return module, (inputs, inputs[:, :8].argmax(axis=1)), {"batch_size": 64, "seed": 1}


def text_work(home: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Return a small BERT with random weights, and docstrings by package."""
    import corpus
    from training import FULL as SCALE
    from training import write_model

    texts, labels = corpus.docstrings(100, 60)
    folder = home / "model"
    if not folder.exists():
        write_model(folder, texts, {**SCALE, "hidden": 64, "layers": 2, "vocabulary": 2000})
    return str(folder), (texts, labels), {"batch_size": 16, "max_length": 128, "lr": 1e-4, "seed": 1}


def conclude(report: Report, total: Totals) -> None:
    report.add("faults", "", total.faults)
    report.aims.append(Aim("runs that did not end well", total.runs - total.ended, 0))
    report.aims.append(Aim("runs with other weights than undisturbed", total.runs - total.equal, 0))
    if not report.quick:
        report.aims.append(Aim("faults", total.faults, 20, least=True))
    # a checkpoint that was on its way counts as not written, and a step is never half done
    report.aims.append(Aim("work lost beyond one interval, s: a write, and a step", max(total.excess, default=0.0), 0.5))


if __name__ == "__main__":
    main()
