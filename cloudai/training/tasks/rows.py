"""Rows of tokens as the loop takes them, and the rows of texts with a class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from cloudai.artifacts.text_models import TextModel
from cloudai.errors import DataError
from cloudai.training.parts import longest_first
from cloudai.training.tasks.measures import macro_f1

__all__ = ["ClassRows", "TokenRows", "check_texts", "placed", "summed_loss"]


class TokenRows:
    """What the rows of all tasks have in common.

    Parameters
    ----------
    lengths : int64[n]
        The tokens of each row.
    """

    at_once = 64

    def __init__(self, lengths: Sequence[int] | np.ndarray) -> None:
        self._count = len(lengths)
        self.lengths: np.ndarray | None = np.array(lengths, dtype=np.int64)

    def __len__(self) -> int:
        """Return how many rows there are."""
        return self._count

    def weight(self, rows: torch.Tensor) -> float:
        """Return how many rows there are."""
        return float(len(rows))

    def parts(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield rows as they are measured together, like with like."""
        yield from torch.split(longest_first(rows, self.lengths), self.at_once)


class ClassRows(TokenRows):
    """Texts with a class each: tokenised once, padded part by part.

    Parameters
    ----------
    data : mapping of str to array
        ``inputs``, cut off at the tokenizer's ``model_max_length``, and the numbers of their classes, ``targets``.
    """

    def __init__(self, model: TextModel, data: Mapping[str, np.ndarray]) -> None:
        check_texts(data["inputs"])
        self._model = model
        self._tokens = model.tokens(data["inputs"].tolist())
        self._codes = torch.from_numpy(np.ascontiguousarray(data["targets"]))
        super().__init__([len(tokens) for tokens in self._tokens])

    def loss(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of some texts."""
        return summed_loss(self._scores(module, rows), self._codes[rows])

    def measure(self, module: torch.nn.Module, rows: torch.Tensor) -> dict[str, float]:
        """Return the mean loss, the share of texts whose class is right, and the mean F1 of all classes."""
        ordered = torch.cat(list(self.parts(rows)))
        scores = torch.cat([self._scores(module, part) for part in self.parts(rows)])
        found, wanted = scores.argmax(dim=1).cpu().numpy(), self._codes[ordered].numpy()
        return {
            "val_loss": float(summed_loss(scores, self._codes[ordered])) / self.weight(rows),
            "val_accuracy": float(np.mean(found == wanted)),
            "val_f1": macro_f1(wanted, found),
        }

    def _scores(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = module(*placed(module, *self._model.padded([self._tokens[row] for row in rows.tolist()])))
        return scores.float()


def check_texts(array: np.ndarray) -> None:
    """Raise `DataError` unless the inputs are texts: a worker may have read anything from a file."""
    if array.dtype.kind != "O":
        raise DataError("the inputs are no texts", fix="give texts as data=, or train a module on numbers")


def placed(module: torch.nn.Module, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return tensors where the module's weights are."""
    device = next(module.parameters()).device
    return tuple(tensor.to(device) for tensor in tensors)


def summed_loss(scores: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return the sum of the cross entropies of scores, float[n, classes]; classes below zero do not count."""
    wanted = codes.to(scores.device)
    return torch.nn.functional.cross_entropy(scores, wanted, reduction="sum", ignore_index=-100)
