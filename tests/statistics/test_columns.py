from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from cloudai.errors import DataError
from cloudai.statistics.columns import Column, paired, positions


def values_of(column: Column) -> np.ndarray:
    return np.repeat(column.center + column.scale * positions(column.cells), column.counts)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_every_number_is_kept_to_half_a_percent_of_its_distance_from_the_centre(scale):
    values = np.sort(scale * np.random.default_rng(0).standard_cauchy(20_000))
    column = Column.fit(values)
    error = np.abs(values_of(column) - values)
    assert np.all(error <= np.abs(values - column.center) * 2**-8 + column.scale * 2**-12)


def test_the_same_numbers_fill_the_same_cells_in_any_dtype():
    tenths = np.random.default_rng(1).integers(-50, 50, 5000) / 10
    reference = Column.fit(tenths)
    for array in (
        tenths.astype("float32"),
        tenths.astype("longdouble"),
        tenths.astype(object),
        np.array([Decimal(f"{v}") for v in tenths]),
    ):
        column = reference.empty().updated(array)
        assert column.cells.tolist() == reference.cells.tolist()
        assert column.counts.tolist() == reference.counts.tolist()
    whole = np.arange(100)
    assert Column.fit(whole).empty().updated(whole.astype("uint8")).cells.tolist() == Column.fit(whole).cells.tolist()


@pytest.mark.parametrize("constant", [0.0, -7.0, 1e-6, 2023.0, 1e300])
def test_a_constant_column_still_tells_another_value(constant):
    column = Column.fit(np.full(50, constant))
    other = column.empty().updated(np.array([constant * 1.001 or 1e-6]))
    assert len(column.cells) == 1
    assert other.cells.tolist() != column.cells.tolist()


def test_negative_zero_is_zero():
    column = Column.fit(np.arange(-50.0, 51.0))
    assert column.center == 0
    zeros = column.empty().updated(np.array([0.0, -0.0, 1e-60, -1e-60, 1e-5, -1e-5]))
    assert zeros.counts.tolist() == [6]


def test_infinities_and_huge_numbers_have_a_cell_and_nan_counts_as_missing():
    array = np.concatenate([np.arange(100.0), [np.inf, -np.inf, 1e308, -1e308, np.nan]])
    column = Column.fit(array)
    assert (column.rows, column.present) == (105, 104)
    assert np.all(np.isfinite(positions(column.cells)))
    assert column.counts[0] == column.counts[-1] == 2
    assert column.center == pytest.approx(50, abs=1)


@pytest.mark.parametrize(
    "array", [np.full(9, np.nan), np.full(9, np.inf), np.array([1e308, -1e308] * 5), np.array([5e-324] * 9)]
)
def test_no_array_of_numbers_breaks_the_fit(array):
    column = Column.fit(array)
    assert np.isfinite(column.center)
    assert 0 < column.scale < np.inf
    assert column.rows == len(array)


def test_one_wild_row_leaves_the_grid_where_it_was():
    values = np.random.default_rng(2).normal(size=1001)
    clean, wild = Column.fit(values), Column.fit(np.append(values, 1e6))
    assert wild.center == pytest.approx(clean.center, abs=0.01)
    assert wild.scale == pytest.approx(clean.scale, rel=0.01)


def test_missing_values_of_every_dialect():
    texts = np.array(["a", None, float("nan"), pd.NA, pd.NaT, "b", Decimal("NaN"), Decimal("sNaN")], dtype=object)
    assert Column.fit(texts).present == 2
    assert Column.fit(np.asarray(pd.array([1, None, 3], dtype="Int64"))).present == 2
    assert Column.fit(np.array(["2026-01-01", "NaT", "2026-01-03"], dtype="datetime64[D]")).present == 2


def test_dates_are_numbers_whatever_their_unit():
    days = np.arange("2026-01-01", "2026-03-01", dtype="datetime64[D]")
    column = Column.fit(days)
    assert column.kind == "numeric"
    assert column.empty().updated(days.astype("datetime64[ns]")).cells.tolist() == column.cells.tolist()


def test_categories_are_counted_by_value():
    column = Column.fit(np.array(["red", "blue", "red", "green"]))
    assert column.kind == "category"
    by_label = {column.labels[cell]: count for cell, count in zip(column.cells.tolist(), column.counts.tolist(), strict=True)}
    assert by_label == {"red": 2, "blue": 1, "green": 1}
    assert Column.fit(np.array([b"red", b"\xff"])).present == 2
    assert Column.fit(np.array(["\ud800", "x" * 1000], dtype=object)).labels.keys()


def test_booleans_are_categories_but_fit_a_numeric_column():
    assert sorted(Column.fit(np.array([True, False, True])).labels.values()) == ["False", "True"]
    assert Column.fit(np.array([0.0, 1.0, 1.0])).empty().updated(np.array([True, False])).counts.tolist() == [1, 1]


def test_a_column_of_many_categories_stays_bounded():
    column = Column.fit(np.array([f"user-{i}" for i in range(50_000)]))
    assert column.present == 50_000
    assert len(column.cells) <= 4096
    assert len(column.labels) == 256


def test_values_of_another_kind_are_refused_and_nothing_at_all_fits_either():
    numbers, texts = Column.fit(np.arange(5.0)), Column.fit(np.array(["a", "b"]))
    assert numbers.updated(np.array(["a"])) is None
    assert texts.updated(np.array([1.0])) is None
    assert numbers.updated(np.array([None, None])).rows == 7
    assert texts.updated(np.array([np.nan])).rows == 3


def test_a_dtype_without_order_or_levels_is_refused():
    with pytest.raises(DataError, match="complex128"):
        Column.fit(np.array([1j]))


def test_numbers_too_large_for_a_float_lie_at_the_ends():
    column = Column.fit(np.array([10**400, -(10**400), 1, 2, 3], dtype=object))
    assert column.present == 5
    assert column.counts.tolist() == [1, 1, 1, 1, 1]


def test_paired_lines_up_the_cells_of_both():
    column = Column.fit(np.array([1.0, 2.0, 3.0, 4.0]))
    cells, one, other = paired(column, column.empty().updated(np.array([3.0, 9.0, 9.0])))
    assert (column.center + column.scale * positions(cells)).tolist() == [1.0, 2.0, 3.0, 4.0, 9.0]
    assert one.tolist() == [1, 1, 1, 1, 0]
    assert other.tolist() == [0, 0, 1, 0, 2]
