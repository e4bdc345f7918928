"""All the random states of a process, to be saved and put back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

__all__ = ["of_torch", "restore", "restore_torch", "seed_all", "snapshot"]


def seed_all(seed: int, rank: int) -> None:
    """Seed Python, numpy and torch, each rank differently and always the same."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)  # noqa: NPY002  the user's code may draw from the global generator
    torch.manual_seed(seed + rank)


def snapshot() -> dict[str, Any]:
    """Return the states as a tree that `cloudai.artifacts.trees` can save."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).astype(np.int64), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": list(cuda),
    }


def restore(states: dict[str, Any]) -> None:
    """Put back what `snapshot` returned."""
    random.setstate(states["python"])
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.asarray(keys).astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def of_torch(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return the states that a forward pass on a device changes."""
    on_device = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return (torch.get_rng_state(), *on_device)


def restore_torch(states: tuple[torch.Tensor, ...], device: torch.device) -> None:
    """Put back what `of_torch` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
