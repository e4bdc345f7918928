"""Rows, and what is learned from them: what the loop asks of data, and the answer for arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from cloudai.errors import DataError

__all__ = ["Examples", "Split", "Supervised", "split"]

LOSSES: Mapping[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": torch.nn.functional.cross_entropy,
    "mse": torch.nn.functional.mse_loss,
    "l1": torch.nn.functional.l1_loss,
    "bce_with_logits": torch.nn.functional.binary_cross_entropy_with_logits,
}


@dataclass(frozen=True)
class Split:
    """Which rows train and which measure."""

    train: torch.Tensor
    validation: torch.Tensor


def split(rows: int, share: float, seed: int) -> Split:
    """Draw the rows held back, the same for every rank and attempt."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    held = int(rows * share)
    return Split(order[held:].sort().values, order[:held].sort().values)


class Examples(Protocol):
    """Rows as the loop takes them, with the loss that is to become small.

    What depends on a row depends on nothing else, so that a step may be computed in any parts, and again.
    """

    at_once: int
    """How many rows are measured together."""

    @property
    def lengths(self) -> np.ndarray | None:
        """The tokens of each row, int64[n]; None where all rows are alike."""
        ...

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def weight(self, rows: torch.Tensor) -> float:
        """Return what the summed loss of rows is divided by: how many they are, or how many of their tokens count."""
        ...

    def loss(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of rows, a scalar with its gradient; computed where the module's weights are."""
        ...

    def measure(self, module: torch.nn.Module, rows: torch.Tensor) -> Mapping[str, float]:
        """Return metrics of rows held back, of a module that is in evaluation mode; no gradients are needed."""
        ...


class Supervised:
    """Arrays of inputs and targets, row by row.

    Parameters
    ----------
    inputs, targets : ndarray
        With one row for each example.
    loss : str
        One of those that a spec may name.
    device : torch.device
        Where the module is.

    Raises
    ------
    DataError
        If the targets do not fit the loss.
    """

    at_once = 1024
    lengths = None

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, loss: str, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._inputs = torch.from_numpy(np.ascontiguousarray(inputs))
        self._targets = _targets(targets, loss)
        self._classes = loss == "cross_entropy"
        self._loss = LOSSES[loss]
        self._each = 1 if self._classes else self._targets[:1].numel()

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self._inputs)

    def weight(self, rows: torch.Tensor) -> float:
        """Return how many values are compared."""
        return float(len(rows) * self._each)

    def loss(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of rows."""
        return self._summed(self._outputs(module, rows), rows)

    def measure(self, module: torch.nn.Module, rows: torch.Tensor) -> dict[str, float]:
        """Return the mean loss, and of classes the share that is right."""
        outputs = torch.cat([self._outputs(module, part) for part in torch.split(rows, self.at_once)])
        measured = {"val_loss": float(self._summed(outputs, rows)) / self.weight(rows)}
        if self._classes:
            right = outputs.argmax(dim=1) == self._targets[rows].to(outputs.device)
            measured["val_accuracy"] = float(right.float().mean())
        return measured

    def inputs(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the module takes for these rows."""
        return (self._inputs[rows].to(self._device),)

    def _outputs(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = module(*self.inputs(rows))
        # values are compared one by one
        return outputs.squeeze(1) if not self._classes and outputs.ndim == 2 and outputs.shape[1] == 1 else outputs

    def _summed(self, outputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if outputs.dtype in (torch.bfloat16, torch.float16):
            outputs = outputs.float()
        loss: torch.Tensor = self._loss(outputs, self._targets[rows].to(outputs.device), reduction="sum")
        return loss


def _targets(array: np.ndarray, loss: str) -> torch.Tensor:
    targets = torch.from_numpy(np.ascontiguousarray(array))
    if loss != "cross_entropy":
        targets = targets.to(torch.float32)
        return targets.squeeze(1) if targets.ndim == 2 and targets.shape[1] == 1 else targets
    if targets.is_floating_point():
        raise DataError("cross_entropy needs classes, the targets are floating point", fix="give integers, or loss='mse'")
    return targets.to(torch.int64)
