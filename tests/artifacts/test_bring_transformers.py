from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

import cloudai
from cloudai import Model, errors
from cloudai.artifacts import pretrained, text_sources
from cloudai.artifacts.text_files import load_files
from cloudai.artifacts.text_writers import Writer
from tests.artifacts import classifiers
from tests.serving import writers


@pytest.fixture
def folder(tmp_path):
    return classifiers.folder(tmp_path / "pretrained", "neg", "neu", "pos")


def probabilities(folder: Path, texts: list[str]) -> np.ndarray:
    """Return what transformers itself says, one text at a time."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits.softmax(-1)[0].numpy() for text in texts]
    return np.stack(rows)


def test_a_folder_becomes_a_model_like_any_other(home, folder):
    texts = ["a good film", "bad", "", "🎉 unknown words", "good " * 500]
    model = Model.from_transformers(folder, name="mood", data=classifiers.TEXTS)
    assert str(model.signature) == "text: str[n] → label: str[n], scores: float32[n, 3]"
    assert (model.kind, model.labels) == ("transformers", ("neg", "neu", "pos"))
    answers = cloudai.load_model("mood").verify().predict(texts)
    expected = probabilities(folder, texts)
    assert np.allclose(answers["scores"], expected, atol=1e-6)
    assert answers["label"].tolist() == [model.labels[i] for i in expected.argmax(axis=1)]
    assert expected.std(axis=0).max() > 0.01, "the texts make a difference"
    assert model.predict([])["scores"].shape == (0, 3)
    assert model.predict(np.array(texts))["label"].tolist() == answers["label"].tolist()
    frame = pd.DataFrame({"id": range(5), "text": texts})
    assert model.predict(frame)["label"].tolist() == answers["label"].tolist()
    assert type(model.module()).__name__ == "DistilBertForSequenceClassification"


def test_profiles_hold_lengths_and_no_text(home, folder):
    model = Model.from_transformers(folder, name="mood", data=classifiers.TEXTS)
    assert list(model.profile.columns) == ["text.characters", "text.words"]
    assert b"film" not in model.file("profile.bin")


def test_objects_become_a_model_and_stay_as_they_are(home):
    model, tokenizer = classifiers.model("neg", "pos").train(), classifiers.tokenizer(longest=10**9)
    recorded = Model.from_transformers((model, tokenizer), name="mood", example=["a good film"])
    assert model.training
    assert tokenizer.model_max_length == 10**9
    assert recorded.example["text"].tolist() == ["a good film"]
    assert recorded.predict(["good " * 500])["scores"].shape == (1, 2), "the model's own length is the limit"


@pytest.mark.parametrize("bad", ["one text", [None], [1], ["\ud800"], [["two", "axes"]], [float("nan")]])
def test_what_is_no_list_of_texts_is_refused(home, folder, bad):
    model = Model.from_transformers(folder, name="mood")
    with pytest.raises(errors.RequestError):
        model.predict(bad)


def test_threads_do_not_disturb_each_other(home, folder):
    model = Model.from_transformers(folder, name="mood")
    batches = [[text] * (1 + place % 3) for place, text in enumerate(classifiers.TEXTS)]
    answers: dict[int, np.ndarray] = {}

    def ask(place: int) -> None:
        answers[place] = model.predict(batches[place])["scores"]

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.allclose(answers[place], model.predict(batch)["scores"], atol=1e-6) for place, batch in enumerate(batches))


class Marks:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickled_weights_are_refused_unread(home, folder, tmp_path, file):
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(pickle.dumps(Marks(tmp_path / "run")))
    with pytest.raises(errors.IntegrityError, match="pickled"):
        Model.from_transformers(folder, name="mood")
    assert not (tmp_path / "run").exists()
    assert not (home / "store").exists()


def test_pickled_files_beside_good_weights_do_not_come_along(home, folder, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Marks(tmp_path / "run")))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    model = Model.from_transformers(folder, name="mood")
    assert not (tmp_path / "run").exists()
    assert {Path(name).suffix for name in model.files()} == {".json", ".safetensors"}


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_from_beside_a_model_is_never_run(home, folder, tmp_path, file):
    facts = json.loads((folder / file).read_text())
    facts["auto_map"] = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", None]}
    (folder / file).write_text(json.dumps(facts))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    with pytest.raises(errors.IntegrityError, match="auto_map"):
        Model.from_transformers(folder, name="mood")
    assert not (tmp_path / "run").exists()


def _break(folder: Path, how: str) -> None:
    facts = json.loads((folder / "config.json").read_text())
    match how:
        case "type":
            facts["model_type"] = "whisper"
        case "unknown":
            facts["model_type"] = "abacus"
        case "path":
            facts["model_type"] = "../distilbert"
        case "regression":
            facts["id2label"], facts["label2id"] = {"0": "x"}, {"x": 0}
        case "shards":
            (folder / "model.safetensors").unlink()
            index = {"weight_map": {"a": "../model.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        case "tokenizer":
            (folder / "tokenizer.json").unlink()
        case "weights":
            (folder / "model.safetensors").write_bytes(b"no")
        case "config":
            (folder / "config.json").unlink()
            return
    (folder / "config.json").write_text("[]" if how == "list" else json.dumps(facts))


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("type", "'whisper' cannot classify texts"),
        ("unknown", "cannot be loaded"),
        ("path", "names no model_type"),
        ("regression", "."),
        ("shards", "names '../model.safetensors'"),
        ("tokenizer", "no tokenizer"),
        ("weights", "cannot be loaded"),
        ("list", "no JSON object"),
        ("config", "no pretrained model"),
    ],
)
def test_an_unfit_folder_is_two_lines(home, folder, how, what):
    _break(folder, how)
    with pytest.raises(errors.CloudAIError, match=what) as caught:
        Model.from_transformers(folder, name="mood")
    assert len(str(caught.value).split("\n")) == 2
    assert not (home / "store").exists()


def test_a_model_that_has_not_learned_to_classify_is_told_how(home, tmp_path):
    transformers.DistilBertModel(classifiers.config()).save_pretrained(tmp_path)
    classifiers.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(errors.SpecError, match="has not learned to classify") as caught:
        Model.from_transformers(tmp_path, name="mood")
    assert "cloudai.train" in caught.value.fix


def test_objects_that_do_not_fit(home):
    with pytest.raises(errors.SpecError, match="does not classify"):
        Model.from_transformers((transformers.DistilBertModel(classifiers.config()), classifiers.tokenizer()), name="mood")
    with pytest.raises(errors.SpecError, match="without its tokenizer"):
        Model.from_transformers((classifiers.model("a", "b"), None), name="mood")


def test_a_name_that_is_neither_in_the_cache_nor_to_be_had(home, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(errors.NotFoundError, match="'nobody/nothing' is not in the cache, and the hub is not reachable"):
        Model.from_transformers("nobody/nothing", name="mood")
    with pytest.raises(errors.NotFoundError, match="no folder"):
        Model.from_transformers("./nothing", name="mood")


def test_a_name_in_the_cache_is_taken_from_there(home, tmp_path, monkeypatch):
    commit = "a" * 40
    cached = tmp_path / "models--team--mood"
    classifiers.folder(cached / "snapshots" / commit, "neg", "pos")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = Model.from_transformers("team/mood", name="mood")
    assert model.lineage["source"] == f"team/mood at {commit}"


def test_names_and_paths_are_told_apart():
    assert pretrained.is_name("gpt2")
    assert not any(pretrained.is_name(text) for text in ("../up", "/etc", "~/model", "a/../b", "a/b/c", "", "a b"))


def test_models_that_continue_or_embed_texts_come_in_with_their_chat_template(home, tmp_path):
    tokenizer = writers.tokenizer()
    brought = Model.from_transformers((writers.llama(), tokenizer), name="writer", task="causal-lm")
    texts = ["abc", "é"]
    written = Writer(writers.llama(), tokenizer, {"max_new_tokens": 64}).answers({"text": np.array(texts, object)})
    assert brought.predict(texts).tolist() == written["continuation"].tolist()
    assert load_files(brought.files()).tokenizer.chat_template == tokenizer.chat_template
    text_sources.in_folder(tmp_path, writers.embedder().model, tokenizer)
    first, again = (Model.from_transformers(tmp_path, name="places", task="embeddings") for _ in range(2))
    assert first.digest == again.digest  # weights that are not needed are not drawn anew
    assert np.allclose(first.predict(texts), writers.embedder().answers({"text": np.array(texts, object)})["vector"], atol=1e-6)


def test_a_task_that_the_model_cannot_do_is_refused(home):
    for task, what in (("causal-lm", "cannot continue texts|has not learned"), ("question-answering", "cannot be brought")):
        with pytest.raises(errors.SpecError, match=what):
            Model.from_transformers((writers.embedder().model, writers.tokenizer()), name="no", task=task)
    with pytest.raises(errors.SpecError, match="no model of transformers"):
        Model.from_transformers(("not a model", writers.tokenizer()), name="no", task="causal-lm")
