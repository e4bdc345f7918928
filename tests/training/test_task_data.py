"""The data of each task: the forms it comes in, and what is said about what is wrong with it."""

from __future__ import annotations

import pandas as pd
import pytest

from cloudai.errors import DataError, SpecError
from cloudai.training.tasks.parsing import LOOPS, asked_of, parse

WORDS, TAGS = [["Ada", "sleeps"], ["Rome"]], [["PER", "O"], ["LOC"]]
CONTEXTS, QUESTIONS = ["Ada lives in Rome.", "Nothing."], ["where", "who"]
ANSWERS = [{"text": ["Rome"], "answer_start": [13]}, {"text": [], "answer_start": []}]


def tag_dataset():
    from datasets import ClassLabel, Dataset, Features, List, Value

    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "PER", "LOC"]))})
    return Dataset.from_dict({"tokens": WORDS, "ner_tags": [[1, 0], [2]]}, features=features)


@pytest.mark.parametrize(
    "data",
    [
        (WORDS, TAGS),
        {"words": WORDS, "ner_tags": TAGS},
        [{"tokens": words, "tags": tags} for words, tags in zip(WORDS, TAGS, strict=True)],
        pd.DataFrame({"tokens": WORDS, "tags": TAGS}),
    ],
)
def test_words_and_tags_come_in_many_forms(data):
    read = parse("token-classification", data)
    assert read.arrays["inputs"].tolist() == ["Ada sleeps", "Rome"]
    assert read.arrays["words"].tolist() == [2, 1]
    assert read.arrays["places"].tolist() == [[0, 3], [4, 10], [0, 4]]
    assert [read.labels[code] for code in read.arrays["targets"]] == ["PER", "O", "LOC"]


def test_a_dataset_names_its_tags():
    assert parse("token-classification", tag_dataset()).labels == ("O", "PER", "LOC")


@pytest.mark.parametrize(
    "answers",
    [ANSWERS, [[{"text": "Rome", "answer_start": 13}], []]],
    ids=["squad", "list of dicts"],
)
def test_answers_come_in_many_forms(answers):
    for data in (
        (CONTEXTS, QUESTIONS, answers),
        {"id": [1, 2], "context": CONTEXTS, "question": QUESTIONS, "answers": answers},
        pd.DataFrame({"context": CONTEXTS, "question": QUESTIONS, "answers": answers}),
    ):
        arrays = parse("question-answering", data).arrays
        assert arrays["answers"].tolist() == [1, 0]
        assert (arrays["targets"].tolist(), arrays["starts"].tolist()) == (["Rome"], [13])


def test_an_answer_may_be_its_text_alone():
    assert parse("question-answering", (CONTEXTS[:1], QUESTIONS[:1], ["Rome"])).arrays["starts"].tolist() == [13]


@pytest.mark.parametrize("data", [["a b", "c"], ("a b", "c"), {"text": ["a b", "c"]}, pd.Series(["a b", "c"])])
def test_texts_alone_come_in_many_forms(data):
    assert parse("causal-lm", data).arrays["inputs"].tolist() == ["a b", "c"]


@pytest.mark.parametrize(
    "data", [(["q", "r"], ["p", "s"]), [("q", "p"), ("r", "s")], {"query": ["q", "r"], "positive": ["p", "s"]}]
)
def test_pairs_come_in_many_forms(data):
    arrays = parse("embeddings", data).arrays
    assert (arrays["inputs"].tolist(), arrays["positives"].tolist()) == (["q", "r"], ["p", "s"])


@pytest.mark.parametrize(
    ("task", "data", "what"),
    [
        ("token-classification", None, "nothing to train on"),
        ("token-classification", (WORDS, TAGS[:1]), "2 rows of words and 1 of tags"),
        ("token-classification", (WORDS, [["PER"], ["LOC"]]), "row 0 has 2 words and 1 tags"),
        ("token-classification", (["Ada sleeps"], TAGS[:1]), "words of row 0 are 'Ada sleeps', no list"),
        ("token-classification", ([["Ada", None]], TAGS[:1]), "word 1 of row 0 is None"),
        ("token-classification", ([["Ada", " "]], TAGS[:1]), "word 1 of row 0 is ' '"),
        ("token-classification", ([[]], [[]]), "row 0 has no words"),
        ("token-classification", ([["a", "b"]], [["O", "O"]]), "one class only"),
        ("token-classification", {"tokens": WORDS}, "no column 'tags'"),
        ("question-answering", {"context": CONTEXTS, "answers": ANSWERS}, "no column 'question'"),
        ("question-answering", (CONTEXTS, QUESTIONS, ["Rome", "Paris"]), "'Paris' of row 1 does not lie at -1"),
        ("question-answering", (CONTEXTS, QUESTIONS, [{"text": ["Rome"], "answer_start": [12]}, ANSWERS[1]]), "of row 0"),
        ("question-answering", (CONTEXTS, QUESTIONS, [ANSWERS[0], {"text": ["a"]}]), "answers of row 1 are"),
        ("question-answering", (CONTEXTS, QUESTIONS, [ANSWERS[1]] * 2), "no question has an answer"),
        ("question-answering", (CONTEXTS, [None, "who"], ANSWERS), "question 0 is None"),
        ("question-answering", (CONTEXTS, QUESTIONS[:1], ANSWERS), "2 contexts, 1 questions and 2 answers"),
        ("causal-lm", "one text", "one text"),
        ("causal-lm", ["a", None], "text 1 is None"),
        ("causal-lm", [], "shape \\[0\\]"),
        ("causal-lm", 7, "cannot be a int"),
        ("causal-lm", {"words": ["a"]}, "no column 'text'"),
        ("embeddings", (["a", "b"], ["c"]), "2 anchors and 1 positives"),
        ("embeddings", (["a", "b"], ["c", "c"]), "all positives are the same"),
        ("embeddings", [], "shape \\[0\\]|nothing to train on"),
        ("embeddings", (["a", 1], ["c", "d"]), "anchor 1 is 1"),
    ],
)
def test_what_is_wrong_is_named_by_row_or_column(task, data, what):
    with pytest.raises(DataError, match=what):
        parse(task, data)


def test_options_are_checked_at_once():
    with pytest.raises(SpecError, match="task='translation'"):
        asked_of({"task": "translation"})
    with pytest.raises(SpecError, match="max_new_tokens= is for models that continue texts"):
        asked_of({"max_new_tokens": 3})
    assert set(LOOPS) == {"text-classification", "token-classification", "question-answering", "causal-lm", "embeddings"}
