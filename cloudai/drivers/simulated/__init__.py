"""A cloud that is not there: zones, prices, preemptions and faults as data, on a clock that is moved by hand."""

from cloudai.drivers.simulated.driver import SimulatedCloud, SimulatedDriver, use_cloud

__all__ = ["SimulatedCloud", "SimulatedDriver", "use_cloud"]
