"""Rows of two texts that belong together: each is told from the other rows that are computed with it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from cloudai.artifacts.text_embedders import Embedder
from cloudai.training.tasks.rows import TokenRows, placed, summed_loss

__all__ = ["PairRows"]

_SCALE = 20.0
"""Cosines are multiplied by this. Source: ``MultipleNegativesRankingLoss`` of sentence-transformers, its default."""


class PairRows(TokenRows):
    """Pairs of texts, learned by ranking the right partner before those of the other rows.

    Source: Henderson et al. 2017, "Efficient Natural Language Response Suggestion for Smart Reply", section 4.4,
    https://arxiv.org/abs/1705.00652, with cosines. Partners that are the same text, or belong to the same one, are no
    negatives of each other.

    Parameters
    ----------
    data : mapping of str to array
        ``inputs`` and ``positives``.
    """

    def __init__(self, model: Embedder, data: Mapping[str, np.ndarray]) -> None:
        self._model = model
        self._tokens = [model.tokens(data[name].tolist()) for name in ("inputs", "positives")]
        self._same = [
            torch.from_numpy(np.unique(data[name].astype(str), return_inverse=True)[1]) for name in ("inputs", "positives")
        ]
        super().__init__([1] * len(data["inputs"]))
        self.lengths = None  # parts of like length would be told from rows of their own length only

    def loss(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of pairs, each against all partners among these rows."""
        first, second = torch.split(self._vectors(module, rows, (0, 1)), len(rows))
        return self._ranked(first, second, rows)

    def measure(self, module: torch.nn.Module, rows: torch.Tensor) -> dict[str, float]:
        """Return the mean loss, and the share of texts whose partner is the nearest of all that were held back."""
        parts = list(self.parts(rows))
        found = [torch.cat([self._vectors(module, part, (side,)) for part in parts]) for side in (0, 1)]
        loss = sum(
            float(self._ranked(first, second, part))
            for first, second, part in zip(*(torch.split(vectors, self.at_once) for vectors in found), parts, strict=True)
        )
        nearest = _product(*found).argmax(dim=1).cpu()
        hits = self._belong(rows[:, None], rows[nearest][:, None]).float()
        return {"val_loss": loss / self.weight(rows), "val_recall_at_1": float(hits.mean())}

    def _vectors(self, module: torch.nn.Module, rows: torch.Tensor, sides: tuple[int, ...]) -> torch.Tensor:
        tokens = [self._tokens[side][row] for side in sides for row in rows.tolist()]
        vectors: torch.Tensor = module(*placed(module, *self._model.padded(tokens)))
        return vectors.float()

    def _ranked(self, first: torch.Tensor, second: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        others = self._belong(rows[:, None], rows[None, :]) & ~torch.eye(len(rows), dtype=torch.bool)
        scores = (_SCALE * _product(first, second)).masked_fill(others.to(first.device), float("-inf"))
        return summed_loss(scores, torch.arange(len(rows)))

    def _belong(self, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Return whether the partner of one row is one of another row as well."""
        first, second = self._same
        return (first[rows] == first[others]) | (second[rows] == second[others])


def _product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return all cosines, in float32 also where the model computes in less."""
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.T
