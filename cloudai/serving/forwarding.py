"""One prediction on its way through the router, on the express lane: to the first choice among the replicas, and back.

Whatever is not as it mostly is goes the router's other way, which tries the next replica, waits for one, or mirrors.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cloudai.serving.asgi import AGAIN, Call, Exchange, HttpError
from cloudai.serving.upstream import Answer

if TYPE_CHECKING:
    from cloudai.serving.router import RouterApplication

__all__ = ["NOT_FORWARDED", "NOT_RETURNED", "Forwarding", "WholeExchange", "passed", "revision_header"]

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)  # RFC 9110, section 7.6.1
NOT_FORWARDED = _HOP_BY_HOP | {b"host", b"content-length", b"expect", b"x-request-id", b"x-cloudai-shadow"}
NOT_RETURNED = _HOP_BY_HOP | {b"date", b"server", b"x-request-id", b"x-cloudai-revision"}
_WRITTEN_BY_FINISH = NOT_RETURNED | {b"content-length", b"content-type"}
_logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]


def passed(headers: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> Headers:
    """Drop headers that are for one connection only: the known ones and those that Connection names."""
    lowered = [(name.lower(), value) for name, value in headers]
    named = {token.strip().lower() for name, value in lowered if name == b"connection" for token in value.split(b",")}
    return [(name, value) for name, value in lowered if name not in dropped and name not in named]


def revision_header(revision: str) -> Headers:
    """Return the header that says which revision answered."""
    return [(b"x-cloudai-revision", revision.encode("latin-1", "replace"))] if revision else []


class Forwarding:
    """A prediction that is passed on whole.

    Parameters
    ----------
    router : RouterApplication
        Whose table, replicas and counts it uses.
    call : Call
        The request.

    Raises
    ------
    HttpError
        If the router takes no more, or the body will be too large.
    """

    __slots__ = ("_call", "_code", "_give_up", "_over", "_port", "_revision", "_router", "max_body", "when")

    def __init__(self, router: RouterApplication, call: Call) -> None:
        self._router, self._call = router, call
        self.max_body = router.options.max_body
        call.check_length(self.max_body)
        router.enter()
        self.when = asyncio.get_running_loop().time() + router.options.timeout
        self._give_up: Callable[[], None] | None = None
        self._revision, self._port = "", 0
        self._over = False
        router.deadlines.add(self)

    def begin(self, body: bytes) -> None:
        """Pass the request on: its body is whole."""
        if self._over:
            return
        first = self._router.first_choice(self._call)
        if first is None:
            self._go_the_other_way(body)
            return
        self._revision, self._port = first
        self._router.begin_asking(self._revision, self._port)
        asking = _Asking(self, body)
        self._give_up = self._router.upstream.ask(self._port, self._request(body), asking)

    def refuse(self, error: HttpError) -> None:
        """End with this error."""
        if not self._over:
            error.headers = (*error.headers, *revision_header(self._revision))
            self._end(error.status)
            self._call.refuse(error)

    def lost(self) -> None:
        """Give up: the client went away."""
        if not self._over:
            self._end(499)

    def expire(self) -> None:
        """End: it took too long."""
        if not self._port:
            self.refuse(HttpError(408, "the body did not arrive in time", fix="send it at once"))
        else:
            what = f"the revision {self._revision} did not answer within {self._router.options.timeout:g} s"
            self.refuse(HttpError(504, what, fix="send fewer rows, or raise the timeout"))

    def answered(self, answer: Answer) -> None:
        """Pass the answer back."""
        if self._over:
            return
        self._end(answer.status)
        kind = next((value for name, value in answer.headers if name == b"content-type"), b"application/octet-stream")
        headers = passed(answer.headers, _WRITTEN_BY_FINISH) + revision_header(self._revision)
        self._call.finish(answer.status, [answer.body], kind=kind, headers=headers)

    def broke(self, body: bytes, *, unsent: bool) -> None:
        """Try another replica where nobody can have begun to compute; else say that the revision broke off."""
        if self._over:
            return
        if unsent:
            _logger.warning("the revision %s does not listen on port %d", self._revision, self._port)
            self._router.heard_nobody(self._port)
            self._go_the_other_way(body)
            return
        _logger.warning("request %s: the revision %s broke off", self._call.id, self._revision)
        self._router.broke(self._revision)
        what = f"the revision {self._revision} broke off"
        self.refuse(HttpError(503, what, fix="send the request again if it may be computed twice", headers=AGAIN))

    def _go_the_other_way(self, body: bytes) -> None:
        self._leave()
        self._router.route_whole(self._call, body)

    def _end(self, status: int) -> None:
        self._router.count(self._revision, status, time.perf_counter() - self._call.begun)
        self._leave()

    def _leave(self) -> None:
        """Give back the place, and the request that is under way."""
        self._over = True
        self._router.deadlines.discard(self)
        if self._port:
            self._router.end_asking(self._revision, self._port)
        if self._give_up is not None:
            self._give_up()
        self._router.leave()

    def _request(self, body: bytes) -> bytes:
        lines = [b"%b: %b\r\n" % header for header in passed(self._call.headers, NOT_FORWARDED)]
        own = (self._call.url, self._call.id.encode(), len(body))
        head = b"POST %b HTTP/1.1\r\nhost: 127.0.0.1\r\nx-request-id: %b\r\ncontent-length: %d\r\n" % own
        return b"".join([head, *lines, b"\r\n", body])


class _Asking:
    """What is told of the answer; it keeps the body for as long as that may have to be sent again."""

    __slots__ = ("_body", "_forwarding")

    def __init__(self, forwarding: Forwarding, body: bytes) -> None:
        self._forwarding, self._body = forwarding, body

    def answered(self, answer: Answer) -> None:
        self._forwarding.answered(answer)

    def broke(self, *, unsent: bool) -> None:
        self._forwarding.broke(self._body, unsent=unsent)


class WholeExchange(Exchange):
    """A call that leaves the express lane: its body is here, and its answer goes back in one piece."""

    def __init__(self, call: Call, body: bytes) -> None:
        path, _, query = call.url.partition(b"?")
        scope = {"method": "POST", "path": call.path, "raw_path": path, "query_string": query, "headers": call.headers}
        super().__init__(scope, self._take, self._keep, closing=lambda: False)
        self.id = call.id
        self._call = call
        self._body = body
        self._answer: Headers = []
        self._pieces: list[bytes] = []

    async def _take(self) -> dict[str, object]:
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def _keep(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._answer = list(message["headers"])
            return
        self._pieces.append(message["body"])
        if not message["more_body"]:
            kind = next((value for name, value in self._answer if name == b"content-type"), b"application/json")
            headers = passed(self._answer, _WRITTEN_BY_FINISH - {b"x-cloudai-revision"})
            self._call.finish(self.status, self._pieces, kind=kind, headers=headers)
