"""The work that every side does: a small network on scikit-learn's digits, 64 rows to a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import cloudai

BATCH = 64
EPOCHS = 3
LEARNING_RATE = 3e-3
ENDLESS = 100_000
PACE = 0.02  # seconds that a step of the run to be killed takes
CHECKPOINT_EVERY = 10  # of its steps


def read_digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the file that `overhead` has written: reading it costs every side the same, unlike importing scikit-learn."""
    with np.load(path) as arrays:
        return arrays["inputs"], arrays["targets"]


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 10))


def optimise(module: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Take one step."""
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(module(inputs), targets).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def train(data: Path, wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda module: module) -> float:
    """Train as a plain script does, and return the unix time right after the first optimiser step."""
    inputs, targets = (torch.from_numpy(array) for array in read_digits(data))
    module = wrap(network())
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)
    first = 0.0
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(inputs)), BATCH):
            optimise(module, optimizer, inputs[rows], targets[rows])
            first = first or time.time()
    return first


def slow_steps(context: cloudai.Context) -> None:
    """Train for ever, at a pace at which a process can be killed between two steps; each step reports when it was."""
    assert context.data is not None
    inputs, targets = (torch.from_numpy(context.data[name][:BATCH]) for name in ("inputs", "targets"))
    module = network()
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)
    step = context.restore(module=module, optimizer=optimizer).get("step", 0)
    while step < ENDLESS:
        optimise(module, optimizer, inputs, targets)
        step += 1
        saved = {"module": module, "optimizer": optimizer, "step": step} if step % CHECKPOINT_EVERY == 0 else None
        context.report({"at": time.time()}, step=step, checkpoint=saved)
        time.sleep(PACE)
