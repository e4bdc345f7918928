"""Models on texts and their files: loaded from checked ones, written as ``save_pretrained`` writes them, and served."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from cloudai.artifacts import pretrained, trees
from cloudai.artifacts.signature import Signature
from cloudai.artifacts.text_classifiers import Classifier
from cloudai.artifacts.text_embedders import Embedder
from cloudai.artifacts.text_models import TextModel, quiet
from cloudai.artifacts.text_readers import Reader
from cloudai.artifacts.text_taggers import Tagger
from cloudai.artifacts.text_writers import Writer
from cloudai.errors import IntegrityError, SpecError

__all__ = ["KINDS", "TASK_FILE", "TextServable", "load_files", "load_folder", "pack", "written"]

KINDS: Mapping[str, type[TextModel]] = {kind.task: kind for kind in (Classifier, Tagger, Reader, Writer, Embedder)}
"""What runs a model, by its task."""
TASK_FILE = "task.json"
"""Says which task a model is for, and what else that has to know; a model without it classifies texts."""


class TextServable:
    """A model on texts behind its signature."""

    def __init__(self, name: str, version: str, signature: Signature, model: TextModel) -> None:
        self.name = name
        self.version = version
        self.signature = signature
        self.model = model
        self._lock = threading.Lock()

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer texts, one row for each."""
        with self._lock:  # a tokenizer keeps its padding and truncation in itself
            return self.model.answers(inputs)


def pack(model: TextModel, example: Mapping[str, np.ndarray]) -> tuple[dict[str, bytes], Signature]:
    """Return the files of a model, after proving that they give the same answers again.

    Parameters
    ----------
    example : mapping of str to array
        A few rows of its inputs.

    Raises
    ------
    SpecError
        If the model, loaded again from its files, answers differently.
    """
    model.model.eval().cpu()
    answers = model.answers(example)
    if not all(np.isfinite(array).all() for array in answers.values() if array.dtype.kind == "f"):
        raise SpecError("the model gives scores that are no numbers", fix="look for NaN in its weights")
    files = written(model)
    again = load_files(files).answers(example)
    if not all(np.array_equal(again[name], array) for name, array in answers.items()):
        raise SpecError("the model, saved and loaded, answers differently", fix="keep all of its state in its weights")
    files["example.safetensors"] = trees.dump(dict(example))
    return files, Signature(model.input_specs, model.outputs)


def written(model: TextModel) -> dict[str, bytes]:
    """Return the files that ``save_pretrained`` writes, the weights in one of them, and what says the task."""
    with tempfile.TemporaryDirectory(prefix="cloudai-text-") as name, quiet():
        model.model.save_pretrained(name, max_shard_size="1000GB")
        model.tokenizer.save_pretrained(name)
        files = {path.name: path.read_bytes() for path in pretrained.taken_files(Path(name))}
    if "tokenizer.json" not in files:
        raise SpecError("the tokenizer cannot be written as tokenizer.json", fix="use the fast variant of the tokenizer")
    if model.task != Classifier.task:
        files[TASK_FILE] = json.dumps({"task": model.task, **model.facts}, sort_keys=True).encode()
    return files


def load_files(files: Mapping[str, bytes]) -> TextModel:
    """Load a model from the bytes of its files.

    Raises
    ------
    CloudAIError
        As `load_folder`.
    """
    kind, facts = _task(files.get(TASK_FILE))
    with tempfile.TemporaryDirectory(prefix="cloudai-text-") as name:
        for file, content in files.items():
            if pretrained.is_taken(file):
                (Path(name) / file).write_bytes(content)
        return load_folder(Path(name), kind, facts=facts)


def _task(content: bytes | None) -> tuple[type[TextModel], dict[str, Any]]:
    if content is None:
        return Classifier, {}
    facts = json.loads(content)
    task = facts.pop("task", "") if isinstance(facts, dict) else facts
    if not isinstance(task, str) or task not in KINDS:
        raise IntegrityError(f"the model is for the unknown task {str(task)[:40]!r}", fix="update cloudai")
    return KINDS[task], facts


def load_folder(
    folder: Path,
    kind: type[TextModel] = Classifier,
    *,
    classes: Sequence[str] | None = None,
    draw: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> TextModel:
    """Load a model from a folder, which is checked first.

    Parameters
    ----------
    kind : type
        What it is to do.
    classes : sequence of str, optional
        The classes to be learned, none where the task has none: the model gets a new last layer where its own is another.
        Without them the model must be able to do its task as it is.
    draw : bool
        Whether the folder has no weights: they are drawn by torch's generator.
    facts : mapping, optional
        What the task has to know beside the model.

    Raises
    ------
    NotFoundError, IntegrityError, SpecError
        As `cloudai.artifacts.pretrained.check_folder`, and if a part cannot be read.
    """
    pretrained.check_folder(folder, weights=not draw, task=kind.task)
    with tempfile.TemporaryDirectory(prefix="cloudai-text-") as name, quiet():
        for path in pretrained.taken_files(folder):  # what else lies there is not to be found by anybody
            (Path(name) / path.name).symlink_to(path.resolve())
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
            model, missing = _drawn(name, kind, classes or ()) if draw else _loaded(name, kind, classes)
        except Exception as error:  # what a damaged folder makes transformers and safetensors raise has no class in common
            first = str(error).strip().split("\n")[0][:300]
            what = f"the pretrained model in {folder} cannot be loaded: {first}"
            raise IntegrityError(what, fix="save it again with the installed transformers") from error
    if classes is None:
        _check_learned(model, kind, missing, folder)
    return kind(model.eval(), tokenizer, dict(facts or {}), frozenset(missing))


def _check_learned(model: Any, kind: type[TextModel], missing: set[str], folder: Path) -> None:
    """Refuse a model without weights that its task needs; others that it lacks are zero, and not drawn anew each time."""
    needed = {name for name in missing if not name.startswith(kind.unneeded)}
    if needed:
        raise SpecError(
            f"the model in {folder} has not learned to {kind.able}: it lacks {min(needed)}",
            fix=f"train it: cloudai.train(folder, data, task={kind.task!r})",
        )
    for name in missing:
        model.get_parameter(name).data.zero_()


def _loaded(folder: str, kind: type[TextModel], classes: Sequence[str] | None) -> tuple[Any, set[str]]:
    model, info = getattr(transformers, kind.auto).from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=classes is not None,
        **({} if classes is None else kind.options(classes)),
    )
    return model, {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}


def _drawn(folder: str, kind: type[TextModel], classes: Sequence[str]) -> tuple[Any, set[str]]:
    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **kind.options(classes)
    )
    return getattr(transformers, kind.auto).from_config(config).float(), set()
