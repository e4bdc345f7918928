"""How long a run will take, as a range with its basis; never a bare number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloudai.specs.training import TrainSpec
from cloudai.state.ledger import Record

__all__ = ["Estimate", "estimate_seconds"]

_FLOP_RANGE = (0.2e9, 2e10)
"""Floating-point operations per second and core that small to large layers reach in torch on current processors: the
range is wide on purpose. Small layers are bound by the framework's overhead of some 0.1 ms a step."""
_STEP_OVERHEAD = (5e-5, 1e-3)  # seconds of the framework for one optimiser step
_START = (1.5, 6.0)  # seconds until the first step: a process starts and imports torch


@dataclass(frozen=True)
class Estimate:
    """A range of seconds, and what it rests on; None where nothing is known."""

    low: float | None
    high: float | None
    basis: str


def estimate_seconds(spec: TrainSpec, history: Sequence[Record]) -> Estimate:
    """Estimate the duration of a run.

    The best basis is used that there is: finished runs of work of the same size; else the operations of the built-in loop
    (6 for each weight and row: 2 forward, 4 backward; Kaplan et al. 2020, arXiv:2001.08361, §2.1); else nothing.
    """
    measured = _measured(spec, history)
    if measured:
        basis = f"measured: {len(measured)} earlier run{'s' * (len(measured) > 1)} of this work"
        return Estimate(0.8 * min(measured), 1.25 * max(measured), basis)
    if spec.work.source is not None and not spec.work.rows:
        return Estimate(None, None, "unknown: the rows are counted when the worker reads them; measured after the first run")
    if spec.work.kind == "module":
        low, high = _from_operations(spec)
        return Estimate(low, high, "computed: 6 operations for each weight and row; measured after the first run")
    what = "your own function" if spec.work.kind == "function" else "this pretrained model on texts"
    return Estimate(None, None, f"unknown: the first run of {what}; its lease is the limit")


def _measured(spec: TrainSpec, history: Sequence[Record]) -> list[float]:
    """Return the seconds of earlier runs of the same size, scaled by the number of epochs."""
    seconds = []
    for record in history:
        if record.phase != "succeeded" or "seconds" not in record.status:
            continue
        earlier = TrainSpec.model_validate(record.spec)
        same = earlier.work.size == spec.work.size and earlier.config == spec.config
        if same and earlier.scaling == spec.scaling and earlier.loop.batch_size == spec.loop.batch_size:
            seconds.append(record.status["seconds"] * spec.loop.epochs / earlier.loop.epochs)
    return seconds


def _from_operations(spec: TrainSpec) -> tuple[float, float]:
    rows = spec.work.rows * spec.loop.epochs
    operations = 6.0 * spec.work.parameters * rows
    steps = rows / spec.loop.batch_size
    cores = spec.resources.cpus * spec.scaling.smallest
    low = operations / (_FLOP_RANGE[1] * cores) + steps * _STEP_OVERHEAD[0] + _START[0]
    high = operations / (_FLOP_RANGE[0] * cores) + steps * _STEP_OVERHEAD[1] + _START[1]
    return low, high
