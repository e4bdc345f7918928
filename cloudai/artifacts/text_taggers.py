"""Models that classify words: texts go in, the entities of each come out, as JSON with places in the text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cloudai import texts as packing
from cloudai.artifacts.signature import TEXT, TensorSpec
from cloudai.artifacts.text_classifiers import Logits, class_names, labels_of
from cloudai.artifacts.text_models import TextModel, in_parts

__all__ = ["OUTSIDE", "Tagged", "Tagger", "chunks"]

OUTSIDE = "O"
"""The tag of a word that belongs to no entity."""


@dataclass(frozen=True)
class Tagged:
    """The tokens of a text, and where each lies in it.

    Attributes
    ----------
    ids : list of int
        With the tokenizer's special ones.
    offsets : list of (int, int)
        The characters of each token; an empty range for special ones.
    words : list of int or None
        The word of each token, as the tokenizer splits them.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    words: list[int | None]


class Tagger(TextModel):
    """A model that gives each token one of several tags."""

    task = "token-classification"
    auto = "AutoModelForTokenClassification"
    able = "classify tokens"

    @classmethod
    def options(cls, classes: Sequence[str]) -> dict[str, Any]:
        """Return the options of a config that name its tags."""
        return class_names(classes)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the tags, in the order of the scores."""
        return labels_of(self.model.config)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The entities of each text, as a JSON list."""
        return (TensorSpec("entities", TEXT, (-1,)),)

    def trainable(self) -> torch.nn.Module:
        """Return the model as a function of tokens and their mask."""
        return Logits(self.model)

    def tagged(self, texts: Sequence[str]) -> list[Tagged]:
        """Return the tokens of each text with their places, cut off at what the model takes."""
        if not len(texts):
            return []
        limit = self.tokenizer.model_max_length
        found = self.tokenizer(list(texts), truncation=True, max_length=limit, padding=False, return_offsets_mapping=True)
        rows = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return [
            Tagged(ids, offsets, found.word_ids(place)) if ids else Tagged([self.stand_in], [(0, 0)], [None])
            for place, (ids, offsets) in enumerate(rows)
        ]

    def answers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the entities of each text, as a JSON list of objects with label, text, start, end and score."""
        texts = inputs["text"].tolist()
        found: list[str] = []
        for part in in_parts(list(zip(texts, self.tagged(texts), strict=True))):
            with torch.inference_mode():
                logits = Logits(self.model)(*self.padded([tagged.ids for _, tagged in part]))
            scores, codes = (best.numpy() for best in logits.float().softmax(dim=-1).max(dim=-1))
            found += [self._entities(text, row, *best) for (text, row), *best in zip(part, codes, scores, strict=True)]
        return {"entities": packing.object_array(found)}

    def _entities(self, text: str, tagged: Tagged, codes: np.ndarray, scores: np.ndarray) -> str:
        """Join the words of each entity; the first token of a word speaks for it."""
        words = _words(tagged)
        tags = [self.labels[codes[first]] for first, _ in words]
        entities = []
        for label, begin, end in chunks(tags):
            start, stop = tagged.offsets[words[begin][0]][0], tagged.offsets[words[end - 1][1]][1]
            start += len(text[start:stop]) - len(text[start:stop].lstrip())  # some tokenizers count the space before a word
            score = float(np.mean([scores[first] for first, _ in words[begin:end]]))
            entity = {"label": label, "text": text[start:stop], "start": start, "end": stop, "score": round(score, 4)}
            entities.append(entity)
        return json.dumps(entities, ensure_ascii=False)


def _words(tagged: Tagged) -> list[tuple[int, int]]:
    """Return the first and the last token of each word."""
    words: dict[int, tuple[int, int]] = {}
    for place, word in enumerate(tagged.words):
        if word is not None and tagged.offsets[place][1] > tagged.offsets[place][0]:
            words[word] = (words.get(word, (place, place))[0], place)
    return list(words.values())


def chunks(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the entities that tags describe: the label of each, its first word, and the word after its last.

    Tags are ``B-X`` and ``I-X``, also ``E-X`` and ``S-X``, and ``O`` for what is none; begun and ended as in conlleval.
    A tag without a prefix is an entity as long as it is repeated.

    Source: ``startOfChunk`` and ``endOfChunk`` of conlleval.pl, https://www.clips.uantwerpen.be/conll2000/chunking/

    Examples
    --------
    >>> chunks(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [('PER', 0, 2), ('LOC', 3, 4), ('LOC', 4, 5)]
    """
    found: list[tuple[str, int, int]] = []
    before, begin = (OUTSIDE, ""), 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, label = _split(tag)
        goes_on = label == before[1] and prefix not in ("B", "S") and before[0] not in ("E", "S")
        if before[1] and not goes_on:
            found.append((before[1], begin, place))
        if label and not (before[1] and goes_on):
            begin = place
        before = (prefix, label)
    return found


def _split(tag: str) -> tuple[str, str]:
    """Return prefix and label of a tag; no label of what is no entity."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, label = tag.partition("-")
    return (prefix, label) if dash and prefix in ("B", "I", "E", "S") else ("I", tag)
