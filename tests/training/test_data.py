"""Data in the forms that users have it in, and the error for each way in which it can be wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from cloudai.errors import DataError
from cloudai.training.data import parse_data

X, Y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 0, 1, 0, 1])


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return torch.tensor(X[i]), int(Y[i])


FORMS = {
    "arrays": (X, Y),
    "lists": (X.tolist(), Y.tolist()),
    "tensors": (torch.tensor(X), torch.tensor(Y)),
    "frames": (pd.DataFrame(X, columns=["a", "b"]), pd.Series(Y)),
    "mapping": {"inputs": X, "targets": Y},
    "tensor dataset": torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y)),
    "own dataset": Pairs(),
    "subset": torch.utils.data.Subset(Pairs(), range(6)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_arrays(form):
    parsed = parse_data(FORMS[form])
    assert parsed.arrays["inputs"].dtype == np.float32
    assert parsed.arrays["targets"].dtype == np.int64
    assert np.array_equal(parsed.arrays["inputs"], X)
    assert np.array_equal(parsed.arrays["targets"], Y)
    assert parsed.rows == 6


def test_columns_keep_their_names():
    assert parse_data(FORMS["frames"]).features == ("a", "b")


def test_a_frame_of_numbers_and_truths_is_numbers():
    frame = pd.DataFrame({"a": [1, 2], "b": [True, False]})
    assert parse_data((frame, [0, 1])).arrays["inputs"].tolist() == [[1.0, 1.0], [2.0, 0.0]]


def test_integers_stay_integers_only_where_an_embedding_needs_them():
    tokens = np.array([[1, 2], [3, 4]])
    assert parse_data((tokens, [0, 1])).arrays["inputs"].dtype == np.float32
    assert parse_data((tokens, [0, 1]), integers=True).arrays["inputs"].dtype == np.int64


def test_real_targets_stay_real():
    assert parse_data((X, Y / 2)).arrays["targets"].dtype == np.float32


NAN = X.copy()
NAN[3, 1] = np.nan
WRONG = {
    "NaN": ((NAN, Y), r"NaN or infinite, the first at \[3, 1\]"),
    "infinite target": ((X, np.where(Y, np.inf, 0)), "the targets hold 3 values"),
    "NaN in a named column": ((pd.DataFrame(NAN, columns=["a", "b"]), Y), "column 'b'"),
    "lengths": ((X, Y[:4]), "different lengths: {'inputs': 6, 'targets': 4}"),
    "empty": ((X[:0], Y[:0]), "are empty"),
    "empty dataset": (torch.utils.data.TensorDataset(torch.zeros(0, 2), torch.zeros(0)), "is empty"),
    "text": ((np.array([["a"], ["b"]]), [0, 1]), "dtype <U1"),
    "objects": ((pd.DataFrame({"a": ["x", "y"]}), [0, 1]), "dtype"),
    "ragged": (([[1, 2], [3]], [0, 1]), "rows of equal shape|not an array"),
    "scalar": ((1.0, 2.0), "are empty"),
    "names": ({"x": X, "y": Y}, "'inputs' and 'targets'"),
    "a path": ("data.csv", "cloudai.Table\\('data.csv', target="),
    "a bare array": (X, "data cannot be a ndarray"),
    "dataset of singles": (
        list(range(5)) and torch.utils.data.Subset(torch.arange(5), range(5)),
        "not \\(input, target\\) pairs",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_with_its_place(case):
    data, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        parse_data(data)


def test_large_finite_values_are_not_taken_for_infinite():
    big = np.full((4, 2), 3e38, dtype=np.float32)
    assert parse_data((big, [0, 1, 0, 1])).rows == 4
    huge = np.full((4, 2), 1e300)
    with pytest.raises(DataError, match="float32"):
        parse_data((huge, [0, 1, 0, 1]))
