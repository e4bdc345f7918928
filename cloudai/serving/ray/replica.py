"""One replica of a revision on Ray Serve: the model server of every other place, asked by a handle and not by a port."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cloudai.drivers.samples import file_rows
from cloudai.serving.asgi import Application
from cloudai.serving.ray.gate import Begun
from cloudai.serving.server import application
from cloudai.specs.confidential import start_log

__all__ = ["Replica", "answered"]

_OVER: dict[str, Any] = {}


class Replica:
    """Runs the model server that a revision's command names, in this process.

    Only the gate asks it, by a handle of Ray's: it opens no port and knows no token, for who may ask was checked there.

    Parameters
    ----------
    argv : sequence of str
        The revision's command: ``-m``, a module with the function ``opened``, and its arguments.
    """

    async def __init__(self, argv: Sequence[str]) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        start_log()
        self._folder = Path(tempfile.mkdtemp(prefix="cloudai-"))  # of this user alone, on this machine
        try:
            self._application = await asyncio.to_thread(_opened, argv, self._folder)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        await self._application.start()

    async def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # a model that could not be opened
            await self._application.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def answer(self, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[Any]:
        """Answer one HTTP request: with `Begun`, and then with what there is more of its body."""
        async for part in answered(self._application, scope, body):
            yield part

    async def metrics(self) -> str:
        """Return what the server counts, in Prometheus' format."""
        return (await self._ask("GET", "/metrics")).decode()

    async def samples(self, since: float, limit: int) -> list[bytes]:
        """Return the files that hold the oldest `limit` kept rows of this replica answered after `since`, a unix time."""
        await self._ask("POST", "/internal/flush")
        return await asyncio.to_thread(file_rows, self._folder / "samples", since, limit)

    async def _ask(self, method: str, path: str) -> bytes:
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "raw_path": path.encode(), "headers": []}
        begun, *more = [part async for part in answered(self._application, scope, b"")]
        if begun.status != 200:
            raise RuntimeError(f"{path} answered {begun.status}")
        return b"".join([begun.body, *more])


async def answered(application: Application, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[Any]:
    """Ask an ASGI application: yield how its answer begins, and then each further part of the body as it comes.

    Raises
    ------
    RuntimeError
        If the application ends before its answer does.
    """
    parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    arrived = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not arrived.is_set():
            arrived.set()
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.Event().wait()  # whoever goes away has this work cancelled
        return {"type": "http.disconnect"}

    async def next_part() -> dict[str, Any]:
        if (message := await parts.get()) is _OVER:
            raise RuntimeError("the answer broke off")
        return message

    work = asyncio.create_task(application(scope, receive, parts.put))
    work.add_done_callback(lambda _: parts.put_nowait(_OVER))
    try:
        head, part = await next_part(), await next_part()
        yield Begun(head["status"], list(head["headers"]), part["body"], part["more_body"])
        while part["more_body"]:
            part = await next_part()
            yield part["body"]
    finally:
        work.cancel()


def _opened(argv: Sequence[str], folder: Path) -> Application:
    """Make the application of a command, as its process would."""
    try:
        opened = importlib.import_module(argv[1]).opened
        models, options = opened([*argv[2:], "--state", str(folder)])
    except SystemExit as error:  # it would end the replica without a word
        raise RuntimeError(f"the server ended: {error}") from None
    where = f"{socket.gethostname()}/{folder.name}"
    return application(models, options, instance=where, check=lambda exchange: None, needs_token=True)
