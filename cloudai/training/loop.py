"""The built-in supervised loop: exact to the bit over interruptions, at constant world size and hardware."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from cloudai.errors import DataError
from cloudai.specs.training import Loop
from cloudai.training.context import Context

__all__ = ["batches_of", "fit", "split"]

_CURVE = 200
"""A run reports about this many points of its loss."""

LOSSES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cross_entropy": torch.nn.functional.cross_entropy,
    "mse": torch.nn.functional.mse_loss,
    "l1": torch.nn.functional.l1_loss,
    "bce_with_logits": torch.nn.functional.binary_cross_entropy_with_logits,
}


@dataclass(frozen=True)
class Split:
    """Which rows train and which measure."""

    train: torch.Tensor
    validation: torch.Tensor


def split(rows: int, share: float, seed: int) -> Split:
    """Draw the rows held back, the same for every rank and attempt."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    held = int(rows * share)
    return Split(order[held:].sort().values, order[:held].sort().values)


def batches_of(rows: int, batch_size: int, world_size: int) -> int:
    """Return the optimiser steps of an epoch.

    A rest of less than two rows for each worker joins the batch before: normalisation over a batch cannot work on one row.
    """
    whole, rest = divmod(rows, batch_size)
    return max(1, whole + (rest >= 2 * world_size))


class Rows(Protocol):
    """Inputs as the loop takes them."""

    at_once: int
    """How many rows are measured together."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the module takes for these rows, which depends on nothing else."""
        ...


class _Arrays:
    """An array of inputs, row by row."""

    at_once = 1024

    def __init__(self, inputs: np.ndarray) -> None:
        self._tensor = torch.from_numpy(np.ascontiguousarray(inputs))

    def __len__(self) -> int:
        return len(self._tensor)

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self._tensor[rows],)


def fit(
    module: torch.nn.Module, context: Context, inputs: Rows | None = None, targets: np.ndarray | None = None
) -> dict[str, float]:
    """Train `module` and return its final metrics.

    Parameters
    ----------
    inputs : Rows, optional
        By default those of ``context.data``.
    targets : ndarray, optional
        By default those of ``context.data``.

    Notes
    -----
    Every source of chance is either drawn from the seed (the split, the order of each epoch) or part of the checkpoint
    (random states, the optimiser, buffers of each rank), so an interrupted run ends with the same weights.
    """
    return _Fit(module, context, inputs, targets).run()


class _Fit:
    def __init__(
        self, module: torch.nn.Module, context: Context, inputs: Rows | None = None, targets: np.ndarray | None = None
    ) -> None:
        assert context.data is not None
        self.context, self.module, self.loop = context, module, context.spec.loop
        self.inputs = _Arrays(context.data["inputs"]) if inputs is None else inputs
        self.targets = _targets(context.data["targets"] if targets is None else targets, self.loop)
        self.rows = split(len(self.inputs), self.loop.validation, context.seed)
        self.wrapped = context.wrap(module)
        self.optimizer = _optimizer(module, self.loop)
        self.loss = LOSSES[self.loop.loss]
        self.batches = batches_of(len(self.rows.train), self.loop.batch_size, context.spec.scaling.largest)
        self.epoch, self.batch, self.total, self.seen = 0, 0, 0.0, 0
        self.final: dict[str, float] = {}

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.epoch * self.batches + self.batch

    def run(self) -> dict[str, float]:
        self._restore()
        while self.epoch < self.loop.epochs:
            self._epoch()
        return self.final

    def _epoch(self) -> None:
        order = self._order()
        every = max(1, self.loop.epochs * self.batches // _CURVE)
        self.wrapped.train()
        while self.batch < self.batches:
            loss = self._step(order)
            self.batch += 1
            if self.step % every == 0 or self.step == 1:
                self.context.report({"loss": loss}, step=self.step)
            if self.batch < self.batches and self.context.due():
                self._save()
                self.context.stop_if_told()
        self._end_of_epoch()

    def _order(self) -> torch.Tensor:
        """Return this epoch's order of rows; drawn from the seed, so it needs no place in the checkpoint."""
        generator = torch.Generator().manual_seed(self.context.seed * 1_000_003 + self.epoch)
        return self.rows.train[torch.randperm(len(self.rows.train), generator=generator)]

    def _step(self, order: torch.Tensor) -> float:
        begin = self.batch * self.loop.batch_size
        is_last = self.batch == self.batches - 1
        rows = self._share(order[begin:] if is_last else order[begin : begin + self.loop.batch_size])
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(_squeezed(self.wrapped(*self.inputs.batch(rows)), self.loop), self.targets[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        value = float(loss.detach())
        self.total += value * len(rows)
        self.seen += len(rows)
        return value

    def _share(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this rank's rows of a batch; a last batch is cut so that all ranks have equally many."""
        world = self.context.world_size
        usable = len(rows) - len(rows) % world if len(rows) >= world else 0
        return rows[:usable][self.context.rank :: world] if usable else rows[:1]

    def _end_of_epoch(self) -> None:
        metrics = {"epoch_loss": self.total / max(1, self.seen), **self._measure()}
        step = self.step
        self.epoch, self.batch, self.total, self.seen = self.epoch + 1, 0, 0.0, 0
        self.final = metrics
        self.context.report({"epoch": self.epoch, **metrics}, step=step)
        if self.context.due() or self.epoch == self.loop.epochs:
            self._save()
            self.context.stop_if_told()

    def _measure(self) -> dict[str, float]:
        """Measure on the rows held back."""
        rows = self.rows.validation
        if not len(rows):
            return {}
        self.module.eval()
        with torch.no_grad():
            parts = torch.split(rows, self.inputs.at_once)
            outputs = torch.cat([_squeezed(self.module(*self.inputs.batch(part)), self.loop) for part in parts])
        targets = self.targets[rows]
        measured = {"val_loss": float(self.loss(outputs, targets))}
        if self.loop.loss == "cross_entropy":
            measured["val_accuracy"] = float((outputs.argmax(dim=1) == targets).float().mean())
        return measured

    def _save(self) -> None:
        progress = {"epoch": self.epoch, "batch": self.batch, "total": self.total, "seen": self.seen, "final": self.final}
        own = {"buffers": dict(self.module.named_buffers()), "total": self.total, "seen": self.seen}
        state = {"model": self.module, "optimizer": self.optimizer, "progress": progress}
        self.context.save(self.step, state, own)

    def _restore(self) -> None:
        saved = self.context.restore(model=self.module, optimizer=self.optimizer)
        if not saved:
            return
        progress = saved["progress"]
        self.epoch, self.batch, self.final = progress["epoch"], progress["batch"], progress["final"]
        own: Any = self.context.own or progress
        self.total, self.seen = own["total"], own["seen"]
        with torch.no_grad():  # ranks may differ in their buffers, such as running means
            for name, buffer in self.module.named_buffers():
                if name in own.get("buffers", {}):
                    buffer.copy_(own["buffers"][name])


def _targets(array: np.ndarray, loop: Loop) -> torch.Tensor:
    targets = torch.from_numpy(np.ascontiguousarray(array))
    if loop.loss != "cross_entropy":
        return targets.to(torch.float32)
    if targets.is_floating_point():
        raise DataError("cross_entropy needs classes, the targets are floating point", fix="give integers, or loss='mse'")
    return targets.to(torch.int64)


def _squeezed(outputs: torch.Tensor, loop: Loop) -> torch.Tensor:
    """Return outputs of shape [n, 1] as [n] where the loss compares value by value."""
    return outputs.squeeze(1) if loop.loss != "cross_entropy" and outputs.ndim == 2 and outputs.shape[1] == 1 else outputs


def _optimizer(module: torch.nn.Module, loop: Loop) -> torch.optim.Optimizer:
    kinds: Mapping[str, Any] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimizer: torch.optim.Optimizer = kinds[loop.optimizer](module.parameters(), lr=loop.lr, weight_decay=loop.weight_decay)
    return optimizer
