"""The driver of this machine: processes that outlive the kernel and are found again by a new one."""

from cloudai.drivers.local.driver import LocalDriver

__all__ = ["LocalDriver"]
