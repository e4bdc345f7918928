"""For tests and tutorials: a simulated cloud with a clock of its own, and the contract of drivers as tests.

A driver's own test file is a `Bench` and one subclass for each suite; ``docs/how-to/write-a-driver.md`` shows one. The
suites need pytest, and nothing else of cloudai does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloudai.drivers.simulated.deployments import Shift, Traffic
    from cloudai.drivers.simulated.world import Crash, Fate, LostAnswer, Machine, Outage, Preemption, World, Zone
    from cloudai.testing.bench import Bench
    from cloudai.testing.clauses import Gap
    from cloudai.testing.serving import ServeDriverConformance
    from cloudai.testing.simulation import Bill, BillLine, Simulation
    from cloudai.testing.telemetry import TelemetryDriverConformance
    from cloudai.testing.training import TrainDriverConformance

__all__ = [
    "Bench",
    "Bill",
    "BillLine",
    "Crash",
    "Fate",
    "Gap",
    "LostAnswer",
    "Machine",
    "Outage",
    "Preemption",
    "ServeDriverConformance",
    "Shift",
    "Simulation",
    "TelemetryDriverConformance",
    "Traffic",
    "TrainDriverConformance",
    "World",
    "Zone",
]

_MODULES = {
    "cloudai.drivers.simulated.deployments": ("Shift", "Traffic"),
    "cloudai.drivers.simulated.world": ("Crash", "Fate", "LostAnswer", "Machine", "Outage", "Preemption", "World", "Zone"),
    "cloudai.testing.bench": ("Bench",),
    "cloudai.testing.clauses": ("Gap",),
    "cloudai.testing.serving": ("ServeDriverConformance",),
    "cloudai.testing.simulation": ("Bill", "BillLine", "Simulation"),
    "cloudai.testing.telemetry": ("TelemetryDriverConformance",),
    "cloudai.testing.training": ("TrainDriverConformance",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the servers of the suites start without pytest, notebooks too."""
    import importlib

    if name not in _WHERE:
        raise AttributeError(f"module 'cloudai.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
