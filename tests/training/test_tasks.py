"""Each task learns, its model answers in words, and an interruption changes no bit of it."""

from __future__ import annotations

import itertools
import json
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors import numpy as on_numpy

from cloudai import errors
from cloudai.specs.search import Search, choice
from cloudai.specs.texts import Lora
from cloudai.training.execution import FAILED, STOPPED, SUCCEEDED
from cloudai.training.job import RunFiles
from cloudai.training.journal import JournalReader
from cloudai.training.search.trials import trial_specs
from cloudai.training.tables import Table
from tests.training import small_models
from tests.training.text_runs import asked_for, attempt, model_of

PEOPLE, TOWNS = ("Ada", "Alan", "Grace", "Kurt"), ("Rome", "Paris", "New York", "Oslo")


def tagged() -> dict[str, list[list[str]]]:
    rows = [(f"{who} lives in {town} .", who, town) for who in PEOPLE for town in TOWNS]
    words = [text.split() for text, *_ in rows]
    tags = [["B-PER", "O", "O", "B-LOC", *(["I-LOC"] if " " in town else []), "O"] for _, _, town in rows]
    return {"tokens": words * 4, "tags": tags * 4}


def asked() -> dict[str, list]:
    rows = [(who, town) for who in PEOPLE for town in TOWNS]
    contexts = [f"{who} lives in {town} ." for who, town in rows]
    return {
        "context": contexts * 6,
        "question": [f"where does {who} live" for who, _ in rows] * 6,
        "answers": [
            {"text": [town], "answer_start": [text.index(town)]} for text, (_, town) in zip(contexts, rows, strict=True)
        ]
        * 6,
    }


COUNTING = [" ".join(["one", "two", "three", "four", "five"][first:]) for first in range(4)] * 16
PAIRS = tuple(
    zip(*[(f"{who} {n}", f"{town} {n}") for who, town in zip(PEOPLE, TOWNS, strict=True) for n in range(8)], strict=True)
)

WORK = {
    "token-classification": (lambda: small_models.bert(map(" ".join, tagged()["tokens"])), tagged),
    "question-answering": (lambda: small_models.bert([*asked()["context"], *asked()["question"]]), asked),
    "causal-lm": (lambda: small_models.gpt2(COUNTING, longest=16), lambda: COUNTING),
    "embeddings": (lambda: small_models.bert(itertools.chain(*PAIRS)), lambda: PAIRS),
}
OPTIONS = {"lr": 0.01, "epochs": 2, "batch_size": 8, "validation": 0.25}


def run_of(tmp_path, task: str, name: str = "t", **options):
    work, data = WORK[task]
    return asked_for(tmp_path / "store", work(), data(), name, task=task, **{**OPTIONS, **options})


def test_a_tagger_finds_entities_in_whole_texts(home, tmp_path):
    spec = run_of(tmp_path, "token-classification", epochs=8)
    assert attempt(spec) == SUCCEEDED
    model = model_of(spec)
    assert str(model.signature) == "text: str[n] → entities: str[n]"
    assert set(model.labels) == {"O", "B-PER", "B-LOC", "I-LOC"}
    assert model.metrics["val_f1"] == model.metrics["val_accuracy"] == 1.0
    found = [json.loads(row) for row in model.predict(["Ada lives in New York.", "in"])]
    assert [(entity["label"], entity["text"]) for entity in found[0]] == [("PER", "Ada"), ("LOC", "New York")]
    assert [(entity["start"], entity["end"]) for entity in found[0]] == [(0, 3), (13, 21)]
    assert found[0][0]["score"] > 0.5
    assert found[1] == []


def test_a_reader_answers_questions_from_texts_longer_than_it_takes(home, tmp_path):
    spec = run_of(tmp_path, "question-answering", epochs=12, max_length=16)
    assert attempt(spec) == SUCCEEDED
    model = model_of(spec)
    assert str(model.signature) == "question: str[n], context: str[n] → answer: str[n], start: int64[n], score: float32[n]"
    assert model.metrics["val_exact_match"] > 0.9
    assert model.metrics["val_f1"] >= model.metrics["val_exact_match"]
    context = "Ada lives in New York . " + "lives . " * 20
    answers = model.predict({"question": ["where does Ada live"] * 2, "context": [context, context + "Ada lives in Rome ."]})
    assert answers["answer"][0] == "New York"
    assert context[answers["start"][0] :].startswith("New York")
    assert 0 < answers["score"][0] <= 1


def test_a_writer_goes_on_with_what_it_learned(home, tmp_path):
    spec = run_of(tmp_path, "causal-lm", epochs=40, max_new_tokens=4)
    assert attempt(spec) == SUCCEEDED
    model = model_of(spec)
    assert str(model.signature) == "text: str[n] → continuation: str[n]"
    assert model.predict(["two three", "one", ""]).tolist()[:2] == ["four five", "two three four five"]
    assert model.metrics["val_perplexity"] == pytest.approx(np.exp(model.metrics["val_loss"]))
    assert model.metrics["val_perplexity"] < 3
    with pytest.raises(errors.SpecError, match="not exported to ONNX"):
        model.export(path=tmp_path / "m.onnx")


def test_an_embedder_puts_what_belongs_together_near(home, tmp_path):
    spec = run_of(tmp_path, "embeddings", epochs=40)
    assert attempt(spec) == SUCCEEDED
    model = model_of(spec)
    assert str(model.signature) == "text: str[n] → vector: float32[n, 16]"
    vectors = model.predict(["Ada 3", "Rome 3", "Oslo 5"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert model.metrics["val_recall_at_1"] > 0.5


ADAPTED = Lora(rank=2, dropout=0.1)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        *((task, {}) for task in WORK),
        ("token-classification", {"lora": ADAPTED}),
        ("causal-lm", {"lora": ADAPTED}),
        ("question-answering", {"group_by_length": True}),
    ],
)
def test_interrupted_it_ends_with_the_same_weights(home, tmp_path, task, options):
    calm, disturbed = (run_of(tmp_path, task, name, epochs=3, **options) for name in ("calm", "disturbed"))
    assert attempt(calm) == SUCCEEDED
    torch.manual_seed(99)
    assert attempt(disturbed, 1, stop_after=4) == STOPPED
    assert RunFiles(disturbed).folder.list("checkpoints"), "it was stopped after its beginning"
    torch.manual_seed(98)
    assert attempt(disturbed, 2) == SUCCEEDED
    assert JournalReader(RunFiles(disturbed).folder).result()["exact"]
    one, other = model_of(calm), model_of(disturbed)
    assert one.files() == other.files()
    assert one.metrics == other.metrics


def test_adapters_are_merged_and_lie_beside(home, tmp_path, monkeypatch):
    spec = run_of(tmp_path, "token-classification", lora=Lora(rank=2), epochs=8, lr=0.05)
    assert attempt(spec) == SUCCEEDED
    model = model_of(spec)
    monkeypatch.setitem(sys.modules, "peft", None)
    answers = model.predict(["Ada lives in Rome ."])
    assert [entity["text"] for entity in json.loads(answers[0])] == ["Ada", "Rome"], "served without peft"
    weights = on_numpy.load(model.file("lora.safetensors"))
    assert {array.shape[0] for name, array in weights.items() if "lora_A" in name} == {2}
    facts = json.loads(model.file("lora.json"))
    assert (facts["r"], facts["base_model_name_or_path"]) == (2, "")
    assert b"lora" not in model.file("model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("task", WORK)
def test_in_bfloat16_it_learns_as_well(home, tmp_path, task):
    losses = []
    for precision in ("float32", "bfloat16"):
        spec = run_of(tmp_path, task, precision, precision=precision, epochs=1)
        assert attempt(spec) == SUCCEEDED
        losses.append(model_of(spec).metrics["val_loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_activations_that_are_computed_again_change_no_bit(home, tmp_path, lora):
    specs = [run_of(tmp_path, "causal-lm", str(on).lower(), gradient_checkpointing=on, lora=lora) for on in (True, False)]
    assert [attempt(spec) for spec in specs] == [SUCCEEDED, SUCCEEDED]
    one, other = map(model_of, specs)
    assert one.file("model.safetensors") == other.file("model.safetensors")


def test_texts_in_a_file_are_read_by_the_worker(home, tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"line": text}) + "\n" for text in COUNTING))
    work = WORK["causal-lm"][0]()
    from_file, in_memory = (
        asked_for(tmp_path / "store", work, data, name, task="causal-lm", **OPTIONS)
        for name, data in (("file", Table(tmp_path / "texts.jsonl", text="line")), ("memory", COUNTING))
    )
    assert [attempt(spec) for spec in (from_file, in_memory)] == [SUCCEEDED, SUCCEEDED]
    assert model_of(from_file).file("model.safetensors") == model_of(in_memory).file("model.safetensors")
    status = JournalReader(RunFiles(from_file).folder).status()
    assert status["total_steps"] == status["step"] > 0, "counted in blocks, once there are any"


def test_a_table_is_for_tasks_with_one_column_of_texts(home, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a", "other": "b"}\n')
    table = Table(tmp_path / "texts.jsonl", text="text", target="other")
    for task, what in (("causal-lm", "column of texts alone"), ("embeddings", "needs more than one")):
        with pytest.raises(errors.DataError, match=what):
            asked_for(tmp_path / "store", WORK[task][0](), table, task=task)


@pytest.mark.parametrize(
    ("task", "options", "what"),
    [
        ("causal-lm", {"loss": "mse"}, "cannot be trained with loss='mse'"),
        ("embeddings", {"max_new_tokens": 4}, "max_new_tokens= is for"),
        ("question-answering", {"max_length": 8}, "do not fit into 8 tokens"),
        ("embeddings", {"lora": {"rank": 0}}, "rank=0"),
        ("embeddings", {"group_by_length": True}, "pairs of texts cannot be grouped"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_once(home, tmp_path, task, options, what):
    with pytest.raises(errors.SpecError, match=what):
        run_of(tmp_path, task, **options)


def test_what_pairs_of_texts_do_not_have_is_not_searched(home, tmp_path):
    search = Search({"group_by_length": choice(True, False)}, metric="val_loss")
    trial_specs(run_of(tmp_path, "question-answering"), search)
    with pytest.raises(errors.SpecError, match="no option of the built-in loop"):
        trial_specs(run_of(tmp_path, "embeddings"), search)


def test_a_model_that_cannot_do_the_task_is_refused_at_once(home, tmp_path):
    with pytest.raises(errors.SpecError, match="'vit' cannot continue texts"):
        asked_for(tmp_path / "store", (transformers.ViTConfig(), WORK["causal-lm"][0]()[1]), COUNTING, task="causal-lm")
    with pytest.raises(errors.SpecError, match="task= is for pretrained models"):
        asked_for(tmp_path / "store", torch.nn.Linear(2, 2), ([[0.0, 1.0]], [0]), task="causal-lm")


def test_layers_that_are_not_there_are_told_in_two_lines(home, tmp_path):
    spec = run_of(tmp_path, "token-classification", lora=Lora(targets=("nowhere",)))
    assert attempt(spec) == FAILED
    error = JournalReader(RunFiles(spec).folder).error()
    assert error["what"] == "the model has no layer that ends with 'nowhere', and could have an adapter"
    assert "query" in error["fix"], "names of layers that there are"
    assert error["frames"] == ""
