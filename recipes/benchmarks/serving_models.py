"""The models of the serving benchmark as ONNX files, with random weights: what a server costs does not depend on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import cloudai

__all__ = ["SHAPES", "Made", "make_models"]

SHAPES = {"mlp": (64,), "minilm": (32,), "resnet18": (3, 224, 224)}
"""One row of each model's input: numbers, tokens of a sentence, a picture."""
_WORDS = 30522


class MiniLM(nn.Module):
    """An encoder of the size of all-MiniLM-L6-v2: 6 layers, width 384, 12 heads, 22 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(_WORDS, 384), nn.Embedding(512, 384)
        layer = nn.TransformerEncoderLayer(384, 12, 1536, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        return nn.functional.normalize(self.layers(hidden).mean(1), dim=1)


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(before, after, 3, stride, 1), nn.Conv2d(after, after, 3, 1, 1)
        self.around = nn.Conv2d(before, after, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.two(torch.relu(self.one(x))) + self.around(x))


class ResNet18(nn.Module):
    """ResNet-18 with its normalisation folded into the convolutions, as exporters leave it."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(*(Block(before, after, after // before) for before, after in widths))
        self.last = nn.Linear(512, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.blocks(self.stem(x)).mean((2, 3)))


@dataclass(frozen=True)
class Made:
    """A model of the benchmark.

    Attributes
    ----------
    path : Path
        The ONNX file that all servers load.
    model : cloudai.Model
        The same for cloudai.
    row : array
        One row of input, as every request brings it.
    answer : array
        What every server should answer to it.
    """

    path: Path
    model: cloudai.Model
    row: np.ndarray
    answer: np.ndarray


def make_models(folder: Path, names: Mapping[str, tuple[int, ...]]) -> dict[str, Made]:
    """Make the models in `folder`, and keep them in cloudai's store."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    modules = {"mlp": _mlp, "minilm": MiniLM, "resnet18": ResNet18}
    made = {}
    for name, shape in names.items():
        rows = _rows(random, name, shape)
        path = folder / f"{name}.onnx"
        module = modules[name]().eval()
        cloudai.Model.from_torch(module, example={"input": rows}, name=f"{name}-torch").export(
            "onnx", path=path, tolerance=1e-2
        )
        model = cloudai.Model.from_onnx(path, example={"input": rows}, name=name)
        made[name] = Made(path, model, rows[:1], np.asarray(model.predict(rows[:1])))
    return made


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def _rows(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name == "minilm":
        return random.integers(0, _WORDS, (2, *shape))
    return random.normal(size=(2, *shape)).round(4).astype(np.float32)
