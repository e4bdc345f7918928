"""A model spread over the workers of a run (FSDP2), and the whole of it, which is what checkpoints and models hold.

A checkpoint has the full state, gathered from all ranks, under the names that the module itself has. So it can be read by any
number of workers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["Sharding"]


class Sharding:
    """Spreads one module over the ranks of the default process group, and puts it together again.

    Every method is a collective: all ranks call it at the same moment.

    Notes
    -----
    "Getting Started with Fully Sharded Data Parallel (FSDP2)" in PyTorch's tutorials: each child with weights is a unit of
    its own, whose weights are whole only while it computes; what is left belongs to the module.
    """

    def __init__(self, module: torch.nn.Module, world_size: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self._plain = copy.deepcopy(module).to("meta")  # fully_shard changes the module and its class
        self.module = module
        device = next(module.parameters()).device.type
        mesh = init_device_mesh(device, (world_size,))
        for unit in _units(module):
            fully_shard(unit, mesh=mesh)
        fully_shard(module, mesh=mesh)

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the full state of the module and of its optimiser, on rank 0; empty on the others."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(self.module, options=options), get_optimizer_state_dict(
            self.module, optimizer, options=options
        )

    def load(
        self, optimizer: torch.optim.Optimizer, model_state: Mapping[str, Any], optimizer_state: Mapping[str, Any]
    ) -> None:
        """Put a full state back, each rank the part that it holds; every rank is given all of it."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.module, dict(model_state), options=options)  # torch changes it
        set_optimizer_state_dict(self.module, optimizer, dict(optimizer_state), options=options)

    def whole(self) -> torch.nn.Module:
        """Return a module of the class that was given, with all weights on rank 0."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        state = get_model_state_dict(self.module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if state:
            _bring_buffers(self._plain, self.module)
            self._plain.load_state_dict(state, assign=True)
        return self._plain


def _units(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the children that are spread by themselves: those with weights that no other module shares."""
    owners: dict[int, int] = {}
    for child in module.children():
        for parameter in child.parameters():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        child
        for child in module.children()
        if not isinstance(child, torch.nn.ModuleList | torch.nn.ModuleDict)  # these have no forward that would make them whole
        and any(True for _ in child.parameters())
        and all(owners[id(parameter)] == 1 for parameter in child.parameters())
    ]


def _bring_buffers(plain: torch.nn.Module, module: torch.nn.Module) -> None:
    """Copy all buffers, also those that the module's state does not hold; they are whole on every rank."""
    for name, buffer in module.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(owner), leaf, buffer.detach().clone())
