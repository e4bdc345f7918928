"""Files of SQuAD v1.1 (Rajpurkar et al. 2016, arXiv:1606.05250), as the loop takes questions with their texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cloudai import texts
from cloudai.errors import DataError

__all__ = ["read_questions"]

_FIX = "give train-v1.1.json and dev-v1.1.json"


def read_questions(content: bytes, what: str) -> dict[str, np.ndarray]:
    """Read a file into the arrays of `cloudai.training.tasks.answers.AnswerRows`.

    Raises
    ------
    DataError
        If it is none, or holds no question with an answer.
    """
    try:
        found = list(_questions(json.loads(content)["data"]))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise DataError(f"{what} is no file of SQuAD v1.1", fix=_FIX) from None
    if not found:
        raise DataError(f"{what} has no questions with an answer", fix=_FIX)
    questions, contexts, given = zip(*found, strict=True)
    answers = [answer for each in given for answer in each]
    return {
        "inputs": texts.object_array(questions),
        "contexts": texts.object_array(contexts),
        "answers": np.array([len(each) for each in given], dtype=np.int64),
        "targets": texts.object_array([text for text, _ in answers]),
        "starts": np.array([start for _, start in answers], dtype=np.int64),
    }


def _questions(articles: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, list[tuple[str, int]]]]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = [(str(answer["text"]), int(answer["answer_start"])) for answer in asked["answers"]]
                if answers:  # SQuAD 2.0 has questions without one
                    yield str(asked["question"]), str(paragraph["context"]), answers
