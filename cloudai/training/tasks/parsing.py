"""The data of each task as arrays, checked in the process that calls; without transformers, and without torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloudai import texts
from cloudai.errors import DataError, SpecError
from cloudai.specs.texts import TextTask
from cloudai.training.columns import columns_of, rows_of, text_column
from cloudai.training.texts import agreeing, class_codes, parse_texts

__all__ = ["LOOPS", "LORA_LOOP", "TaskData", "asked_of", "parse"]

_LIKE_BERT = {"lr_schedule": "linear", "warmup": 0.1, "max_grad_norm": 1.0}
"""Source: the optimizer of BERT (``optimization.py`` and ``--warmup_proportion`` of https://github.com/google-research/bert)."""

LOOPS: Mapping[str, Mapping[str, Any]] = {
    # Devlin et al. 2019, "BERT", appendix A.3: batches of 16 or 32, rates of 2e-5 to 5e-5, 2 to 4 epochs
    "text-classification": {"lr": 5e-5, "epochs": 3, "batch_size": 16, **_LIKE_BERT},
    "token-classification": {"lr": 5e-5, "epochs": 3, "batch_size": 16, **_LIKE_BERT},
    # the same, section 4.2, SQuAD v1.1
    "question-answering": {"lr": 5e-5, "epochs": 3, "batch_size": 32, **_LIKE_BERT},
    # the defaults of run_clm.py of transformers, and a warmup
    "causal-lm": {"lr": 5e-5, "epochs": 3, "batch_size": 8, **_LIKE_BERT},
    # Reimers & Gurevych 2019, "Sentence-BERT", section 3.1; batches are larger, since their other rows are the negatives
    "embeddings": {"lr": 2e-5, "epochs": 1, "batch_size": 64, **_LIKE_BERT},
}
"""The loop's defaults for each task: what was learned before is not to be overrun."""


LORA_LOOP: Mapping[str, Any] = {"lr": 2e-4}
"""What is other with adapters. Source: Hu et al. 2021, "LoRA", appendix D, and Dettmers et al. 2023, "QLoRA", appendix B."""


def asked_of(options: Mapping[str, Any]) -> TextTask:
    """Return what a user asks of a pretrained model.

    Raises
    ------
    SpecError
        If an option is wrong, or does not belong to the task.
    """
    asked = TextTask.of(**options)
    if "max_new_tokens" in options and asked.task != "causal-lm":
        raise SpecError(f"max_new_tokens= is for models that continue texts, not for task={asked.task!r}", fix="leave it out")
    return asked


@dataclass(frozen=True)
class TaskData:
    """Checked arrays, ``inputs`` with one row for each example, and the names of the classes where there are any."""

    arrays: Mapping[str, np.ndarray]
    labels: tuple[str, ...] = ()


def parse(task: str, data: Any, known: Sequence[str] = ()) -> TaskData:
    """Read the data of a task in any of the forms that users have it in.

    Parameters
    ----------
    known : sequence of str
        The classes that the model knows already; where they are the data's, their order stays.

    Raises
    ------
    DataError
        If there is no row, or one does not hold what the task needs.
    """
    return _PARSERS[task](data, known)


def _classes(data: Any, known: Sequence[str]) -> TaskData:
    rows = parse_texts(data, known)
    return TaskData({"inputs": rows.texts, "targets": rows.codes}, rows.labels)


_TAGS = "give (words, tags), a dict, data frame or Hugging Face dataset with lists in the columns 'tokens' and 'tags'"


def _tags(data: Any, known: Sequence[str]) -> TaskData:
    """Join the words of each row by spaces: in service texts come whole, so they are learned whole."""
    named = columns_of(data, (("tokens", "words"), ("tags", "ner_tags", "pos_tags", "labels")), _TAGS)
    words, tags = rows_of(named[0].values, "words"), rows_of(named[1].values, "tags")
    if len(words) != len(tags):
        raise DataError(f"there are {len(words)} rows of words and {len(tags)} of tags", fix="give one list of tags for each")
    for place, (row, row_tags) in enumerate(zip(words, tags, strict=True)):
        _check_tagged(place, row, row_tags)
    flat = list(itertools.chain.from_iterable(tags))
    codes, labels = class_codes(flat, named[1].names or agreeing(known, flat))
    places = [_places(row) for row in words]
    arrays = {
        "inputs": texts.object_array([" ".join(row) for row in words]),
        "words": np.array([len(row) for row in words], dtype=np.int64),
        "places": np.concatenate(places),
        "targets": codes,
    }
    return TaskData(arrays, labels)


def _check_tagged(place: int, words: Sequence[Any], tags: Sequence[Any]) -> None:
    if len(words) != len(tags):
        raise DataError(f"row {place} has {len(words)} words and {len(tags)} tags", fix="give one tag for each word")
    if not words:
        raise DataError(f"row {place} has no words", fix="drop it before training")
    for number, word in enumerate(words):
        if not isinstance(word, str) or texts.first_bad(np.array([word], dtype=object)) is not None or not word.strip():
            raise DataError(f"word {number} of row {place} is {repr(word)[:40]}", fix="give words of at least one character")


def _places(words: Sequence[str]) -> np.ndarray:
    """Return where each word begins and ends in the joined text, int64[words, 2]."""
    ends = np.cumsum([len(word) + 1 for word in words], dtype=np.int64) - 1
    return np.stack((ends - [len(word) for word in words], ends), axis=1)


_ANSWERS = "give (contexts, questions, answers), or columns of these names as in SQuAD, each answer with text and answer_start"


def _answers(data: Any, known: Sequence[str]) -> TaskData:
    named = columns_of(data, (("context", "contexts"), ("question", "questions"), ("answers", "answer")), _ANSWERS)
    contexts, questions = (
        text_column(column.values, what) for column, what in zip(named, ("context", "question"), strict=False)
    )
    given = list(named[2].values)
    if not len(contexts) == len(questions) == len(given):
        sizes = f"{len(contexts)} contexts, {len(questions)} questions and {len(given)} answers"
        raise DataError(f"there are {sizes}", fix="give one of each in every row")
    found = [_answer(place, row, contexts[place]) for place, row in enumerate(given)]
    flat = list(itertools.chain.from_iterable(found))
    if not flat:
        raise DataError("no question has an answer", fix="give at least one")
    arrays = {
        "inputs": questions,
        "contexts": contexts,
        "answers": np.array([len(row) for row in found], dtype=np.int64),
        "targets": texts.object_array([text for text, _ in flat]),
        "starts": np.array([start for _, start in flat], dtype=np.int64),
    }
    return TaskData(arrays)


def _answer(place: int, given: Any, context: str) -> list[tuple[str, int]]:
    """Return the answers to one question and where they begin; none where the context does not say it."""
    if isinstance(given, str):
        given = {"text": [given], "answer_start": [context.find(given)]}
    elif isinstance(given, list | tuple) and all(isinstance(answer, Mapping) for answer in given):
        given = {key: [answer.get(key) for answer in given] for key in ("text", "answer_start")}
    if not isinstance(given, Mapping) or not {"text", "answer_start"} <= set(given):
        raise DataError(f"the answers of row {place} are {repr(given)[:60]}", fix=_ANSWERS)
    pairs = list(zip(given["text"], given["answer_start"], strict=False))
    if len(given["text"]) != len(given["answer_start"]):
        raise DataError(f"row {place} has {len(given['text'])} texts and {len(given['answer_start'])} starts", fix=_ANSWERS)
    for text, start in pairs:
        if not isinstance(text, str) or not text or not _lies_at(context, text, start):
            raise DataError(
                f"the answer {str(text)[:40]!r} of row {place} does not lie at {start} of its context",
                fix="answer_start counts characters of the context from 0",
            )
    return [(text, int(start)) for text, start in pairs]


def _lies_at(context: str, text: str, start: Any) -> bool:
    return bool(isinstance(start, int | np.integer) and int(start) >= 0 and context[start : start + len(text)] == text)


_TEXTS = "give a list of texts, or a dict, data frame or Hugging Face dataset with the column 'text'"


def _texts(data: Any, known: Sequence[str]) -> TaskData:
    is_column = hasattr(data, "__array__") and not hasattr(data, "columns") and not hasattr(data, "column_names")
    is_list = isinstance(data, list | tuple) and not (data and isinstance(data[0], Mapping))
    if is_column or is_list or isinstance(data, str):
        return TaskData({"inputs": text_column(data)})
    return TaskData({"inputs": text_column(columns_of(data, (("text", "texts", "inputs", "content"),), _TEXTS)[0].values)})


_PAIRS = "give (texts, texts that belong to them), or columns 'anchor' and 'positive'"
_PAIR_NAMES = (
    ("anchor", "query", "question", "sentence1", "inputs"),
    ("positive", "answer", "passage", "sentence2", "targets"),
)


def _pairs(data: Any, known: Sequence[str]) -> TaskData:
    if isinstance(data, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in data):
        data = tuple(zip(*data, strict=True)) or None
    named = columns_of(data, _PAIR_NAMES, _PAIRS)
    first, second = text_column(named[0].values, "anchor"), text_column(named[1].values, "positive")
    if len(first) != len(second):
        raise DataError(f"there are {len(first)} anchors and {len(second)} positives", fix="give one for each")
    if len(set(second.tolist())) < 2:
        raise DataError("all positives are the same text", fix="give pairs: other rows are what a text is told from")
    return TaskData({"inputs": first, "positives": second})


_PARSERS: Mapping[str, Callable[[Any, Sequence[str]], TaskData]] = {
    "text-classification": _classes,
    "token-classification": _tags,
    "question-answering": _answers,
    "causal-lm": _texts,
    "embeddings": _pairs,
}
