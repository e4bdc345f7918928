"""The worker's side of a benchmark: what a run of the kind ``benchmark`` calls."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

import cloudai
from cloudai.artifacts.store import canonical_json, sha256
from cloudai.artifacts.text_readers import Reader
from cloudai.benchmarking import machine, squad
from cloudai.benchmarking.energy import meter_of
from cloudai.benchmarking.measurement import FILE, Asked, Measurement, Percentiles
from cloudai.benchmarking.modules import (
    SpanFinder,
    build,
    check_architecture,
    operations,
    random_examples,
    random_rows,
    words_of,
)
from cloudai.benchmarking.timing import Interval, StepTimes, measure_latency, rate
from cloudai.specs.training import TrainSpec
from cloudai.training import loop
from cloudai.training.context import Context
from cloudai.training.devices import computing, uses_bfloat16
from cloudai.training.examples import Examples
from cloudai.training.fine_tuning import first_weights
from cloudai.training.hardware import PEAKS_AS_OF, peak_of
from cloudai.training.job import WORKER_PATIENCE, RunFiles
from cloudai.training.tasks.answers import AnswerRows

__all__ = ["measure"]

_SAID_EVERY = 1.0  # seconds between two reports of the speed


def measure(context: Context) -> str:
    """Measure what the run's configuration asks for, write it into the run's folder, and return its digest."""
    asked = Asked(**context.config)
    bench = _Bench(context, asked)
    measured = {("window", "train"): bench.train_window, ("window", "infer"): bench.infer_window}
    found = measured.get((asked.mode, asked.workload.act), bench.full)()
    content = canonical_json(found.model_dump(mode="json"))
    RunFiles(context.spec, WORKER_PATIENCE).folder.write(FILE, content)
    return sha256(content)


class _Enough(Exception):  # noqa: N818  no error: the window is over
    """Ends a window in the middle of the training."""


class _Counted:
    """Examples that count the rows that go through the module."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self.rows = 0
        self.most = 0
        """The most rows at once, since this was set to 0."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._examples, name)

    def __len__(self) -> int:
        return len(self._examples)

    def loss(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        self.rows += int(self._examples.weight(rows))  # a long text is several sequences of one row
        self.most = max(self.most, len(rows))
        return self._examples.loss(module, rows)


class _Watched:
    """A run's context that is told when the loop has taken a step: that is when it asks whether a checkpoint is due.

    There are no checkpoints: a window of some steps would show one, or none, by chance.
    """

    def __init__(self, context: Context, spec: TrainSpec, after_step: Callable[[], None]) -> None:
        self._context, self.spec, self._after_step = context, spec, after_step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def due(self) -> bool:
        self._after_step()
        return False

    def report(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Leave out the loss: it is that of random rows."""


@dataclass(frozen=True)
class _Taken:
    """What a training has taken so far, without what was lost and done again."""

    seconds: float = 0.0
    joules: float | None = 0.0
    most: int = 0

    def __add__(self, other: _Taken) -> _Taken:
        known = self.joules is not None and other.joules is not None
        joules = (self.joules or 0.0) + (other.joules or 0.0) if known else None
        return _Taken(self.seconds + other.seconds, joules, max(self.most, other.most))


class _Summed:
    """A run's context whose checkpoints also say what the training has taken up to them, in all attempts."""

    def __init__(self, context: Context, taken: Callable[[], _Taken]) -> None:
        self._context, self._own = context, taken
        self._before = _Taken()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    @property
    def taken(self) -> _Taken:
        return self._before + self._own()

    def restore(self, **parts: Any) -> dict[str, Any]:
        saved = self._context.restore(**parts)
        self._before = _Taken(**saved.pop("taken", {}))
        return saved

    def due(self) -> bool:
        self._own()  # a counter of energy must be read before it begins again twice
        return self._context.due()

    def save(self, step: int, checkpoint: Mapping[str, Any], own: Any = None) -> None:
        self._context.save(step, {**checkpoint, "taken": asdict(self.taken)}, own)


@dataclass(frozen=True)
class _Speed:
    """What a series of steps showed."""

    interval: Interval
    steps: int
    seconds: float
    micro_batch: int
    joules: float | None


class _Bench:
    def __init__(self, context: Context, asked: Asked) -> None:
        self.context, self.asked, self.workload, self.device = context, asked, asked.workload, context.device
        self.bfloat16 = uses_bfloat16(self.workload.precision, self.device)
        self.meter = meter_of(self.device)
        self._notes = machine.how_busy()  # before we are what makes it busy
        self._said_at = time.monotonic()

    def train_window(self) -> Measurement:
        """Measure some steps of the built-in loop on random rows."""
        module = build(self.workload).to(self.device)
        examples = random_examples(self.workload, self.device)
        speed = self._some_steps(module, examples, self._fitting(module, examples))
        return self._told(module, speed)

    def infer_window(self) -> Measurement:
        """Measure some passes over batches of random rows, each from the host and back."""
        module = self._serving(build(self.workload).to(self.device))
        rows = random_rows(self.workload, self.workload.batch_size)
        times, enough, done = self._step_times(), False, 0
        while not enough:
            self._pass(module, rows)
            done += len(rows)
            enough = times.mark(done)
            self._say(done, times.steps)
        return self._told(module, self._speed(times, len(rows)))

    def full(self) -> Measurement:
        """Train on the data given, answer the questions of the other file, and take the time of all steps."""
        files, workload = RunFiles(self.context.spec, WORKER_PATIENCE), self.workload
        train, dev = (_questions(files, key) for key in (self.asked.train, self.asked.dev))
        model, _ = first_weights(files, (), 0)
        assert isinstance(model, Reader)
        check_architecture(model.model.config, workload)
        counted, module = _Counted(AnswerRows(model, train)), model.trainable()
        taken = self._fit(module, counted)
        each = int(counted.weight(torch.arange(len(counted))))
        sequences, steps = each * workload.epochs, workload.epochs * loop.batches_of(len(counted), workload.batch_size, 1)
        joules = None if taken.joules is None else taken.joules / sequences
        speed = _Speed(Interval(sequences / taken.seconds, None, None), steps, taken.seconds, taken.most, joules)
        whole, scores = self._whole(each, taken.seconds), self._answered(module.eval(), AnswerRows(model, dev))
        told = self._told(SpanFinder(model.model), speed).model_dump()
        return Measurement(**{**told, **whole, **scores})

    def _fit(self, module: torch.nn.Module, counted: _Counted) -> _Taken:
        """Train to the end, and return what all attempts have taken."""
        if self.meter is not None:
            self.meter.start()
        begin = time.monotonic()

        def own() -> _Taken:
            joules = self.meter.joules() if self.meter is not None else None
            return _Taken(time.monotonic() - begin, joules, counted.most)

        summed = _Summed(self.context, own)
        loop.fit(module, cast(Context, summed), cast(Examples, counted))
        return summed.taken

    def _answered(self, module: torch.nn.Module, rows: AnswerRows) -> dict[str, float]:
        """Return F1 and exact match in percent, as SQuAD gives them."""
        total = {"val_f1": 0.0, "val_exact_match": 0.0}
        with torch.no_grad(), computing(self.workload.precision, self.device):
            for part in rows.parts(torch.arange(len(rows))):
                found = rows.measure(module, part)
                total = {name: value + found[name] * len(part) for name, value in total.items()}
                self.context.stop_if_told()
        return {name.removeprefix("val_"): 100 * value / len(rows) for name, value in total.items()}

    def _whole(self, each: int, seconds: float) -> dict[str, Any]:
        """Return how long the whole training took, of `each` sequences an epoch."""
        notes = []
        if self.context.resumed_from is not None:
            notes.append("the run was interrupted: its time is that of all attempts, without what was lost and done again")
        if each != self.workload.features:
            notes.append(f"your data gives {each} sequences an epoch, the workload has {self.workload.features}")
        sequences = each * self.workload.epochs
        return {"hours": seconds / 3600, "hours_are": "measured", "sequences": sequences, "notes": (*self._notes, *notes)}

    def _fitting(self, module: torch.nn.Module, examples: Examples) -> int | None:
        """Return how many rows to compute at once; None where the loop finds that out by itself, as on a GPU."""
        if self.device.type != "cpu" or self.workload.task == "classes":
            return None

        def two_rows() -> None:
            with computing(self.workload.precision, self.device):
                loss = examples.loss(module, torch.arange(2))
            loss.backward()  # type: ignore[no-untyped-call]
            module.zero_grad(set_to_none=True)

        to_come = 2 * sum(4 * parameter.numel() for parameter in module.parameters())  # of AdamW
        return machine.fitting_rows(machine.growth(two_rows) / 2, self.workload.batch_size, to_come)

    def _some_steps(self, module: torch.nn.Module, examples: Examples, micro_batch: int | None) -> _Speed:
        counted, times = _Counted(examples), self._step_times()
        most = 0

        def after_step() -> None:
            nonlocal most
            most, counted.most = counted.most, 0
            if times.mark(counted.rows):
                raise _Enough
            self._say(counted.rows, times.steps)

        spec = self.context.spec
        spec = spec.model_copy(update={"loop": spec.loop.model_copy(update={"micro_batch": micro_batch})})
        context = cast(Context, _Watched(self.context, spec, after_step))
        with contextlib.suppress(_Enough):
            loop.fit(module, context, cast(Examples, counted))
        return self._speed(times, most)

    def _step_times(self) -> StepTimes:
        return StepTimes(self.device, self.asked.seconds, self.meter.start if self.meter is not None else lambda: None)

    def _speed(self, times: StepTimes, micro_batch: int) -> _Speed:
        rows, seconds = times.rows(), times.durations()
        joules = self.meter.joules() if self.meter is not None else None
        each = None if joules is None else joules / float(rows.sum())
        return _Speed(rate(rows, seconds), len(seconds), float(seconds.sum()), micro_batch, each)

    def _say(self, rows: int, step: int) -> None:
        """Report now and then how far it is, and end where the run was told to."""
        if time.monotonic() - self._said_at >= _SAID_EVERY:
            self._said_at = time.monotonic()
            self.context.report({"sequences": rows}, step=step)
        self.context.stop_if_told()

    def _serving(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return the module as it would be served: without dropout, with weights of the type that is computed in."""
        return module.eval().to(torch.bfloat16 if self.bfloat16 else torch.float32)

    def _pass(self, module: torch.nn.Module, rows: torch.Tensor) -> None:
        """Compute rows from the host; the answer is back on the host then."""
        if self.bfloat16 and rows.is_floating_point():
            rows = rows.to(torch.bfloat16)
        with torch.inference_mode():
            found = module(rows.to(self.device))
            for part in found if isinstance(found, tuple) else (found,):
                part.cpu()

    def _told(self, module: torch.nn.Module, speed: _Speed) -> Measurement:
        """Measure what is left, and put it all together."""
        peak_bytes, memory_of = machine.peak_memory(self.device)
        needed = operations(self.workload, module)
        row = random_rows(self.workload, 1, words_of(module))
        served = self._serving(module)
        latency = measure_latency(lambda: self._pass(served, row), self.asked.seconds, self.context.stop_if_told)
        device, dtype = machine.name_of(self.device), "bfloat16" if self.bfloat16 else "float32"
        peak = peak_of(device, dtype) or None
        return Measurement(
            workload=self.workload.ref,
            digest=self.workload.digest,
            mode=self.asked.mode,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            device=device,
            dtype=dtype,
            batch=self.workload.batch_size,
            micro_batch=speed.micro_batch,
            steps=speed.steps,
            seconds=speed.seconds,
            per_second=speed.interval.mean,
            low=speed.interval.low,
            high=speed.interval.high,
            hours=self.workload.sequences / speed.interval.mean / 3600,
            hours_are="extrapolated",
            sequences=self.workload.sequences,
            operations=needed,
            mfu=None if peak is None else needed * speed.interval.mean / peak,
            peak=peak,
            peak_as_of=PEAKS_AS_OF,
            peak_bytes=peak_bytes,
            peak_of=memory_of,
            latency=Percentiles(**asdict(latency)),
            joules=speed.joules,
            joules_of=self.meter.source if self.meter is not None else "",
            f1=None,
            exact_match=None,
            notes=self._notes,
            versions=_versions(),
        )


def _questions(files: RunFiles, key: str) -> dict[str, np.ndarray]:
    return squad.read_questions(files.store.read_verified(key, Path(key).name.partition(".")[0]), key)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cloudai": cloudai.__version__, "torch": str(torch.__version__)}
    try:
        return {**found, "transformers": version("transformers")}
    except PackageNotFoundError:
        return found
