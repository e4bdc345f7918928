"""Models of transformers that classify texts: loaded from checked files, written as such, and run.

A model is here together with its tokenizer: texts go in, the name of a class and the scores of all classes come out.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from cloudai import texts as packing
from cloudai.artifacts import pretrained, trees
from cloudai.artifacts.signature import TEXT, Signature, TensorSpec
from cloudai.errors import IntegrityError, SpecError

__all__ = [
    "Classifier",
    "Logits",
    "Scores",
    "TextServable",
    "check_classifies",
    "class_names",
    "graph",
    "load_classifier",
    "load_folder",
    "pack",
    "quiet",
]

_AT_ONCE = 32  # rows that are computed together: more would only take more memory
_LONGEST = 512  # tokens, where neither tokenizer nor model says how many they take


@dataclass(frozen=True)
class Classifier:
    """A model that classifies texts, with its tokenizer.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        Gives one score for each class.
    tokenizer : transformers.PreTrainedTokenizerFast
        Cuts texts off at its ``model_max_length``.
    """

    model: Any
    tokenizer: Any

    def __post_init__(self) -> None:
        if self.tokenizer.pad_token_id is None:
            raise SpecError("the tokenizer has no padding token", fix="set one: tokenizer.pad_token = tokenizer.eos_token")
        self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, _positions(self.model.config))
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the scores."""
        names = self.model.config.id2label
        return tuple(str(names[place]) for place in range(self.model.config.num_labels))

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, at least one, cut off at what the model takes."""
        limit = self.tokenizer.model_max_length
        encoded = self.tokenizer(list(texts), truncation=True, max_length=limit, padding=False, return_attention_mask=False)
        tokenizer = self.tokenizer
        stand_in = next(
            token
            for token in (tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
            if token is not None
        )
        return [row or [stand_in] for row in encoded["input_ids"]]

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens as int64[n, longest] and their mask; what is filled up depends on nothing but these rows."""
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), longest), dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[place, : len(row)] = 1
        return ids, mask

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of each class, float32[n, classes]."""
        rows = self.tokens(texts) if len(texts) else []
        parts = [rows[first : first + _AT_ONCE] for first in range(0, len(rows), _AT_ONCE)]
        with torch.inference_mode():
            found = [Scores(self.model)(*self.padded(part)).numpy() for part in parts]
        return np.concatenate(found) if found else np.zeros((0, len(self.labels)), np.float32)


class Logits(torch.nn.Module):
    """The model as a function of tokens and mask; what is trained."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return one number for each class."""
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits


class Scores(Logits):
    """The model as a function of tokens and mask; what is exported."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the probability of each class."""
        return super().forward(ids, mask).float().softmax(dim=-1)


def _positions(config: Any) -> int:
    """Return how many tokens a model takes."""
    most = getattr(config, "max_position_embeddings", None) or _LONGEST
    spoken_for = 2 if most % 8 == 2 else 0  # RoBERTa and its kin count positions from the padding token's number on
    return min(_LONGEST, int(most) - spoken_for)


class TextServable:
    """A classifier of texts behind its signature."""

    def __init__(self, name: str, version: str, signature: Signature, classifier: Classifier) -> None:
        self.name = name
        self.version = version
        self.signature = signature
        self._classifier = classifier
        self._labels = np.array(classifier.labels, dtype=object)
        self._lock = threading.Lock()

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the class of each text, and the scores of all classes."""
        with self._lock:  # a tokenizer keeps its padding and truncation in itself
            return _answers(self._classifier, self._labels, inputs["text"])


def _answers(classifier: Classifier, labels: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    scores = classifier.scores(rows.tolist())
    return {"label": labels[scores.argmax(axis=1)], "scores": scores}


def pack(classifier: Classifier, example: Sequence[str]) -> tuple[dict[str, bytes], Signature]:
    """Return the files of a classifier, after proving that they give the same scores again.

    Raises
    ------
    SpecError
        If the model, loaded again from its files, answers differently.
    """
    classifier.model.eval().cpu()
    scores = classifier.scores(example)
    if not np.isfinite(scores).all():
        raise SpecError("the model gives scores that are no numbers", fix="look for NaN in its weights")
    files = written(classifier)
    if not np.array_equal(load_classifier(files).scores(example), scores):
        raise SpecError("the model, saved and loaded, answers differently", fix="keep all of its state in its weights")
    files["example.safetensors"] = trees.dump({"text": packing.object_array(list(example))})
    outputs = (TensorSpec("label", TEXT, (-1,)), TensorSpec("scores", "float32", (-1, len(classifier.labels))))
    return files, Signature((TensorSpec("text", TEXT, (-1,)),), outputs)


def graph(classifier: Classifier, texts: Sequence[str]) -> tuple[torch.nn.Module, Signature, dict[str, np.ndarray]]:
    """Return what `cloudai.artifacts.export.Exportable` is made of: from tokens and their mask to scores."""
    ids, mask = classifier.padded(classifier.tokens(texts))
    inputs = tuple(TensorSpec(name, "int64", (-1, -1)) for name in ("input_ids", "attention_mask"))
    signature = Signature(inputs, (TensorSpec("scores", "float32", (-1, len(classifier.labels))),))
    return Scores(classifier.model).eval(), signature, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}


def written(classifier: Classifier) -> dict[str, bytes]:
    """Return the files that ``save_pretrained`` writes, the weights in one of them."""
    with tempfile.TemporaryDirectory(prefix="cloudai-text-") as name, quiet():
        classifier.model.save_pretrained(name, max_shard_size="1000GB")
        classifier.tokenizer.save_pretrained(name)
        files = {path.name: path.read_bytes() for path in pretrained.taken_files(Path(name))}
    if "tokenizer.json" not in files:
        raise SpecError("the tokenizer cannot be written as tokenizer.json", fix="use the fast variant of the tokenizer")
    return files


def load_classifier(files: Mapping[str, bytes]) -> Classifier:
    """Load a classifier from the bytes of its files.

    Raises
    ------
    CloudAIError
        As `load_folder`.
    """
    with tempfile.TemporaryDirectory(prefix="cloudai-text-") as name:
        for file, content in files.items():
            if any(Path(file).match(pattern) for pattern in pretrained.TAKEN) and file != "example.safetensors":
                (Path(name) / Path(file).name).write_bytes(content)
        return load_folder(Path(name))


def load_folder(folder: Path, *, classes: Sequence[str] | None = None, draw: bool = False) -> Classifier:
    """Load a classifier from a folder, which is checked first.

    Parameters
    ----------
    classes : sequence of str, optional
        The classes to be learned: the model gets a new last layer for them where its own is another. Without them the
        model must be able to classify as it is.
    draw : bool
        Whether the folder has no weights: they are drawn by torch's generator.

    Raises
    ------
    NotFoundError, IntegrityError, SpecError
        As `cloudai.artifacts.pretrained.check_folder`, and if a part cannot be read.
    """
    pretrained.check_folder(folder, weights=not draw)
    with tempfile.TemporaryDirectory(prefix="cloudai-text-") as name, quiet():
        for path in pretrained.taken_files(folder):  # what else lies there is not to be found by anybody
            (Path(name) / path.name).symlink_to(path.resolve())
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
            model, missing = _drawn(name, classes or ()) if draw else _model(name, classes)
        except Exception as error:  # what a damaged folder makes transformers and safetensors raise has no class in common
            first = str(error).strip().split("\n")[0][:300]
            what = f"the pretrained model in {folder} cannot be loaded: {first}"
            raise IntegrityError(what, fix="save it again with the installed transformers") from error
    if missing and classes is None:
        raise SpecError(
            f"the model in {folder} has not learned to classify: it lacks {min(missing)}",
            fix="train it: cloudai.train(folder, data=(texts, labels))",
        )
    return Classifier(model.eval(), tokenizer)


def _model(folder: str, classes: Sequence[str] | None) -> tuple[Any, set[str]]:
    options: dict[str, Any] = {} if classes is None else class_names(classes)
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=classes is not None,
        **options,
    )
    return model, set(info["missing_keys"])


def _drawn(folder: str, classes: Sequence[str]) -> tuple[Any, set[str]]:
    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **class_names(classes)
    )
    auto: Any = transformers.AutoModelForSequenceClassification
    return auto.from_config(config).float(), set()


def class_names(classes: Sequence[str]) -> dict[str, Any]:
    """Return the options of a config that name its classes."""
    return {
        "num_labels": len(classes),
        "id2label": dict(enumerate(classes)),
        "label2id": {label: place for place, label in enumerate(classes)},
        "problem_type": "single_label_classification",
    }


def check_classifies(model: Any) -> None:
    """Raise `SpecError` unless a model gives each text one of several classes."""
    if not isinstance(model, transformers.PreTrainedModel) or "ForSequenceClassification" not in type(model).__name__:
        raise SpecError(f"a {type(model).__name__} does not classify texts", fix="use AutoModelForSequenceClassification")
    home = type(model).__module__
    if not home.startswith("transformers."):
        raise SpecError(f"{home}.{type(model).__name__} is not in transformers itself", fix="use a class of transformers")
    if len(model.config.id2label or ()) < 2 or model.config.problem_type in ("regression", "multi_label_classification"):
        raise SpecError("the model gives no single class out of several", fix="use one with single_label_classification")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and telling what it found, while the context is open."""
    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
