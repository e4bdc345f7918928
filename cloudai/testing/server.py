"""A model server for the suites: it speaks the protocol, and starts, stays stuck or crashes as it is told.

``python -m cloudai.testing.server --revision ID --behave ready|stuck|crash`` and the options of `cloudai.serving.server`.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from cloudai.artifacts.signature import Signature, TensorSpec
from cloudai.serving.process import errors_in_two_lines, read_arguments
from cloudai.serving.server import Models, ServerOptions, serve

__all__ = ["main", "opened"]


class _Numbered:
    """A model that answers every row with the number of its revision."""

    version = "1.0.0"
    signature = Signature((TensorSpec("x", "float32", (-1, 1)),), (TensorSpec("answer", "int64", (-1,)),))

    def __init__(self, name: str, revision: str) -> None:
        self.name = name
        self._number = zlib.crc32(revision.encode())

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"answer": np.full(len(inputs["x"]), self._number, "int64")}


def opened(arguments: Sequence[str] | None = None) -> tuple[Models, ServerOptions]:
    """Read a command line, and behave as told until there is a model to serve."""
    parser = argparse.ArgumentParser("python -m cloudai.testing.server")
    parser.add_argument("--revision", required=True)
    parser.add_argument("--behave", choices=("ready", "stuck", "crash"), default="ready")
    options, asked = read_arguments(ServerOptions, parser, arguments)
    if asked.behave == "crash":
        sys.exit("this server crashes, as it was told to")
    while asked.behave == "stuck":
        time.sleep(60)
    return [(_Numbered(options.name or "numbered", asked.revision), None)], options


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Behave as told."""
    with errors_in_two_lines():
        ((servable, _),), options = opened(arguments)
    serve(servable, options)


if __name__ == "__main__":
    main()
