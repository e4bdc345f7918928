"""What a router counts: requests by revision and status, how long they took, and how mirrored answers differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cloudai.serving.metrics import Distribution

__all__ = ["DIFFERENCES", "LATENCIES", "RouterMetrics"]

LATENCIES = tuple(float(f"{0.0005 * 1.2**n:.3g}") for n in range(62))
"""Seconds, from half a millisecond to half a minute, each a fifth more than the one before: a rollout's guard compares
quantiles of two revisions, and sees no smaller change than from one bound to the next."""
DIFFERENCES = (0.0, 1e-6, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

_STARTS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_ENTIRELY = 2.0
"""Two numbers of which the larger is 1 differ by no more."""


class RouterMetrics(Collector):
    """The metrics of one router. Only the event loop's thread counts, so that no lock is needed."""

    def __init__(self, *, in_flight: Callable[[], float], waiting: Callable[[], float]) -> None:
        self._in_flight, self._waiting = in_flight, waiting
        self._requests: Counter[tuple[str, str]] = Counter()
        self._broken: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._seconds: dict[str, Distribution] = {}
        self._differences: dict[str, Distribution] = {}
        self._cold_starts: Counter[str] = Counter()
        self._cold_seconds: dict[str, Distribution] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def routed(self, revision: str, code: int, seconds: float) -> None:
        """Count a request that `revision` answered, or should have; `revision` is empty if there was none to ask."""
        self._requests[revision, str(code)] += 1
        if revision not in self._seconds:
            self._seconds[revision] = Distribution(LATENCIES)
        self._seconds[revision].observe(seconds)

    def broke(self, revision: str) -> None:
        """Count a request in the middle of which `revision` broke off."""
        self._broken[revision] += 1

    def compared(self, revision: str, difference: float) -> None:
        """Count a mirrored request that `revision` answered, and by how much its answer differs from the client's."""
        if revision not in self._differences:
            self._differences[revision] = Distribution(DIFFERENCES)
        self._differences[revision].observe(min(difference, _ENTIRELY))

    def not_mirrored(self, revision: str) -> None:
        """Count a request that should have been mirrored, while there was too much to do."""
        self._dropped[revision] += 1

    def cold_started(self, revision: str, seconds: float) -> None:
        """Count that a request had to wait so long for a first replica."""
        self._cold_starts[revision] += 1
        if revision not in self._cold_seconds:
            self._cold_seconds[revision] = Distribution(_STARTS)
        self._cold_seconds[revision].observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Say what was counted (the protocol of Prometheus' client)."""
        requests = CounterMetricFamily("cloudai_requests_total", "Requests answered", labels=("revision", "code"))
        for key, count in self._requests.items():
            requests.add_metric(key, count)
        yield requests
        yield _counter("cloudai_broken_total", "Requests in the middle of which the revision broke off", self._broken)
        yield _counter("cloudai_shadow_dropped_total", "Requests not mirrored while there was too much to do", self._dropped)
        yield _histogram("cloudai_request_duration_seconds", "Seconds from request to the end of its answer", self._seconds)
        yield _histogram(
            "cloudai_shadow_difference", "By how much mirrored answers differ: shares of the largest number", self._differences
        )
        yield _counter("cloudai_cold_starts_total", "Times that a revision was woken up", self._cold_starts)
        yield _histogram("cloudai_cold_start_seconds", "Seconds from first request to first replica", self._cold_seconds)
        yield GaugeMetricFamily("cloudai_inflight", "Requests being routed", value=self._in_flight())
        yield GaugeMetricFamily("cloudai_waiting", "Requests that wait for a replica", value=self._waiting())


def _counter(name: str, text: str, counts: Counter[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=("revision",))
    for revision, count in counts.items():
        family.add_metric((revision,), count)
    return family


def _histogram(name: str, text: str, found: dict[str, Distribution]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=("revision",))
    for revision, distribution in found.items():
        distribution.into(family, (revision,))
    return family
