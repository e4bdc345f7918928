"""How good answers are: the measures that each field uses."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from cloudai.artifacts.text_taggers import chunks

__all__ = ["entity_f1", "exact_match", "macro_f1", "token_f1"]


def macro_f1(wanted: np.ndarray, found: np.ndarray) -> float:
    """Return the mean over all classes that occur of the harmonic mean of precision and recall.

    Examples
    --------
    >>> round(macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1])), 4)
    0.6667
    """
    classes = np.union1d(wanted, found)
    hits = np.array([np.sum((wanted == code) & (found == code)) for code in classes])
    sizes = np.array([np.sum(wanted == code) + np.sum(found == code) for code in classes])
    return float(np.mean(2 * hits / sizes))


def entity_f1(wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> float:
    """Return the F1 of entities: one is found where its label, its first and its last word are right.

    1 where there are none and none were found. Source: Tjong Kim Sang & De Meulder 2003, "Introduction to the CoNLL-2003
    Shared Task", https://aclanthology.org/W03-0419/

    Examples
    --------
    >>> entity_f1([["B-PER", "I-PER", "O"]], [["B-PER", "O", "O"]]), entity_f1([["O", "B-LOC"]], [["O", "B-LOC"]])
    (0.0, 1.0)
    """
    there = Counter((row, *chunk) for row, tags in enumerate(wanted) for chunk in chunks(tags))
    named = Counter((row, *chunk) for row, tags in enumerate(found) for chunk in chunks(tags))
    total = there.total() + named.total()
    return 2 * (there & named).total() / total if total else 1.0


def exact_match(found: str, wanted: Sequence[str]) -> float:
    """Return 1 where an answer is one of those wanted, but for case, punctuation and articles; else 0.

    Source: Rajpurkar et al. 2016, ``evaluate-v1.1.py`` of SQuAD, https://rajpurkar.github.io/SQuAD-explorer/

    Examples
    --------
    >>> exact_match("the Eiffel Tower", ["Eiffel tower!"])
    1.0
    """
    return float(any(_normal(found) == _normal(answer) for answer in wanted or ("",)))


def token_f1(found: str, wanted: Sequence[str]) -> float:
    """Return the F1 of the words of an answer, against that of those wanted which fits best; source as `exact_match`.

    Examples
    --------
    >>> token_f1("in the Eiffel Tower", ["the Eiffel Tower"])
    0.8
    """
    return max(_overlap(_normal(found).split(), _normal(answer).split()) for answer in wanted or ("",))


def _overlap(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (Counter(found) & Counter(wanted)).total() / (len(found) + len(wanted))


def _normal(text: str) -> str:
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())
