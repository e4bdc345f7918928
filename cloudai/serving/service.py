"""A model as every protocol asks it: admission, deadline, batching, kept samples and counts, whatever the wire looks like."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from cloudai.artifacts.servable import Servable
from cloudai.artifacts.signature import Signature
from cloudai.errors import RequestError, SpecError
from cloudai.serving import protocol
from cloudai.serving.asgi import HttpError, LostClientError
from cloudai.serving.codec import Codec
from cloudai.serving.deadlines import Deadlines
from cloudai.serving.engine import Engine, InferenceError
from cloudai.serving.metrics import ModelMetrics
from cloudai.serving.protocol import InferenceRequest
from cloudai.serving.samples import SampleLog
from cloudai.serving.trial import Trial, run_trial
from cloudai.specs.serving import ServerLimits

__all__ = ["ModelService"]

_REASONS = {408: "timeout", 429: "overloaded", 500: "model", 503: "draining", 504: "timeout"}
_logger = logging.getLogger(__name__)


class ModelService:
    """One version of one model at work.

    A face takes a place with `admitted`, reads the request in it, and asks `predict`. Its errors are `HttpError`, whose
    status every face says in its protocol's words.

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
        self.limits = limits
        self.codec = Codec(name, servable.version, servable.signature)
        self.metrics = ModelMetrics((name, servable.version, instance), lambda: self.in_flight, lambda: self.engine.waiting)
        self.in_flight = 0
        trial = run_trial(servable, example, most=limits.max_batch) if example is not None else Trial()
        self.engine = Engine(servable, threads=threads, trial=trial, on_batch=self._count_batch)
        self._samples = open_samples(self.metrics.dropped)
        self._deadlines = Deadlines()

    @contextmanager
    def admitted(self, deadline: float) -> Iterator[None]:
        """Take a place among the requests in flight until the answer is out, and count how it ended.

        Parameters
        ----------
        deadline : float
            When the answer must be there, in the event loop's time; what cannot be there by then is refused at once.

        Raises
        ------
        HttpError
            429, with the seconds to wait, where no place is free or the wait would be too long; 504 past the deadline.
        """
        taken = False
        try:
            self._refuse_overload(deadline)
            self.in_flight += 1
            taken = True
            with self._deadlines.at(deadline):
                yield
        except HttpError as error:
            self.metrics.failed(_REASONS.get(error.status, "invalid"))
            raise
        except LostClientError:
            self.metrics.failed("lost_client")
            raise
        except TimeoutError:
            self.metrics.failed("timeout")
            raise self._too_late() from None
        finally:
            self.in_flight -= taken

    async def predict(self, request: InferenceRequest, *, request_id: str) -> dict[str, np.ndarray]:
        """Compute the outputs of a request.

        Raises
        ------
        HttpError
            400 if the model does not take these values, 500 if it fails.
        """
        kept = self._samples.draw(request.inputs)
        try:
            outputs = await self.engine.infer(request.inputs, rows=request.rows)
        except RequestError as error:
            raise HttpError(400, error.what, fix=error.fix) from None
        except InferenceError as error:
            raise self.failure(request_id, error) from None
        if kept is not None:
            self._samples.keep(request_id, kept, outputs, rows=request.rows)
        return outputs

    def failure(self, request_id: str, error: Exception) -> HttpError:
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
        target = self.limits.target_latency
        left = deadline - asyncio.get_running_loop().time()
        if wait > left or (target is not None and wait > target):
            raise _overloaded(f"an answer would take {wait:.2g} s now", wait)

    def _too_late(self) -> HttpError:
        seconds = self.limits.timeout
        return HttpError(504, f"the model did not answer within {seconds:g} s", fix="send fewer rows, or raise the timeout")

    def _count_batch(self, requests: int, rows: int, waited: float, took: float) -> None:
        self.metrics.computed_batch(rows, waited, took)


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
