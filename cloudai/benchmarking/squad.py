"""SQuAD v1.1 as its files are: features of a fixed length from them, answers from scores, and the official F1 and exact match.

Rajpurkar et al. 2016 (arXiv:1606.05250). What counts as equal is that of the official ``evaluate-v1.1.py``: without case,
punctuation and articles.
"""

from __future__ import annotations

import collections
import json
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cloudai.benchmarking.modules import Spans
from cloudai.errors import DataError

__all__ = ["Features", "Question", "answers", "exact_match", "f1", "features_of", "read_questions", "scores_of"]

_STRIDE = 128  # tokens that two features of one text share
_LONGEST_ANSWER = 30  # tokens
_BEST = 20  # starts and ends that are combined
_CHUNK = 1000  # questions that are tokenised together


@dataclass(frozen=True)
class Question:
    """A question, its text, and the answers that count as right; of each the character where it begins."""

    id: str
    text: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


def read_questions(content: bytes, what: str) -> list[Question]:
    """Read a file of SQuAD v1.1.

    Raises
    ------
    DataError
        If it is none, or holds no question.
    """
    try:
        found = list(_questions(json.loads(content)["data"]))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise DataError(f"{what} is no file of SQuAD v1.1", fix="give train-v1.1.json and dev-v1.1.json") from None
    if not found:
        raise DataError(f"{what} has no questions", fix="give train-v1.1.json and dev-v1.1.json")
    return found


def _questions(articles: Sequence[Mapping[str, Any]]) -> Iterator[Question]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                given = [(str(answer["text"]), int(answer["answer_start"])) for answer in asked["answers"]]
                if not given:
                    continue  # of SQuAD 2.0: questions without an answer
                texts, starts = zip(*given, strict=True)
                yield Question(str(asked["id"]), str(asked["question"]), str(paragraph["context"]), texts, starts)


@dataclass(frozen=True)
class Features:
    """Windows of so many tokens over questions with their texts.

    Attributes
    ----------
    spans : Spans
        What the loop learns from; the answer is at the first token where a window does not hold it.
    question : int[m]
        To which question each belongs.
    offsets : int[m, length, 2]
        From which character of the text to which each token goes; (0, 0) for those that are not of the text.
    """

    spans: Spans
    question: np.ndarray
    offsets: np.ndarray


def features_of(questions: Sequence[Question], tokenizer: Any, length: int) -> Features:
    """Cut questions with their texts into windows of at most `length` tokens.

    Raises
    ------
    DataError
        If the tokenizer cannot say where in the text a token was.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError("this tokenizer does not say where its tokens are", fix="give a model with a tokenizer.json")
    parts = [_tokenised(questions[at : at + _CHUNK], at, tokenizer, length) for at in range(0, len(questions), _CHUNK)]
    ids, types, lengths, offsets, question = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    spans = np.array([_span(questions[number], places) for number, places in zip(question, offsets, strict=True)])
    return Features(Spans(ids, spans, types, lengths), question, offsets)


def _tokenised(questions: Sequence[Question], first: int, tokenizer: Any, length: int) -> tuple[np.ndarray, ...]:
    found = tokenizer(
        [question.text.strip() for question in questions],
        [question.context for question in questions],
        truncation="only_second",
        max_length=length,
        stride=min(_STRIDE, length // 4),
        padding="max_length",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=True,
        return_token_type_ids=True,
    )
    in_text = np.array([[part == 1 for part in found.sequence_ids(row)] for row in range(len(found["input_ids"]))])
    offsets = np.where(in_text[:, :, None], np.array(found["offset_mapping"], dtype=np.int32), 0)
    lengths = np.array(found["attention_mask"]).sum(axis=1)
    question = np.array(found["overflow_to_sample_mapping"]) + first
    return np.array(found["input_ids"], np.int32), np.array(found["token_type_ids"], np.int8), lengths, offsets, question


def _span(question: Question, offsets: np.ndarray) -> tuple[int, int]:
    """Return the first and the last token of the first answer; (0, 0) where the window does not hold all of it."""
    begin = question.starts[0]
    end = begin + len(question.answers[0])
    starts = np.flatnonzero((offsets[:, 0] <= begin) & (offsets[:, 1] > begin))
    ends = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] >= end))
    return (int(starts[0]), int(ends[-1])) if len(starts) and len(ends) else (0, 0)


@torch.no_grad()
def answers(
    module: torch.nn.Module,
    features: Features,
    questions: Sequence[Question],
    between: Callable[[], object] = lambda: None,
) -> list[str]:
    """Return the best answer to each question: the span with the highest scores over all its windows.

    Parameters
    ----------
    between : callable
        Called after some of them, again and again.
    """
    best = [(-np.inf, "")] * len(questions)
    for rows in torch.split(torch.arange(len(features.question)), features.spans.at_once):
        starts, ends = (scores.cpu().numpy() for scores in features.spans.scores(module, rows))
        for row, start, end in zip(rows.tolist(), starts, ends, strict=True):
            number = int(features.question[row])
            best[number] = max(best[number], _best_span(start, end, features.offsets[row], questions[number].context))
        between()
    return [text for _, text in best]


def _best_span(starts: np.ndarray, ends: np.ndarray, offsets: np.ndarray, context: str) -> tuple[float, str]:
    inside = offsets[: len(starts), 1] > 0
    likely = [np.argsort(-np.where(inside, scores, -np.inf))[: min(_BEST, int(inside.sum()))] for scores in (starts, ends)]
    score = starts[likely[0], None] + ends[None, likely[1]]
    tokens = likely[1][None, :] - likely[0][:, None]
    score = np.where((tokens >= 0) & (tokens < _LONGEST_ANSWER), score, -np.inf)
    if not score.size or not np.isfinite(score.max()):
        return -np.inf, ""
    first, last = np.unravel_index(int(score.argmax()), score.shape)
    begin, end = offsets[likely[0][first], 0], offsets[likely[1][last], 1]
    return float(score.max()), context[begin:end]


def scores_of(given: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
    """Return the mean F1 and the share of exact matches, in percent; the best over the right answers counts."""
    pairs = list(zip(given, questions, strict=True))
    mean_f1 = sum(max(f1(text, right) for right in question.answers) for text, question in pairs) / len(pairs)
    exact = sum(any(exact_match(text, right) for right in question.answers) for text, question in pairs) / len(pairs)
    return {"f1": 100 * mean_f1, "exact_match": 100 * exact}


def f1(given: str, right: str) -> float:
    """Return the harmonic mean of precision and recall over words.

    Examples
    --------
    >>> f1("the old bridge", "Old stone bridge!")
    0.8
    """
    words, right_words = _plain(given).split(), _plain(right).split()
    common = sum((collections.Counter(words) & collections.Counter(right_words)).values())
    return 2 * common / (len(words) + len(right_words)) if common else 0.0


def exact_match(given: str, right: str) -> bool:
    """Whether two answers are the same without case, punctuation and articles.

    Examples
    --------
    >>> exact_match("The bridge.", "bridge")
    True
    """
    return _plain(given) == _plain(right)


def _plain(text: str) -> str:
    letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())
