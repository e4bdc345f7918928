"""Torch modules as files without pickle, and back."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from cloudai.artifacts import architecture, trees
from cloudai.artifacts.bringing import Brought
from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.artifacts.store import canonical_json, sha256
from cloudai.capture.bundle import code_folder, loaded, resolve
from cloudai.capture.code import capture, locator
from cloudai.errors import DataError, IntegrityError, SpecError

__all__ = ["TorchServable", "brought", "build_module", "describe_module", "named", "named_outputs", "pack", "run_module"]


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


def named(thing: Any) -> str:
    """Return where a class or function says that it is."""
    return f"{thing.__module__}:{thing.__qualname__}"


def pack(
    module: torch.nn.Module, example: Mapping[str, np.ndarray], locate: Callable[[Any], str] = named
) -> tuple[dict[str, bytes], Signature]:
    """Return the files of a trained module, after proving that they give the same outputs again.

    The code of its classes must be loaded where they are found.

    Parameters
    ----------
    example : Mapping[str, ndarray]
        A few rows of inputs.
    locate : callable
        As for `describe_module`.

    Raises
    ------
    SpecError
        If the module, built again from its files, does not give the outputs that it gives now.
    """
    module = module.eval().cpu()
    outputs = run_module(module, example)
    files = {
        "module.safetensors": describe_module(module, locate),
        "example.safetensors": trees.dump(dict(example)),
    }
    again = run_module(build_module(files["module.safetensors"]).eval(), example)
    for name, array in outputs.items():
        if not np.array_equal(array, again[name], equal_nan=True):
            raise SpecError(
                "the model, saved and loaded, answers differently", fix="keep all of its state in parameters and buffers"
            )
    return files, Signature(_specs(example), _specs(outputs))


def _specs(arrays: Mapping[str, np.ndarray]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, array.dtype.name, (-1, *array.shape[1:])) for name, array in arrays.items())


def brought(module: Any, example: Any) -> Brought:
    """Check a module that a user has trained, and return its files.

    Raises
    ------
    SpecError
        As `cloudai.Model.from_torch`.
    """
    if not isinstance(module, torch.nn.Module):
        raise SpecError(f"from_torch takes a torch.nn.Module, this is a {type(module).__name__}", fix="pass the module itself")
    parts = architecture.parts_of(module)
    bundle = capture(parts) if parts else None
    copied = copy.deepcopy(module).cpu().eval()  # the user's own stays in its mode and on its device
    rows = _example(copied, example)
    _check_rows(copied, rows)
    locate = locator(parts, bundle) if bundle is not None else named
    with contextlib.ExitStack() as stack:
        if bundle is not None:
            stack.enter_context(loaded(bundle, stack.enter_context(code_folder())))
        files, signature = pack(copied, rows, locate)
    if bundle is not None:
        files["code.zip"] = bundle.to_zip()
    description, _ = architecture.describe(copied, locate)
    code = sha256(files["code.zip"]) if bundle is not None else ""
    lineage = {"code": code, "module": sha256(canonical_json(description)), "data": "", "source": "a torch module"}
    return Brought("torch", files, signature, lineage)


def _example(module: torch.nn.Module, example: Any) -> dict[str, np.ndarray]:
    """Return the example's arrays; fractions become float32 unless the module's weights are wider."""
    wide = any(parameter.dtype is torch.float64 for parameter in module.parameters())
    parts = example if isinstance(example, Mapping) else {"input": example}
    arrays = {}
    for name, part in parts.items():
        array = np.asarray(part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else part)
        if array.dtype.kind not in "biuf" or array.ndim == 0 or not len(array):
            raise DataError(f"the example {name!r} is no array with rows of numbers", fix="give a few rows of the inputs")
        arrays[str(name)] = array.astype(np.float32) if array.dtype.kind == "f" and not wide else array
    return arrays


def _check_rows(module: torch.nn.Module, example: Mapping[str, np.ndarray]) -> None:
    """Run the module once on its example and once on one row of it."""
    for arrays in (example, {name: array[:1] for name, array in example.items()}):
        try:
            outputs = run_module(module, arrays)
        except Exception as error:
            shapes = ", ".join(f"{name}: {array.dtype.name}{list(array.shape)}" for name, array in arrays.items())
            first = str(error).strip().split("\n")[0]
            raise DataError(f"the module does not take {shapes}: {first}", fix="give rows that it takes as example") from error
        rows = len(next(iter(arrays.values())))
        odd = [name for name, array in outputs.items() if array.ndim == 0 or len(array) != rows]
        if odd or not outputs:
            what = f"its output {odd[0]!r} has not one row for each row of input" if odd else "the module returns no tensor"
            raise SpecError(what, fix="return a tensor, or a tuple or dict of tensors, whose first axis is the batch")


def run_module(module: torch.nn.Module, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a module on arrays; outputs that are tuples or dicts get a name each."""
    with torch.inference_mode():
        result = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs.values()))
    return {name: tensor.numpy() for name, tensor in named_outputs(result).items()}


def named_outputs(result: Any) -> dict[str, torch.Tensor]:
    """Return the tensors that a module returned under the names that they have in a signature."""
    if isinstance(result, torch.Tensor):
        result = {"output": result}
    elif isinstance(result, tuple | list):
        result = {f"output_{i}": tensor for i, tensor in enumerate(result)}
    return {str(name): tensor for name, tensor in result.items() if isinstance(tensor, torch.Tensor)}


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
