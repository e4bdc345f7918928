"""A step in parts: each row once, as many as allowed, and no dearer than any other way to divide them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloudai.training import parts
from cloudai.training.parts import dealt, grouped, longest_first, parts_of

LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=9)


def cost(found, lengths):
    return sum(32 + len(part) * lengths[part.numpy()].max() for part in found)


@given(LENGTHS, st.none() | st.integers(1, 4))
def test_no_other_division_costs_less(lengths, most):
    lengths = np.array(lengths)
    rows = longest_first(torch.arange(len(lengths)), lengths)
    found = parts_of(rows, lengths, most)
    assert torch.equal(torch.cat(found), rows)
    assert max(map(len, found)) <= (most or len(rows))
    for cuts in itertools.product((False, True), repeat=len(rows) - 1):
        bounds = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), len(rows)]
        other = [rows[begin:end] for begin, end in itertools.pairwise(bounds)]
        if max(map(len, other)) <= (most or len(rows)):
            assert cost(found, lengths) <= cost(other, lengths)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=9), st.integers(1, 5))
def test_workers_get_each_row_once_and_sums_that_differ_by_no_more_than_one_row(lengths, world):
    lengths = np.array(lengths * world)
    rows = longest_first(torch.arange(len(lengths)), lengths)
    shares = [dealt(rows, rank, world) for rank in range(world)]
    assert sorted(torch.cat(shares).tolist()) == list(range(len(lengths)))
    assert {len(share) for share in shares} == {len(lengths) // world}
    sums = [int(lengths[share.numpy()].sum()) for share in shares]
    assert max(sums) - min(sums) <= lengths.max()


@pytest.mark.parametrize(("count", "batch"), [(3, 4), (9, 2), (203, 4), (1001, 16), (4000, 8)])
def test_grouping_keeps_each_row_once_and_what_is_left_over_last(count, batch):
    lengths = np.random.default_rng(0).integers(1, 500, count)
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    found = grouped(rows, lengths, batch, torch.Generator().manual_seed(2))
    assert sorted(found.tolist()) == list(range(count))
    whole = count // batch * batch
    assert torch.equal(found[whole:], rows[whole:])


@pytest.mark.parametrize("count", [320, 8000])
def test_rows_of_like_length_meet_and_others_in_each_epoch(count):
    lengths = np.random.default_rng(0).permutation(count)
    batches, spreads = set(), []
    for epoch in range(3):
        generator = torch.Generator().manual_seed(epoch)
        order = grouped(torch.randperm(count, generator=generator), lengths, 16, generator)
        drawn = torch.split(order, 16)
        batches |= {frozenset(batch.tolist()) for batch in drawn}
        spreads += [np.ptp(lengths[batch.numpy()]) / count for batch in drawn]
    assert len(batches) == 3 * count // 16
    assert np.mean(spreads) < 0.25, "of 16 random rows it is 0.88"


@pytest.mark.parametrize(("most", "sizes"), [(None, [5]), (2, [2, 2, 1]), (9, [5])])
def test_rows_without_lengths_stay_in_order(most, sizes):
    rows = torch.tensor([4, 2, 9, 0, 1])
    assert torch.equal(longest_first(rows, None), rows)
    assert [len(part) for part in parts_of(rows, None, most)] == sizes
    assert torch.equal(torch.cat(parts_of(rows, None, most)), rows)


def test_a_gpu_computes_more_at_once():
    lengths = np.array([500, 10, 480, 12])
    rows = longest_first(torch.arange(4), lengths)
    assert len(parts_of(rows, lengths, None, "cpu")) > len(parts_of(rows, lengths, None, "cuda"))
    assert parts._CALL["cpu"] < parts._CALL["cuda"]
