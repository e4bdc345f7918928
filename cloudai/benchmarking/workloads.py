"""The frozen workloads: what exactly is computed, and a digest over all of it.

A workload never changes. What has to be another is a new version, ``name@2``, so that two figures under one name always
mean the same work.
"""

from __future__ import annotations

from typing import Any, Literal

from cloudai.artifacts.store import canonical_json, sha256
from cloudai.display import nearest
from cloudai.errors import NotFoundError
from cloudai.specs.training import Loop, Name
from cloudai.specs.validation import Spec

__all__ = ["WORKLOADS", "Workload", "find_workload"]


class Workload(Spec):
    """One piece of work, in every detail that its time depends on."""

    name: Name
    version: int
    task: Literal["spans", "classes", "embedding"]
    """Answers as spans of a text (question answering), classes of vectors, or a vector for a text."""
    act: Literal["train", "infer"]
    architecture: dict[str, int | float | str]
    """Of a transformer the fields of its ``BertConfig``; of the classifier the widths of its layers."""
    length: int
    """Tokens of a sequence; 1 for vectors."""
    features: int
    """Sequences of an epoch."""
    epochs: int
    batch_size: int
    """Sequences of an optimiser step, or of a pass."""
    optimizer: Literal["adamw"] = "adamw"
    lr: float = 0.0
    lr_schedule: Literal["constant", "linear"] = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    precision: Literal["float32", "auto"] = "float32"
    """``"auto"``: bfloat16 where the hardware is made for it. A figure says which it was."""

    @property
    def ref(self) -> str:
        """Its full name, such as ``"bert-large-squad@1"``."""
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        """The SHA-256 of all of it."""
        return sha256(canonical_json(self.model_dump(mode="json")))

    @property
    def sequences(self) -> int:
        """The sequences of the whole workload: those of all epochs."""
        return self.features * self.epochs

    def loop(self, *, epochs: int | None = None) -> Loop:
        """Return what the built-in loop is told."""
        return Loop.of(
            optimizer=self.optimizer,
            lr=self.lr or 1e-3,
            lr_schedule=self.lr_schedule,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            epochs=epochs or self.epochs,
            batch_size=self.batch_size,
            max_length=self.length if self.task == "spans" else None,
            precision=self.precision,
            validation=0.0,
        )


_BERT: dict[str, int | float | str] = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
_DROPOUT: dict[str, int | float | str] = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def _bert(layers: int, hidden: int, heads: int) -> dict[str, int | float | str]:
    shape: dict[str, int | float | str] = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
    }
    return {**_BERT, **_DROPOUT, **shape}


_SQUAD_FEATURES = 88_641
"""Of SQuAD v1.1's 87,599 training questions, at 384 tokens with a stride of 128: long paragraphs give more than one."""

_FINE_TUNING: dict[str, Any] = {"lr": 5e-5, "lr_schedule": "linear", "warmup": 0.1, "weight_decay": 0.01, "max_grad_norm": 1.0}
"""Devlin et al. 2019 (arXiv:1810.04805), section 4.2: 3 epochs, batches of 32, a rate of 5e-5; the rest as in their code."""

_ALL = (
    Workload(
        name="bert-large-squad",
        version=1,
        task="spans",
        act="train",
        architecture=_bert(layers=24, hidden=1024, heads=16),
        length=384,
        features=_SQUAD_FEATURES,
        epochs=3,
        batch_size=32,
        precision="auto",
        **_FINE_TUNING,
    ),
    Workload(
        name="bert-tiny-squad",
        version=1,
        task="spans",
        act="train",
        architecture=_bert(layers=2, hidden=128, heads=2),
        length=384,
        features=_SQUAD_FEATURES,
        epochs=3,
        batch_size=8,
        precision="auto",
        **_FINE_TUNING,
    ),
    Workload(
        name="minilm-l6-infer",
        version=1,
        task="embedding",
        act="infer",
        architecture=_bert(layers=6, hidden=384, heads=12),
        length=128,
        features=1_000_000,
        epochs=1,
        batch_size=32,
        precision="auto",
    ),
    Workload(
        name="digits-mlp-train",
        version=1,
        task="classes",
        act="train",
        architecture={"inputs": 64, "hidden": 128, "classes": 10},
        length=1,
        features=1797,
        epochs=10,
        batch_size=32,
        lr=1e-3,
    ),
)
WORKLOADS = {workload.ref: workload for workload in _ALL}
"""Every workload by its full name."""


def find_workload(name: str) -> Workload:
    """Return a workload by its name, the latest version where none is named.

    Raises
    ------
    NotFoundError
        If there is none.

    Examples
    --------
    >>> find_workload("bert-large-squad").ref
    'bert-large-squad@1'
    >>> find_workload("bert-large-squad@1").sequences
    265923
    """
    found = [workload for workload in _ALL if name in (workload.ref, workload.name)]
    if not found:
        raise NotFoundError(f"there is no workload {name!r}", fix=nearest(str(name), list(WORKLOADS)))
    return max(found, key=lambda workload: workload.version)
