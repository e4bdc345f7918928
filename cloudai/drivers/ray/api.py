"""Ray's REST interface as this driver uses it: short waits, no redirects, and a token that nobody sees.

Ray's own client waits for ever for a cluster that does not answer, and needs Ray of the same version here. The interface
itself is public and plain: see "Ray Jobs REST API" in Ray's documentation.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from cloudai.errors import DriverError, SpecError

__all__ = ["Answer", "Api", "RefusedError", "check_address", "failed", "job_path", "token"]

_PATIENCE = 10.0
"""Seconds that the cluster has for one answer."""
_LONG = 60.0
"""Seconds that it has to take a job or a package: a cluster that has just started takes half a minute."""
_ACCESS = (401, 403)
_WHOSE_FIX = (
    "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it, to the cluster's token, also where the supervisor is started"
)


class RefusedError(DriverError):
    """The cluster does not let us in."""


def token() -> str:
    """Return the token where Ray itself looks for it; empty where there is none.

    Notes
    -----
    The order is that of "Token authentication" in Ray's documentation: ``RAY_AUTH_TOKEN``, the file named by
    ``RAY_AUTH_TOKEN_PATH``, ``~/.ray/auth_token``.

    Raises
    ------
    RefusedError
        If the file that was named cannot be read, or what was found cannot be a token; it is in no message.
    """
    found = _found_token()
    if not all("!" <= letter <= "~" for letter in found):  # http.client would say it in its error
        raise RefusedError("the Ray cluster's token that is set here holds more than printable ASCII", fix=_WHOSE_FIX)
    return found


def _found_token() -> str:
    if given := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return given
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_bytes().decode(errors="replace").strip()
    except OSError as error:
        if not named:
            return ""
        raise RefusedError(f"the file of RAY_AUTH_TOKEN_PATH cannot be read: {error.strerror}", fix=_WHOSE_FIX) from None


def check_address(address: str) -> None:
    """Raise `SpecError` where an address is not that of a cluster's dashboard."""
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path in ("", "/") and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good:
        fix = "give the address of the cluster's dashboard, such as http://127.0.0.1:8265"
        raise SpecError(f"the setting 'ray_address' cannot be {address!r}", fix=fix)


@dataclass(frozen=True)
class Answer:
    """What the cluster answered."""

    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether it did what it was asked."""
        return self.status == http.client.OK

    @property
    def missing(self) -> bool:
        """Whether there is no such thing."""
        return self.status == http.client.NOT_FOUND

    def json(self) -> Any:
        """Return what it says.

        Raises
        ------
        DriverError
            If that cannot be read, as where something else listens at the address.
        """
        try:
            return json.loads(self.body)
        except ValueError:
            raise DriverError("what answers is not a Ray cluster", fix="see what listens at ray_address") from None


class Api:
    """The REST interface of one cluster.

    Parameters
    ----------
    address : str
        That of the dashboard, such as ``http://127.0.0.1:8265``.
    """

    def __init__(self, address: str) -> None:
        check_address(address)
        self.address = address.rstrip("/")
        parts = urlsplit(self.address)
        self._host, self._secure = str(parts.hostname), parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)

    def get(self, path: str, *, patience: float = _PATIENCE) -> Answer:
        """Read something."""
        return self._ask("GET", path, patience=patience)

    def post(self, path: str, value: Mapping[str, Any] | None = None) -> Answer:
        """Ask for something to be done."""
        return self._ask("POST", path, json.dumps(value or {}).encode(), patience=_LONG)

    def delete(self, path: str) -> Answer:
        """Let the cluster forget something."""
        return self._ask("DELETE", path)

    def put(self, path: str, data: bytes) -> Answer:
        """Give the cluster a file."""
        return self._ask("PUT", path, data, patience=_LONG)

    def read(self, path: str, *, patience: float = _PATIENCE) -> Any:
        """Read something that is there on every cluster.

        Raises
        ------
        DriverError
            If the cluster does not answer, or not as a cluster does.
        """
        answer = self.get(path, patience=patience)
        if not answer.ok:
            raise failed(f"read {path}", answer)
        return answer.json()

    def _ask(self, method: str, path: str, body: bytes | None = None, patience: float = _PATIENCE) -> Answer:
        known = token()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {known}"} if known else {})
        connection = self._connection(patience)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = Answer(response.status, response.read())
        except (OSError, http.client.HTTPException) as error:
            what = f"the Ray cluster at {self.address} does not answer ({type(error).__name__}: {error})"
            raise DriverError(what, fix="start the cluster, or set ray_address to where its dashboard is") from None
        except ValueError:  # its text may hold a header
            raise DriverError(f"the Ray cluster at {self.address} cannot be asked for {path}", fix=_WHOSE_FIX) from None
        finally:
            connection.close()
        if answer.status in _ACCESS:
            said = "asks for a token, and there is none here" if not known else "does not take the token that is set here"
            raise RefusedError(f"the Ray cluster at {self.address} {said}", fix=_WHOSE_FIX)
        return answer

    def _connection(self, patience: float) -> http.client.HTTPConnection:
        if self._secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=patience, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=patience)


def failed(act: str, answer: Answer) -> DriverError:
    """Return the error for an answer that says that something failed; the last line of a traceback says why."""
    lines = [line for line in answer.body.decode(errors="replace").splitlines() if line.strip(" .")]
    said = lines[-1].strip()[:300] if lines else "without a word"
    return DriverError(f"the Ray cluster failed to {act} ({answer.status}: {said})", fix="see the cluster's dashboard.log")


def job_path(submission: str, act: str = "") -> str:
    """Return the path of a job, or of something that is done with it."""
    return f"/api/jobs/{quote(submission, safe='')}" + (f"/{act}" if act else "")
