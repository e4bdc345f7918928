"""Models that find answers in texts: a question and a context go in, a piece of the context comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from cloudai import texts as packing
from cloudai.artifacts.pretrained import SHORTEST_WINDOW
from cloudai.artifacts.signature import TEXT, TensorSpec
from cloudai.artifacts.text_models import TextModel, filled, in_parts
from cloudai.errors import SpecError

__all__ = ["Reader", "Span", "Window"]

_LONGEST_ANSWER = 30
"""Tokens. Source: ``--max_answer_length`` of BERT's run_squad.py, https://github.com/google-research/bert"""


@dataclass(frozen=True)
class Window:
    """A question, and as much of its context as the model takes at once.

    Attributes
    ----------
    row : int
        Which question.
    ids, types : list of int
        The tokens, and to which of both texts they belong.
    offsets : int64[tokens, 2]
        The characters of each token of the context; -1 for all others.
    """

    row: int
    ids: list[int]
    types: list[int]
    offsets: np.ndarray


@dataclass(frozen=True)
class Span:
    """An answer: its characters in the context, and how sure the model is; an empty one says that there is none."""

    start: int
    end: int
    score: float


class Spans(torch.nn.Module):
    """The model as a function of tokens, mask and types; what is trained."""

    def __init__(self, model: Any, typed: bool) -> None:
        super().__init__()
        self.model, self.typed = model, typed

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """Return for each token how well an answer begins and ends with it, float[n, tokens, 2]."""
        given = {"token_type_ids": types} if self.typed else {}
        found = self.model(input_ids=ids, attention_mask=mask, **given)
        return torch.stack((found.start_logits, found.end_logits), dim=-1)


class Reader(TextModel):
    """A model that finds the answer to a question in a text, window by window."""

    task = "question-answering"
    auto = "AutoModelForQuestionAnswering"
    able = "answer questions"
    longest = 384  # as in BERT's run_squad.py
    capped = False
    inputs: ClassVar[Mapping[str, str]] = {"question": "inputs", "context": "contexts"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer.model_max_length < SHORTEST_WINDOW:
            raise SpecError(
                f"a question and its context do not fit into {self.tokenizer.model_max_length} tokens",
                fix=f"give max_length={SHORTEST_WINDOW} or more, 384 is usual",
            )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The answer to each question, where it begins in the context, and how sure the model is."""
        return TensorSpec("answer", TEXT, (-1,)), TensorSpec("start", "int64", (-1,)), TensorSpec("score", "float32", (-1,))

    def trainable(self) -> torch.nn.Module:
        """Return the model as a function of tokens, their mask and their types."""
        return Spans(self.model, "token_type_ids" in self.tokenizer.model_input_names)

    def windows(self, questions: Sequence[str], contexts: Sequence[str]) -> list[Window]:
        """Cut each context into windows that overlap, each after its question."""
        if not len(questions):
            return []
        limit = self.tokenizer.model_max_length
        found = self.tokenizer(
            self._short(questions, limit // 4),
            list(contexts),
            truncation="only_second",
            max_length=limit,
            stride=min(128, limit // 4),  # 128 as in BERT's run_squad.py
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
            padding=False,
        )
        return [self._window(found, place) for place in range(len(found["input_ids"]))]

    def _short(self, questions: Sequence[str], most: int) -> list[str]:
        """Cut questions off after so many tokens."""
        found = self.tokenizer(
            list(questions), add_special_tokens=False, truncation=True, max_length=most, return_offsets_mapping=True
        )
        return [
            text[: offsets[-1][1]] if offsets else "" for text, offsets in zip(questions, found["offset_mapping"], strict=True)
        ]

    def _window(self, found: Any, place: int) -> Window:
        offsets = np.array(found["offset_mapping"][place], dtype=np.int64).reshape(-1, 2)
        of_context = np.array([part == 1 for part in found.sequence_ids(place)], dtype=bool)
        row, ids = int(found["overflow_to_sample_mapping"][place]), found["input_ids"][place]
        return Window(row, ids, found["token_type_ids"][place], np.where(of_context[:, None], offsets, -1))

    def tensors(self, windows: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return tokens, mask and types of windows, int64[n, longest]."""
        ids, mask = self.padded([window.ids for window in windows])
        return ids, mask, filled([window.types for window in windows], 0)

    def nowhere(self, window: Window) -> int:
        """Return the token that stands for "the answer is not in this window": the one that begins it, as in BERT."""
        cls = self.tokenizer.cls_token_id
        return window.ids.index(cls) if cls in window.ids else 0

    def answers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the best piece of each context."""
        questions, contexts = inputs["question"].tolist(), inputs["context"].tolist()
        module, best = self.trainable(), [Span(0, 0, -1.0)] * len(questions)
        for part in in_parts(self.windows(questions, contexts)):
            with torch.inference_mode():
                logits = module(*self.tensors(part)).float().numpy()
            for window, scores in zip(part, logits, strict=True):
                best[window.row] = max(best[window.row], self.span(window, scores), key=lambda span: span.score)
        texts = [context[span.start : span.end] for context, span in zip(contexts, best, strict=True)]
        return {
            "answer": packing.object_array(texts),
            "start": np.array([span.start for span in best], dtype=np.int64),
            "score": np.array([max(0.0, span.score) for span in best], dtype=np.float32),
        }

    def span(self, window: Window, logits: np.ndarray) -> Span:
        """Return the best answer in one window.

        Its score is the product of the probabilities of its first and its last token. "None" may win only where the
        training data had questions without an answer.
        """
        raised = np.exp(logits[: len(window.ids)].astype(np.float64) - logits[: len(window.ids)].max(axis=0))
        begins, ends = (raised / raised.sum(axis=0)).T
        places = np.flatnonzero(window.offsets[:, 0] >= 0)
        if not len(places):
            return Span(0, 0, 0.0)
        scores = np.triu(begins[places][:, None] * ends[places][None, :])
        scores = np.where(places[None, :] - places[:, None] < _LONGEST_ANSWER, scores, 0.0)
        first, last = np.unravel_index(int(scores.argmax()), scores.shape)
        none = self.nowhere(window)
        if self.facts.get("unanswerable") and begins[none] * ends[none] > scores[first, last]:
            return Span(0, 0, 0.0)  # another window may have it
        start, end = window.offsets[places[first], 0], window.offsets[places[last], 1]
        return Span(int(start), int(end), float(scores[first, last]))
