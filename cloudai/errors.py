"""The errors of cloudai.

Every error says what is wrong and how to mend it. Catch the root to catch them all::

    CloudAIError
    ├── SpecError (ValueError)            the request is wrong
    │   ├── DataError                     the data given does not fit: lengths, dtypes, NaN, empty
    │   ├── CaptureError                  a name in the user's code cannot be carried to the worker
    │   └── RequestError                  a prediction request does not fit the model's signature
    ├── NotFoundError (LookupError)       no run, deployment, model or driver of that name
    ├── MissingExtraError (ImportError)   an optional package is not installed
    ├── IntegrityError                    stored bytes are not what was recorded: tampered or corrupt
    ├── StoreError (OSError)              the store cannot be read or written: credentials, bucket, network, disk
    ├── PlacementError (RuntimeError)     no place can run this
    ├── DriverError (RuntimeError)        a driver, or what it drives, failed
    ├── LedgerError (RuntimeError)        the ledger cannot be read or written
    ├── NotReadyError (RuntimeError)      asked for something that does not exist yet
    └── RunFailedError (RuntimeError)     a run, or a deployment, ended without success

    try:
        run.wait()
    except cloudai.errors.CloudAIError as error:
        print(error.what, error.fix)

In a notebook such an error prints two lines. ``CLOUDAI_TRACEBACK=full`` shows the whole traceback.
"""

from __future__ import annotations

import os

__all__ = [
    "CaptureError",
    "CloudAIError",
    "DataError",
    "DriverError",
    "IntegrityError",
    "LedgerError",
    "MissingExtraError",
    "NotFoundError",
    "NotReadyError",
    "PlacementError",
    "RequestError",
    "RunFailedError",
    "SpecError",
    "StoreError",
]


class CloudAIError(Exception):
    r"""The root of every error that cloudai raises.

    Parameters
    ----------
    what : str
        What is wrong, and where.
    fix : str
        What the reader can do about it.
    frames : str
        The frames of the user's own code, when the error happened there.

    Examples
    --------
    >>> str(CloudAIError("the port 8080 is taken", fix="pass another port="))
    'the port 8080 is taken\nFix: pass another port='
    """

    def __init__(self, what: str, *, fix: str, frames: str = "") -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix
        self.frames = frames

    def __str__(self) -> str:
        lines = [self.what, f"Fix: {self.fix}"]
        if self.frames:
            lines.append(self.frames.rstrip())
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.fix, self.frames)

    def _render_traceback_(self) -> list[str] | None:
        """Give IPython the lines to print instead of a traceback."""
        if os.environ.get("CLOUDAI_TRACEBACK") == "full":
            return None
        return f"{type(self).__name__}: {self}".split("\n")


def _rebuild(kind: type[CloudAIError], what: str, fix: str, frames: str) -> CloudAIError:
    return kind(what, fix=fix, frames=frames)


class SpecError(CloudAIError, ValueError):
    """The request is wrong."""


class DataError(SpecError):
    """The data given does not fit."""


class CaptureError(SpecError):
    """A name in the user's code cannot be carried to the worker."""


class RequestError(SpecError):
    """A prediction request does not fit the model's signature."""


class NotFoundError(CloudAIError, LookupError):
    """There is nothing of that name."""


class MissingExtraError(CloudAIError, ImportError):
    """An optional package is not installed."""


class IntegrityError(CloudAIError):
    """Stored bytes are not what was recorded."""


class StoreError(CloudAIError, OSError):
    """The store, or a place that data is read from, cannot be read or written.

    Parameters
    ----------
    temporary : bool
        Whether it may be over soon, so that trying again makes sense: a network that is down, a service that is overloaded, a
        disk that is full.
    """

    def __init__(self, what: str, *, fix: str, frames: str = "", temporary: bool = False) -> None:
        super().__init__(what, fix=fix, frames=frames)
        self.errno = self.strerror = None  # OSError takes our two sentences for its own
        self.temporary = temporary

    def __reduce__(self) -> tuple[object, ...]:
        return *super().__reduce__(), {"temporary": self.temporary}


class PlacementError(CloudAIError, RuntimeError):
    """No place can run this."""


class DriverError(CloudAIError, RuntimeError):
    """A driver, or what it drives, failed."""


class LedgerError(CloudAIError, RuntimeError):
    """The ledger cannot be read or written."""


class NotReadyError(CloudAIError, RuntimeError):
    """Asked for something that does not exist yet."""


class RunFailedError(CloudAIError, RuntimeError):
    """A run or a deployment ended without success."""
