"""OpenTelemetry traces of what a server or router answers, where somebody asked for them.

It is on where the environment says so in OpenTelemetry's own words: ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or
``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``) names a collector, and ``OTEL_SDK_DISABLED`` is not ``true``. ``OTEL_TRACES_SAMPLER``
and its argument say how many; by default, whatever the caller's ``traceparent`` says, and all of what has none. Names follow
OpenTelemetry's conventions for HTTP servers; what they lack for inference begins with ``ml.``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from cloudai.artifacts.servable import needed
from cloudai.serving.asgi import Account

__all__ = ["Tracing", "tracing_asked"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def tracing_asked(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names a collector for traces.

    Examples
    --------
    >>> tracing_asked({}), tracing_asked({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"})
    (False, True)
    """
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and any(environment.get(name) for name in _ENDPOINTS)


class Tracing:
    """Sends a span for each answered request to the collector, from a thread of its own.

    Parameters
    ----------
    service : str
        What the spans are of: ``service.name``.
    attributes : mapping of str to str
        What all of them have.

    Raises
    ------
    MissingExtraError
        If OpenTelemetry's SDK is not installed.
    """

    def __init__(self, service: str, attributes: Mapping[str, str]) -> None:
        sdk = needed("opentelemetry.sdk.trace", "otel")
        export = needed("opentelemetry.sdk.trace.export", "otel")
        otlp = needed("opentelemetry.exporter.otlp.proto.http.trace_exporter", "otel")
        resources = needed("opentelemetry.sdk.resources", "otel")
        self._api = needed("opentelemetry.trace", "otel")
        propagation = needed("opentelemetry.trace.propagation.tracecontext", "otel")
        self._propagator = propagation.TraceContextTextMapPropagator()
        resource = resources.Resource.create({"service.name": service, "service.instance.id": str(os.getpid())})
        self._provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("cloudai.serving")
        self._attributes = dict(attributes)

    def __call__(self, account: Account) -> None:
        """Make the span of a request that was answered just now."""
        end = time.time_ns()
        given = account.header(b"traceparent")
        parent = self._propagator.extract({"traceparent": given.decode("latin-1")}) if given is not None else None
        span = self._tracer.start_span(
            f"{account.method} {account.route}",
            context=parent,
            kind=self._api.SpanKind.SERVER,
            start_time=end - int(account.seconds * 1e9),
            attributes={**self._attributes, **self._about(account)},
        )
        if account.status >= 500:
            span.set_status(self._api.StatusCode.ERROR)
        span.end(end)

    def close(self) -> None:
        """Send what waits, and end."""
        self._provider.shutdown()

    def _about(self, account: Account) -> dict[str, Any]:
        about: dict[str, Any] = {
            "http.request.method": account.method,
            "http.route": account.route,
            "http.response.status_code": account.status,
            "http.response.body.size": account.sent,
            "cloudai.request.id": account.id,
        }
        return about | {f"ml.{name}": value for name, value in account.notes.items()}
