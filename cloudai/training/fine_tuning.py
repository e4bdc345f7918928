"""The worker's part of training a pretrained model on texts: the same first weights in every attempt, and what comes out."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cloudai.artifacts import pretrained, text_files, text_sources, trees
from cloudai.artifacts.signature import Signature
from cloudai.artifacts.text_models import TextModel
from cloudai.errors import IntegrityError
from cloudai.specs.training import TrainSpec
from cloudai.training import randomness
from cloudai.training.examples import Examples
from cloudai.training.job import RunFiles
from cloudai.training.tasks.answers import AnswerRows
from cloudai.training.tasks.language import BlockRows
from cloudai.training.tasks.pairs import PairRows
from cloudai.training.tasks.rows import ClassRows
from cloudai.training.tasks.tags import TagRows
from cloudai.training.texts import class_codes

__all__ = ["FineTuning", "first_weights"]

_BASE = "base.json"
_EXAMPLE_ROWS = 8

_ROWS: Mapping[str, Callable[[Any, Mapping[str, np.ndarray]], Examples]] = {
    "text-classification": ClassRows,
    "token-classification": TagRows,
    "question-answering": AnswerRows,
    "causal-lm": BlockRows,
    "embeddings": PairRows,
}


class FineTuning:
    """A pretrained model on its way from the first weights to the files of the model that comes out.

    Parameters
    ----------
    files : RunFiles
        The run's.
    data : mapping of str to array
        As `cloudai.training.tasks.parsing.parse` made it; of a file that the worker read, classes as they stand there.
    rank : int
        Which worker this is.

    Attributes
    ----------
    module : torch.nn.Module
        What is trained.
    examples : Examples
        What it is trained on.
    origin : dict of str to str
        Where the first weights come from.
    labels : tuple of str
        The names of the classes, where there are any.
    """

    def __init__(self, files: RunFiles, data: Mapping[str, np.ndarray], rank: int) -> None:
        work = files.spec.work
        data, self.labels = _with_codes(data, work.labels)
        self._data = data
        self._model, base = first_weights(files, self.labels, rank, _facts(files.spec, data))
        self._lora = work.text.lora is not None
        self.module = self._model.trainable()
        if self._lora:
            from cloudai.training.adapters import keep_only_trained

            keep_only_trained(self.module)
        self.examples = _ROWS[work.text.task](self._model, data)
        self.origin = {"module": base, "source": Path(work.pretrained).name}

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The model's inputs, as the training data has them."""
        return {name: self._data[array] for name, array in self._model.inputs.items()}

    def pack(self) -> tuple[dict[str, bytes], Signature]:
        """Return the files of the trained model.

        Raises
        ------
        SpecError
            As `cloudai.artifacts.text_files.pack`.
        """
        self._model.model.eval().cpu()
        model, beside = self._model, {}
        if self._lora:
            from cloudai.training import adapters

            beside = adapters.adapter_files(model)
            model = adapters.merged(model)
        model.model.requires_grad_(True)
        files, signature = text_files.pack(model, {name: array[:_EXAMPLE_ROWS] for name, array in self.inputs.items()})
        return {**files, **beside}, signature


def _with_codes(data: Mapping[str, np.ndarray], labels: Sequence[str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return data with classes as numbers, and their names; a file that a worker reads may have texts."""
    if "targets" not in data or "answers" in data:
        return dict(data), ()
    codes, names = class_codes(data["targets"], labels)
    return {**data, "targets": codes}, names


def _facts(spec: TrainSpec, data: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return what the model has to know beside its weights."""
    if spec.work.text.task == "causal-lm":
        return {"max_new_tokens": spec.work.text.max_new_tokens}
    if spec.work.text.task == "question-answering":
        return {"unanswerable": bool((data["answers"] == 0).any())}
    return {}


def first_weights(
    files: RunFiles, labels: Sequence[str], rank: int, facts: Mapping[str, Any] | None = None
) -> tuple[TextModel, str]:
    """Load what training begins with; in every attempt the same.

    Returns
    -------
    model : TextModel
        With a last layer for the classes, and with adapters where the run asks for them.
    digest : str
        Of the files that it was loaded from.

    Raises
    ------
    IntegrityError
        If the files are not those that the first attempt began with.
    CloudAIError
        As `cloudai.artifacts.text_files.load_folder`.
    """
    spec = files.spec
    with _folder(files) as folder:
        digest = _digest(folder)
        recorded = files.folder.read_json(_BASE)
        if recorded is None and rank == 0:
            files.folder.write_json(_BASE, {"sha256": digest})
        elif recorded is not None and recorded["sha256"] != digest:
            fix = "train anew; leave the folder alone while a run may come back"
            raise IntegrityError(f"{spec.work.pretrained!r} was changed since this run began", fix=fix)
        randomness.seed_all(spec.seed, 0)  # what is new is drawn; of several workers the first one's counts
        draw = bool(spec.work.module) and not any(folder.glob("*.safetensors"))  # a config comes without weights
        kind = text_files.KINDS[spec.work.text.task]
        model = _prepared(text_files.load_folder(folder, kind, classes=labels, draw=draw, facts=facts), spec)
    randomness.seed_all(spec.seed, rank)
    return model, digest


def _prepared(model: TextModel, spec: TrainSpec) -> TextModel:
    """Return the model as it is trained: texts cut off, less kept for the backward pass, adapters."""
    tokenizer = model.tokenizer
    tokenizer.model_max_length = min(tokenizer.model_max_length, spec.loop.max_length or model.longest)
    model = replace(model)  # checks what it was checked for again, of the new length
    if spec.work.text.gradient_checkpointing:
        model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if spec.work.text.lora is not None:
        from cloudai.training.adapters import adapted

        model = adapted(model, spec.work.text.lora)
    return model


@contextmanager
def _folder(files: RunFiles) -> Iterator[Path]:
    """Yield the folder with the first weights, or with a config where there are none."""
    spec: TrainSpec = files.spec
    if not spec.work.module:
        yield text_sources.folder_of(spec.work.pretrained)
        return
    tree = trees.load(files.store.read_verified(spec.work.module, Path(spec.work.module).name.partition(".")[0]))
    with tempfile.TemporaryDirectory(prefix="cloudai-text-") as name:
        for file, content in tree.items():
            if Path(file).name == file:
                (Path(name) / file).write_bytes(np.asarray(content).tobytes())
        yield Path(name)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in pretrained.taken_files(folder):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
