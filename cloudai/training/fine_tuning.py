"""The worker's part of training a classifier of texts: the same first weights in every attempt, and rows of tokens."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from cloudai.artifacts import pretrained, text_models, text_sources, trees
from cloudai.artifacts.text_models import Classifier
from cloudai.errors import DataError, IntegrityError
from cloudai.specs.training import TrainSpec
from cloudai.training import randomness
from cloudai.training.job import RunFiles
from cloudai.training.parts import longest_first

__all__ = ["TokenRows", "first_weights"]

_BASE = "base.json"


def first_weights(files: RunFiles, labels: Sequence[str], rank: int) -> tuple[Classifier, str]:
    """Load what training begins with; in every attempt the same.

    Returns
    -------
    classifier : Classifier
        With a last layer for the classes.
    digest : str
        Of the files that it was loaded from.

    Raises
    ------
    IntegrityError
        If the files are not those that the first attempt began with.
    CloudAIError
        As `cloudai.artifacts.text_models.load_folder`.
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
        randomness.seed_all(spec.seed, 0)  # the new layer is drawn; of several workers the first one's counts
        draw = bool(spec.work.module) and not any(folder.glob("*.safetensors"))  # a config comes without weights
        classifier = text_models.load_folder(folder, classes=labels, draw=draw)
    randomness.seed_all(spec.seed, rank)
    tokenizer = classifier.tokenizer
    tokenizer.model_max_length = min(tokenizer.model_max_length, spec.loop.max_length or tokenizer.model_max_length)
    return classifier, digest


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


class TokenRows:
    """Labelled texts as the loop sees them: tokenised once, padded part by part.

    Parameters
    ----------
    texts : array of str, shape (n,)
        Cut off at the tokenizer's ``model_max_length``.
    codes : int64[n]
        Their classes.
    """

    at_once = 64
    """How many rows are measured together."""

    def __init__(self, classifier: Classifier, texts: np.ndarray, codes: np.ndarray) -> None:
        if texts.dtype.kind != "O":
            raise DataError("the inputs are no texts", fix="give texts as data=, or train a module on numbers")
        self._classifier = classifier
        self._tokens = classifier.tokens(texts.tolist())
        self._codes = torch.from_numpy(codes)
        self.lengths = np.array([len(tokens) for tokens in self._tokens])

    def __len__(self) -> int:
        return len(self._tokens)

    def weight(self, rows: torch.Tensor) -> float:
        """Return how many texts there are."""
        return float(len(rows))

    def loss(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of some texts."""
        return self._summed(self._scores(module, rows), rows)

    def measure(self, module: torch.nn.Module, rows: torch.Tensor) -> dict[str, float]:
        """Return the mean loss, and the share of texts whose class is right."""
        ordered = longest_first(rows, self.lengths)
        scores = torch.cat([self._scores(module, part) for part in torch.split(ordered, self.at_once)])
        right = (scores.argmax(dim=1).cpu() == self._codes[ordered]).float().mean()
        return {"val_loss": float(self._summed(scores, ordered)) / self.weight(rows), "val_accuracy": float(right)}

    def _scores(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        device = next(module.parameters()).device
        tokens = self._classifier.padded([self._tokens[row] for row in rows.tolist()])
        scores: torch.Tensor = module(*(part.to(device) for part in tokens))
        return scores.float()

    def _summed(self, scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(scores, self._codes[rows].to(scores.device), reduction="sum")
