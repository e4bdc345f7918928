from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cloudai.errors import DataError
from cloudai.training.texts import class_codes, parse_texts

TEXTS = ["good", "bad", "so so", "good"]


def dataset(**options):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos", "mixed"])})
    return Dataset.from_dict({"text": TEXTS, "label": [1, 0, 0, 1]}, features=features)


@pytest.mark.parametrize(
    "data",
    [
        (TEXTS, ["pos", "neg", "neg", "pos"]),
        (np.array(TEXTS), np.array(["pos", "neg", "neg", "pos"])),
        {"text": TEXTS, "label": ["pos", "neg", "neg", "pos"]},
        {"inputs": TEXTS, "targets": ["pos", "neg", "neg", "pos"]},
        pd.DataFrame({"id": range(4), "sentence": TEXTS, "label": pd.Categorical(["pos", "neg", "neg", "pos"])}),
        (pd.Series(TEXTS), pd.Series(["pos", "neg", "neg", "pos"], dtype="string")),
    ],
)
def test_texts_and_labels_come_in_many_forms(data):
    read = parse_texts(data)
    assert read.texts.tolist() == TEXTS
    assert read.texts.dtype == object
    assert (read.codes.tolist(), read.labels) == ([1, 0, 0, 1], ("neg", "pos"))


def test_a_dataset_of_hugging_face_names_its_classes():
    from datasets import DatasetDict

    read = parse_texts(dataset())
    assert (read.codes.tolist(), read.labels) == ([1, 0, 0, 1], ("neg", "pos", "mixed"))
    with pytest.raises(DataError, match="several splits") as caught:
        parse_texts(DatasetDict({"train": dataset(), "test": dataset()}))
    assert "data['train']" in caught.value.fix


def test_integers_are_a_models_classes_only_where_they_count_all_of_them():
    known = ("one star", "two stars", "three stars")
    assert parse_texts((TEXTS, [0, 1, 2, 0]), known).labels == known
    assert parse_texts((TEXTS, [1, 2, 1, 1]), known).labels == ("1", "2"), "these may be stars, not places"
    assert parse_texts((TEXTS, ["two stars", "one star", "one star", "one star"]), known).labels == known


def test_what_a_model_knows_already_keeps_its_order():
    assert class_codes(["a", "b"], ("b", "a", "c"))[1] == ("b", "a", "c")
    assert class_codes(["a", "d"], ("b", "a", "c"))[1] == ("a", "d")
    assert class_codes([10, 9, 10])[1] == ("9", "10")
    assert class_codes([True, False])[1] == ("False", "True")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (None, "nothing to train on"),
        (([], []), "shape \\[0\\]"),
        ((TEXTS, ["a", "b"]), "4 texts and 2 labels"),
        ((["good", None], ["a", "b"]), "text 1 is None"),
        ((["good", float("nan")], ["a", "b"]), "text 1 is nan"),
        ((["good", "\ud800"], ["a", "b"]), "half a character"),
        (("one", ["a", "b"]), "one text"),
        ((TEXTS, [0.5, 1, 2, 3]), "labels are float64"),
        ((TEXTS, ["a", None, "b", "a"]), "labels are object"),
        ((TEXTS, [[0], [1], [0], [1]]), "labels are int64\\[4, 1\\]"),
        ((TEXTS, ["a"] * 4), "one class only: 'a'"),
        ({"text": TEXTS}, "no column 'label'"),
        (pd.DataFrame({"words": TEXTS, "label": [0, 1, 0, 1]}), "no column 'text', but words, label"),
        (7, "data cannot be a int"),
    ],
)
def test_what_is_wrong_with_the_data_is_named(data, what):
    with pytest.raises(DataError, match=what):
        parse_texts(data)
