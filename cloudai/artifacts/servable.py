"""What every kind of model becomes before it can predict."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from cloudai.artifacts.signature import Signature
from cloudai.errors import MissingExtraError

__all__ = ["Servable", "needed"]


class Servable(Protocol):
    """A model in memory, ready to predict."""

    @property
    def name(self) -> str:
        """The model's name in URLs and metrics."""

    @property
    def version(self) -> str:
        """The model's version in URLs and metrics."""

    @property
    def signature(self) -> Signature:
        """What it takes and gives; the first axis of each array is the batch (-1)."""

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predict: all inputs of the signature in, all its outputs out, row for row.

        Called from several threads at once. The inputs fit the signature; a `RequestError` raised here says that
        their values cannot be taken and is the client's to mend, every other exception is the model's failure.
        """


def needed(module: str, extra: str) -> Any:
    """Import an optional package.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise MissingExtraError(f"this model needs {package}", fix=f'pip install "cloudai[{extra}]"') from None
