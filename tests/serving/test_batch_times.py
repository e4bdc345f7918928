from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudai.serving.batch_times import BatchTimes

SIZES = (1, 2, 4, 8, 16, 32)
TIMES = st.lists(st.floats(1e-5, 10), min_size=1, max_size=6).map(lambda taken: dict(zip(SIZES, taken, strict=False)))


def measured(curve):
    return BatchTimes({size: curve(size) for size in SIZES})


@pytest.mark.parametrize(
    ("curve", "best"),
    [
        (lambda n: 0.001 * n, 1),  # nothing is gained by a batch: nobody waits for one
        (lambda n: 0.010, 32),  # all is gained
        (lambda n: 0.001 * n + 0.001, 16),
        (lambda n: 0.001 * n + 0.0001, 2),
        (lambda n: 0.001 * n if n <= 8 else 0.002 * n, 1),  # beyond the cache it is slower
        (lambda n: 0.004 if n <= 4 else 0.001 * n, 4),
    ],
)
def test_the_best_size_is_the_smallest_that_loses_little(curve, best):
    assert measured(curve).best == best


@given(TIMES)
def test_no_size_beats_the_best_one_by_more_than_it_may(taken):
    times = BatchTimes(taken)
    assert times.best in taken
    assert times.rate == pytest.approx(times.best / taken[times.best])
    assert all(times.rate >= 0.95 * size / seconds for size, seconds in taken.items())


@given(TIMES, st.integers(1, 200))
def test_between_what_was_measured_lies_what_is_expected(taken, rows):
    times, largest = BatchTimes(taken), max(taken)
    if rows >= largest:
        assert times.seconds(rows) == pytest.approx(taken[largest] * rows / largest)
        return
    below = max(size for size in taken if size <= rows)
    low, high = sorted((taken[below], taken[below * 2]))
    assert low * 0.999 <= times.seconds(rows) <= high * 1.001


def test_it_follows_a_machine_that_becomes_slower_also_for_sizes_that_it_does_not_see():
    times = measured(lambda n: 0.001 * n + 0.002)
    for _ in range(300):
        times.learn(4, 3 * 0.006)
    assert times.seconds(4) == pytest.approx(0.018, rel=0.01)
    assert times.seconds(32) > 1.25 * 0.034


def test_it_finds_another_best_size_where_the_curve_has_changed():
    times = measured(lambda n: 0.010)
    assert times.best == 32
    for _ in range(400):
        for size in SIZES:
            times.learn(size, 0.010 * size)
    assert times.best == 1


def test_one_odd_batch_changes_little():
    times = measured(lambda n: 0.010)
    times.learn(8, 1000.0)
    times.learn(8, 0.0)
    assert times.seconds(8) == pytest.approx(0.010, rel=0.01)
    times.learn(8, 1000.0)
    assert times.seconds(8) < 0.012
