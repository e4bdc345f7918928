"""The built-in supervised loop: exact to the bit over interruptions, at constant world size and hardware."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from cloudai.errors import DataError
from cloudai.specs.training import Loop
from cloudai.training import randomness
from cloudai.training.context import Context
from cloudai.training.devices import computing, uses_bfloat16
from cloudai.training.examples import Examples, Supervised, split
from cloudai.training.parts import dealt, grouped, longest_first, parts_of

__all__ = ["CURVE", "batches_of", "fit", "rate_at"]

log = logging.getLogger(__name__)

CURVE = 200
"""A run reports about this many points of its loss."""


def batches_of(rows: int, batch_size: int, world_size: int) -> int:
    """Return the optimiser steps of an epoch.

    A rest of less than two rows for each worker joins the batch before: normalisation over a batch cannot work on one row.
    """
    whole, rest = divmod(rows, batch_size)
    return max(1, whole + (rest >= 2 * world_size))


def rate_at(step: int, steps: int, loop: Loop) -> float:
    """Return the learning rate of a step, from 0, of so many; it follows from the step alone, so no checkpoint needs it.

    Examples
    --------
    >>> loop = Loop.of(lr=1.0, lr_schedule="linear", warmup=0.2)
    >>> [round(rate_at(step, 10, loop), 3) for step in range(10)]
    [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    """
    rising = math.ceil(steps * loop.warmup)
    if step < rising:
        return loop.lr * (step + 1) / rising
    if loop.lr_schedule == "constant":
        return loop.lr
    done = (step - rising) / max(1, steps - rising)
    return loop.lr * (1 - done if loop.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def fit(module: torch.nn.Module, context: Context, examples: Examples | None = None) -> dict[str, float]:
    """Train `module` and return its final metrics.

    Parameters
    ----------
    examples : Examples, optional
        By default the arrays of ``context.data``, with the loss that the spec names.

    Notes
    -----
    Every source of chance is either drawn from the seed (the split, the order of each epoch) or part of the checkpoint
    (random states, the optimiser, buffers of each rank), so an interrupted run ends with the same weights.
    """
    return _Fit(module, context, examples).run()


class _Fit:
    def __init__(self, module: torch.nn.Module, context: Context, examples: Examples | None = None) -> None:
        self.context, self.loop, self.device = context, context.spec.loop, context.device
        self.module = module.to(self.device)
        self.examples = _arrays(context) if examples is None else examples
        self.lengths = self.examples.lengths
        self.wrapped = context.wrap(module)
        self.buffers = list(module.buffers())
        self.optimizer = _optimizer(module, self.loop)
        self.scheduled = self.loop.lr_schedule != "constant" or self.loop.warmup > 0
        self.most = self.loop.micro_batch
        self.epoch, self.batch, self.before, self.seen = 0, 0, 0, 0.0
        self.first = 1
        self.total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.final: dict[str, float] = {}
        self._divide()

    def _divide(self) -> None:
        """See which rows train, and in how many steps."""
        self.rows = split(len(self.examples), self.loop.validation, self.context.seed)
        self.batches = batches_of(len(self.rows.train), self.loop.batch_size, self.context.spec.scaling.largest)
        self.steps = self.loop.epochs * self.batches
        self.every = max(1, self.steps // CURVE)

    @property
    def step(self) -> int:
        """Optimiser steps done: those of the epochs before, and of this one."""
        return self.before + self.batch

    def run(self) -> dict[str, float]:
        self._restore()
        self.first = self.step + 1
        self._tell_what_works()
        while self.epoch < self.loop.epochs:
            self._epoch()
        return self.final

    def _tell_what_works(self) -> None:
        inputs = self.examples.inputs(self.rows.train[:1]) if isinstance(self.examples, Supervised) else ()
        dtype = "bfloat16" if uses_bfloat16(self.loop.precision, self.device) else "float32"
        self.context.works(self.module, inputs, dtype)

    def _epoch(self) -> None:
        self.wrapped.train()
        self.context.meter.begin()
        for rows, is_last in self._batches():
            loss = self._step(rows)
            self.batch += 1
            if self.step == self.first:
                self.context.on_first_step()
            if self.step % self.every == 0 or self.step == 1:
                self.context.report({"loss": float(loss)}, step=self.step)
            if not is_last and self.context.due():
                self._save()
                self.context.stop_if_told()
        self._end_of_epoch()

    def _batches(self) -> Iterator[tuple[torch.Tensor, bool]]:
        """Yield the rows of each step that is left of this epoch, and whether it is the last."""
        order = self._order()
        while self.batch < self.batches:
            yield self._rows_of_step(order), self.batch == self.batches - 1

    def _order(self) -> torch.Tensor:
        """Return this epoch's order of rows; drawn from the seed, so it needs no place in the checkpoint."""
        generator = torch.Generator().manual_seed(self.context.seed * 1_000_003 + self.epoch)
        order = self.rows.train[torch.randperm(len(self.rows.train), generator=generator)]
        if self.loop.group_by_length and self.lengths is not None:
            return grouped(order, self.lengths, self.loop.batch_size, generator)
        return order

    def _rows_of_step(self, order: torch.Tensor) -> torch.Tensor:
        begin = self.batch * self.loop.batch_size
        is_last = self.batch == self.batches - 1
        return order[begin:] if is_last else order[begin : begin + self.loop.batch_size]

    def _step(self, rows: torch.Tensor) -> torch.Tensor:
        """Take one step over rows of all ranks, and return the mean loss of this rank's."""
        rows = longest_first(self._shared(rows), self.lengths)
        mine = dealt(rows, self.context.rank, self.context.world_size)
        weight = self.examples.weight(mine)
        loss = self._gradients(mine, self.examples.weight(rows))
        if self.loop.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.loop.max_grad_norm)
        if self.scheduled:
            for group in self.optimizer.param_groups:
                group["lr"] = rate_at(self.step, self.steps, self.loop)
        self.optimizer.step()
        self.total += loss
        self.seen += weight
        self.context.meter.ended(len(mine), 0 if self.lengths is None else int(self.lengths[mine].sum()))
        return loss / weight

    def _shared(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of a batch that all ranks get equally many of; one row is all that is left, each gets it."""
        world = self.context.world_size
        return rows[: len(rows) - len(rows) % world] if len(rows) >= world else rows[:1].repeat(world)

    def _gradients(self, rows: torch.Tensor, weight: float) -> torch.Tensor:
        """Put the gradient of this rank's rows into the weights, and return their summed loss.

        Where memory runs out, it is done again in smaller parts.
        """
        while True:
            states, buffers = randomness.of_torch(self.device), [buffer.clone() for buffer in self.buffers]
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return self._in_parts(rows, weight)
            except torch.OutOfMemoryError as error:
                self._take_less(len(rows), error)
            randomness.restore_torch(states, self.device)
            for buffer, before in zip(self.buffers, buffers, strict=True):  # running means have seen what did fit
                buffer.copy_(before)

    def _in_parts(self, rows: torch.Tensor, weight: float) -> torch.Tensor:
        # the ranks of a model in parts go through it together, so they need equally many parts of a step
        lengths = None if self.context.spec.scaling.strategy == "fsdp" else self.lengths
        parts = parts_of(rows, lengths, self.most, self.device.type)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in parts:
            # gradients are averaged over the ranks, with the last part
            with self.context.accumulating(self.wrapped, last=part is parts[-1]):
                with computing(self.loop.precision, self.device):
                    loss = self.examples.loss(self.wrapped, part)
                (loss * (self.context.world_size / weight)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _take_less(self, rows: int, error: torch.OutOfMemoryError) -> None:
        now = min(self.most or rows, rows)
        if now == 1 or self.context.world_size > 1:  # other ranks would wait for ever for gradients of the parts that are left
            fix = f"pass micro_batch={now // 2}" if now > 1 else "take a smaller model, shorter rows or a larger device"
            raise DataError(f"{now} rows at once do not fit into memory: {error}", fix=fix) from error
        self.most = now // 2
        torch.cuda.empty_cache()
        log.warning("%d rows at once do not fit into memory; going on with %d", now, self.most)

    def _end_of_epoch(self) -> None:
        metrics = {"epoch_loss": float(self.total) / max(1.0, self.seen), **self._measure()}
        step = self.before = self.step
        self.epoch, self.batch, self.seen = self.epoch + 1, 0, 0.0
        self.total.zero_()
        self.final = metrics
        self.context.report({"epoch": self.epoch, **metrics}, step=step)
        if self.context.due() or self.epoch == self.loop.epochs:
            self._save()
            self.context.stop_if_told()

    def _measure(self) -> dict[str, float]:
        """Measure on the rows held back."""
        if not len(self.rows.validation):
            return {}
        with self._measuring():
            return dict(self.examples.measure(self.module, self.rows.validation))

    @contextlib.contextmanager
    def _measuring(self) -> Iterator[None]:
        """Let the module answer and not learn; each pass through it shows that the worker is alive."""
        self.module.eval()
        hook = self.module.register_forward_pre_hook(lambda module, inputs: self.context.alive())
        try:
            with torch.no_grad(), computing(self.loop.precision, self.device):
                yield
        finally:
            hook.remove()

    def _save(self) -> None:
        total = float(self.total)
        progress = {"epoch": self.epoch, "batch": self.batch, "total": total, "seen": self.seen, "final": self.final}
        progress["before"] = self.before
        progress["most"] = self.most  # in other parts, another dropout would be drawn
        own = {"buffers": dict(self.module.named_buffers()), "total": total, "seen": self.seen}
        model, optimizer = self.context.group.state(self.module, self.optimizer)
        state = {"model": model, "optimizer": optimizer, "progress": progress}
        self.context.save(self.step, state, own)

    def _restore(self) -> None:
        saved = self.context.restore()
        if not saved:
            return
        self.context.group.load(self.module, self.optimizer, saved["model"], saved["optimizer"])
        progress = saved["progress"]
        self.epoch, self.batch, self.before = (progress[name] for name in ("epoch", "batch", "before"))
        self.final, self.most = progress["final"], progress["most"]
        own: Any = self.context.own or progress
        self.seen = own["seen"]
        self.total.fill_(own["total"])
        with torch.no_grad():  # ranks may differ in their buffers, such as running means
            for name, buffer in self.module.named_buffers():
                if name in own.get("buffers", {}):
                    buffer.copy_(own["buffers"][name])


def _arrays(context: Context) -> Supervised:
    assert context.data is not None
    return Supervised(context.data["inputs"], context.data["targets"], context.spec.loop.loss, context.device)


def _optimizer(module: torch.nn.Module, loop: Loop) -> torch.optim.Optimizer:
    kinds: Mapping[str, Any] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # all weights in one pass over memory, where they are plain
    fused = all(weight.is_floating_point() and not hasattr(weight, "to_local") for weight in weights)
    return kinds[loop.optimizer](weights, lr=loop.lr, weight_decay=loop.weight_decay, fused=fused)  # type: ignore[no-any-return]
