"""Models that continue texts: a text goes in, what the model would write after it comes out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from cloudai import texts as packing
from cloudai.artifacts.signature import TEXT, TensorSpec
from cloudai.artifacts.text_models import TextModel, in_parts, quiet

__all__ = ["NextTokens", "Writer"]


class NextTokens(torch.nn.Module):
    """The model as a function of tokens and their positions; what is trained.

    Positions that begin anew tell the model where another text begins, which it then does not look back from.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # below adapters
        self.positioned = "position_ids" in inspect.signature(inner.forward).parameters

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return for each token a number for each token that may come next."""
        given = {"position_ids": positions} if self.positioned else {}
        logits: torch.Tensor = self.model(input_ids=ids, use_cache=False, **given).logits
        return logits


class Writer(TextModel):
    """A model that continues texts, each time with the likeliest next token."""

    task = "causal-lm"
    auto = "AutoModelForCausalLM"
    able = "continue texts"
    longest = 1024  # as run_clm.py of transformers takes where nothing else is said
    capped = False

    def __post_init__(self) -> None:
        if self.tokenizer.pad_token_id is None:  # seldom there, and not looked at: padding follows after all that counts
            self.tokenizer.pad_token = self.tokenizer.eos_token
        super().__post_init__()

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model writes after each text."""
        return (TensorSpec("continuation", TEXT, (-1,)),)

    @property
    def most(self) -> int:
        """How many tokens it writes at most; they take no more than half of what the model takes in all."""
        return min(int(self.facts["max_new_tokens"]), self.capacity // 2)

    def trainable(self) -> torch.nn.Module:
        """Return the model as a function of tokens and their positions."""
        return NextTokens(self.model)

    def answers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what the model writes after each text; of a long one only the end is looked at."""
        room = self.capacity - self.most
        rows = self.tokenizer(inputs["text"].tolist(), add_special_tokens=False)["input_ids"] if len(inputs["text"]) else []
        found: list[str] = []
        for part in in_parts([row[-room:] or [self.stand_in] for row in rows]):
            found += self._continued(part)
        return {"continuation": packing.object_array(found)}

    def _continued(self, rows: Any) -> list[str]:
        """Write after rows of tokens, which are filled up at their beginning."""
        backwards, mask = self.padded([row[::-1] for row in rows])
        with torch.inference_mode(), quiet():
            written = self.model.generate(
                input_ids=backwards.flip(1),
                attention_mask=mask.flip(1),
                do_sample=False,
                num_beams=1,
                max_new_tokens=self.most,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
            )
        texts: list[str] = self.tokenizer.batch_decode(written[:, backwards.shape[1] :], skip_special_tokens=True)
        return texts
