"""What a server speaks beside the Open Inference Protocol, by what its model is for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from cloudai.artifacts.servable import Servable
from cloudai.serving.asgi import Exchange
from cloudai.serving.service import ModelService

__all__ = ["Face", "Routes", "faces_of"]

Routes = Mapping[str, tuple[str, Callable[[Exchange], Awaitable[None]]]]
"""Path → method and what answers it."""


class Face(Protocol):
    """More paths of a server."""

    @property
    def registry(self) -> CollectorRegistry:
        """What it counts itself, beside the counts of its service."""

    def routes(self) -> Routes:
        """Return its paths."""

    async def start(self) -> None:
        """Prepare, inside of the event loop."""

    async def close(self) -> None:
        """Let go of everything, inside of the event loop."""


def faces_of(servable: Servable, service: ModelService) -> list[Face]:
    """Return the faces of a model: OpenAI's interface for those that write or embed texts, none for others."""
    model: Any = getattr(servable, "model", None)
    task = getattr(model, "task", "")
    if task == "causal-lm":
        from cloudai.serving.openai_writing import WritingFace

        return [WritingFace.of(model, service)]
    if task == "embeddings":
        from cloudai.serving.openai_embeddings import EmbeddingsFace

        return [EmbeddingsFace(model, service)]
    return []
