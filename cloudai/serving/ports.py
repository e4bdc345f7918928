"""Ports on this machine."""

from __future__ import annotations

import socket

from cloudai.errors import SpecError

__all__ = ["check_port"]


def check_port(port: int) -> None:
    """Raise `SpecError` if a port that was asked for is taken; 0 asks for none."""
    if port == 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just given back is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SpecError(f"the port {port} cannot be used: {error.strerror}", fix="give another port=, or none") from None
