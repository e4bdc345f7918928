"""Live handles: one background thread a process keeps them fresh, renews their leases and says who holds them."""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable

from cloudai.clock import SYSTEM
from cloudai.display import Shown, ago
from cloudai.errors import CloudAIError
from cloudai.state.leader import ensure_supervisor
from cloudai.state.ledger import Ledger, Record

__all__ = ["Handle", "freshen"]

log = logging.getLogger(__name__)

_REFRESH = 0.5  # seconds
_RENEW = 20.0  # seconds between two renewals of a lease

_handles: weakref.WeakSet[Handle] = weakref.WeakSet()
_thread: threading.Thread | None = None
_lock = threading.Lock()


class Handle(Shown):
    """The user's end of something that goes on without them.

    Attributes
    ----------
    name : str
        Its name.
    ref : str
        What `cloudai.attach` takes.
    """

    lease_seconds: float | None = None

    def __init__(self, ledger: Ledger, record: Record) -> None:
        self._ledger = ledger
        self._record = record
        self._read_at = ledger.running()
        self._renewed_at = float("-inf")
        self.name = record.name
        self.ref = record.ref
        _keep_fresh(self)

    @abstractmethod
    def _read(self, record: Record) -> None:
        """Read what else the card shows, beside the record."""

    @property
    def phase(self) -> str:
        """Where it stands, as last read."""
        return self._record.phase

    @property
    def ended(self) -> bool:
        """Whether nothing happens to it any more."""
        return self._record.ended

    @property
    def age(self) -> str:
        """How old the last snapshot is, in words."""
        return ago(self._ledger.running() - self._read_at)

    def refresh(self) -> None:
        """Read the present state, now.

        Raises
        ------
        CloudAIError
            If it is gone, or the store cannot be read.
        """
        record = self._ledger.get(self._record.kind, self.name)
        self._read(record)
        if record.version >= self._record.version:  # else another thread has read or wished something newer meanwhile
            self._record = record
        self._read_at = self._ledger.running()

    def _want(self, **change: object) -> None:
        """Say what the user wants now, and make sure that somebody hears it."""
        self._record = self._ledger.want(self._record.kind, self.name, change)
        if self._is_taken_further_here:
            ensure_supervisor(self._ledger.home)

    @property
    def _is_taken_further_here(self) -> bool:
        """Whether a supervisor of this home may do so; what lives on another's machine is left to the one there."""
        return self._record.anywhere or self._ledger.mine(self._record)

    def _hold(self) -> None:
        """Renew the lease and the sign that this process holds the object."""
        now = self._ledger.running()
        pause = _RENEW if self.lease_seconds is None else min(_RENEW, self.lease_seconds / 3)
        if self.ended or now - self._renewed_at < pause:
            return
        if self.lease_seconds is not None:
            self._ledger.renew_lease(self._record.kind, self.name, self.lease_seconds)
        self._ledger.hold(self._record.kind, self.name)
        self._renewed_at = now


def _keep_fresh(handle: Handle) -> None:
    global _thread  # noqa: PLW0603  one thread for the whole process
    with _lock:
        _handles.add(handle)
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_run, name="cloudai-handles", daemon=True)
            _thread.start()


def freshen(ledger: Ledger) -> None:
    """Renew the leases of a ledger's live handles and read them again; for whoever moves the ledger's clock by hand."""
    for handle in [handle for handle in list(_handles) if handle._ledger is ledger and not handle.ended]:  # noqa: SLF001
        _freshen(handle)


def _freshen(handle: Handle) -> None:
    _attempt(handle, handle._hold)  # noqa: SLF001  this module keeps the handles
    _attempt(handle, handle.refresh)


def _attempt(handle: Handle, act: Callable[[], object]) -> None:
    """Do something for a handle; what goes wrong is tried again at the next turn."""
    try:
        act()
    except CloudAIError as error:
        log.debug("%s could not be refreshed: %s", handle.ref, error.what)
    except Exception:
        log.exception("%s could not be refreshed", handle.ref)


def _run() -> None:
    while True:
        time.sleep(_REFRESH)
        timed = [handle for handle in list(_handles) if handle._ledger.clock is SYSTEM]  # noqa: SLF001
        alive = [handle for handle in timed if not handle.ended]
        for handle in alive:  # all leases before any store is asked, which may take its time
            _attempt(handle, handle._hold)  # noqa: SLF001  as above
        for handle in alive:
            _attempt(handle, handle.refresh)
        wanted = [handle for handle in alive if not handle.ended and handle._is_taken_further_here]  # noqa: SLF001  as above
        for handle in {handle._ledger.home: handle for handle in wanted}.values():  # noqa: SLF001  as above
            _attempt(handle, functools.partial(ensure_supervisor, handle._ledger.home))  # noqa: SLF001  as above
