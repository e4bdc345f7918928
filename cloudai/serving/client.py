"""A small client of the Open Inference Protocol v2, on the standard library."""

from __future__ import annotations

import http.client
import json
import shlex
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from cloudai.errors import CloudAIError, DriverError, NotReadyError, RequestError, SpecError
from cloudai.serving.protocol import decode_response, encode_request
from cloudai.serving.tls import client_context
from cloudai.specs.tls import Tls

__all__ = ["curl_line", "predict"]


def predict(
    url: str,
    model_name: str,
    arrays: Mapping[str, np.ndarray],
    *,
    version: str | None = None,
    timeout: float = 60.0,
    token: str = "",
    tls: Tls | None = None,
) -> dict[str, np.ndarray]:
    """Ask a server for predictions.

    Parameters
    ----------
    url : str
        Where the server is, such as ``"http://127.0.0.1:8080"``.
    arrays : mapping of str to array
        The model's inputs, in its dtypes, one row per example.
    version : str, optional
        A version of the model; by default the one that serves.
    timeout : float
        Seconds to wait for the connection, and for each part of the answer.
    token : str
        The deployment's token, where it has one.
    tls : Tls, optional
        Where the server's certificate lies on this machine, and what to show; without, an ``https`` address must have a
        certificate of an authority that this machine trusts.

    Raises
    ------
    RequestError
        If the arrays do not fit the model, there is no such model, the token is wrong, or one does not trust the other.
    NotReadyError
        If nobody answers there, or the server is busy, starting or ending: try again.
    DriverError
        If the server or the model fails, or takes too long.
    """
    status, body = _post(_infer_url(url, model_name, version), _encode(arrays), timeout, token, tls)
    if status != 200:
        raise _error(status, body)
    try:
        return decode_response(body)
    except RequestError as error:
        raise DriverError(f"{url} does not speak the protocol: {error.what}", fix="check the address") from None


def curl_line(
    url: str, model_name: str, arrays: Mapping[str, np.ndarray], *, token_file: Path | None = None, tls: Tls | None = None
) -> str:
    """Return the shell command that asks for the prediction of the first row of `arrays`.

    A token goes from its file to curl through a pipe: in the command line every user of the machine could see it.

    Examples
    --------
    >>> print(curl_line("http://127.0.0.1:8080", "digits", {"x": np.zeros((5, 2), "float32")}))
    curl -s http://127.0.0.1:8080/v2/models/digits/infer -H 'content-type: application/json' -d '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[0.0,0.0]}]}'
    """  # noqa: E501 (the line is what the reader wants to see)
    body = _encode({name: array[:1] for name, array in arrays.items()}).decode()
    header = "content-type: application/json"
    words = ["curl", "-s", _infer_url(url, model_name, None), "-H", header, *_curl_tls(tls), "-d", body]
    if token_file is None:
        return shlex.join(words)
    bearer = shlex.join(["sed", "s/^/authorization: Bearer /", str(token_file)])
    return f"{bearer} | {shlex.join([*words[:3], '-H', '@-', *words[3:]])}"


def _curl_tls(tls: Tls | None) -> list[str]:
    if tls is None:
        return []
    shown = ["--cert", str(tls.client_certificate), "--key", str(tls.client_key)] if tls.client_certificate else []
    return ["--cacert", str(tls.certificate), *shown]


def _infer_url(url: str, model_name: str, version: str | None) -> str:
    of_version = f"/versions/{quote(version, safe='')}" if version is not None else ""
    return f"{url.rstrip('/')}/v2/models/{quote(model_name, safe='')}{of_version}/infer"


def _encode(arrays: Mapping[str, np.ndarray]) -> bytes:
    try:
        return encode_request(arrays)
    except SpecError as error:
        raise RequestError(error.what, fix=error.fix) from None


def _post(url: str, body: bytes, timeout: float, token: str, tls: Tls | None) -> tuple[int, bytes]:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise RequestError(f"{url!r} is not an address", fix="give one like http://127.0.0.1:8080")
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    if parts.scheme == "https":
        context = client_context(tls) if tls else ssl.create_default_context()
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=context)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    try:
        connection.request("POST", parts.path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except ConnectionRefusedError:
        raise NotReadyError(f"nobody answers at {parts.netloc}", fix="wait until the deployment is ready") from None
    except TimeoutError:
        raise DriverError(
            f"{parts.netloc} did not answer within {timeout:g} s", fix="send fewer rows, or wait longer"
        ) from None
    except (ssl.SSLEOFError, ConnectionResetError, BrokenPipeError) as error:
        shows = parts.scheme == "http" or (tls is not None and tls.client_certificate is not None)
        fix = "look into the server's log" if shows else "look into its log; it may ask for a Tls(client_certificate=…)"
        raise DriverError(f"{parts.netloc} broke off: {error!r}", fix=fix) from None
    except ssl.SSLError as error:
        raise _mistrust(parts.netloc, error) from None
    except (OSError, http.client.HTTPException) as error:
        raise DriverError(f"{parts.netloc} broke off: {error!r}", fix="look into the server's log") from None
    finally:
        connection.close()


def _mistrust(where: str, error: ssl.SSLError) -> CloudAIError:
    if isinstance(error, ssl.SSLCertVerificationError):
        fix = "give tls= with the certificate that the server shows, or let an authority sign it that this machine trusts"
        return RequestError(f"the certificate of {where} is not trusted: {error.verify_message}", fix=fix)
    return DriverError(f"{where} does not speak TLS as we do: {error.reason or error}", fix="check the address and its port")


def _error(status: int, body: bytes) -> CloudAIError:
    problem = _problem(body)
    what = str(problem.get("error", f"the server answered with status {status}"))
    fix = str(problem.get("fix", "look into the server's log"))
    if status in {429, 503}:
        return NotReadyError(what, fix=fix)
    return RequestError(what, fix=fix) if 400 <= status < 500 else DriverError(what, fix=fix)


def _problem(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
