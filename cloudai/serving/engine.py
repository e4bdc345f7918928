"""The model at work: requests that come at the same time are computed together, and none waits for company.

The batcher is work-conserving: whenever the model is free and a request is there, a batch starts, with all that wait, up to
the size beyond which this model gains nothing. There is no timer and no fixed wait: while a batch is computed the next one
gathers by itself. Batches of less than `_INLINE` seconds are computed in the event loop, which then has no thread to wake;
longer ones in threads, so that health checks are answered and requests read meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cloudai.artifacts.servable import Servable
from cloudai.artifacts.signature import TEXT, TensorSpec
from cloudai.errors import RequestError
from cloudai.serving.batch_times import BatchTimes
from cloudai.serving.trial import Trial

__all__ = ["Engine", "InferenceError", "Outcome", "Servable", "Waiting"]

_INLINE = 0.0005
"""Seconds: a pause of the event loop that nobody notices; for a shorter batch, a thread and back costs more than it saves."""

_LESSONS = 8
"""Of so many short batches one is learnt from: they are as many as that."""

Arrays = Mapping[str, np.ndarray]
Outcome = dict[str, np.ndarray] | BaseException


class InferenceError(Exception):
    """The model failed on a good request."""


class Waiting(ABC):
    """One request in the queue, or being computed.

    Attributes
    ----------
    inputs : mapping of str to array
        Checked inputs.
    rows : int
        How many rows they have.
    since : float
        When it began to wait, in `time.perf_counter`'s seconds.
    over : bool
        Nobody waits for it any more: what has not begun is not computed.
    """

    __slots__ = ("inputs", "over", "rows", "since")

    inputs: Arrays
    rows: int
    since: float
    over: bool

    @abstractmethod
    def deliver(self, outcome: Outcome) -> None:
        """Take the outputs, or what went wrong: `RequestError` where the values cannot be taken, else `InferenceError`."""


class Engine:
    """Runs one model.

    Parameters
    ----------
    servable : Servable
        The model.
    threads : int
        How many batches are computed at the same time.
    trial : Trial, optional
        What trial runs showed; without one, or where rows influence each other, each request is computed by itself.
    on_batch : callable
        Told of each batch: rows, seconds that its oldest request waited, and seconds that it took.
    """

    def __init__(
        self,
        servable: Servable,
        *,
        threads: int,
        trial: Trial | None = None,
        on_batch: Callable[[int, float, float], None] = lambda rows, waited, took: None,
    ) -> None:
        self.servable = servable
        self._times = BatchTimes(trial.seconds) if trial is not None and trial.seconds else None
        self._batches = trial is not None and trial.independent
        self._on_batch = on_batch
        self._free = self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="infer")
        self._queues: dict[tuple[tuple[int, ...], ...], deque[Waiting]] = {}
        self._same_shapes = all(-1 not in spec.shape[1:] for spec in servable.signature.inputs)
        self._rows_waiting = 0
        self._scheduled = False
        self._unlearnt = 0
        self._promised = [
            (spec, np.dtype(object if spec.dtype == TEXT else spec.dtype), spec.shape[1:])
            for spec in servable.signature.outputs
        ]

    @property
    def waiting(self) -> int:
        """Rows that wait to be computed."""
        return self._rows_waiting

    @property
    def wait(self) -> float:
        """Seconds that a request which comes now should wait for its answer, after all that wait already."""
        if self._times is None:
            return 0.0
        before = self._rows_waiting + (self._threads - self._free) * self._times.best / 2
        return before / (self._times.rate * self._threads) + self._times.seconds(1)

    def submit(self, waiting: Waiting, inputs: Arrays, rows: int) -> None:
        """Predict `rows` rows for a request, which is delivered its outcome inside of the event loop."""
        waiting.inputs, waiting.rows, waiting.since = inputs, rows, time.perf_counter()
        key = () if self._same_shapes else tuple(array.shape[1:] for array in inputs.values())
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        queue.append(waiting)
        self._rows_waiting += rows
        if self._free and not self._scheduled:
            self._schedule()
            if self._times is not None and self._times.seconds(rows) < _INLINE:
                self._compute_inline(self._next_batch())

    def _schedule(self) -> None:
        """Look for a batch in the loop's next turn: all that the loop has read by then goes into it.

        The first request of a turn need not wait for that where it is quick: who is alone is answered at once, and in a
        crowd it is one small batch more.
        """
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._dispatch)

    def close(self) -> None:
        """Drop what waits for a thread; what is being computed cannot be stopped and is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._free and (batch := self._next_batch()):
            if self._times is not None and self._times.seconds(_rows(batch)) < _INLINE:
                self._compute_inline(batch)
                if self._queues:  # the loop reads before the next one
                    self._schedule()
                return
            self._free -= 1
            self._pool.submit(self._in_thread, batch, asyncio.get_running_loop())

    def _compute_inline(self, batch: list[Waiting]) -> None:
        begun = time.perf_counter()
        outcomes = self._compute(batch)
        self._deliver(batch, outcomes, begun, time.perf_counter() - begun)

    def _next_batch(self) -> list[Waiting]:
        """Take the oldest request and those like it, up to the size that is worth while."""
        while self._queues:
            key = (
                min(self._queues, key=lambda key: self._queues[key][0].since)
                if len(self._queues) > 1
                else next(iter(self._queues))
            )
            batch = self._take(self._queues[key])
            if not self._queues[key]:
                del self._queues[key]
            if batch:
                return batch
        return []

    def _take(self, queue: deque[Waiting]) -> list[Waiting]:
        most = self._times.best if self._batches and self._times is not None else 1
        batch: list[Waiting] = []
        rows = 0
        while queue and (not rows or rows + queue[0].rows <= most):
            waiting = queue.popleft()
            self._rows_waiting -= waiting.rows
            if not waiting.over:  # given up, by its deadline or because the client went away
                batch.append(waiting)
                rows += waiting.rows
        return batch

    def _in_thread(self, batch: list[Waiting], loop: asyncio.AbstractEventLoop) -> None:
        begun = time.perf_counter()
        outcomes = self._compute(batch)
        loop.call_soon_threadsafe(self._from_thread, batch, outcomes, begun, time.perf_counter() - begun)

    def _from_thread(self, batch: list[Waiting], outcomes: Sequence[Outcome], begun: float, took: float) -> None:
        self._free += 1
        self._deliver(batch, outcomes, begun, took)
        self._dispatch()

    def _deliver(self, batch: list[Waiting], outcomes: Sequence[Outcome], begun: float, took: float) -> None:
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if not waiting.over:
                waiting.deliver(outcome)
        rows = _rows(batch)
        self._unlearnt += 1
        failed = any(isinstance(outcome, BaseException) for outcome in outcomes)  # then each was computed again, alone
        if self._times is not None and not failed and (took > _INLINE or self._unlearnt > _LESSONS):
            self._unlearnt = 0
            self._times.learn(rows, took)
        self._on_batch(rows, begun - batch[0].since, took)

    def _compute(self, batch: Sequence[Waiting]) -> list[Outcome]:
        """Return what becomes of each request; one that the model cannot take harms no other."""
        try:
            return list(self._together(batch))
        except BaseException as error:  # noqa: BLE001  also a SystemExit of the model: it would end the event loop
            if len(batch) == 1:
                return [_outcome(error)]
            return [outcome for waiting in batch for outcome in self._compute([waiting])]

    def _together(self, batch: Sequence[Waiting]) -> list[dict[str, np.ndarray]]:
        if len(batch) == 1:
            return [self._fitting(self.servable.infer(batch[0].inputs), batch[0].rows)]
        joined = {name: np.concatenate([waiting.inputs[name] for waiting in batch]) for name in batch[0].inputs}
        outputs = self._fitting(self.servable.infer(joined), _rows(batch))
        return _parted(outputs, [waiting.rows for waiting in batch])

    def _fitting(self, outputs: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        """Keep the outputs of the signature, each checked: a row too few would give a client another's answer."""
        for spec, dtype, shape in self._promised:
            array = outputs.get(spec.name)
            if array is None:
                raise InferenceError(f"the model gave no output {spec.name!r}")
            if dtype.kind == "O" or array.dtype != dtype or array.shape[1:] != shape:
                _check_output(spec, array)
            if len(array) != rows:
                raise InferenceError(f"the model gave {len(array)} rows of {spec.name!r} for {rows} rows of input")
        return {spec.name: outputs[spec.name] for spec, _, _ in self._promised}


def _check_output(spec: TensorSpec, array: np.ndarray) -> None:
    try:
        spec.check(array)
    except RequestError:
        raise InferenceError(f"the model gave {array.dtype.name}{list(array.shape)} where it promised {spec}") from None


def _rows(batch: Sequence[Waiting]) -> int:
    return sum(waiting.rows for waiting in batch) if len(batch) > 1 else batch[0].rows


def _outcome(error: BaseException) -> BaseException:
    if isinstance(error, RequestError | InferenceError):
        return error
    failure = InferenceError(f"{type(error).__name__} in the model")
    failure.__cause__ = error
    return failure


def _parted(outputs: Mapping[str, np.ndarray], rows: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Return each request's own rows, without copying any."""
    parts: list[dict[str, np.ndarray]] = []
    begin = 0
    items = list(outputs.items())
    for count in rows:
        end = begin + count
        parts.append({name: array[begin:end] for name, array in items})
        begin = end
    return parts
