"""What a pretrained model of transformers is to learn, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cloudai.specs.validation import Spec

__all__ = ["Lora", "Task", "TextTask"]

Task = Literal["text-classification", "token-classification", "question-answering", "causal-lm", "embeddings"]


class Lora(Spec):
    """Low-rank adapters, trained in place of the weights; they are merged into the model that comes out.

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685

    Examples
    --------
    >>> Lora(rank=4).alpha
    16.0
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0, allow_inf_nan=False)
    """What an adapter adds is multiplied by ``alpha / rank``."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of an adapter's inputs that is left out in training."""
    targets: tuple[str, ...] | None = None
    """The names, or ends of names, of the layers that get adapters; by default all linear ones below the last layer."""


class TextTask(Spec):
    """What a pretrained model learns from texts."""

    task: Task = "text-classification"
    lora: Lora | None = None
    """Train adapters and new layers only; None for all weights."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass rather than keep them: less memory, about a third more time."""
    max_new_tokens: int = Field(default=64, ge=1, le=4096)
    """Of a model that continues texts: how many tokens it writes at most."""
