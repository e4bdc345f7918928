"""Kept requests as CloudEvents, for those who collect payloads themselves: KServe's types and fields, in a file or by HTTP.

Each kept request is two events with one ``id``, that of the request: ``org.kubeflow.serving.inference.request`` and
``….response``, whose ``data`` is the Open Inference Protocol's JSON. Labels that come later are joined by that id. Sources:
https://cloudevents.io (1.0), and KServe's ``pkg/logger``.
"""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloudai.artifacts.signature import dtype_of
from cloudai.drivers.samples import Answer, Arrays
from cloudai.errors import SpecError
from cloudai.serving.protocol import datatype

__all__ = ["EventLog"]

_KIND = "org.kubeflow.serving.inference."
_HTTP_TIMEOUT = 5.0
"""Seconds that the collector has for a batch."""
_AT_ONCE = 500
"""Events in one batch."""
_logger = logging.getLogger(__name__)


class EventLog:
    """Sends events to a file, one JSON line each, or in batches to an HTTP address.

    Parameters
    ----------
    target : str
        A path, or an address that begins with ``http://`` or ``https://`` and takes ``application/cloudevents-batch+json``.
    model, version : str
        Whose requests they are.
    dropped : callable
        Told how many rows could not be delivered.
    max_bytes : int
        How long the file may become; then it is kept as ``NAME.1`` and begun anew.

    Raises
    ------
    SpecError
        If it is an address of another kind, or a path without a folder.
    """

    def __init__(
        self, target: str, *, model: str, version: str, dropped: Callable[[int], None], max_bytes: int = 256 * 2**20
    ) -> None:
        self._target, self._dropped, self._max_bytes = target, dropped, max_bytes
        self._by_http = target.startswith(("http://", "https://"))
        if not self._by_http and ("://" in target or not Path(target).parent.is_dir()):
            raise SpecError(
                f"events cannot go to {target!r}", fix="give an http(s) address, or a file in a folder that is there"
            )
        self._about = {
            "specversion": "1.0",
            "source": f"/models/{model}/versions/{version}",
            "datacontenttype": "application/json",
            "inferenceservicename": model,
            "component": "predictor",
            "endpoint": version,
        }
        self._names = {"model_name": model, "model_version": version}

    def __call__(self, answers: Sequence[Answer]) -> None:
        """Deliver kept requests; what cannot be delivered is dropped and counted. Called off the requests' path."""
        events = [event for answer in answers for event in self._events(answer)]
        for begin in range(0, len(events), _AT_ONCE):
            try:
                (self._post if self._by_http else self._append)(events[begin : begin + _AT_ONCE])
            except (OSError, urllib.error.URLError) as error:
                _logger.warning("payload events are lost: %s", error)
                self._dropped(sum(answer.rows for answer in answers[begin // 2 : (begin + _AT_ONCE) // 2]))

    def _events(self, answer: Answer) -> list[dict[str, Any]]:
        time = datetime.fromtimestamp(answer.time, UTC).isoformat()
        common = {**self._about, "id": answer.id, "time": time}
        response = {**self._names, "id": answer.id, "outputs": _tensors(answer.outputs)}
        return [
            {**common, "type": f"{_KIND}request", "data": {"id": answer.id, "inputs": _tensors(answer.inputs)}},
            {**common, "type": f"{_KIND}response", "data": response},
        ]

    def _append(self, events: Sequence[dict[str, Any]]) -> None:
        path = Path(self._target)
        if path.exists() and path.stat().st_size > self._max_bytes:
            path.replace(path.with_name(f"{path.name}.1"))
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(event, separators=(",", ":")) + "\n" for event in events)

    def _post(self, events: Sequence[dict[str, Any]]) -> None:
        body = json.dumps(list(events)).encode()
        headers = {"content-type": "application/cloudevents-batch+json"}
        request = urllib.request.Request(self._target, body, headers)  # noqa: S310  checked to be http(s)
        with urllib.request.urlopen(request, timeout=_HTTP_TIMEOUT) as answer:  # noqa: S310
            answer.read()


def _tensors(arrays: Arrays) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "datatype": datatype(dtype_of(array)),
            "shape": list(array.shape),
            "data": _plain(array.ravel().tolist()),
        }
        for name, array in arrays.items()
    ]


def _plain(values: list[Any]) -> list[Any]:
    """Replace what JSON has no word for, NaN and infinities in an answer, by null."""
    return [None if isinstance(value, float) and value - value != 0 else value for value in values]
