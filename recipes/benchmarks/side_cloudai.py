"""One side of `overhead`: what a notebook does, in a process as fresh as a restarted kernel; prints what each call took.

Run: python side_cloudai.py <digits.npz> [--recovery], with CLOUDAI_HOME set to an empty folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

began = time.perf_counter()
import workload  # noqa: E402  this and the data are what the user has imported before cloudai

if TYPE_CHECKING:
    import cloudai

WAIT = 60.0  # seconds for anything to come true


def main(data: Path, *, recovery: bool) -> dict[str, float]:
    taken: dict[str, float] = {}
    arrays = workload.read_digits(data)
    modules = [workload.network() for _ in range(2)]
    taken["user_imports_s"] = time.perf_counter() - began
    begin = time.perf_counter()
    import cloudai

    options: dict[str, Any] = {"epochs": workload.EPOCHS, "batch_size": workload.BATCH, "lr": workload.LEARNING_RATE}
    try:
        runs = []
        for module, which in zip(modules, ("first", "second"), strict=True):
            called = time.time()
            with timed(taken, f"{which}_train_ms"):
                run = cloudai.train(module, arrays, model_name="digits", **options)
            if which == "first":
                taken["import_and_train_ms"] = 1e3 * (time.perf_counter() - begin)
            runs.append(run.wait(WAIT, progress=False))
            taken[f"{which}_first_step_s"] = first_step(run) - called
        for run, which in zip(runs, ("first", "second"), strict=True):
            model = run.model
            with timed(taken, f"{which}_deploy_ms"):
                deployment = cloudai.deploy(model, name=which)
            deployment.wait(WAIT)
        if recovery:
            taken["recovery_s"] = recovery_seconds(arrays)
    finally:
        cloudai.cleanup().apply()
    return taken


@contextmanager
def timed(taken: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    taken[name] = 1e3 * (time.perf_counter() - begin)


def first_step(run: cloudai.Run) -> float:
    """Return the unix time of a run's first step, as its worker wrote it down right after it."""
    from cloudai.training.job import RunFiles
    from cloudai.training.journal import JournalReader

    return JournalReader(RunFiles(run.spec).folder).rows()[0].at


def recovery_seconds(arrays: Any) -> float:
    """Kill a worker (-9) between two steps and return how long it took to the first step after it."""
    import cloudai

    run = cloudai.train(workload.slow_steps, arrays)
    wait_until(lambda: run.status.pid and (run.status.checkpoint or 0) > workload.CHECKPOINT_EVERY, run)
    assert run.status.pid is not None
    killed = time.time()
    os.kill(run.status.pid, signal.SIGKILL)
    wait_until(lambda: max(run.history("at")[1]) > killed, run)
    recovered = min(at for at in run.history("at")[1] if at > killed)
    run.cancel()
    return recovered - killed


def wait_until(condition: Callable[[], Any], run: cloudai.Run) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"{run!r} did not get there"
        time.sleep(0.05)
        run.refresh()


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), recovery="--recovery" in sys.argv)))
