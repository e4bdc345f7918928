"""The model at work: in threads of its own, so that health checks are answered while it computes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cloudai.artifacts.servable import Servable
from cloudai.artifacts.signature import Signature
from cloudai.errors import RequestError

__all__ = ["Engine", "InferenceError", "Servable"]


class InferenceError(Exception):
    """The model failed on a good request."""


class Engine:
    """Runs a model in a pool of threads.

    Batching has its place here, behind `infer`: whoever calls it gets the answer to his own rows.
    """

    def __init__(self, servable: Servable, *, threads: int) -> None:
        self.servable = servable
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="infer")

    async def infer(self, inputs: Mapping[str, np.ndarray], *, rows: int) -> dict[str, np.ndarray]:
        """Predict `rows` rows. If cancelled while waiting for a thread, nothing is computed.

        Raises
        ------
        RequestError
            If the model cannot take these values.
        InferenceError
            If the model fails, or its answer does not fit its signature.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._compute, inputs, rows)

    def close(self) -> None:
        """Drop what waits for a thread; what is being computed cannot be stopped and is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _compute(self, inputs: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        try:
            outputs = self.servable.infer(inputs)
        except RequestError:
            raise
        except BaseException as error:  # also a SystemExit of the model: it would end the event loop
            raise InferenceError(f"{type(error).__name__} in the model") from error
        return _fitting(outputs, self.servable.signature, rows)


def _fitting(outputs: Mapping[str, np.ndarray], signature: Signature, rows: int) -> dict[str, np.ndarray]:
    """Keep the outputs of the signature, each checked: a row too few would give a client another's answer."""
    for spec in signature.outputs:
        if spec.name not in outputs:
            raise InferenceError(f"the model gave no output {spec.name!r}")
        array = outputs[spec.name]
        try:
            spec.check(array)
        except RequestError:
            raise InferenceError(f"the model gave {array.dtype.name}{list(array.shape)} where it promised {spec}") from None
        if len(array) != rows:
            raise InferenceError(f"the model gave {len(array)} rows of {spec.name!r} for {rows} rows of input")
    return {spec.name: outputs[spec.name] for spec in signature.outputs}
