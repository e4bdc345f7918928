"""Hugging Face datasets as data: columns, class labels, splits, and what cannot be taken."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from cloudai.errors import DataError
from cloudai.training.data import parse_data
from cloudai.training.tables import Table

datasets = pytest.importorskip("datasets")
LABEL = datasets.ClassLabel(names=["no", "yes"])


def made(columns, **features):
    dataset = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        dataset = dataset.cast_column(name, feature)
    return dataset


NUMBERS = made({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "outcome": [0, 1, 0]}, outcome=LABEL)
VECTORS = made({"x": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]}, x=datasets.List(datasets.Value("float32"), length=2))
IMAGES = made({"x": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]], "label": [0, 1]}, x=datasets.Array2D((2, 2), "uint8"))
TOKENS = made({"ids": [[1, 2], [3, 4]], "label": [0, 1]})
TEXTS = made({"text": ["good", "bad"], "label": [1, 0]}, label=LABEL)


def test_columns_of_numbers_with_class_labels():
    found = parse_data(NUMBERS)
    assert (found.features, found.arrays["targets"].tolist(), found.arrays["targets"].dtype) == (
        ("a", "b"),
        [0, 1, 0],
        np.int64,
    )
    assert found.arrays["inputs"].tolist() == [[1.0, 0.5], [2.0, 1.5], [3.0, 2.5]]
    assert found.arrays["inputs"].dtype == np.float32
    chosen = parse_data(Table(NUMBERS, target="b", features=["outcome", "a"]))
    assert (chosen.features, chosen.arrays["targets"].dtype) == (("outcome", "a"), np.float32)


def test_rows_that_were_selected_and_shuffled():
    found = parse_data(NUMBERS.shuffle(seed=1).select([0, 2]))
    assert found.rows == 2
    assert found.arrays["inputs"].tolist() == [[float(row["a"]), row["b"]] for row in NUMBERS.shuffle(seed=1).select([0, 2])]


@pytest.mark.parametrize(("dataset", "shape"), [(VECTORS, (2, 2)), (IMAGES, (2, 2, 2)), (VECTORS.with_format("torch"), (2, 2))])
def test_a_column_of_arrays_is_the_whole_input(dataset, shape):
    found = parse_data(dataset)
    assert (found.arrays["inputs"].shape, found.arrays["inputs"].dtype, found.features) == (shape, np.float32, ())


def test_tokens_stay_integers_where_they_are_needed():
    assert parse_data(TOKENS, integers=True).arrays["inputs"].dtype == np.int64


def test_texts():
    found = parse_data(TEXTS, texts=True)
    assert (found.arrays["inputs"].tolist(), found.arrays["targets"].tolist()) == (["good", "bad"], [1, 0])
    assert parse_data(Table(TEXTS, text="text", target="label")).arrays["inputs"].dtype == object


def test_one_split_is_taken_and_of_several_one_is_asked_for():
    assert parse_data(datasets.DatasetDict({"train": NUMBERS})).rows == 3
    with pytest.raises(DataError, match=r"the splits 'train', 'test'\nFix: pass one of them: data\['train'\]"):
        parse_data(datasets.DatasetDict({"train": NUMBERS, "test": NUMBERS}))


WRONG = {
    "no target": (made({"a": [1], "b": [2]}), r"which column .* It has 'a', 'b'\nFix: say it: cloudai.Table\(dataset, target="),
    "text": (TEXTS, "'text' of the dataset holds text"),
    "missing": (made({"a": [1.0, None, None], "label": [0, 1, 0]}), "'a' has 2 values missing or infinite, the first in row 2"),
    "missing target": (made({"a": [1, 2], "label": [0, None]}), "'label' has a value missing"),
    "ragged": (made({"a": [[1], [1, 2]], "label": [0, 1]}), "'a' have different lengths"),
    "empty": (NUMBERS.select([]), "the dataset is empty"),
    "streamed": (NUMBERS.to_iterable_dataset(), "is streamed\nFix: load it without"),
    "typo": (Table(NUMBERS, target="outcom"), "no column 'outcom'\nFix: did you mean 'outcome'"),
    "no table": (Table(3), "a table cannot be a int"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_taken_is_said_in_two_lines(case):
    data, message = WRONG[case]
    with pytest.raises(DataError, match=message) as caught:
        parse_data(data)
    assert len(str(caught.value).split("\n")) == 2


def test_datasets_is_not_loaded_for_those_who_have_none():
    import subprocess

    code = "import sys; from cloudai.training.data import parse_data; parse_data(([[1.0]], [0]))"
    code += "; print('datasets' in sys.modules, 'pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
