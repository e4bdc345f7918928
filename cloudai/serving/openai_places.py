"""A request's place in its service, for handlers that run in a task of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from cloudai.serving.asgi import HttpError, LostClientError
from cloudai.serving.service import ModelService, Place

__all__ = ["Seat"]


class Seat:
    """A place among the requests in flight, held by the task that answers.

    Parameters
    ----------
    seconds : float
        How long the answer may take, and each part of a stream.
    """

    def __init__(self, service: ModelService, seconds: float) -> None:
        self._service, self._seconds = service, seconds
        self._task = asyncio.current_task()
        self.delivered = asyncio.Event()
        self.place = service.admit(self._later(), self._done)

    def postpone(self) -> None:
        """Begin the time anew: a part of the answer is on its way."""
        self.place.when = self._later()

    def _later(self) -> float:
        return asyncio.get_running_loop().time() + self._seconds

    def _done(self, place: Place) -> None:
        """Let the task go on with what was computed, or end it: it took too long, or the server ends."""
        if place.error is None:
            self.delivered.set()
        elif self._task is not None:
            self._task.cancel()

    @classmethod
    @contextlib.contextmanager
    def taken(cls, service: ModelService) -> Iterator[Seat]:
        """Hold a place while the context is open, and count how it ended.

        Raises
        ------
        HttpError
            429 where no place is free, 408 or 504 past the time, 503 at the end of the server.
        """
        seat = cls(service, service.limits.timeout)
        place, task = seat.place, seat._task
        try:
            yield seat
        except asyncio.CancelledError:
            if place.error is not None and task is not None and task.uncancel() == 0:
                raise place.error from None
            raise
        except HttpError as error:
            if not place.over:
                service.refused(error)
            raise
        except LostClientError:
            place.leave()
            raise
        finally:
            place.finish()
