from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import cloudai
from cloudai import Model, errors
from tests.capture.captured_cells import Notebook

ROWS = np.random.default_rng(0).normal(size=(300, 4)).astype("float32")

CELL = """
import torch
SCALE = 3.0
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.drop = torch.nn.Linear(4, 2), torch.nn.Dropout(0.5)
    def forward(self, rows):
        return {"score": self.drop(self.inner(rows)) * SCALE, "size": rows.norm(dim=1)}
"""


def test_a_notebooks_module_is_a_model_in_any_process(home):
    module = Notebook(CELL)["Net"]().train()
    model = Model.from_torch(module, ROWS[:5], name="net", metrics={"accuracy": 0.9}, data=ROWS)
    assert module.training, "the user's module stays as it was"
    assert str(model.signature) == "input: float32[n, 4] → score: float32[n, 2], size: float32[n]"
    assert (model.kind, model.version, model.metrics["accuracy"]) == ("torch", "1.0.0", 0.9)
    expected = module.eval()(torch.from_numpy(ROWS))
    code = """
    import sys, json, numpy as np, cloudai
    model = cloudai.load_model("net").verify()
    print(json.dumps(model.predict(np.array(json.loads(sys.argv[1]), "float32"))["score"].tolist()))
    """
    argv = [sys.executable, "-c", textwrap.dedent(code), json.dumps(ROWS.tolist())]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert np.allclose(json.loads(done.stdout), expected["score"].detach().numpy(), atol=1e-6)


def test_versions_follow_from_what_is_recorded_under_a_name(home):
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 2)
    first, again = (Model.from_torch(module, ROWS[:5], name="m") for _ in range(2))
    module.weight.data += 1
    retrained = Model.from_torch(module, ROWS[:5], name="m")
    other = Model.from_torch(torch.nn.Sequential(torch.nn.Linear(4, 2)), ROWS[:5], name="m")
    wider = Model.from_torch(torch.nn.Linear(4, 3), ROWS[:5], name="m")
    assert [model.version for model in (first, retrained, other, wider)] == ["1.0.0", "1.0.1", "1.1.0", "2.0.0"]
    assert again.digest == first.digest, "the same cell run twice makes no second version"


def test_several_inputs_and_integers(home):
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(5, 3)

        def forward(self, word, weight):
            return self.table(word) * weight

    example = {"word": np.array([1, 4]), "weight": np.array([[0.5], [2.0]])}
    model = Model.from_torch(Pair(), example, name="pair")
    assert str(model.signature) == "word: int64[n], weight: float32[n, 1] → output: float32[n, 3]"
    assert model.predict(example).shape == (2, 3)


@pytest.mark.parametrize(
    ("module", "example", "kind", "what"),
    [
        (torch.nn.Linear(4, 2), ROWS[:2, :3], errors.DataError, "does not take input: float32\\[2, 3\\]"),
        (torch.nn.Linear(4, 2), ["a"], errors.DataError, "no array with rows of numbers"),
        (torch.nn.Flatten(0), ROWS[:2], errors.SpecError, "'output' has not one row for each row"),
        ("linear", ROWS, errors.SpecError, "takes a torch.nn.Module"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(home, module, example, kind, what):
    with pytest.raises(kind, match=what):
        Model.from_torch(module, example, name="m")
    assert not (home / "store").exists()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"name": "Big Name"}, "is not a name"),
        ({"metrics": {"loss": float("nan")}}, "'loss' is nan"),
        ({"metrics": {"loss": "low"}}, "'loss' is a str"),
        ({"data": ROWS[:, :3]}, "data= does not fit"),
    ],
)
def test_wrong_options_are_refused_and_leave_nothing(home, options, what):
    with pytest.raises(errors.SpecError, match=what):
        Model.from_torch(torch.nn.Linear(4, 2), ROWS[:5], **{"name": "m", **options})
    assert not (home / "store").exists()


def test_a_changed_file_is_not_taken_for_the_model(home):
    module = torch.nn.Linear(4, 2)
    model = Model.from_torch(module, ROWS[:5], name="m")
    manifest = Path(model.uri) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"features":[]', '"features":["a"]'))
    with pytest.raises(errors.IntegrityError, match="was changed"):
        Model.from_torch(module, ROWS[:5], name="m")
    with pytest.raises(errors.IntegrityError, match="not what was recorded"):
        cloudai.load_model("m")


def test_an_old_manifest_is_a_torch_model(home):
    model = Model.from_torch(torch.nn.Linear(4, 2), ROWS[:5], name="m")
    manifest = Path(model.uri) / "manifest.json"
    facts = json.loads(manifest.read_text())
    del facts["kind"], facts["labels"]
    manifest.write_text(json.dumps(facts))
    old = Model.open(model.uri)
    assert (old.kind, old.labels) == ("torch", ())
    assert np.array_equal(old.predict(ROWS), model.predict(ROWS))
    manifest.write_text(json.dumps({**facts, "kind": "abacus"}))
    with pytest.raises(errors.IntegrityError, match="unknown kind 'abacus'"):
        Model.open(model.uri)


def test_a_data_frame_names_the_features(home):
    import pandas as pd

    frame = pd.DataFrame(ROWS, columns=list("abcd"))
    model = Model.from_torch(torch.nn.Linear(4, 2), ROWS[:5], name="m", data=frame)
    assert model.features == ("a", "b", "c", "d")
    assert list(model.profile.columns) == ["a", "b", "c", "d"]
    assert np.array_equal(model.predict(frame[list("dcba")]), model.predict(ROWS))
