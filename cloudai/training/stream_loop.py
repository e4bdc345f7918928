"""The built-in loop over a stream: the same steps, over batches that are read while it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from cloudai.errors import SpecError
from cloudai.training.context import Context
from cloudai.training.examples import Supervised
from cloudai.training.loop import CURVE, _Fit
from cloudai.training.streaming import Stream

__all__ = ["fit_stream"]

_EVERY = 100
"""So many steps lie between two points of the loss, where nobody knows how many there will be."""


def fit_stream(module: torch.nn.Module, context: Context, stream: Stream) -> dict[str, float]:
    """Train `module` on a stream and return its final metrics; exact over interruptions as `cloudai.training.loop.fit` is.

    Parameters
    ----------
    context : Context
        Its data is a sample of the stream.

    Raises
    ------
    SpecError
        If the learning rate follows a schedule, and nobody knows how many steps there will be.
    """
    return _StreamFit(module, context, stream).run()


class _StreamFit(_Fit):
    def __init__(self, module: torch.nn.Module, context: Context, stream: Stream) -> None:
        self.stream = stream
        super().__init__(module, context)
        if self.scheduled and stream.steps_per_epoch is None:
            fix = "write the data as parquet and use one worker, or leave lr_schedule and warmup out"
            raise SpecError("the learning rate follows a schedule over a number of steps that is not known beforehand", fix=fix)

    def _divide(self) -> None:
        super()._divide()
        steps = self.stream.steps_per_epoch
        self.steps = self.loop.epochs * (steps or 0)
        self.every = _EVERY if steps is None else max(1, self.steps // CURVE)

    def _batches(self) -> Iterator[tuple[torch.Tensor, bool]]:
        """Yield the rows of each batch that is left; they are those of `examples`, all of this rank."""
        coming = self.stream.batches(self.epoch, self.batch)
        following = self._next(coming)
        while following is not None:
            self.examples, following = following, self._next(coming)
            yield torch.arange(len(self.examples)), following is None

    def _next(self, coming: Iterator[Supervised]) -> Supervised | None:
        begin = time.perf_counter()
        batch = next(coming, None)
        self.context.meter.waited(time.perf_counter() - begin)
        return batch

    def _shared(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.repeat_interleave(self.context.world_size)  # all are this rank's, and every other has as many

    def _measure(self) -> dict[str, float]:
        with self._measuring():
            return self.stream.measure(self.module)
