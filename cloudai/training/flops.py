"""How many floating-point operations a training step takes: what its rate is compared with is in `hardware`.

Two ways. Of a transformer, from its shape: six operations for each weight and token, forward and backward together
(Kaplan et al. 2020, arXiv:2001.08361, §2.1), and those of attention, 12 · layers · width · length for each token (Chowdhery
et al. 2022, arXiv:2204.02311, appendix B). Of any other module, by counting the forward pass of one batch on tensors that have
a shape and no content, which takes no memory and changes nothing: neither weights, nor buffers, nor random states.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch

from cloudai.training import randomness
from cloudai.training.meter import NO_FLOPS, Flops

__all__ = ["of_module", "of_transformer"]

log = logging.getLogger(__name__)


def of_transformer(module: torch.nn.Module) -> Flops | None:
    """Return the operations of a model of transformers from its shape; None for any other module.

    Examples
    --------
    >>> of_transformer(torch.nn.Linear(2, 2)) is None
    True
    """
    config: Any = next((part.config for part in module.modules() if hasattr(part, "config")), None)
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not isinstance(layers, int) or not isinstance(width, int):
        return None
    passes = _passes(module)
    return Flops(per_token=2 * passes * _multiplied(module), per_pair=4 * passes * layers * width)


def of_module(module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> Flops:
    """Return the operations of any module: a transformer's from its shape, another's by counting those of a batch.

    Parameters
    ----------
    module : Module
        It is left alone: what is counted on is a copy without content.
    inputs : sequence of Tensor
        What the module is called with, one row for each example; of them only shape and dtype matter. A transformer needs none.

    Returns
    -------
    Flops
        `NO_FLOPS` where the module cannot be run on shapes alone, such as one that looks at its values.

    Examples
    --------
    >>> of_module(torch.nn.Linear(8, 4), [torch.zeros(16, 8)]).per_row  # 2 · 8 · 4, forward and twice backward
    192.0
    """
    known = of_transformer(module)
    if known is not None or not inputs:
        return known or NO_FLOPS
    chance = randomness.snapshot()  # a module may draw while it runs, and that would change what comes after
    try:
        shapes = [torch.empty_like(tensor, device="meta") for tensor in inputs]
        return Flops(per_row=_passes(module) * _forward(_hollow(module), shapes) / len(inputs[0]))
    except Exception as error:  # noqa: BLE001  a user's module may raise anything, and a figure is not worth a run
        log.info("the operations of a step are not counted: %s", error)
        return NO_FLOPS
    finally:
        randomness.restore(chance)


def _forward(module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return float(counter.get_total_flops())


def _hollow(module: torch.nn.Module) -> torch.nn.Module:
    """Copy a module without the content of its weights and buffers."""
    with torch.no_grad():
        weights = {id(p): torch.nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()}
        buffers = {id(b): torch.empty_like(b, device="meta") for b in module.buffers()}
    return copy.deepcopy(module, {**weights, **buffers})


def _passes(module: torch.nn.Module) -> float:
    """Return how many forward passes a step costs: backward takes one for the inputs, and one for the weights that learn."""
    weights = list(module.parameters())
    total = sum(p.numel() for p in weights)
    return 2.0 + (sum(p.numel() for p in weights if p.requires_grad) / total if total else 0.0)


def _multiplied(module: torch.nn.Module) -> int:
    """Return how many weights each token is multiplied with: all but those that are only looked up."""
    parts = [part for part in module.modules() if not isinstance(part, torch.nn.Embedding)]
    found = {id(p): p.numel() for part in parts for p in part.parameters(recurse=False)}
    return sum(found.values())
