"""Runs of models on texts without a supervisor: what `train` does, and an attempt of its worker, in this process."""

from __future__ import annotations

from pathlib import Path

from cloudai.artifacts.model import Model
from cloudai.artifacts.store import Store
from cloudai.specs.texts import TextTask
from cloudai.specs.training import CheckpointPolicy, Loop, TrainSpec
from cloudai.training.context import Solo
from cloudai.training.execution import execute
from cloudai.training.job import RunFiles
from cloudai.training.journal import JournalReader
from cloudai.training.stopping import Stop
from cloudai.training.work import base_name, loop_defaults, prepare


def asked_for(store: Path, work, data, name="t", **options) -> TrainSpec:
    """Do what `train` does up to the worker."""
    text = {key: options.pop(key) for key in list(options) if key in TextTask.model_fields}
    loop = Loop.of(**{**loop_defaults(work, text), **options})
    prepared = prepare(work, data, loop, text)
    prepared.put(Store(str(store)))
    facts = {"checkpoint": CheckpointPolicy.of(every=0.001), "lease": 60, "store": str(store), "tracking": "none"}
    return TrainSpec.of(name=name, model_name=base_name(work), work=prepared.work, loop=loop, **facts)


def attempt(spec: TrainSpec, number: int = 1, stop_after: int | None = None) -> int:
    looks = iter(range(10**6))
    return execute(spec, number, Solo(), Stop(lambda: "told" if stop_after is not None and next(looks) >= stop_after else ""))


def model_of(spec: TrainSpec) -> Model:
    made = JournalReader(RunFiles(spec).folder).result()["model"]
    return Model.open(made["uri"], made["digest"]).verify()
