"""The driver of an existing Ray cluster: jobs through its Jobs API, and nothing of Ray imported here."""

from cloudai.drivers.ray.driver import RayDriver

__all__ = ["RayDriver"]
