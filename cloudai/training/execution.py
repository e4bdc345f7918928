"""One worker's part of a run: find the work, do it, and leave the result in the run's folder."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cloudai.artifacts import torch_models, trees
from cloudai.artifacts.inputs import named_columns
from cloudai.artifacts.known import save_model
from cloudai.artifacts.model import Model
from cloudai.artifacts.signature import Signature
from cloudai.capture.bundle import code_folder, loaded, resolve
from cloudai.errors import CloudAIError, SpecError, StoreError
from cloudai.specs.confidential import redact, redacted
from cloudai.specs.training import Source, TrainSpec
from cloudai.statistics.profiles import Profile
from cloudai.tracking import Row, TrackedModel
from cloudai.tracking.background import BackgroundTracker
from cloudai.tracking.registry import NONE
from cloudai.training import examples, loop, randomness
from cloudai.training.checkpoints import Checkpoints
from cloudai.training.context import Context, Group, Stopped
from cloudai.training.data import TrainingData, read_source
from cloudai.training.hangs import Heartbeat
from cloudai.training.job import FAILED, LOST, NOT_EXACT, STOPPED, SUCCEEDED, WORKER_PATIENCE, RunFiles
from cloudai.training.journal import Journal
from cloudai.training.sizes import resized
from cloudai.training.stopping import Stop
from cloudai.training.stream_loop import fit_stream
from cloudai.training.streaming import Stream
from cloudai.training.tracked import RunSource, first_note, lineage, tracked_model, write_note
from cloudai.training.watch import Watch
from cloudai.training.work import dry_run

if TYPE_CHECKING:
    from cloudai.training.fine_tuning import FineTuning

__all__ = ["FAILED", "LOST", "STOPPED", "SUCCEEDED", "execute", "write_error"]

log = logging.getLogger(__name__)

_EXAMPLE_ROWS = 8
_SAMPLE_ROWS = 50_000
"""So many rows of a stream are profiled: the error of a share is then a quarter of a percent at most."""
_LAST_TRY = 5.0
"""Seconds that a finished run waits for its tracker; one second for one that is behind already. The rest is caught up later."""
_BUILT_IN = ("module", "text")
"""The kinds of work that the built-in loop trains."""


def execute(spec: TrainSpec, attempt: int, group: Group, stop: Stop) -> int:
    """Run the work to its end and return the exit code."""
    files = RunFiles(spec, WORKER_PATIENCE)
    worker = _Worker(files, attempt, group, stop)
    try:
        worker.begin()
        with code_folder() as folder, worker.code(folder):
            return worker.run(folder)
    except Stopped as stopped:
        return worker.stopped(str(stopped))
    except Exception as error:  # noqa: BLE001  whatever it is, somebody must be told, and nothing stays open
        code = _not_begun(files, error)
        worker.close(succeeded=False)
        return code


def _not_begun(files: RunFiles, error: Exception) -> int:
    """Say why the work could not begin, and return the exit code: another attempt helps only where the reason may be over."""
    if isinstance(error, StoreError):
        if error.temporary:
            log.warning("the store was tried for long enough: %s", error.what)
            return LOST
        fix = f"{error.fix}; a worker has the environment in which the supervisor was started"
        error = StoreError(error.what, fix=fix)
    return write_error(files, error, "")


class _Worker:
    context: Context

    def __init__(self, files: RunFiles, attempt: int, group: Group, stop: Stop) -> None:
        spec = files.spec
        self.files, self.spec, self.group, self.attempt, self.stop = files, spec, group, attempt, stop
        torch.set_num_threads(max(1, math.ceil(spec.resources.cpus)))
        randomness.seed_all(spec.seed, group.rank)
        self.journal: Journal | None = None
        self.heartbeat: Heartbeat | None = None
        self.watch: Watch | None = None
        self.stream: Stream | None = None
        self.tracker: BackgroundTracker | None = None
        self._latest: dict[str, float] = {}
        self._tuning: FineTuning | None = None
        self._outcome: str | None = None
        if group.rank == 0:
            about = {"pid": os.getpid(), "total_steps": total_steps(spec), "workers": group.world_size}
            doing = {"doing": "reading the data"} if spec.work.source is not None else {}
            self.journal = Journal(files.folder, attempt, {**about, **doing}, self._written)
            self.heartbeat = Heartbeat(stop.pulse, self._beat, spec.failure.hang)
            self.tracker = None if spec.tracking == NONE else BackgroundTracker(RunSource(spec, attempt), self._behind)

    def begin(self) -> None:
        """Read the data and the last checkpoint."""
        spec = self.spec
        self.context = Context(
            spec,
            self._data(),
            Checkpoints(self.files.folder, spec.checkpoint.keep),
            self.group,
            on_report=self._reported,
            before_checkpoint=self._flush,
            on_checkpoint=self._saved,
            on_first_step=self._stepped,
            alive=self.stop.pulse.alive,
            stop_reason=self.stop,
            hurries=self.stop.hurries,
            interruptions=self.attempt - 1,
        )
        if self.journal is not None:
            resumed = self.context.resumed_from is not None
            self.watch = Watch(self.context.meter, self.journal, self.files.folder, resumed=resumed)
            self.context.works = self.watch.works
        if self.journal is not None and self.context.resumed_from is not None:
            step = self.context.resumed_from
            self.journal.update(resumed_from=step, checkpoint=step, step=step)

    def run(self, folder: Path) -> int:
        """Do the work; an error in it is written down with the user's frames."""
        try:
            module, metrics = self._work()
            if self.heartbeat is not None:
                self.heartbeat.rest()
            self.context.settle()
            module = self.group.whole(module) if module is not None else None
            model = self._save(module, metrics) if module is not None and self.group.rank == 0 else None
            result = self._record(model, metrics)
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever the user's code raises is reported
            code = self._failed(error, folder)
            self.close(succeeded=False)
            return code
        self.close(succeeded=True, model=tracked_model(result))
        return SUCCEEDED

    def stopped(self, reason: str) -> int:
        """Note why the work stopped before its end, and return the exit code."""
        log.warning("stopped: %s", reason)
        if self.journal is not None:
            self.journal.update(ending=reason)
        self.close(succeeded=False)
        return STOPPED

    def close(self, *, succeeded: bool, model: TrackedModel | None = None) -> None:
        """Write what is still in memory, then let the tracker have it."""
        if self.journal is None:
            return
        if self.watch is not None:
            self.watch.close()
        if self.heartbeat is not None:
            self.heartbeat.close()
        self.journal.close()
        if self.tracker is not None:
            self.tracker.close(succeeded, time.time(), model)
            self.tracker.wait(1.0 if self.tracker.problem else _LAST_TRY)
            self._note(self.tracker)
            self.journal.flush()

    def _note(self, tracker: BackgroundTracker) -> None:
        """Note what the tracker has; where that fails, nothing says that it has everything, and it is told once more."""
        assert self.journal is not None
        problem = redact(tracker.problem)
        self.journal.update(tracking=problem)
        try:
            note = first_note(self.files.folder)
            note = replace(note, attempt=self.attempt, complete=tracker.complete, problem=problem)
            write_note(self.files.folder, note)
        except (CloudAIError, OSError) as error:
            log.warning("the note on tracking cannot be written: %s", error)

    def _data(self) -> Mapping[str, np.ndarray] | None:
        if self.spec.work.source is not None:
            return self._read(self.spec.work.source)
        if not self.spec.work.data:
            return None
        digest = Path(self.spec.work.data).stem
        tree = trees.load(self.files.store.read_verified(self.spec.work.data, digest))
        return {name: np.asarray(array) for name, array in tree.items()}

    def _read(self, source: Source) -> Mapping[str, np.ndarray]:
        """Read the data where it lies; how much there is of it is known from now on."""
        if source.stream:
            return self._sampled(source)
        arrays = read_source(source, patience=WORKER_PATIENCE).arrays
        if self.journal is not None:
            self.journal.update(doing="", total_steps=total_steps(self.spec, len(arrays["inputs"])))
        return arrays

    def _sampled(self, source: Source) -> Mapping[str, np.ndarray]:
        """Open a stream, and return some of its rows: for the example, the profile and a first try."""
        spec, group = self.spec, self.group
        self.stream = Stream(
            source, spec.loop, spec.seed, rank=group.rank, world_size=group.world_size, patience=WORKER_PATIENCE
        )
        sample, steps = self.stream.sample(_SAMPLE_ROWS), self.stream.steps_per_epoch
        if self.journal is not None:
            self.journal.update(doing="", total_steps=None if steps is None else spec.loop.epochs * steps)
        return sample

    @contextlib.contextmanager
    def code(self, folder: Path) -> Iterator[None]:
        """Make the user's code importable for the life of the worker."""
        if not self.spec.work.code:
            yield
            return
        with loaded(self._stored(self.spec.work.code), folder):
            yield

    def _work(self) -> tuple[torch.nn.Module | None, Mapping[str, float]]:
        work = self.spec.work
        if work.kind == "module":
            module = torch_models.build_module(self._stored(work.module))
            if work.source is not None and self.context.data is not None:
                dry_run(module, TrainingData(self.context.data), self.spec.loop)
            if self.stream is not None:
                self.stream.device, self.stream.alive = self.context.device, self.context.alive
                return module, fit_stream(module, self.context, self.stream)
            return module, loop.fit(module, self.context)
        if work.kind == "text":
            return self._fine_tuned()
        if work.kind == "benchmark":
            self._outcome = resolve(work.entry)(self.context)
            return None, self._latest
        returned = resolve(work.entry)(self.context)
        if returned is not None and not isinstance(returned, torch.nn.Module):
            raise SpecError(f"the function returned a {type(returned).__name__}", fix="return a torch.nn.Module, or nothing")
        return returned, self._latest

    def _fine_tuned(self) -> tuple[torch.nn.Module, Mapping[str, float]]:
        from cloudai.training.fine_tuning import FineTuning

        assert self.context.data is not None
        self._tuning = FineTuning(self.files, self.context.data, self.group.rank)
        if self.journal is not None:  # of texts in blocks, their number was not known
            self.journal.update(total_steps=total_steps(self.spec, len(self._tuning.examples)))
        return self._tuning.module, loop.fit(self._tuning.module, self.context, self._tuning.examples)

    def _stored(self, key: str) -> bytes:
        """Read a file that is named by its own digest."""
        return self.files.store.read_verified(key, Path(key).name.partition(".")[0])

    def _save(self, module: torch.nn.Module, metrics: Mapping[str, float]) -> Model:
        """Write the model to the store."""
        if self._tuning is not None:
            return self._save_texts(self._tuning, metrics)
        inputs = self.context.data["inputs"] if self.context.data is not None else None
        example = inputs[:_EXAMPLE_ROWS] if inputs is not None else getattr(module, "example_input", None)
        if example is None:
            raise SpecError(
                "the model's inputs are not known",
                fix="pass data=, or set module.example_input to a few rows before returning it",
            )
        files, signature = torch_models.pack(module, {"input": np.asarray(example)})
        if self.spec.work.code:
            files["code.zip"] = self._stored(self.spec.work.code)
        if inputs is not None:
            files["profile.bin"] = self._profile({"input": inputs}, signature)
        return self._write(files, {"kind": "torch", "signature": signature.to_json(), "lineage": lineage(self.spec)}, metrics)

    def _save_texts(self, tuning: FineTuning, metrics: Mapping[str, float]) -> Model:
        files, signature = tuning.pack()
        files["profile.bin"] = self._profile(tuning.inputs, signature)
        origin = {**lineage(self.spec), **tuning.origin}
        facts = {"kind": "transformers", "signature": signature.to_json(), "lineage": origin}
        return self._write(files, {**facts, "labels": list(tuning.labels)}, metrics)

    def _profile(self, inputs: Mapping[str, np.ndarray], signature: Signature) -> bytes:
        """Profile the rows that were trained on."""
        sampled = self.stream is not None  # of rows that are trained on
        validation = self.spec.loop.validation if self.spec.work.kind in _BUILT_IN and not sampled else 0.0
        held = examples.split(len(next(iter(inputs.values()))), validation, self.spec.seed)
        trained = {name: array[held.train.numpy()] for name, array in inputs.items()}
        return Profile.of(named_columns(trained, signature, self.spec.work.features)).to_bytes()

    def _write(self, files: Mapping[str, bytes], facts: Mapping[str, Any], metrics: Mapping[str, float]) -> Model:
        known = {"metrics": dict(metrics), "features": list(self.spec.work.features), "labels": []}
        return save_model(self.files.store, self.spec.model_name, files, {**known, **facts}, run=self.spec.name)

    def _reported(self, step: int, metrics: Mapping[str, float]) -> None:
        assert self.journal is not None
        self._latest.update(metrics)
        self.journal.add(step, metrics)
        if self.watch is not None:
            self.watch.reported(step, metrics)

    def _written(self, rows: Sequence[Row]) -> None:
        """Let the tracker know what is in the store: never more, or a restarted worker could not say it again."""
        if self.tracker is not None:
            self.tracker.add(rows)

    def _beat(self, beat: Mapping[str, Any]) -> None:
        """Write that the worker lives, also where it is long until the journal's next news."""
        assert self.journal is not None
        self.journal.update(beat=beat, notice=self.stop.notice)
        self.journal.flush()

    def _behind(self, problem: str) -> None:
        if self.journal is not None:
            self.journal.update(tracking=problem)

    def _flush(self) -> bool:
        assert self.journal is not None
        return self.journal.flush()

    def _saved(self, step: int, at: float, took: float) -> None:
        assert self.journal is not None
        self.stop.checkpoint_took(took)
        self.journal.checkpointed(step, at)

    def _stepped(self) -> None:
        if self.journal is not None:
            self.journal.update(first_step_at=time.time())

    def _record(self, model: Model | None, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Write down that the work is done, before the tracker is told: the run has succeeded, whatever that says."""
        if self.journal is None:
            return {}
        why_not = NOT_EXACT.get(self.spec.work.kind) or resized(self.files.folder)
        result: dict[str, Any] = {"metrics": dict(metrics), "exact": not why_not, "why_not_exact": why_not}
        if model is not None:
            result["model"] = {"name": model.name, "version": model.version, "uri": model.uri, "digest": model.digest}
        if self._outcome is not None:
            result["outcome"] = self._outcome
        self.journal.update(doing="recording in the tracker")
        self.files.folder.write_json("result.json", result)
        return result

    def _failed(self, error: BaseException, folder: Path) -> int:
        """Say what ended the work, and return the exit code."""
        if _lost_peer(error):
            log.warning("another worker is gone: %s", error)
            return LOST
        if isinstance(error, StoreError) and error.temporary:
            log.warning("the store was tried for long enough: %s", error.what)
            return LOST
        return write_error(self.files, error, _user_frames(error, folder))


def write_error(files: RunFiles, error: BaseException, frames: str = "") -> int:
    """Leave what ended the run for whoever reads it, and return the exit code: where that fails, another attempt will try."""
    what = error.what if isinstance(error, CloudAIError) else f"{type(error).__name__}: {error}"
    fix = error.fix if isinstance(error, CloudAIError) else "mend the code and train again"
    log.error("%s\n%s", what, frames or traceback.format_exc())
    told = redacted({"what": what, "fix": fix, "frames": frames})
    try:
        files.folder.create("error.json", json.dumps(told).encode())
    except StoreError as unwritten:
        log.warning("that cannot be written down: %s", unwritten.what)
        return LOST
    return FAILED


def total_steps(spec: TrainSpec, rows: int = 0) -> int | None:
    """Return how many optimiser steps the built-in loop will take; None for a user's own loop, or rows not counted yet."""
    rows = rows or spec.work.rows
    if spec.work.kind not in _BUILT_IN or not rows:
        return None
    return spec.loop.epochs * loop.batches_of(
        rows - int(rows * spec.loop.validation), spec.loop.batch_size, spec.scaling.largest
    )


def _lost_peer(error: BaseException) -> bool:
    """Whether an error comes out of a collective operation: not this rank is at fault, but one that is gone."""
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _user_frames(error: BaseException, folder: Path) -> str:
    """Return the frames of a traceback that lie in the user's code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(folder) in frame.filename]
    for frame in frames:
        frame.filename = str(Path(frame.filename).name)
    return "".join(traceback.format_list(frames))
