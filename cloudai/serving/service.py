"""A model as every protocol asks it: admission, deadline, batching, kept samples and counts, whatever the wire looks like."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cloudai.artifacts.servable import Servable
from cloudai.artifacts.signature import Signature
from cloudai.errors import RequestError, SpecError
from cloudai.serving import protocol
from cloudai.serving.asgi import AGAIN, HttpError
from cloudai.serving.codec import Codec
from cloudai.serving.deadlines import Deadlines
from cloudai.serving.engine import Engine, Outcome, Waiting
from cloudai.serving.metrics import ModelMetrics
from cloudai.serving.protocol import InferenceRequest
from cloudai.serving.samples import SampleLog
from cloudai.serving.trial import Trial, run_trial
from cloudai.specs.serving import ServerLimits

if TYPE_CHECKING:
    from cloudai.serving.grpc_codec import GrpcCodec

__all__ = ["ModelService", "Place"]

_REASONS = {408: "timeout", 429: "overloaded", 500: "model", 503: "draining", 504: "timeout"}
_logger = logging.getLogger(__name__)


class ModelService:
    """One version of one model at work.

    A face takes a place with `admit`, before it reads the request, and asks in it. Errors are `HttpError`, whose status every
    face says in its protocol's words.

    Parameters
    ----------
    servable : Servable
        The model.
    example : mapping of str to array, optional
        A few rows that it takes, for trial runs; without them its requests are not batched.
    name : str
        Its name in URLs and metrics.
    limits : ServerLimits
        What is taken on; more is refused at once.
    threads : int
        How many batches are computed at the same time.
    instance : str
        The metrics' label ``instance``.
    open_samples : callable
        Makes the log of sampled rows from the function that counts dropped ones.

    Raises
    ------
    SpecError
        If the signature cannot be served: a dtype that the protocol does not know, or an array without a batch axis.
    """

    def __init__(
        self,
        servable: Servable,
        *,
        example: Mapping[str, np.ndarray] | None,
        name: str,
        limits: ServerLimits,
        threads: int,
        instance: str,
        open_samples: Callable[[Callable[[int], None]], SampleLog],
    ) -> None:
        _check_signature(servable.name, servable.signature)
        self.name, self.version, self.signature = name, servable.version, servable.signature
        self.example = example
        self.limits = limits
        self.about = {"model.name": name, "model.version": servable.version}
        """What traces say of its requests."""
        self.codec = Codec(name, servable.version, servable.signature)
        self.metrics = ModelMetrics(
            (name, servable.version, instance),
            in_flight=lambda: self.in_flight,
            waiting=lambda: self.engine.waiting,
            sampled=lambda: self._samples.share,
        )
        self.in_flight = 0
        trial = run_trial(servable, example, most=limits.max_batch) if example is not None else Trial()
        self.engine = Engine(servable, threads=threads, trial=trial, on_batch=self.metrics.computed_batch)
        self._samples = open_samples(self.metrics.dropped)
        self._deadlines: Deadlines[Place] = Deadlines()

    @cached_property
    def grpc_codec(self) -> GrpcCodec:
        """The codec of gRPC's messages; who is not asked in them does not load protobuf."""
        from cloudai.serving.grpc_codec import GrpcCodec

        return GrpcCodec(self.name, self.version, self.signature)

    def admit(self, deadline: float, done: Callable[[Place], None]) -> Place:
        """Give a request a place, before it has been read.

        Parameters
        ----------
        deadline : float
            When the answer must be there, in the event loop's time; what cannot be there by then is refused at once.
        done : callable
            Told, once, when the place has its outputs or its error.

        Raises
        ------
        HttpError
            429, with the seconds to wait, where no place is free or the wait would be too long.
        """
        try:
            self._refuse_overload(deadline)
        except HttpError as error:
            self.refused(error)
            raise
        place = Place(self, deadline, done)
        self.in_flight += 1
        self._deadlines.add(place)
        return place

    def refused(self, error: HttpError) -> None:
        """Count a request that was refused."""
        self.metrics.failed(_REASONS.get(error.status, "invalid"))

    def close_place(self, place: Place) -> None:
        """Take a place back."""
        self.in_flight -= 1
        self._deadlines.discard(place)

    def draw(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray] | None:
        """Decide whether a request is kept for the monitor: a copy of its inputs, or None."""
        return self._samples.draw(inputs)

    def keep(self, request_id: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], rows: int) -> None:
        """Keep a drawn request."""
        self._samples.keep(request_id, inputs, outputs, rows=rows)

    def abandon(self) -> None:
        """Refuse what is still being worked on: the time to end is over."""
        for place in self._deadlines.all():
            place.refuse(HttpError(503, "the server has ended", fix="send the request again", headers=AGAIN))

    def failure(self, request_id: str, error: BaseException) -> HttpError:
        """Log that the model failed, and return what the client is told, which is no word of the model's."""
        _logger.error("request %s: the model failed", request_id, exc_info=error.__cause__ or error)
        return HttpError(500, "the model failed", fix=f"look into the server's log for {request_id}")

    async def flush_samples(self) -> None:
        """Write all kept samples to disk.

        Raises
        ------
        HttpError
            500 if they cannot be written.
        """
        try:
            await asyncio.to_thread(self._samples.flush)
        except OSError as error:
            raise HttpError(500, f"the samples cannot be written: {error.strerror}", fix="make room on the disk") from None

    async def stop(self) -> None:
        """Let go of the model, and write the last samples."""
        self.engine.close()
        await asyncio.to_thread(self._samples.close)

    def _refuse_overload(self, deadline: float) -> None:
        wait = self.engine.wait
        if self.in_flight >= self.limits.max_in_flight:
            raise _overloaded(f"{self.in_flight} requests are in flight already", wait)
        if not self.in_flight:  # who is alone is computed, whatever is expected: else nothing would be learnt any more
            return
        target = self.limits.target_latency
        left = deadline - asyncio.get_running_loop().time()
        if wait > left or (target is not None and wait > target):
            raise _overloaded(f"an answer would take {wait:.2g} s now", wait)


class Place(Waiting):
    """A request's place in the service, from its head to its answer.

    Attributes
    ----------
    outputs : dict of str to array, or None
        The answer.
    error : HttpError or None
        Why there is none.
    """

    __slots__ = ("_done", "_kept", "_seconds", "_service", "error", "outputs", "request_id", "when")

    def __init__(self, service: ModelService, when: float, done: Callable[[Place], None]) -> None:
        self.when = when
        self._seconds = when - asyncio.get_running_loop().time()
        self.over = False
        self.outputs: dict[str, np.ndarray] | None = None
        self.error: HttpError | None = None
        self.request_id = ""
        self._service, self._done = service, done

    def ask(self, request: InferenceRequest, request_id: str, *, keep: bool = True) -> None:
        """Have a request computed, unless its time is over already; with `keep` its rows may be kept for the monitor."""
        if self.over:
            return
        self.request_id = request_id
        self._kept = self._service.draw(request.inputs) if keep else None
        self._service.engine.submit(self, request.inputs, request.rows)

    def deliver(self, outcome: Outcome) -> None:
        """Take the outputs, or what went wrong."""
        if isinstance(outcome, dict):
            self.outputs = outcome
            if self._kept is not None:
                self._service.keep(self.request_id, self._kept, outcome, self.rows)
        elif isinstance(outcome, RequestError):
            self.error = HttpError(400, outcome.what, fix=outcome.fix)
        else:
            self.error = self._service.failure(self.request_id, outcome)
        self._end()

    def expire(self) -> None:
        """End: its time is over."""
        if self.request_id:
            what = f"the model did not answer within {self._seconds:.3g} s"
            self.error = HttpError(504, what, fix="send fewer rows, or raise the timeout")
        else:
            self.error = HttpError(408, "the body did not arrive in time", fix="send it at once")
        self._end()

    def refuse(self, error: HttpError) -> None:
        """End without having been computed: the request is not one that the model takes."""
        if not self.over:
            self.error = error
            self._end()

    def leave(self) -> None:
        """Give the place up: the client went away. Nothing happens where it is over."""
        if not self.over:
            self.over = True
            self._service.close_place(self)
            self._service.metrics.failed("lost_client")

    def finish(self) -> None:
        """Give the place back: something else than the model's outputs was the answer. Nothing happens where it is over."""
        if not self.over:
            self.over = True
            self._service.close_place(self)

    def _end(self) -> None:
        self.over = True
        self._service.close_place(self)
        if self.error is not None:
            self._service.refused(self.error)
        self._done(self)


def _overloaded(what: str, wait: float) -> HttpError:
    seconds = max(1, math.ceil(wait))
    return HttpError(429, what, fix="send the request again a little later", headers=[(b"retry-after", str(seconds).encode())])


def _check_signature(name: str, signature: Signature) -> None:
    if not signature.inputs or not signature.outputs:
        raise SpecError(f"the model {name} has no inputs or no outputs", fix="give it a signature with both")
    for spec in (*signature.inputs, *signature.outputs):
        protocol.datatype(spec.dtype)
        if spec.shape[:1] != (-1,):
            raise SpecError(f"the model {name} has {spec} without a batch axis", fix="let its first length be -1")
