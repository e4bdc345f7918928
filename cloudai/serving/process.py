"""The life of a serving process: it takes a port on this machine, says so in a file, serves, drains and ends."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import uvicorn
from pydantic import Field

from cloudai.errors import CloudAIError
from cloudai.files import private_folder, replace_file
from cloudai.serving.access import Access
from cloudai.serving.access_log import AccessLog
from cloudai.serving.asgi import Application, json_bytes
from cloudai.serving.doors import Doors, Listening, check_exposure
from cloudai.serving.http import uvicorn_config
from cloudai.serving.keeper import keep
from cloudai.serving.ports import PortTakenError
from cloudai.serving.tracing import Tracing, tracing_asked
from cloudai.specs.confidential import start_log
from cloudai.specs.units import Bytes, Seconds
from cloudai.state import lease, news

if TYPE_CHECKING:
    from cloudai.serving.grpc_face import GrpcFace

__all__ = ["PORT_TAKEN", "ProcessOptions", "errors_in_two_lines", "read_arguments", "run"]

PORT_TAKEN = 3
"""The exit code of a process whose port somebody else has."""

_LAST_WORD = 0.2  # seconds for gRPC calls to hear the answers that are made
_logger = logging.getLogger(__name__)
S = TypeVar("S", bound="ProcessOptions")


class ProcessOptions(Listening):
    """Where a serving process listens, and how it ends."""

    state: Path = Field(description="folder for the files that this process writes")
    max_body: Bytes = Field(default=16 * 2**20, description="bytes of a request")
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
    those in flight for up to ``drain_timeout`` in all, and exits with 0. A SIGINT after that ends it at once. A lease
    that is past drains as well. A port that is taken gives two lines on stderr and exit code 3.

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
        access = Access(options.token_file, verified=options.client_ca is not None)
        check_exposure(options)
        doors = Doors.open(options)
        private_folder(options.state)
        endings = keep() if kept else (signal.SIGTERM, signal.SIGINT)
        application = make(doors.port, access)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_live(application, doors, options, options.state / state_file, endings))
    _leave(0)


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


_SWITCH = 0.0005
"""Seconds after which a thread that computes in Python lets another one go on; at Python's 5 ms requests would wait for it."""


def _make_steady() -> None:
    """Let neither the collector nor other threads make requests wait: what is there now is never looked at again."""
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH)


async def _live(
    application: Application, doors: Doors, options: ProcessOptions, state: Path, endings: Sequence[signal.Signals]
) -> None:
    about = {"pid": os.getpid()} | doors.describe(options.host)
    if options.token_file is not None:
        about["token_file"] = str(options.token_file)

    def write_state() -> None:
        replace_file(state, json_bytes(about | application.describe()))

    ending = _on_signals(endings)
    accountants = _accountants(options, application)
    application.accountants = tuple(accountants)
    await application.start()
    _make_steady()
    grpc = await _open_grpc(application, doors, options)
    if doors.grpc_port is not None:
        about |= {"grpc_port": doors.grpc_port, "grpc_url": doors.address(options.host, doors.grpc_port)}
    http = await _open_http(application, doors, ending)
    write_state()
    if options.news_file is not None:
        news.tell(options.news_file)
    _logger.info("listening on %s:%d for %s", options.host, doors.port, about["url"])
    await _wait_for_end(ending, options)
    application.draining = True
    with contextlib.suppress(OSError):  # the folder may be gone with the deployment
        write_state()
    await _drain(application, grpc, options)
    for server, serving in http.items():
        server.should_exit = True
        await serving
    await application.stop()
    for accountant in accountants:
        await asyncio.to_thread(accountant.close)
    _logger.info("ended")


async def _open_grpc(application: Application, doors: Doors, options: ProcessOptions) -> GrpcFace | None:
    """Open the gRPC port where one is asked for; its package is not loaded for the others."""
    if doors.grpc_port is None:
        return None
    from cloudai.serving.grpc_face import GrpcFace

    face = GrpcFace(application, max_body=options.max_body)
    await face.start(options.host, doors.grpc_port, doors.tls)
    return face


async def _open_http(application: Application, doors: Doors, ending: asyncio.Event) -> dict[_Server, asyncio.Task[None]]:
    """Serve at each door; where one of the servers ends by itself, the process shall end."""
    opened = {}
    for listener, tls in ((doors.outer, doors.tls), (doors.inner, None)):
        if listener is not None:
            config = uvicorn_config(application)
            config.load()
            config.ssl = tls.context if tls else None
            server = _Server(config)
            opened[server] = serving = asyncio.create_task(server.serve([listener]))
            serving.add_done_callback(lambda _: ending.set())
            await asyncio.wait([serving, asyncio.create_task(server.listening.wait())], return_when="FIRST_COMPLETED")
    return opened


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
    """Set the event on the first signal, leave at once on a second SIGINT; SIGTERM may well be sent by two who do not know."""
    ending = asyncio.Event()
    before: list[int] = []

    def on_signal(number: int) -> None:
        if before:
            if number == signal.SIGINT:
                _leave(128 + number)
            return
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


async def _drain(application: Application, grpc: GrpcFace | None, options: ProcessOptions) -> None:
    """Take requests a little longer, for those who do not know yet; then finish what is in flight."""
    deadline = time.monotonic() + options.drain_timeout
    await asyncio.sleep(min(options.drain_delay, options.drain_timeout))
    application.accepting = False
    going = [asyncio.create_task(grpc.stop(options.drain_timeout))] if grpc else []  # tells clients to go elsewhere
    while application.in_flight and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    if application.in_flight:
        application.abandon()
        _logger.warning("%d requests were not finished in %g s", application.in_flight, options.drain_timeout)
    if grpc:
        await grpc.stop(_LAST_WORD)
        await asyncio.gather(*going)


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
        _leave(PORT_TAKEN if isinstance(error, PortTakenError) else 1)


def _leave(code: int) -> NoReturn:
    """End now: a thread that still computes for nobody must not hold the process."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
