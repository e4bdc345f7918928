"""The kinds of models, and how each is loaded; what runs one is imported only for models of its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudai.artifacts.servable import Servable, needed
from cloudai.errors import SpecError

if TYPE_CHECKING:
    from cloudai.artifacts.export import Exportable
    from cloudai.artifacts.model import Model

__all__ = ["KINDS", "exportable_of", "module_of", "servable_of"]

KINDS = ("torch", "onnx", "transformers")
"""A manifest without a kind is of the first."""


def servable_of(model: Model) -> Servable:
    """Load a model; see `cloudai.Model.servable`."""
    identity = (model.name, model.version, model.signature)
    if model.kind == "onnx":
        needed("onnx", "onnx")
        needed("onnxruntime", "onnx")
        from cloudai.artifacts.onnx_models import OnnxServable

        return OnnxServable(*identity, model.file("model.onnx"))
    if model.kind == "transformers":
        needed("transformers", "text")
        from cloudai.artifacts.text_files import TextServable, load_files

        return TextServable(*identity, load_files(model.files()))
    needed("torch", "train")
    from cloudai.artifacts.torch_models import TorchServable

    return TorchServable(*identity, module_of(model))


def module_of(model: Model) -> Any:
    """Load a model's torch module; see `cloudai.Model.module`."""
    if model.kind == "onnx":
        raise SpecError(f"{model.name} is an ONNX model, no torch module", fix="use predict(), or its file('model.onnx')")
    if model.kind == "transformers":
        needed("transformers", "text")
        from cloudai.artifacts.text_files import load_files

        return load_files(model.files()).model
    needed("torch", "train")
    from cloudai.artifacts import torch_models

    with model.code():
        return torch_models.build_module(model.file("module.safetensors")).eval()


def exportable_of(model: Model) -> Exportable:
    """Load a model as it is exported; see `cloudai.Model.export`."""
    from cloudai.artifacts.export import Exportable, of_module

    if model.kind != "transformers":
        return of_module(module_of(model), model.signature, model.example)
    from cloudai.artifacts.text_classifiers import Classifier, graph
    from cloudai.artifacts.text_files import load_files

    loaded = load_files(model.files())
    if not isinstance(loaded, Classifier):
        raise SpecError(
            f"models for {loaded.task} are not exported to ONNX, only those that classify texts",
            fix="deploy it as it is, or export model.module() with optimum",
        )
    return Exportable(*graph(loaded, model.example["text"].tolist()))
