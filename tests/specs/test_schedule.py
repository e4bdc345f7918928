"""Times of cron expressions, compared with a look at every minute."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai.specs.schedule import next_times, previous_time

DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]


def field(low, high, names=()):
    """Expressions of one field with the values that they stand for."""

    def written(value):
        return names[value - low] if names and value - low < len(names) else str(value)

    number = st.integers(low, high)
    pair = st.tuples(number, number).map(sorted)
    one = number.map(lambda value: (written(value), {value}))
    span = pair.map(lambda p: (f"{written(p[0])}-{written(p[1])}", set(range(p[0], p[1] + 1))))
    wide = pair.filter(lambda p: p[0] < p[1])  # cronsim reads the step of a range of one as that of all that follow
    step = st.tuples(wide, st.integers(1, 20)).map(
        lambda t: (f"{t[0][0]}-{t[0][1]}/{t[1]}", {*range(t[0][0], t[0][1] + 1, t[1])})
    )
    every = st.integers(2, 20).map(lambda n: (f"*/{n}", set(range(low, high + 1, n))))
    several = st.lists(st.one_of(one, span, step), min_size=1, max_size=3)
    listed = several.map(lambda parts: (",".join(text for text, _ in parts), set().union(*(values for _, values in parts))))
    return st.one_of(st.just(("*", set(range(low, high + 1)))), every, listed)


def stands_for(moment, values, texts):
    minutes, hours, days, months, weekdays = values
    on_day, on_weekday = moment.day in days, (moment.weekday() + 1) % 7 in weekdays
    either = texts[2][0] != "*" and texts[4][0] != "*"
    day = (on_day or on_weekday) if either else (on_day and on_weekday)
    return day and moment.minute in minutes and moment.hour in hours and moment.month in months


@settings(deadline=None, max_examples=40)
@given(
    field(0, 59),
    field(0, 23),
    field(1, 31),
    field(1, 12, MONTHS),
    field(0, 6, DAYS),
    st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1)),
)
def test_each_time_is_the_next_minute_that_fits(minute, hour, day, month, weekday, start):
    fields = [minute, hour, day, month, weekday]
    texts, values = [text for text, _ in fields], [value for _, value in fields]
    start = start.replace(second=30, microsecond=0, tzinfo=UTC)
    first = start.replace(second=0) + timedelta(minutes=1)
    minutes = (first + timedelta(minutes=passed) for passed in range(6 * 1440))
    expected = list(itertools.islice((m for m in minutes if stands_for(m, values, texts)), 4))
    times = next_times(" ".join(texts), "UTC", start.timestamp())
    found = [datetime.fromtimestamp(at, UTC) for at in itertools.islice(times, max(1, len(expected)))] if expected else []
    assert found == expected
    for at in expected:
        assert previous_time(" ".join(texts), "UTC", at.timestamp() + 59) == at.timestamp()


def local(cron, zone, start, count):
    at = datetime.fromisoformat(start).replace(tzinfo=ZoneInfo(zone)).timestamp()
    times = itertools.islice(next_times(cron, zone, at), count)
    return [datetime.fromtimestamp(time, ZoneInfo(zone)).isoformat() for time in times]


def test_a_time_that_clocks_skip_comes_right_after_the_gap():
    assert local("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", 2) == [
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]


def test_a_fixed_time_that_comes_twice_is_done_once_and_every_hour_goes_on():
    assert local("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 2) == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-26T02:30:00+01:00",
    ]
    assert local("30 * * * *", "Europe/Berlin", "2026-10-25T01:40", 3) == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-25T02:30:00+01:00",
        "2026-10-25T03:30:00+01:00",
    ]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"])
@given(start=st.integers(int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()), int(datetime(2027, 1, 1, tzinfo=UTC).timestamp())))
@settings(deadline=None, max_examples=30)
def test_times_only_go_forward_also_where_clocks_go_back(zone, start):
    for cron in ("45 1 * * *", "15 2 * * *", "*/20 * * * *"):
        times = list(itertools.islice(next_times(cron, zone, start), 4))
        assert all(before < after for before, after in itertools.pairwise([start, *times]))


def test_in_the_hour_that_comes_twice_a_fixed_time_that_was_done_is_not_done_again():
    second = datetime(2026, 10, 25, 2, 10, tzinfo=ZoneInfo("Europe/Berlin"), fold=1).timestamp()
    first = next(next_times("30 2 * * *", "Europe/Berlin", second))
    assert datetime.fromtimestamp(first, UTC) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)
