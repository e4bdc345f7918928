from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.capture.captured_cells import Notebook, carried

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary()
hashables = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
values = st.recursive(
    hashables,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hashables, inner, max_size=4) | st.sets(hashables, max_size=4),
    max_leaves=12,
)


@settings(max_examples=120, deadline=None)
@given(values)
def test_any_constant_comes_back_equal(tmp_path_factory, value):
    notebook = Notebook("def f(): return CONSTANT")
    notebook["CONSTANT"] = value
    assert like(carried(tmp_path_factory.mktemp("constant"), notebook, "f")()) == like(value)


def like(value):
    """Make values comparable by type and content, with nan and -0.0 as values."""
    if isinstance(value, list | tuple):
        return type(value).__name__, [like(item) for item in value]
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted(map(repr, map(like, value)))
    if isinstance(value, dict):
        return [(like(key), like(item)) for key, item in value.items()]
    return type(value).__name__, repr(value)


@pytest.mark.parametrize("number", [np.float32(0.1), np.float64("nan"), np.int8(-3), np.bool_(True), np.complex64(1 + 2j)])
def test_numpy_scalars_keep_their_type(number, tmp_path):
    notebook = Notebook("def f(): return NUMBER")
    notebook["NUMBER"] = number
    back = carried(tmp_path, notebook, "f")()
    assert (type(back), repr(back)) == (type(number), repr(number))
