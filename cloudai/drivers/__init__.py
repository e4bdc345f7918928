"""Drivers make things happen somewhere; everything clever lives above them, once."""

from cloudai.drivers.registry import names, register

__all__ = ["names", "register"]
