"""What a server speaks beside the Open Inference Protocol, by what its model is for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from prometheus_client import CollectorRegistry

from cloudai.artifacts.servable import Servable
from cloudai.serving.asgi import Exchange
from cloudai.specs.serving import ServerLimits

__all__ = ["Face", "Host", "Routes", "faces_of"]

Routes = Mapping[str, tuple[str, Callable[[Exchange], Awaitable[None]]]]
"""Path → method and what answers it."""


@dataclass(frozen=True)
class Host:
    """What a server lends to its faces.

    Attributes
    ----------
    name, version : str
        The model's, in URLs and metrics.
    admit : callable
        Takes a place among the requests in flight, as a context, or refuses.
    infer : callable
        Has the model predict rows.
    registry, labels
        Where metrics are counted, and the labels that all of them have.
    """

    name: str
    version: str
    limits: ServerLimits
    admit: Callable[[], AbstractContextManager[None]]
    infer: Callable[[Mapping[str, np.ndarray], int], Awaitable[dict[str, np.ndarray]]]
    registry: CollectorRegistry
    labels: Mapping[str, str]


class Face(Protocol):
    """More paths of a server."""

    def routes(self) -> Routes:
        """Return its paths."""

    async def start(self) -> None:
        """Prepare, inside of the event loop."""

    async def close(self) -> None:
        """Let go of everything."""


def faces_of(servable: Servable, host: Host) -> list[Face]:
    """Return the faces of a model: OpenAI's interface for those that write or embed texts, none for others."""
    task = getattr(getattr(servable, "model", None), "task", "")
    if task == "causal-lm":
        from cloudai.serving.openai_writing import WritingFace

        return [WritingFace.of(servable, host)]
    if task == "embeddings":
        from cloudai.serving.openai_embeddings import EmbeddingsFace

        return [EmbeddingsFace.of(servable, host)]
    return []
