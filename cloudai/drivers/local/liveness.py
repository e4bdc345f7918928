"""Whether a router of this machine is alive, whatever it wants to know of who asks."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Mapping
from typing import Any

__all__ = ["router_lives"]

_PATIENCE = 5.0  # seconds


def router_lives(state: Mapping[str, Any]) -> bool:
    """Ask the router that wrote `state`, its ``router.json``.

    Over TLS its half of a handshake is the answer: it may ask for a client certificate, which a driver has none of.
    """
    if "url" not in state:
        return False
    try:
        return (_shakes_hands if state["url"].startswith("https:") else _answers)(state["host"], state["port"])
    except (OSError, http.client.HTTPException):
        return False


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE)
    try:
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def _shakes_hands(host: str, port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # no secret is told, and nothing believed
    with socket.create_connection((host, port), timeout=_PATIENCE) as plain, context.wrap_socket(plain):
        return True
