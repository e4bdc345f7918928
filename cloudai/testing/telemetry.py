"""The contract of a `TelemetryDriver`, clause by clause."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from cloudai.drivers.protocols import Metric, Sample, TelemetryDriver
from cloudai.testing.bench import Bench
from cloudai.testing.clauses import clause
from cloudai.testing.deployed import A, B, Deployed
from cloudai.testing.sharing import DriverConformance

__all__ = ["TelemetryDriverConformance"]

_CUMULATIVE = ("_total", "_count", "_bucket", "_sum")
_ASKED = 4
_TICK = 1e-6
"""Seconds: the resolution of a datetime, as which `since` is given."""


class TelemetryDriverConformance(DriverConformance):
    """What a driver that says how a deployment fares must do; subclass it beside a fixture ``bench``."""

    protocol: ClassVar[type] = TelemetryDriver
    act: ClassVar[str] = "telemetry"

    @pytest.fixture
    def asked(self, bench: Bench, driver: Any) -> Deployed:
        """Make a deployment with two revisions that share the traffic, which has answered a few requests."""
        found = Deployed(bench, driver, bench.shared).up(A, B)
        found.route({A: 100} if driver.capabilities.routing == "no" else {A: 50, B: 50})
        _send(found)
        return found

    @clause("metrics-are-numbers")
    def test_metrics_are_named_numbers(self, asked: Deployed) -> None:
        """A metric has a name, text labels and a finite value."""
        metrics = _metrics(asked)
        assert metrics, "metrics-are-numbers: a deployment that has answered requests has no metrics"
        for metric in metrics:
            assert isinstance(metric, Metric), f"metrics-are-numbers: {metric!r} is no Metric"
            assert metric.name, "metrics-are-numbers: a metric has no name"
            assert math.isfinite(metric.value), f"metrics-are-numbers: {metric.name} is {metric.value}"
            texts = all(isinstance(text, str) for pair in metric.labels.items() for text in pair)
            assert texts, f"metrics-are-numbers: the labels of {metric.name} are {dict(metric.labels)}; use str"

    @clause("counters-never-fall")
    def test_counters_never_fall(self, asked: Deployed) -> None:
        """What only counts up never falls, and rises when requests are answered."""
        first = before = _counters(_metrics(asked))
        sent = _send(asked)
        for _ in range(2):
            after = _counters(_metrics(asked))
            fallen = [key for key, value in before.items() if after.get(key, value) < value]
            assert not fallen, f"counters-never-fall: {fallen[0]} fell from {before[fallen[0]]} to {after[fallen[0]]}"
            before = after
        if sent:
            asked.wait(lambda: _counters(_metrics(asked)) != first, "counters-never-fall: a counter that rises with requests")

    @clause("metrics-respect-since")
    def test_nothing_was_measured_after_tomorrow(self, asked: Deployed) -> None:
        """Metrics were measured after `since`: after tomorrow, none were."""
        found = list(asked.driver.metrics(asked.name, since=_at(asked, 86400)))
        assert not found, f"metrics-respect-since: since tomorrow, {len(found)} metrics were measured"

    @clause("samples-are-aligned")
    def test_samples_have_one_row_for_each_answer(self, asked: Deployed) -> None:
        """Times, ids and all arrays of a sample have the same number of rows, and the revision is one of the deployment's."""
        for sample in _some(_samples(asked)):
            rows = {"times": len(sample.times), "ids": len(sample.ids), **_lengths(sample.inputs), **_lengths(sample.outputs)}
            assert len(set(rows.values())) == 1, f"samples-are-aligned: the rows are {rows}"
            assert sample.inputs, "samples-are-aligned: a sample has no inputs"
            assert sample.outputs, "samples-are-aligned: a sample has no outputs"
            assert sample.revision in (A, B), f"samples-are-aligned: {sample.revision!r} is no revision of the deployment"
            assert all(sample.ids), "samples-are-aligned: a row has no id"

    @clause("samples-respect-limit")
    def test_no_more_samples_than_asked_for(self, asked: Deployed) -> None:
        """There are at most `limit` rows, none where it is 0; rows of one instant are not parted."""
        _some(_samples(asked))
        for limit in (0, 1, 2):
            times = _times(_samples(asked, limit=limit))
            before_the_last = sum(time < max(times) for time in times) if times else 0
            few = before_the_last < limit if times else True
            assert few, f"samples-respect-limit: limit={limit} gave {len(times)} rows"

    @clause("samples-respect-since")
    def test_no_samples_from_before(self, asked: Deployed) -> None:
        """Rows were answered after `since`: none at that very time, none after tomorrow."""
        times = sorted(_times(_some(_samples(asked))))
        middle = times[len(times) // 2]
        later = _times(_samples(asked, since=middle + _TICK))
        assert all(time > middle for time in later), "samples-respect-since: rows from before since were given"
        assert later or middle == times[-1], "samples-respect-since: rows from after since were not given"
        assert not _times(_samples(asked, since=asked.bench.clock.now() + 86400)), "samples-respect-since: rows of tomorrow"

    @clause("samples-can-be-read-on")
    def test_reading_on_gives_each_row_once(self, asked: Deployed) -> None:
        """The oldest rows come first: reading on from the largest time that was given, each row comes once."""
        whole = sorted(_times(_some(_samples(asked))))
        pieces: list[float] = []
        since = 0.0
        while times := _times(_samples(asked, since=since, limit=2)):
            pieces += times
            since = max(times) + _TICK
            assert len(pieces) <= len(whole), "samples-can-be-read-on: rows were given twice"
        assert sorted(pieces) == whole, f"samples-can-be-read-on: of {len(whole)} rows, {len(pieces)} came in pieces of 2"

    @clause("unknown-deployments-are-empty")
    def test_an_unknown_deployment_has_no_telemetry(self, bench: Bench, driver: Any) -> None:
        """Of a deployment that never was there are no metrics and no samples."""
        nobody, long_ago = bench.name("nobody"), datetime.fromtimestamp(0, UTC)
        metrics = list(driver.metrics(nobody, since=long_ago))
        samples = list(driver.samples(nobody, since=long_ago, limit=10))
        assert not metrics, f"unknown-deployments-are-empty: an unknown deployment has the metrics {metrics}"
        assert not samples, f"unknown-deployments-are-empty: an unknown deployment has the samples {samples}"

    @clause("errors-are-ours")
    def test_only_errors_of_ours_come_out(self, asked: Deployed) -> None:
        """Whatever goes wrong is a CloudAIError already in the driver, also while an iterator is being read."""
        driver, nobody, since = asked.bench.connect(), asked.bench.name("nobody"), _at(asked, -86400)
        self.raw_errors(
            [
                ("metrics", lambda: driver.metrics(asked.name, since=since)),
                ("metrics of an unknown deployment", lambda: driver.metrics(nobody, since=since)),
                ("samples", lambda: driver.samples(asked.name, since=since, limit=3)),
                ("samples of an unknown deployment", lambda: driver.samples(nobody, since=since, limit=3)),
                ("close", driver.close),
            ]
        )


def _send(deployed: Deployed) -> int:
    """Send a few requests, and return how many; where the bench cannot, time passes and the driver may have its own."""
    sent = 0
    for _ in range(_ASKED):
        sent += deployed.bench.ask(deployed.name) is not None
        deployed.bench.clock.pause(deployed.bench.step)
    return sent


def _at(deployed: Deployed, seconds: float) -> datetime:
    return datetime.fromtimestamp(deployed.bench.clock.now(), UTC) + timedelta(seconds=seconds)


def _metrics(deployed: Deployed) -> list[Metric]:
    return list(deployed.driver.metrics(deployed.name, since=datetime.fromtimestamp(0, UTC)))


def _counters(metrics: Sequence[Metric]) -> dict[tuple[Any, ...], float]:
    """Return the values of what only counts up, by name and labels."""
    return {(m.name, *sorted(m.labels.items())): m.value for m in metrics if m.name.endswith(_CUMULATIVE)}


def _samples(deployed: Deployed, *, since: float = 0.0, limit: int = 10_000) -> list[Sample]:
    return list(deployed.driver.samples(deployed.name, since=datetime.fromtimestamp(since, UTC), limit=limit))


def _some(samples: list[Sample]) -> list[Sample]:
    """Return the samples; where there are none, there is nothing to say about them."""
    if not samples:
        pytest.skip("the deployment has no samples to look at")
    return samples


def _times(samples: Sequence[Sample]) -> list[float]:
    return [float(time) for sample in samples for time in sample.times]


def _lengths(arrays: Mapping[str, Any]) -> dict[str, int]:
    return {name: len(array) for name, array in arrays.items()}
