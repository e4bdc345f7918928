"""Mirrored requests: what a client asked is asked of another revision too, off the request's path, and both answers compared.

The client never waits for that and never sees it. While there is too much to do, requests are not mirrored, and counted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cloudai.serving.asgi import Exchange
from cloudai.serving.router_metrics import RouterMetrics

if TYPE_CHECKING:
    import numpy as np

__all__ = ["HEADER", "Answered", "Mirror", "difference"]

HEADER = b"x-cloudai-shadow"
"""Says to a server that nobody waits for the answer, and that its rows are not to be kept: the other revision keeps them."""
_MOST_AT_ONCE = 16
_MOST_BYTES = 4 * 2**20
"""Longer answers are not compared."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """An answer: its status, its body, and how many bytes of that are JSON where tensors follow as bytes."""

    status: int
    body: bytes
    json_bytes: int | None = None


Ask = Callable[[], Awaitable[Answered | None]]
"""Gives no answer where the process that should answer is not there, or ends meanwhile: that is for others to count."""


class Mirror:
    """Asks again, and compares.

    Parameters
    ----------
    metrics : RouterMetrics
        Counts how much the answers differ.
    """

    def __init__(self, metrics: RouterMetrics) -> None:
        self._metrics = metrics
        self._random = random.Random()  # noqa: S311  a share of requests, no secret
        self._tasks: set[asyncio.Task[None]] = set()

    def drawn(self, exchange: Exchange, revision: str, shares: Mapping[str, float]) -> str:
        """Return the revision that shall be asked too, or nothing: only predictions are, and of no version by its name."""
        path = exchange.path
        if not shares or exchange.method != "POST" or not path.endswith("/infer") or "/versions/" in path:
            return ""
        for other, share in shares.items():
            if other != revision and self._random.random() < share / 100:
                return other
        return ""

    def send(self, revision: str, answered: Answered, ask: Ask) -> None:
        """Ask `revision` what another has answered, some time soon."""
        if len(self._tasks) >= _MOST_AT_ONCE or len(answered.body) > _MOST_BYTES:
            self._metrics.not_mirrored(revision)
            return
        task = asyncio.create_task(self._compare(revision, answered, ask))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare(self, revision: str, answered: Answered, ask: Ask) -> None:
        try:
            other = await ask()
            if other is None:
                self._metrics.not_mirrored(revision)
                return
            found = await asyncio.to_thread(difference, answered, other)
        except Exception as error:  # noqa: BLE001  whatever it is, the client has its answer
            _logger.warning("a mirrored request failed at the revision %s: %r", revision, error)
            found = math.inf
        self._metrics.compared(revision, found)

    async def stop(self) -> None:
        """Let go of what is still being asked."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def difference(one: Answered, other: Answered) -> float:
    """Return how much two answers differ: the largest difference of two numbers, as a share of the row's largest.

    Texts, numbers of classes and everything else that is no fraction differ by 0 or entirely; so do answers of which one
    failed, or has other outputs.

    Examples
    --------
    >>> def answered(*scores):
    ...     data = ", ".join(map(str, scores))
    ...     head = '{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": ['
    ...     return Answered(200, (head + data + "]}]}").encode())
    >>> difference(answered(0.5, 1.0), answered(0.5, 1.0)), difference(answered(0.5, 1.0), answered(0.25, 1.0))
    (0.0, 0.25)
    """
    from cloudai.errors import CloudAIError
    from cloudai.serving.protocol import decode_response

    if other.status != 200:
        return math.inf
    if one.body == other.body:
        return 0.0
    try:
        outputs, others = (decode_response(each.body, each.json_bytes) for each in (one, other))
    except CloudAIError:
        return math.inf
    if {name: array.shape for name, array in outputs.items()} != {name: array.shape for name, array in others.items()}:
        return math.inf
    return max((_largest_gap(outputs[name], others[name]) for name in outputs), default=0.0)


def _largest_gap(one: np.ndarray, other: np.ndarray) -> float:
    import numpy as np

    if one.dtype.kind != "f" or other.dtype.kind != "f":
        return 0.0 if np.array_equal(one, other) else math.inf
    if not one.size:
        return 0.0
    rows, others = (array.reshape(len(array), -1).astype(np.float64) for array in (one, other))
    if not np.array_equal(np.isfinite(rows), np.isfinite(others)):
        return math.inf
    rows, others = np.nan_to_num(rows), np.nan_to_num(others)
    largest = np.maximum(np.abs(rows).max(axis=1), np.abs(others).max(axis=1))
    gaps = np.abs(rows - others).max(axis=1)
    return float(np.divide(gaps, largest, out=np.zeros_like(gaps), where=largest > 0).max())
