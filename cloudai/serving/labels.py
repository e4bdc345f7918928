"""Labels that come in later, joined with the kept predictions by the request's id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cloudai.drivers.protocols import Sample
from cloudai.serving.outputs import first_places

__all__ = ["judged"]


def judged(samples: Iterable[Sample], labels: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Count by revision the predictions that have a label, and those of them that are wrong.

    The prediction is the first output: its largest score's place where it has several numbers a row, else the value itself.
    Of a request with several rows the first counts.

    Examples
    --------
    >>> scores = np.array([[0.9, 0.1], [0.2, 0.8]])
    >>> judged([Sample("v1", [1.0, 2.0], ("a", "b"), {}, {"y": scores})], {"a": 0, "b": 0})
    {'v1': (2, 1)}
    """
    found: dict[str, tuple[int, int]] = {}
    for sample in samples:
        predicted = _predictions(np.asarray(next(iter(sample.outputs.values()))))
        places = [place for place in first_places(sample.ids) if sample.ids[place] in labels]
        wrong = sum(str(predicted[place]) != str(labels[sample.ids[place]]) for place in places)
        rows, before = found.get(sample.revision, (0, 0))
        if places:
            found[sample.revision] = rows + len(places), before + wrong
    return found


def _predictions(output: np.ndarray) -> list[Any]:
    if output.ndim > 1 and output.dtype.kind == "f":
        output = output.reshape(len(output), -1)
        output = output.argmax(axis=1) if output.shape[1] > 1 else output[:, 0]
    return list(output.reshape(len(output), -1)[:, 0].tolist())
