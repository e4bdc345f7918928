"""For tests and tutorials: a simulated cloud with a clock of its own."""

from cloudai.drivers.simulated.deployments import Shift, Traffic
from cloudai.drivers.simulated.world import Crash, Fate, LostAnswer, Machine, Outage, Preemption, World, Zone
from cloudai.testing.simulation import Bill, BillLine, Simulation

__all__ = [
    "Bill",
    "BillLine",
    "Crash",
    "Fate",
    "LostAnswer",
    "Machine",
    "Outage",
    "Preemption",
    "Shift",
    "Simulation",
    "Traffic",
    "World",
    "Zone",
]
