"""Rows of words with a tag each: every token of a word is learned, the first one of each is measured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from cloudai.artifacts.text_models import filled
from cloudai.artifacts.text_taggers import OUTSIDE, Tagger
from cloudai.training.tasks.measures import entity_f1
from cloudai.training.tasks.rows import TokenRows, placed, summed_loss

__all__ = ["TagRows"]

_UNCOUNTED = -100


class TagRows(TokenRows):
    """Texts whose words have tags.

    Parameters
    ----------
    data : mapping of str to array
        ``inputs``, how many ``words`` each has, their ``places`` in the text, and the numbers of their tags, ``targets``.
    """

    def __init__(self, model: Tagger, data: Mapping[str, np.ndarray]) -> None:
        self._model = model
        tagged = model.tagged(data["inputs"].tolist())
        self._tokens = [row.ids for row in tagged]
        ends = np.cumsum(data["words"])[:-1]
        places, self._wanted = np.split(data["places"], ends), np.split(data["targets"], ends)
        words = [_words_of(np.array(row.offsets).reshape(-1, 2), place) for row, place in zip(tagged, places, strict=True)]
        self._first = [_first_tokens(row, len(wanted)) for row, wanted in zip(words, self._wanted, strict=True)]
        inside = _inside(model.labels)
        self._targets = [_targets(row, wanted, inside) for row, wanted in zip(words, self._wanted, strict=True)]
        super().__init__([len(tokens) for tokens in self._tokens])

    def weight(self, rows: torch.Tensor) -> float:
        """Return how many tokens count; at least one, for a sum of none."""
        return max(1.0, float(sum(np.sum(self._targets[row] != _UNCOUNTED) for row in rows.tolist())))

    def loss(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of all tokens of words."""
        return self._loss(self._scores(module, rows), rows)

    def measure(self, module: torch.nn.Module, rows: torch.Tensor) -> dict[str, float]:
        """Return the mean loss of tokens, the share of words whose tag is right, and the F1 of entities."""
        loss, right, wanted, found = 0.0, 0, [], []
        for part in self.parts(rows):
            scores = self._scores(module, part)
            loss += float(self._loss(scores, part))
            for row, codes in zip(part.tolist(), scores.argmax(dim=-1).cpu().numpy(), strict=True):
                tags = [self._tag(codes, first) for first in self._first[row]]
                wanted.append([self._model.labels[code] for code in self._wanted[row]])
                found.append(tags)
                right += sum(tag == other for tag, other in zip(tags, wanted[-1], strict=True))
        return {
            "val_loss": loss / self.weight(rows),
            "val_accuracy": right / sum(map(len, wanted)),
            "val_f1": entity_f1(wanted, found),
        }

    def _tag(self, codes: np.ndarray, first: int) -> str:
        """Return the tag of a word; outside where it was cut off."""
        return self._model.labels[codes[first]] if first >= 0 else OUTSIDE

    def _scores(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = module(*placed(module, *self._model.padded([self._tokens[row] for row in rows.tolist()])))
        return scores.float()

    def _loss(self, scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        targets = filled([self._targets[row].tolist() for row in rows.tolist()], _UNCOUNTED)
        return summed_loss(scores.flatten(0, 1), targets.flatten())


def _words_of(offsets: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the word of each token, by its last character; -1 for tokens of none."""
    last = offsets[:, 1] - 1  # the first one may be the space before a word
    word = np.searchsorted(places[:, 0], last, side="right") - 1
    held = (offsets[:, 1] > offsets[:, 0]) & (word >= 0) & (last < places[np.maximum(word, 0), 1])
    return np.where(held, word, -1)


def _first_tokens(words: np.ndarray, count: int) -> np.ndarray:
    """Return the first token of each word, int64[count]; -1 where it was cut off."""
    first = np.full(count, -1, dtype=np.int64)
    for token in range(len(words) - 1, -1, -1):
        if words[token] >= 0:
            first[words[token]] = token
    return first


def _inside(labels: tuple[str, ...]) -> np.ndarray:
    """Return for each tag that of a word's further tokens: what begins an entity goes on inside of it."""
    places = {label: code for code, label in enumerate(labels)}
    after = [f"I-{label[2:]}" if label[:2] in ("B-", "S-") else label for label in labels]
    return np.array([places.get(label, _UNCOUNTED) for label in after], dtype=np.int64)


def _targets(words: np.ndarray, wanted: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the tag that each token is to get, int64[tokens]; below zero for those that do not count."""
    codes = np.where(words >= 0, wanted[np.maximum(words, 0)], _UNCOUNTED)
    further = (words >= 0) & (words == np.concatenate(([-1], words[:-1])))
    return np.where(further, inside[np.maximum(codes, 0)], codes)
