from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai.errors import SpecError
from cloudai.serving.routes import RouteFile, RouteTable


def text_of(traffic, ports=None):
    backends = {name: {"ports": [port]} for name, port in (ports or dict.fromkeys(traffic, 1)).items()}
    return json.dumps({"traffic": traffic, "backends": backends})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(0, 10**6))
def test_each_revision_gets_its_share(weights, seed):
    traffic = {f"r{i}": 100 * weight / sum(weights) for i, weight in enumerate(weights)}
    table = RouteTable.parse(text_of(traffic))
    n = 2000
    chosen = [table.choose(f"{seed}-{i}")[0] for i in range(n)]
    for name, percent in traffic.items():
        share = percent / 100
        assert abs(chosen.count(name) - n * share) <= 5.5 * np.sqrt(n * share * (1 - share)) + 1


def test_the_same_request_goes_to_the_same_revision_and_the_others_follow_by_share():
    table = RouteTable.parse(text_of({"a": 20, "b": 50, "c": 30, "d": 0}))
    orders = {tuple(table.choose(f"{i}")) for i in range(200)}
    assert orders == {("a", "b", "c"), ("b", "c", "a"), ("c", "b", "a")}
    assert table.choose("x") == table.choose("x")


def test_a_growing_share_keeps_the_requests_that_it_has():
    few, more = (RouteTable.parse(text_of({"a-canary": share, "b-stable": 100 - share})) for share in (10, 30))
    for i in range(500):
        if few.choose(f"{i}")[0] == "a-canary":
            assert more.choose(f"{i}")[0] == "a-canary"


def test_a_table_without_traffic_chooses_nobody():
    assert RouteTable.parse('{"traffic": {}, "backends": {}}').choose("x") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"traffic": {"a": 100}, "backends": {}}',
        '{"traffic": {"a": 100}, "backends": {"a": {"ports": [0]}}}',
        '{"traffic": {"a": 100}, "backends": {"a": {"ports": ["80"]}}}',
        '{"traffic": {"a": 100}, "backends": {"a": {"ports": [true]}}}',
        '{"traffic": [100], "backends": {}}',
        '{"traffic": {"a": NaN}, "backends": {"a": {"ports": [1]}}}',
        text_of({"a": 99}),
        text_of({"a": 0}),
        text_of({"a": 150, "b": -50}),
    ],
)
def test_what_is_not_a_table_is_refused(text):
    with pytest.raises(SpecError, match="not a routing table"):
        RouteTable.parse(text)


def test_a_replaced_file_is_in_force_at_once_and_a_bad_one_never(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    path, routes = tmp_path / "routes.json", RouteFile(tmp_path / "routes.json")

    def replace(text):
        (tmp_path / "fresh").write_text(text)
        (tmp_path / "fresh").replace(path)

    assert routes.current() is None
    for i in range(100):
        replace(text_of({f"r{i % 10}": 100}))  # all of the same size, within the same tick of the clock
        assert list(routes.current().traffic) == [f"r{i % 10}"]
    good = routes.current()
    replace('{"traffic": {"r9"')
    assert routes.current() is routes.current() is good
    path.unlink()
    assert routes.current() is routes.current() is good
    assert len(caplog.records) == 2  # each trouble is said once, not at every request
    replace(text_of({"back": 100}))
    assert list(routes.current().traffic) == ["back"]
