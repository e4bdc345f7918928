from __future__ import annotations

import json
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save
from scipy import stats

from cloudai.errors import DataError, IntegrityError, SpecError
from cloudai.statistics.columns import paired
from cloudai.statistics.profiles import Profile, columns_of
from cloudai.statistics.tests import kolmogorov_smirnov

REFERENCE = Profile.of({"x": np.random.default_rng(0).normal(size=500), "c": np.array(["a", "b", "b", None, "c"] * 100)})


@st.composite
def windows(draw):
    rows = draw(st.integers(0, 20))
    columns = {
        "x": draw(hnp.arrays(np.float64, rows)),
        "c": np.array(draw(st.lists(st.text(max_size=3) | st.none(), min_size=rows, max_size=rows)), dtype=object),
        draw(st.text(max_size=2)): np.zeros(rows),
    }
    names = draw(st.sets(st.sampled_from(sorted(columns)), min_size=1))
    return REFERENCE.empty().updated({name: columns[name] for name in names})


@settings(max_examples=60, deadline=None)
@given(windows(), windows(), windows())
def test_merging_is_associative_and_commutative_to_the_byte(a, b, c):
    assert a.merge(b).to_bytes() == b.merge(a).to_bytes()
    assert a.merge(b).merge(c).to_bytes() == a.merge(b.merge(c)).to_bytes()
    assert a.merge(REFERENCE.empty()).to_bytes() == a.to_bytes()


@settings(max_examples=40, deadline=None)
@given(windows())
def test_what_is_written_is_read_back(profile):
    again = Profile.from_bytes(profile.to_bytes())
    assert again.to_bytes() == profile.to_bytes()
    assert (again.rows, again.strangers, list(again.columns)) == (profile.rows, profile.strangers, list(profile.columns))
    again.require_same_grid(profile)


def test_one_update_or_many_give_the_same_profile():
    rng = np.random.default_rng(1)
    columns = {"x": rng.normal(size=999), "c": rng.choice(["a", "b", "d"], 999)}
    whole = REFERENCE.empty().updated(columns)
    parts = REFERENCE.empty()
    for start in range(0, 999, 100):
        parts = parts.updated({name: array[start : start + 100] for name, array in columns.items()})
    assert parts.to_bytes() == whole.to_bytes()


DISTRIBUTIONS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "cauchy": lambda rng, n: rng.standard_cauchy(n),
    "timestamps": lambda rng, n: 1.7e9 + rng.uniform(0, 86400, n),
    "narrow and far from zero": lambda rng, n: 100 + 0.01 * rng.normal(size=n),
    "mostly zero": lambda rng, n: np.where(rng.random(n) < 0.95, 0, rng.lognormal(size=n)),
    "integers": lambda rng, n: rng.integers(0, 17, n),
    "one wild row": lambda rng, n: np.append(rng.normal(size=n - 1), 1e300),
    "nine orders": lambda rng, n: rng.lognormal(0, 3, n),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_ks_distance_on_cells_is_the_exact_one(name):
    rng = np.random.default_rng(11)
    one, other = DISTRIBUTIONS[name](rng, 200_000), DISTRIBUTIONS[name](rng, 200_000)
    reference = Profile.of({"x": one})
    _, *counts = paired(reference.columns["x"], reference.empty().updated({"x": other}).columns["x"])
    exact = stats.ks_2samp(one, other, method="asymp").statistic
    assert kolmogorov_smirnov(*counts).statistic == pytest.approx(exact, abs=2e-4)


def test_a_million_rows_of_25_columns_take_half_a_megabyte():
    rng = np.random.default_rng(0)
    numbers = {f"n{i}": rng.normal(size=1_000_000) * rng.lognormal(0, i / 10, 1_000_000) for i in range(3)}
    profile = Profile.of(numbers)
    texts = {f"c{i}": rng.integers(0, 200, 10_000).astype(str) for i in range(5)}
    assert len(profile.to_bytes()) / 3 * 20 + len(Profile.of(texts).to_bytes()) <= 500_000


def test_a_wide_matrix_is_profiled_quickly():
    matrix = np.random.default_rng(0).normal(size=(100_000, 64)).astype("float32")
    start = time.process_time()
    profile = Profile.of(columns_of(matrix, "x"))
    assert time.process_time() - start < 1.0
    assert list(profile.columns)[:2] == ["x[0]", "x[1]"]
    assert all(column.present == 100_000 for column in profile.columns.values())


def test_a_data_frame_is_a_mapping_of_columns():
    frame = pd.DataFrame({"n": [1, 2, None], "t": ["a", None, "b"], "c": pd.Categorical(["u", "v", "u"])})
    profile = Profile.of(frame)
    assert [column.present for column in profile.columns.values()] == [2, 2, 3]


def test_images_are_flattened_and_a_vector_is_one_column():
    assert len(columns_of(np.zeros((5, 3, 4, 2)), "image")) == 24
    assert list(columns_of(np.zeros(5), "y")) == ["y"]
    assert [len(column) for column in columns_of(np.zeros((0, 3)), "x").values()] == [0, 0, 0]
    with pytest.raises(DataError, match="single value"):
        columns_of(np.array(1.0), "x")


def test_what_the_grid_has_no_place_for_is_counted_by_name():
    current = REFERENCE.empty().updated({"x": np.array(["?", "!"]), "new": np.zeros(2), "c": np.array(["a", "b"])})
    assert current.strangers == {"x": 2, "new": 2}
    assert (current.rows, current.columns["x"].rows, current.columns["c"].rows) == (2, 0, 2)


def test_names_without_number_do_not_grow_the_profile():
    current = REFERENCE.empty().updated({f"{i:05d}": np.zeros(1) for i in range(1000)})
    assert len(current.strangers) == 100


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({}, "no rows"),
        ({"x": np.zeros(0)}, "no rows"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, "'x' has 3 rows, another has 4"),
        ({"x": np.zeros((3, 2))}, r"'x' has shape \[3, 2\]"),
    ],
)
def test_columns_that_do_not_fit_together_are_refused(columns, says):
    with pytest.raises(DataError, match=says):
        Profile.of(columns)


def test_profiles_on_different_grids_do_not_merge():
    other = Profile.of({"x": np.arange(500.0), "c": np.array(["a"] * 500)})
    with pytest.raises(SpecError, match="different grids"):
        REFERENCE.merge(other)
    with pytest.raises(SpecError, match="different grids"):
        REFERENCE.merge(Profile.of({"x": np.arange(500.0)}))


GOOD = REFERENCE.to_bytes()


def changed(**header) -> bytes:
    tensors = dict(load(GOOD))
    words = json.loads(tensors["header"].tobytes()) | header
    return save(tensors | {"header": np.frombuffer(json.dumps(words).encode(), np.uint8)})


def replaced(**tensors) -> bytes:
    return save(dict(load(GOOD)) | tensors)


COUNTS = load(GOOD)["0.counts"]
MALFORMED = {
    "empty": b"",
    "not safetensors": b"x" * 100,
    "truncated": GOOD[:-1],
    "longer": GOOD + b"x",
    "no header": save({"x": np.zeros(1)}),
    "header is a list": replaced(header=np.frombuffer(b"[]", np.uint8)),
    "header is nested without end": replaced(header=np.frombuffer(b"[" * 100_000, np.uint8)),
    "header is no text": replaced(header=np.frombuffer(b"\xff\xff", np.uint8)),
    "another format": changed(format=2),
    "infinite rows": changed(rows=float("inf")),
    "fewer rows than values": changed(rows=3),
    "no columns": changed(columns=[]),
    "columns of the wrong type": changed(columns=[1, 2]),
    "too many tensors": replaced(extra=np.zeros(1)),
    "cells not increasing": replaced(**{"0.cells": load(GOOD)["0.cells"][::-1].copy()}),
    "cells of the wrong dtype": replaced(**{"0.cells": load(GOOD)["0.cells"].astype("int64")}),
    "counts of the wrong length": replaced(**{"0.counts": COUNTS[1:].copy()}),
    "a count of zero": replaced(**{"0.counts": COUNTS * 0}),
    "negative counts": replaced(**{"0.counts": -COUNTS.astype("int64")}),
    "counts beyond int64": replaced(**{"0.counts": COUNTS.astype("uint64") + np.uint64(2**63)}),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bytes_are_an_integrity_error(name):
    with pytest.raises(IntegrityError, match="stored profile cannot be read"):
        Profile.from_bytes(MALFORMED[name])


@pytest.mark.parametrize(
    "grid", [{"scale": 0}, {"scale": -1}, {"center": float("nan")}, {"kind": "other"}, {"rows": 1}, {"labels": 3}]
)
def test_a_malformed_grid_is_an_integrity_error(grid):
    columns = json.loads(load(GOOD)["header"].tobytes())["columns"]
    with pytest.raises(IntegrityError):
        Profile.from_bytes(changed(columns=[columns[0] | grid, columns[1]]))
