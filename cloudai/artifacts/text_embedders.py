"""Models that place texts: a text goes in, a vector of length one comes out, near those of texts with a like meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from cloudai.artifacts.signature import TensorSpec
from cloudai.artifacts.text_models import TextModel, in_parts

__all__ = ["Embedder", "Vectors"]


class Vectors(torch.nn.Module):
    """The model as a function of tokens and mask; what is trained.

    The mean over a text's tokens, as in Reimers & Gurevych 2019, "Sentence-BERT", https://arxiv.org/abs/1908.10084, scaled
    to length one, so that a product of two vectors is their cosine.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the vector of each text."""
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        counted = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * counted).sum(dim=1) / counted.sum(dim=1)
        return torch.nn.functional.normalize(mean, dim=-1)


class Embedder(TextModel):
    """A model that gives each text a vector."""

    task = "embeddings"
    auto = "AutoModel"
    able = "embed texts"
    unneeded = ("pooler.",)  # the mean over the tokens is taken instead

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The vector of each text."""
        return (TensorSpec("vector", "float32", (-1, int(self.model.config.hidden_size))),)

    def trainable(self) -> torch.nn.Module:
        """Return the model as a function of tokens and their mask."""
        pooler = getattr(self.model, "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(False)  # the mean is taken instead: it has no part in what is learned
        return Vectors(self.model)

    def answers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the vector of each text."""
        with torch.inference_mode():
            rows = self.tokens(inputs["text"].tolist())
            found = [Vectors(self.model)(*self.padded(part)).numpy() for part in in_parts(rows)]
        empty = np.zeros((0, int(self.model.config.hidden_size)), np.float32)
        return {"vector": np.concatenate(found) if found else empty}
