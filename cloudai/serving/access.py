"""Who may ask a server: whoever knows the token in its token file."""

from __future__ import annotations

import hmac
import logging
from pathlib import Path

from cloudai.errors import SpecError
from cloudai.files import identity
from cloudai.serving.asgi import Asked, HttpError
from cloudai.serving.ports import HERE
from cloudai.state.tokens import read_token

__all__ = ["OPEN_PATHS", "Access"]

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/docs"})
"""What anybody may ask: whether the process is up, and ready, which load balancers ask, and a page that knows nothing."""

_LOCAL_NAMES = frozenset({b"127.0.0.1", b"localhost", b"[::1]"})
_logger = logging.getLogger(__name__)


class Access:
    """The check of each request against a token file, which is read again when it changes.

    A browser cannot be made to send the token by a page of somebody else's, so with one the request's ``Host`` does not
    matter, and a server can be reached through a tunnel or proxy. Without a token the ``Host`` must name this machine:
    else a page could rename its own address to 127.0.0.1 (DNS rebinding) and ask. Where clients show certificates, TLS
    has let in only those it should, and no page's name is in our certificate.

    Parameters
    ----------
    path : Path, optional
        The token file; without one, every process of this machine may ask.
    verified : bool
        Whether only clients with a verified certificate can connect.

    Raises
    ------
    SpecError
        If there is no token in the file, or others can read it.
    """

    def __init__(self, path: Path | None, *, verified: bool = False) -> None:
        self.path, self._verified = path, verified
        self._seen: tuple[int, ...] | None = None
        self._token = b""
        if path is not None:
            self._seen = identity(path)
            self._token = read_token(path).encode()

    def check(self, asked: Asked) -> None:
        """Let a request pass, or refuse it.

        Raises
        ------
        HttpError
            401 without the token; 403 where there is none and the request's host is not this machine.
        """
        if asked.path in OPEN_PATHS:
            return
        if self.path is None:
            if not self._verified and _host_of(asked) not in _LOCAL_NAMES:
                raise HttpError(403, "the request names another host", fix=f"ask http://{HERE}, or start with --token-file")
        elif not self._knows(asked.header(b"authorization") or b"", self.path):
            fix = "send 'authorization: Bearer ' and what the file deployment.token_file holds"
            raise HttpError(401, "the token is missing or wrong", fix=fix, headers=[(b"www-authenticate", b"Bearer")])

    def _knows(self, header: bytes, path: Path) -> bool:
        scheme, _, given = header.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._current(path))

    def _current(self, path: Path) -> bytes:
        """Return the token in force; where the file is gone or bad, the last one stays."""
        try:
            seen = identity(path)
            if seen != self._seen:
                self._seen = seen
                self._token = read_token(path).encode()
                _logger.info("the token was changed")
        except (OSError, SpecError) as error:
            if self._seen is not None:
                _logger.warning("the last token stays in force: %s", error)
            self._seen = None
        return self._token


def _host_of(asked: Asked) -> bytes:
    """Return the name that the client knows us by, without the port; our own where it gave none, as HTTP/1.0 allows."""
    host = (asked.header(b"host") or b"localhost").lower()
    return host.partition(b"]")[0] + b"]" if host.startswith(b"[") else host.partition(b":")[0]
