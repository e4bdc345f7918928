"""Torch modules as files without pickle, and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from cloudai.artifacts import architecture, trees
from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.capture.bundle import resolve
from cloudai.errors import IntegrityError, SpecError

__all__ = ["TorchServable", "build_module", "describe_module", "named", "pack", "run_module"]


def describe_module(module: torch.nn.Module, locate: Callable[[Any], str]) -> bytes:
    """Return a module's architecture and weights as one safetensors file.

    Parameters
    ----------
    locate : callable
        Says where a class or function is found again, as ``module:name``.
    """
    description, tensors = architecture.describe(module, locate)
    return trees.dump({"architecture": description, "tensors": tensors})


def build_module(data: bytes) -> torch.nn.Module:
    """Build the module of `describe_module` again, its classes taken from torch or from the bundle that is loaded.

    Raises
    ------
    IntegrityError
        If the bytes describe anything but a module.
    """
    tree = trees.load(data)
    if not isinstance(tree, dict) or set(tree) != {"architecture", "tensors"}:
        raise IntegrityError("this file holds no module", fix="restore it, or train the model again")
    return architecture.build(tree["architecture"], tree["tensors"], resolve)


def pack(module: torch.nn.Module, example: np.ndarray) -> tuple[dict[str, bytes], Signature]:
    """Return the files of a trained module, after proving that they give the same outputs again.

    Parameters
    ----------
    example : ndarray
        A few rows of inputs.

    Raises
    ------
    SpecError
        If the module, built again from its files, does not give the outputs that it gives now.
    """
    module = module.eval().cpu()
    outputs = run_module(module, {"input": example})
    files = {
        "module.safetensors": describe_module(module, named),
        "example.safetensors": trees.dump({"input": example}),
    }
    again = run_module(build_module(files["module.safetensors"]).eval(), {"input": example})
    for name, array in outputs.items():
        if not np.array_equal(array, again[name], equal_nan=True):
            raise SpecError(
                "the model, saved and loaded, answers differently", fix="keep all of its state in parameters and buffers"
            )
    specs = tuple(TensorSpec(name, array.dtype.name, (-1, *array.shape[1:])) for name, array in outputs.items())
    return files, Signature((TensorSpec("input", example.dtype.name, (-1, *example.shape[1:])),), specs)


def run_module(module: torch.nn.Module, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a module on arrays; outputs that are tuples or dicts get a name each."""
    with torch.inference_mode():
        result = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs.values()))
    if isinstance(result, torch.Tensor):
        result = {"output": result}
    elif isinstance(result, tuple | list):
        result = {f"output_{i}": tensor for i, tensor in enumerate(result)}
    return {str(name): tensor.numpy() for name, tensor in result.items() if isinstance(tensor, torch.Tensor)}


def named(thing: Any) -> str:
    """Return where a class or function says that it is."""
    return f"{thing.__module__}:{thing.__qualname__}"


class TorchServable:
    """A module behind its signature."""

    def __init__(self, name: str, version: str, signature: Signature, module: torch.nn.Module) -> None:
        self.name = name
        self.version = version
        self.signature = signature
        self._module = module.eval()
        self._lock = threading.Lock()

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs for checked inputs, one row per example."""
        ordered = {spec.name: inputs[spec.name] for spec in self.signature.inputs}
        with self._lock:  # a user's module need not be safe under threads
            return run_module(self._module, ordered)
