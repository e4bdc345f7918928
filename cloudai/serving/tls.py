"""TLS: what a server shows and whom it lets in, and what a client of ours trusts and shows; only of the standard library.

A server proves its files to itself before it uses them, by a handshake in memory. So a certificate that has expired, or is
not one for servers, is found at the start and not by the first client.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from cloudai.errors import SpecError
from cloudai.files import identity
from cloudai.serving.ports import HERE
from cloudai.specs.tls import Tls

__all__ = ["Proven", "ServerTls", "check_tls", "client_context", "is_loopback", "name_for"]

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proven:
    """Files of TLS that have made a handshake."""

    context: ssl.SSLContext
    names: tuple[str, ...]
    """Whom the certificate is for."""
    until: str
    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None


class ServerTls:
    """The TLS of a listener, made anew when one of its files changes.

    Each handshake takes the newest good files; connections that are open stay as they are. Where new files are bad, such
    as a certificate whose key is still to be written, the last good ones stay in force.

    Attributes
    ----------
    context : ssl.SSLContext
        What the listener is given, once and for all.

    Raises
    ------
    SpecError
        If the files cannot be used.
    """

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._seen = self._identities()
        self._current = _proven(tls)
        self.context = self._current.context
        self.context.sni_callback = self._choose
        _logger.info("the certificate of %s is valid until %s", ", ".join(self._current.names), self._current.until)

    def _choose(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Give a handshake its context; OpenSSL asks for it also where the client names no server."""
        connection.context = self.current().context

    def current(self) -> Proven:
        """Return what is in force now."""
        seen = self._identities()
        if seen != self._seen:
            self._seen = seen
            try:
                self._current = _proven(self._tls)
                _logger.info("a new certificate is in force, valid until %s", self._current.until)
            except SpecError as error:
                _logger.warning("the last certificate stays in force: %s", error)
        return self._current

    def _identities(self) -> list[tuple[int, ...] | None]:
        return [identity(path) for path in (self._tls.certificate, self._tls.key, self._tls.client_ca) if path is not None]


def check_tls(tls: Tls) -> tuple[str, ...]:
    """Make sure that a listener can use the files, and that the client certificate is let in; return the certificate's names.

    Raises
    ------
    SpecError
        If a file is missing, cannot be read or is open to others, a key belongs to another certificate, or a certificate
        has expired or is not accepted.
    """
    proven = _proven(tls)
    if tls.client_certificate is not None:
        try:
            _shake_hands(proven.context, client_context(tls))
        except ssl.SSLError as error:
            what = f"the client certificate {tls.client_certificate} is not accepted: {_reason(error)}"
            raise SpecError(what, fix=f"give one that an authority in {tls.client_ca} has signed") from None
    return proven.names


def client_context(tls: Tls) -> ssl.SSLContext:
    """Return what a client on this machine uses: it trusts the very certificate that lies here, under whatever name.

    Raises
    ------
    SpecError
        If a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # no other certificate is trusted, not even another one of its authority
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=_first_certificate(tls.certificate))
    if tls.client_certificate is not None:
        _load(context, tls.client_certificate, _given_key(tls), "client key")
    return context


def _given_key(tls: Tls) -> Path:
    if tls.client_key is None:
        raise SpecError("there is a client_certificate without its client_key", fix="give both")
    return tls.client_key


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def name_for(host: str, names: tuple[str, ...]) -> str:
    """Return the name under which clients find a listener: its address, or a name in its certificate where that is better.

    Examples
    --------
    >>> name_for("0.0.0.0", ("*.example", "models.example")), name_for("127.0.0.1", ("localhost",))
    ('models.example', 'localhost')
    """
    concrete = [name for name in names if "*" not in name]
    if is_loopback(host):
        return host if host in names else next(filter(is_loopback, concrete), host)
    anywhere = host in {"0.0.0.0", "::"}  # noqa: S104 (looked for, not listened on)
    return next(iter(concrete), HERE) if anywhere else host


def _proven(tls: Tls) -> Proven:
    """Read the files of a listener, and try them in a handshake in memory."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load(context, tls.certificate, tls.key, "key")
    try:
        shown = _shake_hands(context, client_context(Tls(certificate=tls.certificate, key=tls.key)))
    except ssl.SSLError as error:
        what = f"clients would refuse the certificate {tls.certificate}: {_reason(error)}"
        raise SpecError(what, fix="give one for servers that is valid now") from None
    if tls.client_ca is not None:
        _require_clients(context, tls.client_ca)
    return Proven(
        context,
        _names(shown),
        shown["notAfter"],
        tls.certificate.read_bytes(),
        tls.key.read_bytes(),
        tls.client_ca.read_bytes() if tls.client_ca else None,
    )


def _require_clients(context: ssl.SSLContext, authorities: Path) -> None:
    """Let in only who shows a certificate, and in each connection anew.

    A resumed session would not show it again, and TLS 1.2 cannot be kept from resuming, nor hides the certificate.
    """
    _read(authorities, "client_ca")
    try:
        context.load_verify_locations(authorities)
    except ssl.SSLError:
        raise SpecError(f"{authorities} holds no certificate in PEM", fix="give the certificates of authorities") from None
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0


def _load(context: ssl.SSLContext, certificate: Path, key: Path, role: str) -> None:
    _first_certificate(certificate)
    if "PRIVATE KEY-----" not in _read(key, role):
        raise SpecError(f"{key} holds no private key in PEM", fix=f"give the key of {certificate}")
    if key.stat().st_mode & 0o077:
        raise SpecError(f"others can read the {role} {key}", fix=f"chmod 600 {key}, and ask for a new certificate")
    try:
        context.load_cert_chain(certificate, key, password=lambda: _no_password(key))
    except ssl.SSLError as error:
        what = f"the {role} {key} does not go with the certificate {certificate}: {_reason(error)}"
        raise SpecError(what, fix="give the key that the certificate was made for") from None


def _no_password(key: Path) -> NoReturn:
    raise SpecError(f"the key {key} is encrypted", fix=f"write it without a password: openssl pkey -in {key} -out …")


def _first_certificate(path: Path) -> str:
    found = _PEM.search(_read(path, "certificate"))
    if found is None:
        raise SpecError(
            f"{path} holds no certificate in PEM", fix="give the certificate, and after it those of its authorities"
        )
    return found.group()


def _read(path: Path, role: str) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError as error:
        raise SpecError(f"the {role} {path} cannot be read: {error.strerror}", fix="give the path of a file in PEM") from None


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> Mapping[str, Any]:
    """Connect the two in memory and return what the server's certificate says.

    Raises
    ------
    ssl.SSLError
        If one refuses the other.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    asked = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, asked, asking, asked):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return asking.getpeercert() or {}


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    return str(error.reason or error).replace("_", " ").lower()


def _names(shown: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(value for kind, value in shown.get("subjectAltName", ()) if kind in {"DNS", "IP Address"})
