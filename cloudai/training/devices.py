"""Where a worker computes, and how precisely."""

from __future__ import annotations

import contextlib

import torch

from cloudai.errors import PlacementError
from cloudai.specs.training import TrainSpec
from cloudai.training.hardware import processor

__all__ = ["computing", "device_of", "uses_bfloat16"]

_MADE_FOR_BFLOAT16 = ("amx_bf16", "avx512_bf16")
"""Of Linux' names for what a processor can do."""


def device_of(spec: TrainSpec) -> torch.device:
    """Return where the one worker of a run computes: on the first GPU where the run asks for one, else on the processor.

    Raises
    ------
    PlacementError
        If the run asked for a GPU and torch finds none.
    """
    if not spec.resources.gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        fix = "install torch for this GPU (https://pytorch.org/get-started/locally), or ask for gpus=0"
        raise PlacementError("the run asks for a GPU, and torch finds none here", fix=fix)
    return torch.device("cuda", 0)


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether a module computes in bfloat16: as asked for, or where the hardware is made for it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return set(_MADE_FOR_BFLOAT16) <= set(processor("flags").split())


def computing(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context in which a module computes."""
    if not uses_bfloat16(precision, device):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
