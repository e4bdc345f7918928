"""What runs a model in service: ONNX Runtime where that answers the same, which needs no torch in the process."""

from __future__ import annotations

import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from cloudai.artifacts.model import Model
from cloudai.artifacts.servable import Servable, needed
from cloudai.errors import CloudAIError, SpecError
from cloudai.files import private_folder
from cloudai.specs.serving import Runtime

__all__ = ["check_runtime", "loaded"]

_TOLERANCE = 1e-4
"""How far the answers of a converted model may be from its own, as a share of the largest value: what rounding does."""
_logger = logging.getLogger(__name__)


def check_runtime(kind: str, runtime: Runtime) -> None:
    """Raise `SpecError` if models of this kind cannot be run by this runtime."""
    if runtime not in get_args(Runtime):
        raise SpecError(f"there is no runtime {runtime!r}", fix=f"use one of: {', '.join(get_args(Runtime))}")
    if runtime == "torch" and kind == "onnx":
        raise SpecError("an ONNX model is not run by torch", fix='leave runtime="auto"')
    if runtime == "onnx" and kind == "transformers":
        raise SpecError("models on texts are not run by ONNX Runtime", fix='leave runtime="auto"')


def loaded(model: Model, runtime: Runtime, cache: Path) -> Servable:
    """Load a model for service.

    Parameters
    ----------
    runtime : str
        ``"torch"`` runs torch modules as they are. ``"onnx"`` converts them, once: the file is kept in `cache` under the
        model's digest. ``"auto"`` does so where it can and where the converted model answers the same on the model's example
        and on random rows; else it falls back to torch and logs why.

    Raises
    ------
    SpecError
        If the runtime cannot run it.
    CloudAIError
        As `Model.servable`.
    """
    check_runtime(model.kind, runtime)
    if model.kind != "torch" or runtime == "torch":
        return model.servable()
    try:
        return _converted(model, cache)
    except CloudAIError as error:
        if runtime == "onnx":
            raise
        _logger.warning("%s %s is run by torch: %s", model.name, model.version, error.what)
        return model.servable()


def _converted(model: Model, cache: Path) -> Servable:
    needed("onnx", "onnx")
    path = cache / f"{model.digest}-torch{version('torch')}-onnx{version('onnx')}.onnx"
    if not path.exists():
        private_folder(cache)
        draft = path.with_suffix(f".{os.getpid()}.tmp")  # two servers may convert the same model at once
        try:
            model.export("onnx", path=draft, tolerance=_TOLERANCE)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        _logger.info("%s %s was converted to ONNX", model.name, model.version)
    from cloudai.artifacts.onnx_models import OnnxServable

    return OnnxServable(model.name, model.version, model.signature, path.read_bytes())
