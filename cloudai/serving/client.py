"""A small client of the Open Inference Protocol v2, on the standard library."""

from __future__ import annotations

import http.client
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from cloudai.errors import CloudAIError, DriverError, NotReadyError, RequestError, SpecError
from cloudai.serving.protocol import decode_response, encode_request

__all__ = ["curl_line", "predict"]


def predict(
    url: str,
    model_name: str,
    arrays: Mapping[str, np.ndarray],
    *,
    version: str | None = None,
    timeout: float = 60.0,
    token: str = "",
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

    Raises
    ------
    RequestError
        If the arrays do not fit the model, there is no such model, or the token is wrong.
    NotReadyError
        If nobody answers there, or the server is busy, starting or ending: try again.
    DriverError
        If the server or the model fails, or takes too long.
    """
    status, body = _post(_infer_url(url, model_name, version), _encode(arrays), timeout, token)
    if status != 200:
        raise _error(status, body)
    try:
        return decode_response(body)
    except RequestError as error:
        raise DriverError(f"{url} does not speak the protocol: {error.what}", fix="check the address") from None


def curl_line(url: str, model_name: str, arrays: Mapping[str, np.ndarray], *, token_file: Path | None = None) -> str:
    """Return the shell command that asks for the prediction of the first row of `arrays`.

    A token goes from its file to curl through a pipe: in the command line every user of the machine could see it.

    Examples
    --------
    >>> print(curl_line("http://127.0.0.1:8080", "digits", {"x": np.zeros((5, 2), "float32")}))
    curl -s http://127.0.0.1:8080/v2/models/digits/infer -H 'content-type: application/json' -d '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[0.0,0.0]}]}'
    """  # noqa: E501 (the line is what the reader wants to see)
    body = _encode({name: array[:1] for name, array in arrays.items()}).decode()
    words = ["curl", "-s", _infer_url(url, model_name, None), "-H", "content-type: application/json", "-d", body]
    if token_file is None:
        return shlex.join(words)
    header = shlex.join(["sed", "s/^/authorization: Bearer /", str(token_file)])
    return f"{header} | {shlex.join([*words[:3], '-H', '@-', *words[3:]])}"


def _infer_url(url: str, model_name: str, version: str | None) -> str:
    of_version = f"/versions/{quote(version, safe='')}" if version is not None else ""
    return f"{url.rstrip('/')}/v2/models/{quote(model_name, safe='')}{of_version}/infer"


def _encode(arrays: Mapping[str, np.ndarray]) -> bytes:
    try:
        return encode_request(arrays)
    except SpecError as error:
        raise RequestError(error.what, fix=error.fix) from None


def _post(url: str, body: bytes, timeout: float, token: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise RequestError(f"{url!r} is not an address", fix="give one like http://127.0.0.1:8080")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=timeout)
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
    except (OSError, http.client.HTTPException) as error:
        raise DriverError(f"{parts.netloc} broke off: {error!r}", fix="look into the server's log") from None
    finally:
        connection.close()


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
