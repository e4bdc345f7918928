"""The modules of the workloads, and what goes in: random weights and random rows are as fast as trained ones and real ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cloudai.benchmarking.workloads import Workload
from cloudai.errors import DataError
from cloudai.training.examples import Examples, Supervised
from cloudai.training.flops import of_module
from cloudai.training.parts import longest_first

__all__ = ["Embedder", "SpanFinder", "Spans", "build", "operations", "pretrained", "random_examples", "random_rows", "words_of"]

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

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor | None = None, types: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores of starts and ends, float[n, length] each."""
        scores = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types)
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


def pretrained(source: str, workload: Workload) -> tuple[SpanFinder, Any]:
    """Return a pretrained model of the workload's architecture, and its tokenizer; never from a pickle.

    Raises
    ------
    DataError
        If it cannot be read, or has another architecture.
    """
    from transformers import AutoTokenizer, BertForQuestionAnswering

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = BertForQuestionAnswering.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        fix = "give a folder of save_pretrained with safetensors and a tokenizer, or a name on the Hugging Face hub"
        raise DataError(f"the model {source!r} cannot be read: {first}", fix=fix) from error
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
        if getattr(model.config, name) != workload.architecture[name]:
            what = f"the model {source!r} is not that of {workload.ref}: its {name} is {getattr(model.config, name)}"
            raise DataError(what, fix=f"give one with {name}={workload.architecture[name]}")
    return SpanFinder(model), tokenizer


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
    return Spans(rows.numpy(), spans.numpy(), count=workload.features)


class Spans:
    """Questions with their texts as tokens, and where the answer begins and ends: what the loop learns from.

    Parameters
    ----------
    ids : int[m, length]
        The tokens.
    spans : int[m, 2]
        The first and the last token of each answer.
    types : int[m, length], optional
        0 for the question's tokens and 1 for the text's.
    lengths : int[m], optional
        How many tokens count in each row; by default all.
    count : int, optional
        How many rows there are, where the given ones are used again and again; by default `m`.
    """

    at_once = 64

    def __init__(
        self,
        ids: np.ndarray,
        spans: np.ndarray,
        types: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
        count: int | None = None,
    ) -> None:
        self._ids, self._spans = torch.from_numpy(ids), torch.from_numpy(spans)
        self._types = None if types is None else torch.from_numpy(types)
        self._count = len(ids) if count is None else count
        self.lengths = lengths

    def __len__(self) -> int:
        """Return how many rows there are."""
        return self._count

    def weight(self, rows: torch.Tensor) -> float:
        """Return how many questions there are."""
        return float(len(rows))

    def loss(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Return the summed loss: the mean of the cross entropies of start and end (Devlin et al. 2019, section 4.2)."""
        starts, ends = self.scores(module, rows)
        spans = self._spans[rows % len(self._ids)].to(starts.device)
        entropy = torch.nn.functional.cross_entropy
        return (entropy(starts, spans[:, 0], reduction="sum") + entropy(ends, spans[:, 1], reduction="sum")) / 2

    def measure(self, module: torch.nn.Module, rows: torch.Tensor) -> dict[str, float]:
        """Return the mean loss."""
        parts = torch.split(longest_first(rows, self.lengths), self.at_once)
        return {"val_loss": sum(float(self.loss(module, part)) for part in parts) / self.weight(rows)}

    def scores(self, module: torch.nn.Module, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores of starts and ends, float32[n, longest of these rows] each."""
        device = next(module.parameters()).device
        index = rows % len(self._ids)
        lengths = None if self.lengths is None else torch.from_numpy(self.lengths)[index]
        longest = self._ids.shape[1] if lengths is None else int(lengths.max())
        ids = self._ids[index, :longest].to(device, torch.int64)
        types = None if self._types is None else self._types[index, :longest].to(device, torch.int64)
        # without a mask where nothing is padded, attention has faster ways
        padded = lengths is not None and int(lengths.min()) < longest
        mask = (torch.arange(longest) < lengths[:, None]).to(device) if padded and lengths is not None else None
        starts, ends = module(ids, mask, types)
        return starts.float(), ends.float()
