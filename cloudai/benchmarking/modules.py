"""The modules of the workloads, and what goes in: random weights and random rows are as fast as trained ones and real ones."""

from __future__ import annotations

from typing import Any

import torch

from cloudai.benchmarking.workloads import Workload
from cloudai.errors import DataError
from cloudai.training.examples import Examples, Supervised
from cloudai.training.flops import of_module
from cloudai.training.tasks.rows import summed_loss

__all__ = [
    "Embedder",
    "SpanFinder",
    "Spans",
    "build",
    "check_architecture",
    "operations",
    "random_examples",
    "random_rows",
    "words_of",
]

_POOL = 1024
"""So many rows are drawn, and then used again and again: a million rows would be as fast."""


class SpanFinder(torch.nn.Module):
    """BERT with a score for each token to be the first, and the last, of the answer.

    Parameters
    ----------
    model : BertForQuestionAnswering
        Of transformers.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores of starts and ends, float[n, length] each; nothing is padded, so there is no mask."""
        scores = self.model(input_ids=ids)
        return scores.start_logits, scores.end_logits


class Embedder(torch.nn.Module):
    """BERT whose answer is the mean over the tokens, of length 1."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return a vector for each text, float[n, hidden]."""
        states: torch.Tensor = self.model(input_ids=ids).last_hidden_state
        return torch.nn.functional.normalize(states.mean(dim=1), dim=1)


def build(workload: Workload) -> torch.nn.Module:
    """Return the workload's module with random weights, drawn from torch's generator."""
    shape: dict[str, Any] = dict(workload.architecture)
    if workload.task == "classes":
        first = torch.nn.Linear(shape["inputs"], shape["hidden"])
        return torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(shape["hidden"], shape["classes"]))
    from transformers import BertConfig, BertForQuestionAnswering, BertModel

    config = BertConfig(**shape)
    if workload.task == "spans":
        return SpanFinder(BertForQuestionAnswering(config))
    return Embedder(BertModel(config, add_pooling_layer=False))


def check_architecture(config: Any, workload: Workload) -> None:
    """Raise `DataError` unless a model's config is of the workload's size."""
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
        given = getattr(config, name, None)
        if given != workload.architecture[name]:
            what = f"the model is not that of {workload.ref}: its {name} is {given}"
            raise DataError(what, fix=f"give one with {name}={workload.architecture[name]}")


def operations(workload: Workload, module: torch.nn.Module) -> float:
    """Return the floating-point operations that one sequence needs: forward and backward, or for inference forward."""
    found = of_module(module, [random_rows(workload, 1, words_of(module)).to(next(module.parameters()).device)])
    return found.of(1, workload.length) / (1 if workload.act == "train" else 3)


def words_of(module: torch.nn.Module) -> int | None:
    """Return how many tokens a module knows; None for one that takes no tokens."""
    tables = (part for part in module.modules() if isinstance(part, torch.nn.Embedding))
    return next((table.num_embeddings for table in tables), None)


def random_rows(workload: Workload, count: int, words: int | None = None) -> torch.Tensor:
    """Draw rows as the module takes them, on the host: int64[count, length] tokens, or float32[count, inputs].

    Parameters
    ----------
    words : int, optional
        How many tokens the module knows, where these are others than the workload's.
    """
    generator = torch.Generator().manual_seed(0)
    shape: dict[str, Any] = dict(workload.architecture)
    if workload.task == "classes":
        return torch.randn(count, shape["inputs"], generator=generator)
    return torch.randint(words or shape["vocab_size"], (count, workload.length), generator=generator)


def random_examples(workload: Workload, device: torch.device) -> Examples:
    """Draw what the workload is trained on: as many rows as it has, all of the full length."""
    generator = torch.Generator().manual_seed(1)
    if workload.task == "classes":
        rows = random_rows(workload, workload.features)
        classes = int(workload.architecture["classes"])
        return Supervised(
            rows.numpy(), torch.randint(classes, (len(rows),), generator=generator).numpy(), "cross_entropy", device
        )
    rows = random_rows(workload, min(_POOL, workload.features))
    spans = torch.randint(workload.length, (len(rows), 2), generator=generator).sort(dim=1).values
    return Spans(rows, spans, workload.features)


class Spans:
    """Random questions with their texts as tokens, and where the answer begins and ends: what the loop learns from.

    Parameters
    ----------
    ids : int64[m, length]
        The tokens.
    spans : int64[m, 2]
        The first and the last token of each answer.
    count : int
        How many rows there are: the given ones are used again and again.
    """

    at_once = 64
    lengths = None

    def __init__(self, ids: torch.Tensor, spans: torch.Tensor, count: int) -> None:
        self._ids, self._spans, self._count = ids, spans, count

    def __len__(self) -> int:
        """Return how many rows there are."""
        return self._count

    def weight(self, rows: torch.Tensor) -> float:
        """Return how many questions there are."""
        return float(len(rows))

    def loss(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Return the summed loss: the mean of those of start and end (Devlin et al. 2019, section 4.2)."""
        device, index = next(module.parameters()).device, rows % len(self._ids)
        starts, ends = module(self._ids[index].to(device))
        spans = self._spans[index]
        return (summed_loss(starts.float(), spans[:, 0]) + summed_loss(ends.float(), spans[:, 1])) / 2

    def measure(self, module: torch.nn.Module, rows: torch.Tensor) -> dict[str, float]:
        """Return the mean loss."""
        return {"val_loss": sum(float(self.loss(module, part)) for part in torch.split(rows, self.at_once)) / self.weight(rows)}
