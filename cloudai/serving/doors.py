"""Where a process is asked, and what it takes to be asked from beyond this machine."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from cloudai.errors import SpecError
from cloudai.serving.ports import HERE, PortTakenError
from cloudai.serving.tls import ServerTls, is_loopback, name_for
from cloudai.specs.tls import Tls
from cloudai.specs.validation import Spec

__all__ = ["Doors", "Listening", "check_exposure"]

_logger = logging.getLogger(__name__)


class Listening(Spec):
    """Where a process listens, and for whom."""

    host: str = Field(default=HERE, description="127.0.0.1; beyond this machine TLS is needed, and a token file or a client_ca")
    port: int = Field(default=0, ge=0, le=65535, description="0 takes a free one")
    grpc_port: int | None = Field(default=None, ge=0, le=65535, description="0 takes a free one; without, gRPC is not spoken")
    token_file: Path | None = Field(default=None, description="file of yours alone with the token that requests must bring")
    tls_certificate: Path | None = Field(default=None, description="certificate and those of its authorities, in PEM")
    tls_key: Path | None = Field(default=None, description="its private key, in a file of yours alone")
    client_ca: Path | None = Field(
        default=None, description="authorities, in PEM; who shows no certificate of theirs is refused"
    )
    plain_http: bool = Field(default=False, description="true: no TLS beyond this machine either; something in front has it")

    @property
    def tls(self) -> Tls | None:
        """The files of TLS, where it is asked for.

        Raises
        ------
        SpecError
            If one of them is missing.
        """
        if self.tls_certificate is None and self.tls_key is None and self.client_ca is None:
            return None
        if self.tls_certificate is None or self.tls_key is None:
            raise SpecError("TLS needs a certificate and its key", fix="give --tls-certificate and --tls-key")
        return Tls(certificate=self.tls_certificate, key=self.tls_key, client_ca=self.client_ca)


def check_exposure(options: Listening) -> None:
    """Refuse to be reached from beyond this machine by whoever likes, or with a token that whoever likes can read."""
    if is_loopback(options.host):
        return
    if options.token_file is None and options.client_ca is None:
        fix = f"use {HERE}, or give --token-file or --client-ca"
        raise SpecError(f"cannot listen on {options.host!r} without a token", fix=fix)
    if options.tls is None and not options.plain_http:
        what = f"cannot listen on {options.host!r} without TLS: the token would travel for all to read"
        fix = "give --tls-certificate and --tls-key; where something in front of it speaks TLS, --plain-http true"
        raise SpecError(what, fix=fix)
    if options.tls is None:
        _logger.warning("the token travels in plain HTTP to %s: let something in front speak TLS", options.host)


@dataclass(frozen=True)
class Doors:
    """Where a process is asked over HTTP: its address, and, where that speaks TLS, a plain one for this machine's driver.

    A driver knows the token and need not be let in by a certificate. Without a token there is no such second one. Where gRPC
    is spoken, its port is known already, and stays the same for whichever process comes to listen there.
    """

    outer: socket.socket
    inner: socket.socket | None
    tls: ServerTls | None
    grpc_port: int | None

    @classmethod
    def open(cls, options: Listening) -> Doors:
        """Take the ports.

        Raises
        ------
        SpecError
            If the files of TLS cannot be used.
        PortTakenError
            If somebody else has the port.
        """
        tls = ServerTls(options.tls) if options.tls else None
        outer = _listen(options.host, options.port)
        inner = _listen(HERE, 0) if tls is not None and options.token_file is not None else None
        grpc_port = _free_port(options.host) if options.grpc_port == 0 else options.grpc_port
        return cls(outer, inner, tls, grpc_port)

    @property
    def port(self) -> int:
        """The port of the address."""
        return int(self.outer.getsockname()[1])

    def describe(self, host: str) -> dict[str, object]:
        """Say what the state file shall say of them."""
        scheme = "https" if self.tls else "http"
        about = {"port": self.port, "url": f"{scheme}://{self.address(host, self.port)}"}
        return about if self.inner is None else about | {"inner_port": self.inner.getsockname()[1]}

    def address(self, host: str, port: int) -> str:
        """Return the name and the port under which clients find a port."""
        name = host if self.tls is None else name_for(host, self.tls.current().names)
        return f"{f'[{name}]' if ':' in name else name}:{port}"


def _free_port(host: str) -> int:
    with _listen(host, 0) as probe:
        return int(probe.getsockname()[1])


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise PortTakenError(port, error.strerror or str(error)) from None
    return listener
