"""What server and router count, in Prometheus' format, each in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

__all__ = ["RouterMetrics", "ServerMetrics", "exposition"]

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 7.5, 10.0)
_REASONS = ("invalid", "overloaded", "draining", "timeout", "model", "lost_client")


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the metrics and their content type, in the format that the scraper accepts."""
    encode, kind = choose_encoder(accept)
    return encode(registry), kind


class ServerMetrics:
    """The metrics of one model server.

    ``ml_inference_latency`` is in seconds, from a request's head to its answer, of answered requests only; its labels
    are exactly ``model_name``, ``version`` and ``instance`` (scrape with ``honor_labels``, or Prometheus renames ours).
    ``ml_predictions_total`` counts rows, ``ml_inference_errors_total`` requests.
    """

    def __init__(self, *, model_name: str, version: str, instance: str, in_flight: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        names = ("model_name", "version", "instance")
        values = (model_name, version, instance)
        latency = Histogram(
            "ml_inference_latency", "Seconds from request to answer", names, buckets=_BUCKETS, registry=self.registry
        )
        predictions = Counter("ml_predictions_total", "Rows predicted", names, registry=self.registry)
        errors = Counter("ml_inference_errors_total", "Requests refused or failed", (*names, "reason"), registry=self.registry)
        dropped = Counter("ml_samples_dropped_total", "Sampled rows that could not be written", names, registry=self.registry)
        running = Gauge("ml_inference_in_flight", "Requests being worked on", names, registry=self.registry)
        running.labels(*values).set_function(in_flight)
        self._latency = latency.labels(*values)
        self._predictions = predictions.labels(*values)
        self._errors = {reason: errors.labels(*values, reason) for reason in _REASONS}
        self._dropped = dropped.labels(*values)

    def answered(self, seconds: float, rows: int) -> None:
        """Count an answered request of so many rows."""
        self._latency.observe(seconds)
        self._predictions.inc(rows)

    def failed(self, reason: str) -> None:
        """Count a request that was not answered with a prediction."""
        self._errors[reason].inc()

    def dropped(self, rows: int) -> None:
        """Count sampled rows that could not be kept."""
        self._dropped.inc(rows)


class RouterMetrics:
    """The metrics of one router: requests by revision and status code, and how long they took."""

    def __init__(self, *, in_flight: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("cloudai_requests_total", "Requests answered", ("revision", "code"), registry=self.registry)
        self._seconds = Histogram(
            "cloudai_request_duration_seconds",
            "Seconds from request to the end of its answer",
            ("revision",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        Gauge("cloudai_inflight", "Requests being routed", registry=self.registry).set_function(in_flight)

    def routed(self, revision: str, code: int, seconds: float) -> None:
        """Count a request that `revision` answered, or should have; `revision` is empty if there was none to ask."""
        self._requests.labels(revision, str(code)).inc()
        self._seconds.labels(revision).observe(seconds)
