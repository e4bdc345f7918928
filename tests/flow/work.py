"""Work that takes a few seconds and has every kind of state: dropout, batch norm, an optimiser with moments."""

from __future__ import annotations

import time

import numpy as np
import torch

from cloudai import Model, load_model, settings
from cloudai.artifacts import torch_models
from cloudai.artifacts.known import save_model
from cloudai.artifacts.store import Store
from cloudai.state.ledger import open_ledger
from cloudai.statistics.profiles import Profile, columns_of

EPOCHS = 160


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(16, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(64, 4)
    )


def data():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(1200, 16)).astype("float32")
    return inputs, (inputs[:, :4] + 0.1 * rng.normal(size=(1200, 4))).argmax(axis=1)


def weights(run) -> str:
    """Return the digest of the file with a run's final weights."""
    return weights_of(run.model)


def recorded_model(module: torch.nn.Module, rows: np.ndarray, *, name: str, run: str = "made-by-hand") -> Model:
    """Put a model into the store and the ledger as a run would, without the seconds that a run takes."""
    store = Store(settings.current().store)
    files, signature = torch_models.pack(module, {"input": rows[:4]})
    files["profile.bin"] = Profile.of(columns_of(rows, "input")).to_bytes()
    facts = {"signature": signature.to_json(), "metrics": {"loss": 0.5}, "features": [], "lineage": {"run": run}}
    model = save_model(store, name, files, facts, run=run)
    open_ledger().add_model(model.name, model.version, model.uri, model.digest, run)
    return load_model(f"{name}@{model.version}")


def weights_of(model: Model) -> str:
    """Return the digest of the file with a model's weights."""
    return model._manifest["files"]["module.safetensors"]["sha256"]


def one_long_step(context):
    """Take a first step that does not end while a test lasts, unless it was interrupted."""
    if context.interruptions == 0:
        time.sleep(600)
