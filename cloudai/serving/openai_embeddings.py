"""OpenAI's embeddings: texts in, vectors out."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from cloudai import texts
from cloudai.artifacts.text_models import TextModel
from cloudai.serving.asgi import Exchange, HttpError, json_bytes
from cloudai.serving.faces import Routes
from cloudai.serving.openai_models import Models
from cloudai.serving.openai_places import Seat
from cloudai.serving.openai_prompts import Prompts
from cloudai.serving.openai_requests import EmbeddingsRequest
from cloudai.serving.protocol import InferenceRequest, Wanted
from cloudai.serving.service import ModelService

__all__ = ["EmbeddingsFace"]


class EmbeddingsFace:
    """The paths of a model that embeds texts; its service computes, with those of other protocols in one batch."""

    def __init__(self, model: TextModel, service: ModelService) -> None:
        self._service, self._prompts = service, Prompts(model)
        self._models = Models(service.name, service.version)
        self._longest = int(model.tokenizer.model_max_length)
        self._width = int(model.outputs[0].shape[1])
        self.registry = CollectorRegistry()

    def routes(self) -> Routes:
        """Return its paths."""
        return {**self._models.routes(), "/v1/embeddings": ("POST", self._embed)}

    async def start(self) -> None:
        """Nothing to do: the service computes."""

    async def close(self) -> None:
        """Nothing to let go of."""

    async def _embed(self, exchange: Exchange) -> None:
        begun = time.perf_counter()
        with Seat.taken(self._service) as seat:
            body = await exchange.read(self._service.limits.max_body)
            asked, tokens = await asyncio.to_thread(self._read, body)
            inputs = {"text": texts.object_array(asked.texts)}
            request = InferenceRequest(None, inputs, (Wanted("vector"),), len(asked.texts))
            seat.place.ask(request, exchange.id)
            await seat.delivered.wait()
            answer = _answer(asked, (seat.place.outputs or {})["vector"], tokens)
            exchange.notes = {**self._service.about, "rows": request.rows, "prompt_tokens": tokens}
            self._service.metrics.answered(time.perf_counter() - begun, request.rows)
            await exchange.reply(200, answer)

    def _read(self, body: bytes) -> tuple[EmbeddingsRequest, int]:
        """Check a request, and count its tokens; a text that would be cut off is refused, not embedded in part."""
        asked = EmbeddingsRequest.read(body)
        self._models.check(asked.model)
        if asked.dimensions not in (None, self._width):
            fix = f"leave dimensions out, or ask for {self._width}"
            raise HttpError(400, f"the model gives {self._width} numbers for each text", fix=fix, param="dimensions")
        counts = [self._prompts.count(text) for text in asked.texts]
        if max(counts) > self._longest:
            what = f"the text {counts.index(max(counts))} has {max(counts)} tokens; the model takes {self._longest}"
            raise HttpError(400, what, fix="cut it into parts", param="input", code="context_length_exceeded")
        return asked, sum(counts)


def _answer(asked: EmbeddingsRequest, vectors: np.ndarray, tokens: int) -> bytes:
    in_base64 = asked.encoding_format == "base64"
    data: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if in_base64 else vector.tolist()}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_bytes({"object": "list", "data": data, "model": asked.model, "usage": usage})


def _base64(vector: np.ndarray) -> str:
    """Return float32 numbers, little-endian, as OpenAI's clients read them."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
