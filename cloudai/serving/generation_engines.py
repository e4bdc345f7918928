"""Which engine writes a model's texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cloudai.artifacts.text_models import TextModel
from cloudai.serving.generation import GenerationEngine
from cloudai.serving.generation_batching import BatchingEngine
from cloudai.serving.generation_metrics import GenerationMetrics
from cloudai.serving.generation_rows import decoder_for
from cloudai.serving.generation_vllm import VllmEngine, vllm_is_there
from cloudai.specs.serving import ServerLimits

__all__ = ["engine_for"]


def engine_for(
    model: TextModel, decode: Callable[[Sequence[int]], str], metrics: GenerationMetrics, limits: ServerLimits
) -> GenerationEngine:
    """Return the engine for a model: vLLM where it is installed and sees a GPU, our own elsewhere."""
    if vllm_is_there():
        return VllmEngine(model, decode=decode, ends=_ends(model), watcher=metrics, most=limits.max_in_flight)
    return BatchingEngine(
        decoder_for(model.model, capacity=model.capacity),
        decode=decode,
        ends=_ends(model),
        context=model.capacity,
        watcher=metrics,
        most_waiting=limits.max_in_flight,
        patience=limits.timeout,
    )


def _ends(model: TextModel) -> frozenset[int]:
    """Return the tokens that end a text, as tokenizer, config and generation config say."""
    given = (model.tokenizer, model.model.config, getattr(model.model, "generation_config", None))
    found = [getattr(one, "eos_token_id", None) for one in given]
    return frozenset(token for one in found if one is not None for token in (one if isinstance(one, list) else [one]))
