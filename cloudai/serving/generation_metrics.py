"""What is counted of texts being written, under vLLM's names with the prefix of our servers."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cloudai.serving.generation import GenerationEngine

__all__ = ["GenerationMetrics"]

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)


class GenerationMetrics:
    """Counters of one engine.

    Parameters
    ----------
    labels : sequence of str
        The values of ``model_name``, ``version`` and ``instance``.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.registry = registry = CollectorRegistry()
        names = ("model_name", "version", "instance")
        self._labels = labels
        self._running = Gauge("ml_num_requests_running", "Texts being written", names, registry=registry)
        self._waiting = Gauge("ml_num_requests_waiting", "Texts that wait for a place", names, registry=registry)
        first = Histogram(
            "ml_time_to_first_token_seconds",
            "Seconds from a text's request to its first token",
            names,
            buckets=_BUCKETS,
            registry=registry,
        )
        prompts = Counter("ml_prompt_tokens_total", "Tokens of prompts read", names, registry=registry)
        written = Counter("ml_generation_tokens_total", "Tokens written", names, registry=registry)
        self._ended = Counter(
            "ml_generations_total", "Texts ended, by their reason", (*names, "finished_reason"), registry=registry
        )
        self._first, self._prompts = first.labels(*labels), prompts.labels(*labels)
        self._written = written.labels(*labels)

    def watch(self, engine: GenerationEngine) -> None:
        """Read from an engine how many texts it has."""
        self._running.labels(*self._labels).set_function(lambda: engine.running)
        self._waiting.labels(*self._labels).set_function(lambda: engine.waiting)

    def first(self, seconds: float, prompt_tokens: int) -> None:
        """Count a text's first token."""
        self._first.observe(seconds)
        self._prompts.inc(prompt_tokens)

    def wrote(self, tokens: int) -> None:
        """Count tokens."""
        self._written.inc(tokens)

    def ended(self, finish: str) -> None:
        """Count the end of a text."""
        self._ended.labels(*self._labels, finish).inc()
