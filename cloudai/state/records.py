"""What the ledger holds: objects, what happened to them, and who holds their handles."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ENDED", "KINDS", "Event", "Holder", "Record"]

KINDS = ("run", "deployment", "monitor", "schedule")
"""The kinds of object that outlive a kernel."""

ENDED = frozenset({"succeeded", "failed", "cancelled", "rejected", "deleted", "stopped"})
"""The phases after which nothing happens any more."""


@dataclass(frozen=True)
class Record:
    """One run, deployment, monitor or schedule as the ledger knows it."""

    kind: str
    name: str
    phase: str
    spec: Mapping[str, Any]
    desired: Mapping[str, Any]
    status: Mapping[str, Any]
    created: float
    updated: float
    version: int = 1
    """How often it was written: the order of two readings, whatever the clock says."""
    home: str = ""
    """The home that it was made in; empty in a ledger that belongs to one home."""
    owner: str = ""
    """Who made it, as user@host."""
    anywhere: bool = False
    """Whether it lives outside that home's machine, so that the supervisor of any home can take it further."""

    @property
    def ended(self) -> bool:
        """Whether nothing happens to it any more."""
        return self.phase in ENDED

    @property
    def ref(self) -> str:
        """The reference that `cloudai.attach` takes."""
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Event:
    """Something that happened to an object, at a unix time."""

    at: float
    what: str


@dataclass(frozen=True)
class Holder:
    """A live process that holds a handle of an object."""

    pid: int
    host: str = ""
    """Its machine; empty where that is this one."""

    @property
    def is_this_process(self) -> bool:
        """Whether it is the process that asks."""
        return not self.host and self.pid == os.getpid()

    def __str__(self) -> str:
        if self.is_this_process:
            return "this process"
        return f"process {self.pid}" + (f" on {self.host}" if self.host else "")
