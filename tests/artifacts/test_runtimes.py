from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

import cloudai
from cloudai.artifacts import runtimes
from cloudai.artifacts.onnx_models import OnnxServable
from cloudai.artifacts.torch_models import TorchServable
from cloudai.errors import SpecError

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


class Odd(torch.nn.Module):
    """Goes another way by what its input holds, which no exporter can follow."""

    def forward(self, x):
        return x * 2 if bool((x.sum() > 0).item()) else x * 3


def brought(home, module):
    return cloudai.Model.from_torch(module.eval(), example={"x": ROWS}, name="m")


def test_a_torch_model_is_converted_once_and_answers_the_same(home, tmp_path):
    model = brought(home, torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)))
    servable = runtimes.loaded(model, "auto", tmp_path / "cache")
    assert isinstance(servable, OnnxServable)
    [(name, array)] = servable.infer({"x": ROWS}).items()
    assert np.allclose(array, model.servable().infer({"x": ROWS})[name], rtol=1e-4, atol=1e-6)
    [file] = (tmp_path / "cache").iterdir()
    assert model.digest in file.name
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    before = file.stat().st_mtime_ns
    assert isinstance(runtimes.loaded(model, "onnx", tmp_path / "cache"), OnnxServable)
    assert file.stat().st_mtime_ns == before


def test_a_model_that_cannot_be_converted_is_run_by_torch_and_that_is_said(home, tmp_path, caplog):
    model = brought(home, Odd())
    with caplog.at_level(logging.WARNING):
        servable = runtimes.loaded(model, "auto", tmp_path / "cache")
    assert isinstance(servable, TorchServable)
    assert "is run by torch: " in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(SpecError, match="cannot export"):
        runtimes.loaded(model, "onnx", tmp_path / "cache")


def test_torch_runs_what_it_is_asked_to(home, tmp_path):
    model = brought(home, torch.nn.Linear(4, 2))
    assert isinstance(runtimes.loaded(model, "torch", tmp_path / "cache"), TorchServable)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("kind", "runtime"), [("onnx", "torch"), ("transformers", "onnx"), ("torch", "jax")])
def test_what_cannot_be_run_is_refused(kind, runtime):
    with pytest.raises(SpecError):
        runtimes.check_runtime(kind, runtime)
