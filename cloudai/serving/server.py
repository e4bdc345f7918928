"""The model server: one process for a model, or for several models and versions.

``python -m cloudai.serving.server --model URI --state FOLDER`` writes ``FOLDER/server.json`` once it answers requests.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from pydantic import Field

from cloudai import settings
from cloudai.serving.access import Access
from cloudai.serving.app import ModelApplication
from cloudai.serving.asgi import Asked
from cloudai.serving.engine import Servable
from cloudai.serving.events import EventLog
from cloudai.serving.faces import faces_of
from cloudai.serving.process import ProcessOptions, errors_in_two_lines, read_arguments, run
from cloudai.serving.samples import SampleLog
from cloudai.serving.service import ModelService
from cloudai.specs.serving import Runtime, ServerLimits
from cloudai.specs.units import Bytes

__all__ = ["Models", "ServerOptions", "application", "main", "opened", "serve"]


class ServerOptions(ProcessOptions, ServerLimits):
    """How a model is served."""

    name: str = Field(default="", description="the model's name in URLs and metrics; by default its own")
    runtime: Runtime = Field(default="auto", description="what runs torch models: onnx, torch, or what is best")
    threads: int = Field(
        default=min(4, os.cpu_count() or 1), ge=1, le=256, description="how many requests are computed at the same time"
    )
    payload_log: str = Field(default="", description="file or http(s) address that gets the kept requests as CloudEvents")
    sample_bytes: Bytes = Field(default=64 * 2**20, description="the most that the kept samples may take on disk")
    instance: str = Field(default="", description='the label "instance" of the metrics; by default host:port')


Example = Mapping[str, np.ndarray]
Models = Sequence[tuple[Servable, Example | None]]


def serve(servable: Servable, options: ServerOptions, *, example: Example | None = None) -> NoReturn:
    """Serve a model until told to end; see `cloudai.serving.process.run` for how that goes.

    State goes to ``server.json`` (pid, port, ready, model, version) and kept rows to ``samples/``, in ``options.state``.

    Parameters
    ----------
    example : mapping of str to array, optional
        A few rows that the model takes: it is tried with them before it is ready, and requests are batched where that pays.
    """
    _run([(servable, example)], options)


def _run(models: Models, options: ServerOptions) -> NoReturn:
    def make(port: int, access: Access) -> ModelApplication:
        where = f"{options.host}:{port}"
        return application(models, options, instance=where, check=access.check, needs_token=access.path is not None)

    run(make, options, state_file="server.json")


def application(
    models: Models, options: ServerOptions, *, instance: str, check: Callable[[Asked], None], needs_token: bool
) -> ModelApplication:
    """Make the application that answers for some models, in whatever process it then runs."""
    one = len(models) == 1
    services = []
    for servable, example in models:
        name = (options.name if one else "") or servable.name
        folder = options.state / "samples" / ("" if one else f"{name}-{servable.version}")
        service = ModelService(
            servable,
            example=example,
            name=name,
            limits=options,
            threads=options.threads,
            instance=options.instance or instance,
            open_samples=_samples(options, folder, name, servable.version),
        )
        services.append(service)
    faces = faces_of(models[0][0], services[0]) if one else []  # of several models none could have /v1 for itself
    return ModelApplication(services, check=check, needs_token=needs_token, faces=faces)


def _samples(options: ServerOptions, folder: Path, name: str, version: str) -> Callable[[Callable[[int], None]], SampleLog]:
    def open_log(dropped: Callable[[int], None]) -> SampleLog:
        target = options.payload_log
        events = EventLog(target, model=name, version=version, dropped=dropped) if target else None
        return SampleLog(folder, rate=options.sample_rate, max_bytes=options.sample_bytes, dropped=dropped, events=events)

    return open_log


def opened(arguments: Sequence[str] | None = None) -> tuple[Models, ServerOptions]:
    """Read a command line and open the models that it names, folders or URLs."""
    parser = argparse.ArgumentParser("python -m cloudai.serving.server")
    parser.add_argument(
        "--model", required=True, action="append", help="folder or fsspec URL of a model; given again, another model or version"
    )
    parser.add_argument("--digest", default=[], action="append", help="the digest that the model must have, in the same order")
    options, asked = read_arguments(ServerOptions, parser, arguments)
    from cloudai.artifacts import runtimes
    from cloudai.artifacts.model import Model

    digests = itertools.chain(asked.digest, itertools.repeat(""))
    models = [Model.open(uri, digest) for uri, digest in zip(asked.model, digests, strict=False)]
    cache = settings.current().home / "cache" / "onnx"
    return [(runtimes.loaded(model, options.runtime, cache), model.example) for model in models], options


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Serve the models of some folders or URLs."""
    with errors_in_two_lines():
        models, options = opened(arguments)
    _run(models, options)


if __name__ == "__main__":
    main()
