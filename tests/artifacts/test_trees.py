"""Trees of arrays and plain values survive the way to bytes and back, exactly, and nothing else gets in."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai.artifacts import trees
from cloudai.errors import IntegrityError, SpecError

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text() | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@given(plain)
@settings(max_examples=100, deadline=None)
def test_plain_trees_come_back_equal_with_their_types(tree):
    back = trees.load(trees.dump(tree))
    assert back == tree
    assert repr(back) == repr(tree)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_come_back_bit_for_bit(dtype):
    tensor = (torch.arange(12).reshape(3, 4) % 2).to(dtype)
    back = trees.load(trees.dump({"t": tensor, "scalar": tensor[0, 0], "view": tensor.t()}))
    assert back["t"].dtype == dtype
    assert torch.equal(back["t"], tensor)
    assert back["scalar"].shape == ()
    assert torch.equal(back["view"], tensor.t())


def test_arrays_stay_arrays_and_nan_stays():
    back = trees.load(trees.dump([np.float32([1, math.nan]), np.int64(3), math.inf, np.zeros((0, 2), "float32")]))
    assert isinstance(back[0], np.ndarray)
    assert np.array_equal(back[0], np.float32([1, math.nan]), equal_nan=True)
    assert back[1:3] == [3, math.inf]
    assert back[3].shape == (0, 2)


def test_an_optimizer_comes_back_and_goes_on_the_same():
    def make():
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1)

    def step(module, optimizer):
        optimizer.zero_grad()
        module(torch.ones(4, 3)).sum().backward()
        optimizer.step()

    one, one_optimizer = make()
    step(one, one_optimizer)
    state = trees.load(trees.dump({"model": one.state_dict(), "optimizer": one_optimizer.state_dict()}))
    two, two_optimizer = make()
    two.load_state_dict(state["model"])
    two_optimizer.load_state_dict(state["optimizer"])
    step(one, one_optimizer)
    step(two, two_optimizer)
    assert torch.equal(one.weight, two.weight)


def test_equal_trees_have_equal_bytes():
    tree = {"b": torch.ones(3), "a": [1, {"c": np.arange(3)}]}
    assert trees.dump(tree) == trees.dump({"b": torch.ones(3), "a": [1, {"c": np.arange(3)}]})


@pytest.mark.parametrize("bad", [object(), {1.5: 0}, {True: 1}, [lambda: 0], {"a": {"b": {1, 2}}}])
def test_what_cannot_be_saved_is_named(bad):
    with pytest.raises(SpecError, match="tree"):
        trees.dump(bad)


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_damaged_bytes_are_refused(cut):
    data = trees.dump({"t": torch.arange(100)})
    with pytest.raises(IntegrityError):
        trees.load(data[:cut])
    with pytest.raises(IntegrityError):
        trees.load(b"\xff" * 8 + data[8:])
