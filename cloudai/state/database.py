"""What the ledger needs of a database; `sqlite` and `postgres` give it.

Statements are written once for both: ``?`` stands for a value, and only what both understand is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["Database", "Lead", "Row", "TakenError", "Transaction"]

Row = tuple[Any, ...]


class TakenError(Exception):
    """There is a row of that key already. The ledger says in its own words what that means."""


class Transaction(Protocol):
    """All of it or nothing."""

    serial: str
    """The type of a column that counts up by itself."""

    def execute(self, sql: str, values: Sequence[Any] = ()) -> None:
        """Carry out a statement; `TakenError` where its key is taken."""
        ...

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a statement."""
        ...

    def locked(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a SELECT, which nobody else changes before this transaction ends."""
        ...

    def version(self) -> int:
        """Return the number of the last migration that was carried out, 0 in an empty database."""
        ...

    def set_version(self, version: int) -> None:
        """Write that number."""
        ...


class Lead(Protocol):
    """The lead over what belongs to no single home."""

    def held(self) -> bool:
        """Take the lead if it is free; whether we have it at this moment."""
        ...

    def release(self) -> None:
        """Give it back."""
        ...


class Database(Protocol):
    """A small database, safe for many threads and processes at once.

    Whatever goes wrong in it comes out as `LedgerError`.
    """

    where: str
    """How an error names it."""
    poll: float
    """Seconds between two looks whether somebody has written."""

    def version(self) -> int:
        """Return the number of the last migration that was carried out, 0 in an empty database."""
        ...

    def transaction(self, *, alone: bool = False) -> AbstractContextManager[Transaction]:
        """Write; with `alone` while nobody else does so with `alone`."""
        ...

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Read."""
        ...

    def changes(self) -> int:
        """Return a number that changes whenever somebody else has written an object (cheap enough to poll)."""
        ...

    def time(self) -> float | None:
        """Return the unix time of the server's clock; None where it is this machine's."""
        ...

    def exists(self) -> bool:
        """Whether it is still there, as far as can be told without asking it."""
        ...

    def lead(self) -> Lead:
        """Return the lead, not taken yet."""
        ...
