"""The model server: one process for one version of one model.

``python -m cloudai.serving.server --model URI --state FOLDER`` writes ``FOLDER/server.json`` once it answers requests.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import NoReturn

from pydantic import Field

from cloudai.serving.access import Access
from cloudai.serving.app import ModelApplication
from cloudai.serving.asgi import Exchange
from cloudai.serving.engine import Servable
from cloudai.serving.process import ProcessOptions, errors_in_two_lines, read_arguments, run
from cloudai.serving.samples import SampleLog
from cloudai.specs.serving import ServerLimits
from cloudai.specs.units import Bytes

__all__ = ["ServerOptions", "application", "main", "opened", "serve"]


class ServerOptions(ProcessOptions, ServerLimits):
    """How a model is served."""

    name: str = Field(default="", description="the model's name in URLs and metrics; by default its own")
    threads: int = Field(
        default=min(4, os.cpu_count() or 1), ge=1, le=256, description="how many requests are computed at the same time"
    )
    sample_bytes: Bytes = Field(default=64 * 2**20, description="the most that the kept samples may take on disk")
    instance: str = Field(default="", description='the label "instance" of the metrics; by default host:port')


def application(
    servable: Servable, options: ServerOptions, *, instance: str, check: Callable[[Exchange], None]
) -> ModelApplication:
    """Make the application that answers for a model, wherever it is then run."""
    return ModelApplication(
        servable,
        name=options.name or servable.name,
        limits=options,
        threads=options.threads,
        instance=options.instance or instance,
        open_samples=lambda dropped: SampleLog(
            options.state / "samples", rate=options.sample_rate, max_bytes=options.sample_bytes, dropped=dropped
        ),
        check=check,
    )


def serve(servable: Servable, options: ServerOptions) -> NoReturn:
    """Serve a model until told to end; see `cloudai.serving.process.run` for how that goes.

    State goes to ``server.json`` (pid, port, ready, model, version) and kept rows to ``samples/``, in ``options.state``.
    """

    def make(port: int, access: Access) -> ModelApplication:
        return application(servable, options, instance=f"{options.host}:{port}", check=access.check)

    run(make, options, state_file="server.json")


def opened(arguments: Sequence[str] | None = None) -> tuple[Servable, ServerOptions]:
    """Read a command line and open the model that it names, a folder or URL."""
    parser = argparse.ArgumentParser("python -m cloudai.serving.server")
    parser.add_argument("--model", required=True, help="folder or fsspec URL of the model")
    parser.add_argument("--digest", default="", help="the digest that the model must have")
    options, asked = read_arguments(ServerOptions, parser, arguments)
    from cloudai.artifacts.model import Model

    return Model.open(asked.model, asked.digest).servable(), options


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Serve the model of a folder or URL."""
    with errors_in_two_lines():
        servable, options = opened(arguments)
    serve(servable, options)


if __name__ == "__main__":
    main()
