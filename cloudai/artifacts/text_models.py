"""Models of transformers with their tokenizers: what all tasks on texts have in common."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import transformers

from cloudai.artifacts.signature import TEXT, TensorSpec
from cloudai.errors import SpecError

__all__ = ["AT_ONCE", "TextModel", "filled", "in_parts", "quiet"]

AT_ONCE = 32
"""Rows that are computed together in service: more would only take more memory."""


@dataclass(frozen=True)
class TextModel(ABC):
    """A model with its tokenizer, for one task.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        In the form that the task needs.
    tokenizer : transformers.PreTrainedTokenizerFast
        Cuts texts off at its ``model_max_length``.
    facts : mapping
        What the task has to know beside that; plain JSON.
    drawn : frozenset of str
        The weights that were not in the model's files, and are new.
    """

    model: Any
    tokenizer: Any
    facts: Mapping[str, Any] = field(default_factory=dict)
    drawn: frozenset[str] = frozenset()

    task: ClassVar[str]
    auto: ClassVar[str]
    """The class of transformers that loads such models."""
    able: ClassVar[str]
    """What such a model can do, for errors."""
    longest: ClassVar[int] = 512
    """How many tokens of a text are looked at, where nothing else is said or the model takes fewer."""
    capped: ClassVar[bool] = True
    """Whether more cannot be asked for either."""
    unneeded: ClassVar[tuple[str, ...]] = ()
    """Beginnings of names of weights that the task does without, so that a model may lack them."""
    inputs: ClassVar[Mapping[str, str]] = {"text": "inputs"}
    """The model's inputs, and the arrays of the training data that hold such."""

    def __post_init__(self) -> None:
        if self.tokenizer.pad_token_id is None:
            raise SpecError("the tokenizer has no padding token", fix="set one: tokenizer.pad_token = tokenizer.eos_token")
        self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, self.capacity)
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    @classmethod
    def options(cls, classes: Sequence[str]) -> dict[str, Any]:
        """Return the options of a config of a model that is to learn these classes, where the task has any."""
        del classes
        return {}

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the scores; empty where there are none."""
        return ()

    @property
    @abstractmethod
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it answers, one row for each text."""

    @abstractmethod
    def trainable(self) -> torch.nn.Module:
        """Return the model as a function of tensors, of which a loss can be made."""

    @abstractmethod
    def answers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer texts, one row for each."""

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """What it takes: texts, under one or more names."""
        return tuple(TensorSpec(name, TEXT, (-1,)) for name in self.inputs)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, at least one, cut off at what the model takes."""
        if not len(texts):
            return []
        limit = self.tokenizer.model_max_length
        encoded = self.tokenizer(list(texts), truncation=True, max_length=limit, padding=False, return_attention_mask=False)
        return [row or [self.stand_in] for row in encoded["input_ids"]]

    @property
    def stand_in(self) -> int:
        """A token for a text that has none."""
        names = ("cls_token_id", "bos_token_id", "unk_token_id", "pad_token_id")
        return next(int(token) for token in (getattr(self.tokenizer, name) for name in names) if token is not None)

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens as int64[n, longest] and their mask; what is filled up depends on nothing but these rows."""
        ids = filled(rows, self.tokenizer.pad_token_id)
        return ids, filled([[1] * len(row) for row in rows], 0)

    @property
    def capacity(self) -> int:
        """How many tokens the model takes at most."""
        most = getattr(self.model.config, "max_position_embeddings", None) or self.longest
        spoken_for = 2 if most % 8 == 2 else 0  # RoBERTa and its kin count positions from the padding token's number on
        taken = int(most) - spoken_for
        return min(self.longest, taken) if self.capped else taken


def filled(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """Return rows of unlike length as int64[n, longest], filled up at the end."""
    longest = max(map(len, rows))
    array = np.full((len(rows), longest), fill, dtype=np.int64)
    for place, row in enumerate(rows):
        array[place, : len(row)] = row
    return torch.from_numpy(array)


def in_parts(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield as many rows at a time as are computed together."""
    for first in range(0, len(rows), AT_ONCE):
        yield rows[first : first + AT_ONCE]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and telling what it found, while the context is open."""
    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
