"""Which revision gets a request: the routing table and its file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudai.errors import SpecError

__all__ = ["RouteFile", "RouteTable"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RouteTable:
    """Ports and shares of the revisions that have traffic.

    Attributes
    ----------
    ports : mapping of str to tuple of int
        The ports of each such revision's replicas on this machine; none of one that is asleep: requests to it wait.
    traffic : mapping of str to float
        Percent of the requests, above 0; they sum to 100, or there is no revision at all.
    sticky : str
        The header by whose value a revision is chosen; empty for the request's id.
    shadow : mapping of str to float
        Percent of the requests that are mirrored to these revisions, which have ports too.

    Examples
    --------
    >>> table = RouteTable.parse('{"traffic": {"a": 90, "b": 10}, "backends": {"a": {"ports": [1]}, "b": {"ports": []}}}')
    >>> table.choose("request-1"), table.choose("request-2")
    (['b', 'a'], ['a', 'b'])
    """

    ports: Mapping[str, tuple[int, ...]]
    traffic: Mapping[str, float]
    sticky: str = ""
    shadow: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | bytes) -> RouteTable:
        """Read ``{"traffic": {revision: percent}, "backends": {revision: {"ports": [port, …]}}}``.

        Raises
        ------
        SpecError
            If it is not such a table: percentages that do not sum to 100, a revision with traffic but without a backend.
        """
        try:
            value = json.loads(text)
            traffic = {str(name): float(share) for name, share in sorted(value["traffic"].items())}
            routed = {name: share for name, share in traffic.items() if share > 0}
            shadow = {str(name): float(share) for name, share in value.get("shadow", {}).items() if share > 0}
            ports = {name: _ports(value["backends"][name]["ports"]) for name in {**routed, **shadow}}
            sticky = str(value.get("sticky", ""))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _bad(f"{error!r}"[:200]) from None
        sums_up = not traffic or abs(sum(traffic.values()) - 100) <= 1e-6
        if not sums_up or min(traffic.values(), default=0) < 0:
            raise _bad(f"the shares {traffic} do not sum to 100")
        return cls(ports, routed, sticky, shadow)

    def choose(self, request_id: str, key: str = "") -> list[str]:
        """Return the revisions for a request: the chosen one, then the others, the largest share first.

        The choice is a hash of the request's id against the shares: a request sent again goes to the same revision, and
        over different ids each revision gets its share of them in the long run, without any state. With a key, the value of
        the header `sticky`, it is a hash of that and of the revisions: who is among the first for one canary need not be
        for the next.
        """
        chosen_by = "\0".join([key, *self.traffic]) if key else request_id
        digest = hashlib.blake2b(chosen_by.encode(errors="surrogateescape"), digest_size=8).digest()
        point = int.from_bytes(digest, "big") / 2**64 * sum(self.traffic.values())
        others = sorted(self.traffic, key=lambda name: -self.traffic[name])
        for name, share in self.traffic.items():
            point -= share
            if point < 0:
                return [name, *(other for other in others if other != name)]
        return others


def _ports(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(port) is not int or not 0 < port < 65536 for port in value):
        raise ValueError(f"the ports {value!r}")
    return tuple(value)


def _bad(what: str) -> SpecError:
    return SpecError(
        f"this is not a routing table: {what}", fix='write {"traffic": {name: percent}, "backends": {name: {"ports": [n, …]}}}'
    )


class RouteFile:
    """The routing table in a file that others replace; a bad file leaves the last good table in force."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._table: RouteTable | None = None

    def current(self) -> RouteTable | None:
        """Return the table in force now, read again if the file has changed; None before the first good one."""
        try:
            status = os.stat(self._path)  # noqa: PTH116 (asked for every request, and twice as fast)
            seen = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            if seen != self._seen:
                self._seen = seen
                self._table = RouteTable.parse(self._path.read_bytes())
                _logger.info("traffic: %s", self._table.traffic)
        except FileNotFoundError:
            if self._seen is not None:
                self._seen = None
                _logger.warning("%s is gone: the last table stays in force", self._path)
        except (SpecError, OSError) as error:
            _logger.warning("%s: the last table stays in force: %s", self._path, error)
        return self._table
