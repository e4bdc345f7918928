"""A classifier of texts, trained by the worker's own code: exact over interruptions, the classes by name."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from cloudai import errors
from cloudai.specs.training import Loop, TrainSpec
from cloudai.training.execution import FAILED, STOPPED, SUCCEEDED
from cloudai.training.job import RunFiles
from cloudai.training.journal import JournalReader
from cloudai.training.tables import Table
from cloudai.training.tasks.rows import ClassRows
from cloudai.training.work import prepare
from tests.artifacts import classifiers
from tests.training import text_runs
from tests.training.text_runs import attempt, model_of

DATA = (classifiers.TEXTS * 6, classifiers.LABELS * 6)
OPTIONS = {"lr": 0.01, "epochs": 3, "batch_size": 8}


@pytest.fixture
def folder(tmp_path):
    return classifiers.folder(tmp_path / "pretrained", "neg", "pos")


def asked_for(store: Path, work, data, name="t", **options) -> TrainSpec:
    return text_runs.asked_for(store, work, data, name, **{**OPTIONS, **options})


def test_a_folder_learns_and_its_model_says_names(home, tmp_path, folder):
    spec = asked_for(tmp_path / "store", str(folder), DATA, epochs=8, validation=0.25)
    assert attempt(spec) == SUCCEEDED
    model = model_of(spec)
    assert model.name == "pretrained"
    assert model.labels == ("neg", "pos")
    assert model.predict(["so good", "so bad"])["label"].tolist() == ["pos", "neg"]
    assert model.metrics["val_accuracy"] == 1.0
    assert model.example["text"].tolist() == classifiers.TEXTS[:8]
    assert list(model.profile.columns) == ["text.characters", "text.words"]
    assert model.profile.rows == 72
    assert model.lineage["source"] == "pretrained"
    result = JournalReader(RunFiles(spec).folder).result()
    assert (result["exact"], result["why_not_exact"]) == (True, "")


@pytest.mark.parametrize("stop_after", [3, 11, 23])
def test_interrupted_anywhere_it_ends_with_the_same_weights(home, tmp_path, folder, stop_after):
    calm = asked_for(tmp_path / "store", str(folder), DATA, name="calm")
    assert attempt(calm) == SUCCEEDED
    torch.manual_seed(99)
    spec = asked_for(tmp_path / "store", str(folder), DATA, name="disturbed")
    assert attempt(spec, 1, stop_after) == STOPPED
    assert RunFiles(spec).folder.list("checkpoints"), "it was stopped after its beginning"
    torch.manual_seed(98)
    assert attempt(spec, 2) == SUCCEEDED
    assert model_of(spec).file("model.safetensors") == model_of(calm).file("model.safetensors")


def test_dropout_plays_a_part_in_what_is_exact(folder):
    assert transformers.AutoConfig.from_pretrained(folder).dropout > 0


def test_a_config_begins_with_drawn_weights_the_same_each_time(home, tmp_path):
    work = (classifiers.config(), classifiers.tokenizer())
    specs = [asked_for(tmp_path / "store", work, DATA, name=name) for name in ("one", "two")]
    for place, spec in enumerate(specs):
        torch.manual_seed(place)
        assert attempt(spec) == SUCCEEDED
    one, two = (model_of(spec) for spec in specs)
    assert one.file("model.safetensors") == two.file("model.safetensors")
    assert (one.version, two.version) == ("1.0.0", "1.0.1")


def test_objects_travel_and_texts_are_cut_off(home, tmp_path):
    model, tokenizer = classifiers.model("neg", "pos").train(), classifiers.tokenizer()
    spec = asked_for(tmp_path / "store", (model, tokenizer), DATA, max_length=4, epochs=1)
    assert model.training
    assert attempt(spec) == SUCCEEDED
    made = model_of(spec)
    scores = made.predict(["good film", "good film bad bad bad bad"])["scores"]
    assert np.allclose(scores[0], scores[1], atol=1e-6), "the third word and those after it are cut off, as in training"


def test_more_classes_than_the_model_knows_get_a_layer_of_their_own(home, tmp_path, folder):
    texts, labels = classifiers.TEXTS * 3, (["good", "so so", "bad"] * 16)
    spec = asked_for(tmp_path / "store", str(folder), (texts, labels), epochs=1)
    assert attempt(spec) == SUCCEEDED
    assert model_of(spec).labels == ("bad", "good", "so so")


def test_a_folder_that_changes_while_a_run_goes_on_is_an_error(home, tmp_path, folder):
    spec = asked_for(tmp_path / "store", str(folder), DATA)
    assert attempt(spec, 1, stop_after=1) == STOPPED
    classifiers.model("neg", "pos").half().save_pretrained(folder)
    assert attempt(spec, 2) == FAILED
    error = JournalReader(RunFiles(spec).folder).error()
    assert "was changed since this run began" in error["what"]


def test_a_name_that_cannot_be_had_is_a_two_line_error(home, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    spec = asked_for(tmp_path / "store", "nobody/nothing", DATA)
    assert attempt(spec) == FAILED
    error = JournalReader(RunFiles(spec).folder).error()
    assert "'nobody/nothing' is not in the cache" in error["what"]
    assert error["frames"] == ""


def test_texts_of_unlike_length_are_computed_apart_and_give_the_same_loss(home, folder):
    from cloudai.artifacts.text_classifiers import Logits
    from cloudai.artifacts.text_files import load_folder

    classifier = load_folder(folder)
    texts = np.array(["good", "a good film " * 10, "", "bad"], dtype=object)
    rows = ClassRows(classifier, {"inputs": texts, "targets": np.array([1, 1, 0, 0])})
    module = Logits(classifier.model).eval()
    assert rows.lengths.tolist() == [3, 16, 2, 3], "cut off at what the model takes"
    together = rows.loss(module, torch.arange(4))
    apart = sum(rows.loss(module, torch.tensor([row])) for row in range(4))
    assert torch.allclose(together, apart, atol=1e-4), "padding counts for nothing"


def test_the_call_does_not_import_transformers(home, tmp_path, folder):
    code = f"""
    import sys, time, cloudai
    from cloudai import _asked
    prepared, spec = _asked.train_spec({str(folder)!r}, (["good", "bad"], [1, 0]), {{}})
    assert (spec.loop.epochs, spec.loop.lr) == (3, 5e-5), "pretrained models have defaults of their own"
    assert spec.work.labels == ("neg", "pos"), "the order that the model knows"
    print([name for name in ("torch", "transformers") if name in sys.modules])
    """
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("options", "what"),
    [({"loss": "mse"}, "cannot be trained with loss='mse'"), ({"max_length": 0}, "greater than or equal to 1")],
)
def test_options_that_do_not_fit_texts(home, tmp_path, folder, options, what):
    with pytest.raises(errors.SpecError, match=what):
        asked_for(tmp_path / "store", str(folder), DATA, **options)


def test_max_length_is_for_texts_only(home):
    with pytest.raises(errors.SpecError, match="for models of texts"):
        prepare(torch.nn.Linear(2, 2), (np.zeros((4, 2)), [0, 1, 0, 1]), Loop.of(max_length=8))


def test_work_that_is_no_classifier(home, tmp_path, folder):
    class Own(transformers.DistilBertForSequenceClassification):
        pass

    tokenizer = classifiers.tokenizer()
    (tmp_path / "empty").mkdir()
    cases = [
        (classifiers.config(), errors.SpecError, "without its tokenizer"),
        (classifiers.model("a", "b"), errors.SpecError, "without its tokenizer"),
        ((classifiers.model("a", "b"), "a name"), errors.SpecError, "without its tokenizer"),
        ((torch.nn.Linear(2, 2), tokenizer), errors.SpecError, "cannot train a Linear on texts"),
        ((Own(classifiers.config()), tokenizer), errors.SpecError, "not in transformers itself"),
        ((transformers.WhisperConfig(), tokenizer), errors.SpecError, "cannot classify texts"),
        (tmp_path / "empty", errors.NotFoundError, "no pretrained model"),
        ("./none", errors.NotFoundError, "no folder"),
    ]
    for work, kind, what in cases:
        with pytest.raises(kind, match=what):
            prepare(work, DATA, Loop())


@pytest.mark.parametrize("labels", [DATA[1], [("neg", "pos").index(name) for name in DATA[1]]], ids=["names", "numbers"])
def test_a_file_of_texts_is_read_by_the_worker_and_gives_the_same_model(home, tmp_path, folder, labels):
    lines = "".join(json.dumps({"comment": text, "mood": label}) + "\n" for text, label in zip(DATA[0], labels, strict=True))
    (tmp_path / "texts.jsonl").write_text(lines)
    table = Table(tmp_path / "texts.jsonl", text="comment", target="mood")
    spec = asked_for(tmp_path / "store", str(folder), table, name="from-file")
    assert (spec.work.data, spec.work.source.target) == ("", "mood"), "nothing was copied"
    assert attempt(spec) == SUCCEEDED
    in_memory = asked_for(tmp_path / "store", str(folder), DATA, name="in-memory")
    assert attempt(in_memory) == SUCCEEDED
    one, other = model_of(spec), model_of(in_memory)
    assert np.array_equal(one.predict(DATA[0])["scores"], other.predict(DATA[0])["scores"])


def test_a_table_for_a_model_of_texts_names_both_columns(home, folder, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"comment": "so good", "mood": "pos"}\n')
    with pytest.raises(errors.DataError, match="needs a column of texts and one of labels"):
        asked_for(tmp_path / "store", str(folder), Table(tmp_path / "texts.jsonl", target="mood"))
