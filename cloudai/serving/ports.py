"""Ports on this machine."""

from __future__ import annotations

import socket

from cloudai.errors import DriverError, SpecError

__all__ = ["HERE", "PortTakenError", "check_port"]

HERE = "127.0.0.1"
"""The address of this machine that only this machine reaches."""


class PortTakenError(DriverError):
    """Somebody else listens there."""

    def __init__(self, port: int, reason: str) -> None:
        super().__init__(f"the port {port} cannot be taken: {reason}", fix="give another port, or 0 for a free one")


def check_port(port: int, host: str = HERE) -> None:
    """Raise `SpecError` if a port or an address that was asked for cannot be had; port 0 asks for none."""
    if port == 0 and host == HERE:
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just given back is free
        try:
            probe.bind((host, port))
        except OSError as error:
            where = f"the port {port}" if host == HERE else f"the address {host}, port {port},"
            raise SpecError(f"{where} cannot be used: {error.strerror}", fix="give another port, or none") from None
