"""Pretrained models on texts as work: what is checked in the process that calls, without transformers if that need not be."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloudai import texts
from cloudai.artifacts import pretrained, trees
from cloudai.errors import DataError, NotFoundError, SpecError
from cloudai.training.columns import columns_of, text_column

__all__ = ["LabelledTexts", "Pretrained", "agreeing", "class_codes", "is_pretrained", "parse_pretrained", "parse_texts"]

_TEXT_NAMES, _LABEL_NAMES = ("text", "texts", "inputs", "sentence"), ("label", "labels", "targets")
_FORMS = "give (texts, labels), a dict, data frame or Hugging Face dataset with 'text' and 'label'"


@dataclass(frozen=True)
class Pretrained:
    """Where the first weights come from.

    Attributes
    ----------
    source : str
        A folder, or a name on the Hugging Face hub; empty where `archive` holds the files.
    archive : bytes
        The files of objects that the user holds.
    labels : tuple of str
        The classes that the model knows already, where that can be seen without loading it.
    """

    source: str = ""
    archive: bytes = b""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelledTexts:
    """Checked texts, object[n], their classes as numbers, int64[n], and the classes' names."""

    texts: np.ndarray
    codes: np.ndarray
    labels: tuple[str, ...]


def is_pretrained(work: Any) -> bool:
    """Whether work is a pretrained model: a name, a folder, or objects of transformers with their tokenizer."""
    if isinstance(work, str | Path):
        return True
    return isinstance(work, tuple) or _is_a(work, "PreTrainedModel", "PreTrainedConfig", "PretrainedConfig")


def _is_a(thing: Any, *names: str) -> bool:
    """Whether a thing is an instance of a class of transformers, told without importing that."""
    return any(kind.__name__ in names and kind.__module__.startswith("transformers.") for kind in type(thing).__mro__)


def parse_pretrained(work: Any, task: str = "text-classification") -> Pretrained:
    """Check what can be checked of a pretrained model without loading it.

    Raises
    ------
    NotFoundError
        If there is no such folder, and it can be no name.
    IntegrityError
        If the weights are pickled, or code from beside the model would have to run.
    SpecError
        If it cannot do the task, or comes without its tokenizer.
    """
    if isinstance(work, str | Path):
        folder = Path(work).expanduser()
        if folder.is_dir():
            return Pretrained(str(folder.resolve()), labels=_known_labels(pretrained.check_folder(folder, task=task)))
        if isinstance(work, str) and pretrained.is_name(work):
            return Pretrained(work)
        raise NotFoundError(f"there is no folder {str(work)!r}", fix="give a folder that save_pretrained wrote, or a name")
    if not isinstance(work, tuple) or len(work) != 2 or not _is_a(work[1], "PreTrainedTokenizerBase"):
        raise SpecError("the model comes without its tokenizer", fix="give both: (model, tokenizer) or (config, tokenizer)")
    return _of_objects(*work, task)


def _of_objects(model: Any, tokenizer: Any, task: str) -> Pretrained:
    if not _is_a(model, "PreTrainedModel", "PreTrainedConfig", "PretrainedConfig"):
        raise SpecError(f"cannot train a {type(model).__name__} on texts", fix="give a model or a config of transformers")
    from cloudai.artifacts import text_sources

    has_weights = _is_a(model, "PreTrainedModel")
    if has_weights and not type(model).__module__.startswith("transformers."):
        raise SpecError(f"{type(model).__name__} is not in transformers itself", fix="train it as a module, with data=")
    with tempfile.TemporaryDirectory(prefix="cloudai-text-") as name:
        text_sources.in_folder(Path(name), model, tokenizer)
        config = pretrained.check_folder(Path(name), weights=has_weights, task=task)
        files = {path.name: path.read_bytes() for path in pretrained.taken_files(Path(name))}
    tree = {file: np.frombuffer(content, np.uint8) for file, content in files.items()}
    return Pretrained(archive=trees.dump(tree), labels=_known_labels(config))


def _known_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes that a config names; none where they only have numbers."""
    names = config.get("id2label")
    if not isinstance(names, dict):
        return ()
    ordered = tuple(str(names.get(str(place), "")) for place in range(len(names)))
    return () if any(name in ("", f"LABEL_{place}") for place, name in enumerate(ordered)) else ordered


def parse_texts(data: Any, known: Sequence[str] = ()) -> LabelledTexts:
    """Read texts and their labels in any of the forms that users have them in.

    Parameters
    ----------
    data
        ``(texts, labels)``, or a mapping, data frame or Hugging Face dataset with the columns ``text`` and ``label``.
    known : sequence of str
        The classes that the model knows already; where they are the data's, their order stays.

    Raises
    ------
    DataError
        If there is no row, a text is none, lengths differ, or there are not at least two classes.
    """
    given, labels = columns_of(data, (_TEXT_NAMES, _LABEL_NAMES), _FORMS)
    array = text_column(given.values)
    codes, found = class_codes(labels.values, labels.names or agreeing(known, labels.values))
    if len(array) != len(codes):
        raise DataError(f"there are {len(array)} texts and {len(codes)} labels", fix="give one label for each text")
    return LabelledTexts(array, codes, found)


def agreeing(known: Sequence[str], labels: Any) -> Sequence[str]:
    """Return the classes that a model knows; none where integer labels are not surely their numbers."""
    array = np.asarray(labels if hasattr(labels, "__array__") else list(labels))
    counts = array.dtype.kind not in "iu" or set(array.ravel().tolist()) == set(range(len(known)))
    return known if counts else ()


def class_codes(labels: Any, names: Sequence[str] = ()) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels as numbers from 0, int64[n], and the names of the classes in that order.

    Parameters
    ----------
    labels
        Texts, integers or booleans.
    names : sequence of str
        The order of the classes, where there is one: it holds if the labels are such names, or integers that count them.

    Raises
    ------
    DataError
        If they are neither, or there are not at least two classes.

    Examples
    --------
    >>> class_codes(["spam", "ham", "spam"])
    (array([1, 0, 1]), ('ham', 'spam'))
    >>> class_codes([0, 2, 0], ["low", "middle", "high"])
    (array([0, 2, 0]), ('low', 'middle', 'high'))
    """
    array = np.asarray(labels if hasattr(labels, "__array__") else list(labels))
    if array.ndim != 1 or not (array.dtype.kind in "biu" or (array.size and texts.is_text(array))):
        sample = repr(array.ravel()[0])[:40] if array.size else "nothing"
        raise DataError(f"the labels are {array.dtype}{list(array.shape)}, such as {sample}", fix="give texts or integers")
    numbers = array.dtype.kind in "iu"
    if numbers and names and array.min() >= 0 and array.max() < len(names):
        return array.astype(np.int64), tuple(names)
    values = array.tolist() if not numbers else [str(value) for value in array.tolist()]
    values = [str(value) for value in values]
    found = sorted(set(values), key=int if numbers else str)
    order = list(names) if len(names) > 1 and set(found) <= set(names) else found
    if len(order) < 2:
        raise DataError(f"there is one class only: {order[0]!r}" if order else "there are no labels", fix="give two or more")
    place = {name: code for code, name in enumerate(order)}
    return np.array([place[value] for value in values], dtype=np.int64), tuple(order)
