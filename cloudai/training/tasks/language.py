"""Rows of a model that continues texts: blocks of whole texts, none of which sees another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cloudai.artifacts.text_models import filled
from cloudai.artifacts.text_writers import Writer
from cloudai.errors import DataError, SpecError
from cloudai.training.tasks.packing import packed
from cloudai.training.tasks.rows import TokenRows, placed, summed_loss

__all__ = ["BlockRows"]

_UNCOUNTED = -100


class BlockRows(TokenRows):
    """Blocks of at most ``model_max_length`` tokens: texts that fit into one are whole, longer ones are cut into pieces.

    A token sees what stands before it in its own piece alone. Models that cannot be told so have one piece in each block.

    Parameters
    ----------
    data : mapping of str to array
        Texts as ``inputs``.
    """

    at_once = 8

    def __init__(self, model: Writer, data: Mapping[str, np.ndarray]) -> None:
        self._fill = int(model.tokenizer.pad_token_id)
        size = int(model.tokenizer.model_max_length)
        pieces = _pieces(_tokens(model, data["inputs"].tolist()), size)
        if not pieces:
            raise DataError("no text has two tokens", fix="give texts of at least a word")
        blocks = packed([len(piece) for piece in pieces], size) if packs(model) else [[place] for place in range(len(pieces))]
        self._blocks = [[pieces[place] for place in block] for block in blocks]
        super().__init__([sum(map(len, block)) for block in self._blocks])

    def weight(self, rows: torch.Tensor) -> float:
        """Return how many tokens are predicted: all but the first of each piece."""
        return float(sum(len(piece) - 1 for row in rows.tolist() for piece in self._blocks[row]))

    def loss(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of all tokens that are predicted."""
        blocks = [self._blocks[row] for row in rows.tolist()]
        ids, positions = placed(module, *laid_out(blocks, self._fill))
        targets = filled(
            [[_UNCOUNTED if not n else token for piece in block for n, token in enumerate(piece)] for block in blocks],
            _UNCOUNTED,
        )
        logits = module(ids, positions)[:, :-1]
        return summed_loss(logits.flatten(0, 1).float(), targets[:, 1:].flatten())

    def measure(self, module: torch.nn.Module, rows: torch.Tensor) -> dict[str, float]:
        """Return the mean loss of a token, and its exponential, the perplexity."""
        loss = sum(float(self.loss(module, part)) for part in self.parts(rows)) / self.weight(rows)
        return {"val_loss": loss, "val_perplexity": math.exp(min(loss, 700.0))}


def _tokens(model: Writer, texts: list[str]) -> list[list[int]]:
    """Return the tokens of each text, with the one that ends it."""
    end = model.tokenizer.eos_token_id
    rows = model.tokenizer(texts, truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [row if end is None or row[-1:] == [end] else [*row, end] for row in rows]


def _pieces(rows: Sequence[list[int]], size: int) -> list[list[int]]:
    """Cut rows that are too long; what is left with one token predicts nothing."""
    pieces = [row[first : first + size] for row in rows for first in range(0, len(row), size)]
    return [piece for piece in pieces if len(piece) > 1]


def laid_out(blocks: Sequence[Sequence[Sequence[int]]], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and positions, int64[n, longest]; positions begin anew with each piece, and where a block is filled up."""
    ids = filled([[token for piece in block for token in piece] for block in blocks], fill)
    positions = [[place for piece in block for place in range(len(piece))] for block in blocks]
    longest = ids.shape[1]
    return ids, torch.tensor([[*row, *range(longest - len(row))] for row in positions])


def packs(model: Writer) -> bool:
    """Whether a piece does not see the one before it in its block: tried, rather than known of each architecture.

    Raises
    ------
    SpecError
        If a token's scores depend on what comes after it: such a model learns to copy, not to continue.
    """
    seen = _seen(model, place=4)
    if seen[5:].any():
        kind = model.model.config.model_type
        raise SpecError(f"a {kind} looks ahead: it cannot learn to continue texts", fix="take gpt2, llama, qwen2, …")
    return not seen[:3].any()


def _seen(model: Writer, place: int) -> torch.Tensor:
    """Return on which of two pieces of three tokens the scores of one token depend, bool[6]: those that have a gradient."""
    module, kept = model.trainable(), []

    def keep(_: torch.nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    size = int(model.model.config.vocab_size)
    tokens = [token % size for token in range(1, 7)]
    hook = model.model.get_input_embeddings().register_forward_hook(keep)
    was_training = model.model.training
    model.model.eval()
    try:
        scores = module(*laid_out([[tokens[:3], tokens[3:]]], 0))[0, place]
        (gradient,) = torch.autograd.grad(scores.square().sum(), kept)
    finally:
        hook.remove()
        model.model.train(was_training)
    return gradient[0].abs().sum(dim=-1) > 0
