"""What a model server counts, in Prometheus' format, in a registry of its own."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

__all__ = ["Distribution", "ModelMetrics", "ServerMetrics", "exposition"]

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 7.5, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_REASONS = ("invalid", "overloaded", "draining", "timeout", "model", "lost_client")
_NAMES = ("model_name", "version", "instance")


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the metrics and their content type, in the format that the scraper accepts."""
    encode, kind = choose_encoder(accept)
    return encode(registry), kind


class Distribution:
    """Counts values by bucket. Only the event loop's thread counts, so that no lock is needed."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def into(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Write what was counted, with these labels."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, map(float, self._bounds)), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric(labels, buckets=buckets, sum_value=self._sum)


class ModelMetrics:
    """The counts of one version of one model.

    Parameters
    ----------
    labels : sequence of str
        The values of ``model_name``, ``version`` and ``instance``.
    in_flight, waiting, sampled : callable
        Asked for the requests that are being worked on, the rows that wait, and the share of requests that is kept for the
        monitor, whenever somebody reads the metrics.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        in_flight: Callable[[], float],
        waiting: Callable[[], float],
        sampled: Callable[[], float],
    ) -> None:
        self.labels = tuple(labels)
        self.in_flight, self.waiting, self.sampled = in_flight, waiting, sampled
        self.latency, self.queued, self.computed = (Distribution(_BUCKETS) for _ in range(3))
        self.batch_rows = Distribution(_ROWS)
        self.predictions = self.samples_dropped = 0
        self.errors = dict.fromkeys(_REASONS, 0)

    def answered(self, seconds: float, rows: int) -> None:
        """Count an answered request of so many rows."""
        self.latency.observe(seconds)
        self.predictions += rows

    def failed(self, reason: str) -> None:
        """Count a request that was not answered with a prediction."""
        self.errors[reason] += 1

    def computed_batch(self, rows: int, waited: float, took: float) -> None:
        """Count a batch, the seconds that its oldest request waited, and those that it took."""
        self.batch_rows.observe(rows)
        self.queued.observe(waited)
        self.computed.observe(took)

    def dropped(self, rows: int) -> None:
        """Count sampled rows that could not be kept."""
        self.samples_dropped += rows


class ServerMetrics(Collector):
    """The metrics of one model server.

    ``ml_inference_latency`` is in seconds, from a request's head to its answer, of answered requests only; its labels
    are exactly ``model_name``, ``version`` and ``instance`` (scrape with ``honor_labels``, or Prometheus renames ours).
    ``ml_predictions_total`` counts rows, ``ml_inference_errors_total`` requests.
    """

    def __init__(self, models: Iterable[ModelMetrics]) -> None:
        self._models = tuple(models)
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with the values of all models."""
        latency = HistogramMetricFamily("ml_inference_latency", "Seconds from request to answer", labels=_NAMES)
        queued = HistogramMetricFamily("ml_inference_queue", "Seconds that a batch's oldest request waited", labels=_NAMES)
        computed = HistogramMetricFamily("ml_inference_compute", "Seconds that a batch was computed", labels=_NAMES)
        batch_rows = HistogramMetricFamily("ml_inference_batch_rows", "Rows computed together", labels=_NAMES)
        predictions = CounterMetricFamily("ml_predictions_total", "Rows predicted", labels=_NAMES)
        errors = CounterMetricFamily("ml_inference_errors_total", "Requests refused or failed", labels=(*_NAMES, "reason"))
        dropped = CounterMetricFamily("ml_samples_dropped_total", "Sampled rows that could not be written", labels=_NAMES)
        running = GaugeMetricFamily("ml_inference_in_flight", "Requests being worked on", labels=_NAMES)
        waiting = GaugeMetricFamily("ml_inference_waiting_rows", "Rows that wait to be computed", labels=_NAMES)
        sampled = GaugeMetricFamily("ml_samples_share", "The share of requests that are kept for the monitor", labels=_NAMES)
        for model in self._models:
            model.latency.into(latency, model.labels)
            model.queued.into(queued, model.labels)
            model.computed.into(computed, model.labels)
            model.batch_rows.into(batch_rows, model.labels)
            predictions.add_metric(model.labels, model.predictions)
            for reason, count in model.errors.items():
                errors.add_metric((*model.labels, reason), count)
            dropped.add_metric(model.labels, model.samples_dropped)
            running.add_metric(model.labels, model.in_flight())
            waiting.add_metric(model.labels, model.waiting())
            sampled.add_metric(model.labels, model.sampled())
        yield from (latency, queued, computed, batch_rows, predictions, errors, dropped, running, waiting, sampled)
