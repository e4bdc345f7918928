"""What a driver's author tests with: the contract of `cloudai.drivers.protocols`, one test for each clause.

A driver's own test file is a `Bench` and one subclass for each suite; ``docs/how-to/write-a-driver.md`` shows one. The
suites need pytest, and nothing else of cloudai does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloudai.testing.bench import Bench
    from cloudai.testing.clauses import Gap
    from cloudai.testing.serving import ServeDriverConformance
    from cloudai.testing.telemetry import TelemetryDriverConformance
    from cloudai.testing.training import TrainDriverConformance

__all__ = ["Bench", "Gap", "ServeDriverConformance", "TelemetryDriverConformance", "TrainDriverConformance"]

_WHERE = {
    "Bench": "bench",
    "Gap": "clauses",
    "ServeDriverConformance": "serving",
    "TelemetryDriverConformance": "telemetry",
    "TrainDriverConformance": "training",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the servers of the suites start without pytest."""
    import importlib

    if name not in _WHERE:
        raise AttributeError(f"module 'cloudai.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cloudai.testing.{_WHERE[name]}"), name)
