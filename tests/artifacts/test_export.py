from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from cloudai import Model, errors
from tests.artifacts import classifiers

ROWS = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.GELU(), torch.nn.Linear(8, 3))

    def forward(self, rows, shift):
        return {"z": self.inner(rows) + shift, "a": rows.sum(dim=1), "note": "not a tensor"}


def test_a_module_as_onnx_gives_the_same_predictions(home, tmp_path, capfd):
    inputs = {"rows": ROWS, "shift": ROWS[:, :1]}
    model = Model.from_torch(Two().eval(), inputs, name="two")
    export = model.export("onnx", path=tmp_path / "two.onnx")
    assert capfd.readouterr() == ("", ""), "it says nothing that was not asked for"
    assert export.size == export.path.stat().st_size
    assert 0 < export.largest_difference < 1e-5
    assert export.rows == 5 + 16 + 1
    again = Model.from_onnx(export.path, name="two-onnx", example=inputs)
    assert again.signature == model.signature
    many = {name: np.repeat(array, 20, axis=0) for name, array in inputs.items()}
    assert all(np.allclose(again.predict(many)[name], model.predict(many)[name], atol=1e-5) for name in ("z", "a"))
    assert "two.onnx" in export._repr_mimebundle_()["text/plain"]


@pytest.mark.slow
def test_a_classifier_of_texts_as_onnx(home, tmp_path):
    source = (classifiers.model("neg", "pos"), classifiers.tokenizer())
    model = Model.from_transformers(source, name="mood", example=classifiers.TEXTS[:4])
    export = model.export("onnx", path=tmp_path / "mood.onnx")
    assert export.largest_difference < 1e-5
    again = Model.from_onnx(export.path, name="mood-onnx")
    assert str(again.signature) == "input_ids: int64[n, n], attention_mask: int64[n, n] → scores: float32[n, 2]"
    tokens = classifiers.tokenizer()(classifiers.TEXTS, padding=True, return_tensors="np")
    given = again.predict({name: tokens[name] for name in ("input_ids", "attention_mask")})
    assert np.allclose(given, model.predict(classifiers.TEXTS)["scores"], atol=1e-5)


class Fickle(torch.nn.Module):
    """Adds what the exporter sees as a constant, and what differs once it is run."""

    def forward(self, rows):
        return rows + (0.0 if torch.compiler.is_exporting() else 0.5)


class Branches(torch.nn.Module):
    def forward(self, rows):
        return rows if rows.sum() > 0 else -rows


def test_what_differs_or_cannot_be_exported_leaves_nothing(home, tmp_path):
    for module, what in ((Fickle(), "differs from the original by up to 0.5"), (Branches(), "torch cannot export")):
        model = Model.from_torch(module, ROWS, name="m")
        with pytest.raises(errors.SpecError, match=what) as caught:
            model.export(path=tmp_path / "m.onnx")
        assert len(str(caught.value).split("\n")) == 2
    assert list(tmp_path.glob("*.onnx")) == []


def test_a_difference_may_be_accepted(home, tmp_path):
    model = Model.from_torch(Fickle(), ROWS, name="m")
    export = model.export(path=tmp_path / "m.onnx", tolerance=0.6)
    assert export.largest_difference == pytest.approx(0.5, abs=1e-6)
    assert len(onnx.load(export.path).graph.input) == 1


def test_wrong_requests(home, tmp_path):
    model = Model.from_torch(torch.nn.Linear(6, 2), ROWS, name="m")
    with pytest.raises(errors.SpecError, match="no export to 'tflite'"):
        model.export("tflite")
    with pytest.raises(errors.SpecError, match="no folder"):
        model.export(path=tmp_path / "none" / "m.onnx")
