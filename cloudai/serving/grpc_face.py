"""The gRPC port of a server or router, in the event loop of its HTTP port."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from urllib.parse import unquote

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else whoever fails a handshake writes into our log

import grpc
import grpc.aio

from cloudai.errors import RequestError
from cloudai.serving.asgi import Application
from cloudai.serving.grpc_calls import HEALTH, INFERENCE, SERVICE, Call, Method, RefusedError, infer
from cloudai.serving.grpc_messages import ModelStreamInferResponse
from cloudai.serving.ports import PortTakenError
from cloudai.serving.tls import Proven, ServerTls

__all__ = ["GrpcFace"]

_MOST_CALLS = 1024
"""Calls at once, all of whose messages lie in memory; more are refused by gRPC itself."""
_HANDSHAKE_MS = 10_000
"""How long a client may take to connect."""


class GrpcFace:
    """Answers gRPC calls for an application.

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
        inference = {name: self._handler(method) for name, method in INFERENCE.items()}
        inference["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        health = {name: self._handler(method) for name, method in HEALTH.items()}
        for service, handlers in {SERVICE: inference, "grpc.health.v1.Health": health}.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

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

    def _handler(self, method: Method) -> grpc.RpcMethodHandler:
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

        return grpc.unary_unary_rpc_method_handler(answer)

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
