"""The gRPC port of a server or router, in the event loop of its HTTP port."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import unquote

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else whoever fails a handshake writes into our log

import grpc
import grpc.aio

from cloudai.errors import RequestError
from cloudai.serving.asgi import Application
from cloudai.serving.grpc_calls import HEALTH, METHODS, SECURED, STREAM, Call, Method, RefusedError, infer, may_ask
from cloudai.serving.grpc_messages import ModelStreamInferResponse
from cloudai.serving.ports import PortTakenError
from cloudai.serving.tls import Proven, ServerTls

__all__ = ["GrpcFace"]

_MOST_CALLS = 1024
"""Calls at once, all of whose messages lie in memory; more are refused by gRPC itself."""
_FEW = 16
"""Messages of strangers at once, which ask for health only."""
_PATIENCE = 2.0
"""Seconds for such a message to arrive."""
_HANDSHAKE_MS = 10_000
"""How long a client may take to connect."""


class GrpcFace(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Answers gRPC calls for an application.

    Who may not ask is refused before his message is read: else strangers could fill the memory with messages. Those about
    health are read a few at a time.

    Parameters
    ----------
    application : Application
        What answers, as it does over HTTP.
    max_body : int
        Bytes of the largest message that is taken.
    """

    def __init__(self, application: Application, *, max_body: int) -> None:
        self._application = application
        options = {
            "grpc.so_reuseport": 0,  # else another process could take the same port, and a part of the calls
            "grpc.max_receive_message_length": max_body,
            "grpc.max_send_message_length": -1,
            "grpc.server_handshake_timeout_ms": _HANDSHAKE_MS,
            "grpc.compression_enabled_algorithms_bitset": 1,  # none: a small message could become a huge one
        }
        self._server = grpc.aio.server(options=list(options.items()), maximum_concurrent_rpcs=_MOST_CALLS)
        self._server.add_generic_rpc_handlers((self,))
        self._open = {name: grpc.stream_unary_rpc_method_handler(self._health(method)) for name, method in HEALTH.items()}
        self._secured = {name: grpc.unary_unary_rpc_method_handler(self._method(method)) for name, method in METHODS.items()}
        self._secured[STREAM] = grpc.stream_stream_rpc_method_handler(self._stream)
        self._few = asyncio.Semaphore(_FEW)

    async def start(self, host: str, port: int, tls: ServerTls | None) -> None:
        """Listen.

        Raises
        ------
        PortTakenError
            If the port cannot be taken.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, _credentials(tls))
        except RuntimeError:
            raise PortTakenError(port, "somebody else listens there, or it is not ours to take") from None
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Take no new calls, and end those that are still open after some seconds; a second call can shorten them."""
        await self._server.stop(grace)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return what answers a call, by its method and metadata."""
        handler = self._secured.get(details.method)
        if handler is None:
            return self._open.get(details.method)
        may = may_ask(self._application, details.invocation_metadata or ())
        return handler if may else grpc.stream_unary_rpc_method_handler(self._refuse)

    def _method(self, method: Method) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
        async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            call = self._call(context)
            try:
                answered = await method(request, call)
            except RefusedError as error:
                await context.abort(error.code, str(error), error.metadata)
            except RequestError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            context.set_trailing_metadata(call.metadata)
            return answered

        return answer

    def _health(self, method: Method) -> Callable[[Any, grpc.aio.ServicerContext], Awaitable[bytes]]:
        answer = self._method(method)

        async def read(_: object, context: grpc.aio.ServicerContext) -> bytes:
            async with self._few:
                try:
                    async with asyncio.timeout(_PATIENCE):
                        request = await context.read()
                except TimeoutError:
                    await context.abort(
                        grpc.StatusCode.DEADLINE_EXCEEDED, "the message did not arrive in time\nFix: send it at once"
                    )
            return await answer(b"" if request is grpc.aio.EOF else request, context)

        return read

    async def _refuse(self, _: object, context: grpc.aio.ServicerContext) -> bytes:
        """Say why, without reading what is asked."""
        return await self._method(lambda _, call: call.get(SECURED))(b"", context)

    async def _stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """Answer one request after the other, as Triton does; one that is refused is answered so, and the stream goes on."""
        async for request in requests:
            try:
                answer = ModelStreamInferResponse(infer_response=await infer(request, self._call(context)))
            except (RefusedError, RequestError) as error:
                answer = ModelStreamInferResponse(error_message=str(error))
            yield answer.SerializeToString()

    def _call(self, context: grpc.aio.ServicerContext) -> Call:
        metadata = context.invocation_metadata() or ()
        return Call(self._application, metadata, context.time_remaining(), _address(context.peer()))


def _address(peer: str) -> str:
    """Return the address in gRPC's words for a client, such as ``ipv4:127.0.0.1:50051`` or ``ipv6:%5B::1%5D:50051``."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Return the credentials of a port, which asks for the files in force at each handshake."""
    shown = tls.current()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        before, shown = shown, tls.current()
        return None if shown is before else _configuration(shown)

    asks = shown.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(_configuration(shown), renewed, require_client_authentication=asks)


def _configuration(shown: Proven) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(shown.key, shown.certificate)], shown.client_ca)
