"""Models that classify texts: texts go in, the name of a class and the scores of all classes come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from cloudai import texts as packing
from cloudai.artifacts.signature import TEXT, Signature, TensorSpec
from cloudai.artifacts.text_models import TextModel, in_parts
from cloudai.errors import SpecError

__all__ = ["Classifier", "Logits", "Scores", "check_classifies", "class_names", "graph", "labels_of"]


class Classifier(TextModel):
    """A model that gives each text one of several classes."""

    task = "text-classification"
    auto = "AutoModelForSequenceClassification"
    able = "classify texts"

    @classmethod
    def options(cls, classes: Sequence[str]) -> dict[str, Any]:
        """Return the options of a config that name its classes."""
        return {**class_names(classes), "problem_type": "single_label_classification"}

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the scores."""
        return labels_of(self.model.config)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The class of each text, and the scores of all classes."""
        return TensorSpec("label", TEXT, (-1,)), TensorSpec("scores", "float32", (-1, len(self.labels)))

    def trainable(self) -> torch.nn.Module:
        """Return the model as a function of tokens and their mask."""
        return Logits(self.model)

    def answers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the class of each text, and the scores of all classes."""
        scores = self.scores(inputs["text"].tolist())
        return {"label": packing.object_array(self.labels)[scores.argmax(axis=1)], "scores": scores}

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of each class, float32[n, classes]."""
        with torch.inference_mode():
            found = [Scores(self.model)(*self.padded(part)).numpy() for part in in_parts(self.tokens(texts))]
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


def graph(classifier: Classifier, texts: Sequence[str]) -> tuple[torch.nn.Module, Signature, dict[str, np.ndarray]]:
    """Return what `cloudai.artifacts.export.Exportable` is made of: from tokens and their mask to scores."""
    ids, mask = classifier.padded(classifier.tokens(texts))
    inputs = tuple(TensorSpec(name, "int64", (-1, -1)) for name in ("input_ids", "attention_mask"))
    signature = Signature(inputs, (TensorSpec("scores", "float32", (-1, len(classifier.labels))),))
    return Scores(classifier.model).eval(), signature, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}


def class_names(classes: Sequence[str]) -> dict[str, Any]:
    """Return the options of a config that name classes, of texts or of tokens."""
    return {
        "num_labels": len(classes),
        "id2label": dict(enumerate(classes)),
        "label2id": {label: place for place, label in enumerate(classes)},
    }


def labels_of(config: Any) -> tuple[str, ...]:
    """Return the classes that a config names."""
    return tuple(str(config.id2label[place]) for place in range(config.num_labels))


def check_classifies(model: Any) -> None:
    """Raise `SpecError` unless a model gives each text one of several classes."""
    if not isinstance(model, transformers.PreTrainedModel) or "ForSequenceClassification" not in type(model).__name__:
        raise SpecError(f"a {type(model).__name__} does not classify texts", fix="use AutoModelForSequenceClassification")
    home = type(model).__module__
    if not home.startswith("transformers."):
        raise SpecError(f"{home}.{type(model).__name__} is not in transformers itself", fix="use a class of transformers")
    if len(model.config.id2label or ()) < 2 or model.config.problem_type in ("regression", "multi_label_classification"):
        raise SpecError("the model gives no single class out of several", fix="use one with single_label_classification")
