"""The life of a serving process: it takes a port on this machine, says so in a file, serves, drains and ends."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import uvicorn
from pydantic import Field

from cloudai.errors import CloudAIError, DriverError, SpecError
from cloudai.files import private_folder, replace_file
from cloudai.serving.access import HERE, Access
from cloudai.serving.access_log import AccessLog
from cloudai.serving.asgi import Application, json_bytes
from cloudai.serving.http import uvicorn_config
from cloudai.serving.keeper import keep
from cloudai.serving.tracing import Tracing, tracing_asked
from cloudai.specs.confidential import start_log
from cloudai.specs.units import Seconds
from cloudai.specs.validation import Spec
from cloudai.state import lease, news

__all__ = ["PORT_TAKEN", "ProcessOptions", "errors_in_two_lines", "read_arguments", "run"]

PORT_TAKEN = 3
"""The exit code of a process whose port somebody else has."""

_logger = logging.getLogger(__name__)
S = TypeVar("S", bound="ProcessOptions")


class ProcessOptions(Spec):
    """Where a serving process listens, and how it ends."""

    state: Path = Field(description="folder for the files that this process writes")
    host: str = Field(default=HERE, description="127.0.0.1; another one needs a token file")
    port: int = Field(default=0, ge=0, le=65535, description="0 takes a free one")
    token_file: Path | None = Field(default=None, description="file of yours alone with the token that requests must bring")
    drain_delay: Seconds = Field(default=0.5, description="how long new requests are still taken after SIGTERM")
    drain_timeout: Seconds = Field(default=12.0, description="how long requests in flight may take after SIGTERM")
    access_log: Path | None = Field(default=None, description="file for a line on each request, without what it asked")
    lease_file: Path | None = Field(default=None, description='JSON {"until": unix seconds or null}; past it, the process ends')
    lease_interval: Seconds = Field(default=5.0, description="how often the lease is looked at")
    news_file: Path | None = Field(default=None, description="file that is made to tell the supervisor that there is news")


def read_arguments(
    kind: type[S], parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[S, argparse.Namespace]:
    """Read options of `kind` from a command line, beside what `parser` already knows.

    Raises
    ------
    SpecError
        If a value cannot be read.
    """
    for name, field in kind.model_fields.items():
        read = _number if field.annotation is float else str
        parser.add_argument(f"--{name.replace('_', '-')}", type=read, required=field.is_required(), help=field.description)
    known = vars(parser.parse_args(arguments))
    given = {name: known.pop(name) for name in kind.model_fields}
    return kind.of(**{name: value for name, value in given.items() if value is not None}), argparse.Namespace(**known)


def _number(text: str) -> float | str:
    """Read a bare number; a text with a unit is the spec's to read."""
    try:
        return float(text)
    except ValueError:
        return text


def run(
    make: Callable[[int, Access], Application], options: ProcessOptions, *, state_file: str, kept: bool = False
) -> NoReturn:
    """Serve until told to end, and leave the process.

    SIGTERM and SIGINT drain: the process says that it is not ready, still takes requests for ``drain_delay``, finishes
    those in flight for up to ``drain_timeout`` in all, and exits with 0. A second signal ends it at once. A lease that
    is past drains as well. A port that is taken gives two lines on stderr and exit code 3.

    Parameters
    ----------
    make : callable
        Makes the application from the port and the check of tokens.
    state_file : str
        The file under ``options.state`` that says pid, port and what the application says of itself.
    kept : bool
        Whether the port stays open, and a new process takes over, when this one dies; see `cloudai.serving.keeper`.
    """
    with errors_in_two_lines():
        os.umask(0o077)  # whatever this process writes is the user's alone
        access = Access(options.token_file)
        listener = _listen(options)
        private_folder(options.state)
        endings = keep() if kept else (signal.SIGTERM, signal.SIGINT)
        application = make(listener.getsockname()[1], access)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_live(application, listener, options, options.state / state_file, endings))
    _leave(0)


class _PortTakenError(DriverError):
    """Somebody else listens there."""


def _listen(options: ProcessOptions) -> socket.socket:
    if options.host != HERE and options.token_file is None:
        raise SpecError(f"cannot listen on {options.host!r} without a token", fix=f"use {HERE}, or give --token-file")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise _PortTakenError(
            f"the port {options.port} cannot be taken: {error.strerror}", fix="give another port, or 0 for a free one"
        ) from None
    return listener


class _Server(uvicorn.Server):
    """uvicorn, with signals and the end left to us."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


async def _live(
    application: Application, listener: socket.socket, options: ProcessOptions, state: Path, endings: Sequence[signal.Signals]
) -> None:
    port = listener.getsockname()[1]
    way_in = {"token_file": str(options.token_file)} if options.token_file else {}

    def write_state() -> None:
        replace_file(state, json_bytes({"pid": os.getpid(), "port": port} | way_in | application.describe()))

    ending = _on_signals(endings)
    accountants = _accountants(options, application)
    application.accountants = tuple(accountants)
    server = _Server(uvicorn_config(application))
    await application.start()
    serving = asyncio.create_task(server.serve([listener]))
    serving.add_done_callback(lambda _: server.listening.set())
    serving.add_done_callback(lambda _: ending.set())
    await server.listening.wait()
    write_state()
    if options.news_file is not None:
        news.tell(options.news_file)
    _logger.info("listening on %s:%d", options.host, port)
    await _wait_for_end(ending, options)
    application.draining = True
    with contextlib.suppress(OSError):  # the folder may be gone with the deployment
        write_state()
    await _drain(application, options)
    server.should_exit = True
    await serving
    await application.stop()
    for accountant in accountants:
        await asyncio.to_thread(accountant.close)
    _logger.info("ended")


def _accountants(options: ProcessOptions, application: Application) -> list[AccessLog | Tracing]:
    """Return who keeps account of requests, where somebody asked for it."""
    accountants: list[AccessLog | Tracing] = []
    if options.access_log is not None:
        accountants.append(AccessLog(options.access_log))
    if tracing_asked():
        about = {key: str(value) for key, value in application.describe().items() if key in ("model", "version")}
        accountants.append(Tracing(about.get("model", "cloudai"), {f"ml.{key}": value for key, value in about.items()}))
    return accountants


def _on_signals(endings: Sequence[signal.Signals]) -> asyncio.Event:
    """Set the event on the first signal, leave at once on the second."""
    ending = asyncio.Event()
    before: list[int] = []

    def on_signal(number: int) -> None:
        if before:
            _leave(128 + number)
        before.append(number)
        _logger.info("%s: draining", signal.Signals(number).name)
        ending.set()

    for number in endings:
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, endings)
    return ending


async def _wait_for_end(ending: asyncio.Event, options: ProcessOptions) -> None:
    watch = lease.LeaseWatch(time.time, time.monotonic, interval=options.lease_interval)
    while not ending.is_set():
        if options.lease_file is not None and watch.passed(lease.read(options.lease_file)):
            _logger.info("the lease is past: draining")
            ending.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), options.lease_interval if options.lease_file else None)


async def _drain(application: Application, options: ProcessOptions) -> None:
    """Take requests a little longer, for those who do not know yet; then finish what is in flight."""
    deadline = time.monotonic() + options.drain_timeout
    await asyncio.sleep(min(options.drain_delay, options.drain_timeout))
    application.accepting = False
    while application.in_flight and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    if application.in_flight:
        application.abandon()
        _logger.warning("%d requests were not finished in %g s", application.in_flight, options.drain_timeout)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


@contextlib.contextmanager
def errors_in_two_lines() -> Iterator[None]:
    """Turn an error of ours into two lines on stderr and the end of the process."""
    start_log()
    try:
        yield
    except CloudAIError as error:
        sys.stderr.write(f"{error}\n")
        _leave(PORT_TAKEN if isinstance(error, _PortTakenError) else 1)


def _leave(code: int) -> NoReturn:
    """End now: a thread that still computes for nobody must not hold the process."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
