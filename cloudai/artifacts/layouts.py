"""How the tensors of a module lie in memory, written down and restored.

Kernels are chosen by strides, so a module answers and trains bit for bit as before only with the strides it had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from cloudai.artifacts.attributes import refused
from cloudai.errors import CaptureError, IntegrityError

__all__ = ["check_memory", "check_tensor", "layout_of", "restored"]

_FIX = "restore the model, or train it again"


def layout_of(tensor: torch.Tensor) -> dict[str, Any]:
    """Return what is needed, besides the values, to have the tensor again: plain JSON."""
    packed = _is_packed(tensor.shape, tensor.stride())
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "parameter": isinstance(tensor, nn.Parameter),
        "requires_grad": tensor.requires_grad,
        "stride": list(tensor.stride() if packed else tensor.contiguous().stride()),
    }


def restored(key: str, tensor: torch.Tensor, facts: Mapping[str, Any]) -> torch.Tensor:
    """Return the tensor as `layout_of` found it: a parameter or not, trained or not, with its strides.

    Raises
    ------
    IntegrityError
        If its shape or dtype is another one, or the strides are impossible.
    """
    fits = isinstance(tensor, torch.Tensor) and list(tensor.shape) == facts["shape"]
    if not fits or str(tensor.dtype) != f"torch.{facts['dtype']}":
        raise IntegrityError(f"the tensor {key!r} is not {facts['dtype']}{facts['shape']}, as it was described", fix=_FIX)
    tensor = _laid_out(tensor.detach(), facts["stride"])
    if facts["parameter"]:
        return nn.Parameter(tensor, requires_grad=facts["requires_grad"])
    return tensor.requires_grad_(facts["requires_grad"])


def _laid_out(tensor: torch.Tensor, stride: list[int]) -> torch.Tensor:
    """Give a tensor the strides that it had: kernels are chosen by them, also where an axis has only one element."""
    if list(tensor.stride()) == stride:
        return tensor
    if not _is_packed(tensor.shape, stride):
        raise IntegrityError(f"a tensor of shape {list(tensor.shape)} cannot have the strides {stride}", fix=_FIX)
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def check_tensor(tensor: torch.Tensor, path: str) -> None:
    """Refuse a tensor that is more, or less, than numbers in memory."""
    if is_lazy(tensor):
        raise refused(path, tensor, "it has no shape yet", "run one batch through the module first")
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        raise refused(path, tensor, "only plain, dense tensors can", "make it a plain tensor")
    if tensor.device.type == "meta":
        raise refused(path, tensor, "it has no values", "give the module weights before it is trained")
    if tensor.grad_fn is not None:
        raise refused(path, tensor, "it is the result of a computation", "store tensor.detach()")


def check_memory(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse a parameter that shares memory with another tensor: built again they would be two.

    Raises
    ------
    CaptureError
        With the names of both.
    """
    spans = sorted((*_span(tensor), key) for key, tensor in tensors.items() if tensor.numel())
    before, reached, first = "", 0, ""
    for device, start, end, second in spans:
        overlap = device == before and start < reached
        if overlap and (tensors[first].requires_grad or tensors[second].requires_grad):
            fix = "use one and the same Parameter in both places, or a copy: tensor.clone()"
            raise CaptureError(f"‘{first}’ and ‘{second}’ are two tensors in the same memory", fix=fix)
        if not overlap or end > reached:
            before, reached, first = device, end, second


def _span(tensor: torch.Tensor) -> tuple[str, int, int]:
    """Return the device, and the first and last address of a tensor's memory."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _is_packed(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the strides put the elements side by side, in whatever order of the axes."""
    expected = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size > 1):
        if step != expected:
            return False
        expected *= size
    return True
