"""What simulated machines do: they stand in for the worker and the server, and do the real work when it is due."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial

import numpy as np

from cloudai.artifacts.store import Store
from cloudai.clock import Clock
from cloudai.drivers.protocols import Job, Revision
from cloudai.drivers.simulated.deployments import Answer
from cloudai.drivers.simulated.jobs import Course
from cloudai.errors import SpecError
from cloudai.specs.training import TrainSpec
from cloudai.training.job import JOB, LIMITED, RunFiles
from cloudai.training.limits import Countdown, Limits, Pulse

__all__ = ["ModelServers", "TrainingWorkload"]

_HOUR = 3600.0


class TrainingWorkload:
    """Stands in for ``python -m cloudai.training.worker``: its progress is simulated, its result is trained for real.

    Parameters
    ----------
    clock : Clock
        The simulated time, for what the worker would write down.
    durations : Mapping[str, float]
        The seconds that work takes, by the name of its model or a pattern of it.
    checkpoint_every : float
        Seconds between two checkpoints.
    """

    def __init__(self, clock: Clock, durations: Mapping[str, float], checkpoint_every: float) -> None:
        self._clock, self._durations, self._every = clock, durations, checkpoint_every
        self._done: dict[str, float] = {}
        """For each run, the seconds of work that its last checkpoint holds."""

    def begin(self, job: Job) -> Course:
        """Go on from the last checkpoint of the run, and plan the next ones."""
        asked = _arguments(job.argv)
        limits = Limits.from_json(asked.limits)
        spec = TrainSpec.parse(Store(asked.store).read(f"runs/{asked.run}/{JOB}"))
        total, done = self._seconds(spec), self._done.get(spec.name, 0.0)
        report = partial(self._report, spec, asked.attempt, done, total)
        marks = [done + self._every * i for i in range(1, int((total - done) / self._every) + 1)]
        steps = [(mark - done, partial(report, mark)) for mark in marks if mark < total]
        stop = self._stop(limits, total / _steps(spec))
        if stop is not None and stop[0] < total - done:
            after, reason = stop
            finish = partial(self._stopped, partial(report, done + after), spec, reason)
            return Course(after, finish, [(0.0, partial(report, done)), *(step for step in steps if step[0] < after)])
        return Course(total - done, partial(_train, spec, asked.attempt), [(0.0, partial(report, done)), *steps])

    def _stop(self, limits: Limits, step: float) -> tuple[float, str] | None:
        """Return after how many seconds a worker with steps of some seconds ends for a limit, and its reason."""
        if not str(limits):
            return None
        now = begin = self._clock.now()
        pulse = Pulse(lambda: now)
        countdown = Countdown(limits, begin, pulse)
        while now < limits.ends(begin):
            pulse.beat()
            if reason := countdown():
                return now - begin, reason
            now += step
        return now - begin, limits.reason(begin, now)

    def _stopped(self, report: Callable[[], str], spec: TrainSpec, reason: str) -> int:
        """Write down that there is a checkpoint, and why there is no more."""
        report()
        folder = RunFiles(spec).folder
        folder.write_json("status.json", {**(folder.read_json("status.json") or {}), "ending": reason})
        return LIMITED

    def _seconds(self, spec: TrainSpec) -> float:
        return next((s for pattern, s in self._durations.items() if fnmatchcase(spec.model_name, pattern)), _HOUR)

    def _report(self, spec: TrainSpec, attempt: int, resumed: float, total: float, done: float) -> str:
        """Write down where the work is, as a worker does, and that there is a checkpoint."""
        self._done[spec.name] = done
        steps = _steps(spec)
        step, since = (int(steps * seconds / total) for seconds in (done, resumed))
        status = {"attempt": attempt, "step": step, "total_steps": steps, "updated": self._clock.now()}
        checkpoints = {"checkpoint": step} if done else {}
        RunFiles(spec).folder.write_json("status.json", status | checkpoints | ({"resumed_from": since} if resumed else {}))
        return f"step {step} of {steps}"


def _steps(spec: TrainSpec) -> int:
    from cloudai.training.execution import total_steps

    return total_steps(spec) or 100


def _arguments(argv: tuple[str, ...]) -> argparse.Namespace:
    if argv[:2] != ("-m", "cloudai.training.worker"):
        raise SpecError(f"a simulated machine cannot run {' '.join(argv[:2])!r}", fix="give the simulation a workload that can")
    parser = argparse.ArgumentParser()
    parser.add_argument("--store")
    parser.add_argument("--run")
    parser.add_argument("--attempt", type=int)
    parser.add_argument("--limits", type=json.loads)
    return parser.parse_known_args(argv[2:])[0]


def _train(spec: TrainSpec, attempt: int) -> int:
    """Do the work, in this process, and leave its threads and random states as they were."""
    import torch

    from cloudai.training import randomness
    from cloudai.training.context import Solo
    from cloudai.training.execution import execute
    from cloudai.training.stopping import Stop

    class OnProcessor(Solo):
        """A worker whose GPU is simulated: what it would compute is computed here."""

        def device(self, spec: TrainSpec) -> torch.device:
            return torch.device("cpu")

    before, threads = randomness.snapshot(), torch.get_num_threads()
    try:
        with _without_pid(spec):
            return execute(spec, attempt, OnProcessor(), Stop())
    finally:
        randomness.restore(before)
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _without_pid(spec: TrainSpec) -> Iterator[None]:
    """Keep what the status said of the way there, and take out the process: it is the user's own."""
    folder = RunFiles(spec).folder
    before = dict(folder.read_json("status.json") or {})
    yield
    after = dict(folder.read_json("status.json") or {})
    after.pop("pid", None)
    folder.write_json("status.json", {**before, **after})


class ModelServers:
    """Stands in for ``python -m cloudai.serving.server``: answers rows of the simulated traffic with the real model."""

    def __call__(self, revision: Revision) -> Answer:
        """Return what computes the revision's outputs."""
        model, digest = (revision.argv[revision.argv.index(flag) + 1] for flag in ("--model", "--digest"))
        return _server(model, digest)


@functools.lru_cache(maxsize=16)
def _server(uri: str, digest: str) -> Answer:
    from cloudai.artifacts.model import Model

    servable = Model.open(uri, digest).servable()
    name = servable.signature.inputs[0]

    def answer(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return servable.infer({name.name: inputs["input"].astype(name.dtype)})

    return answer
