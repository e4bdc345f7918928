"""Trying again where that helps, and a foreign error in our words: what stands between the store and a network.

An answer ("there is no such file") is not a failure. A failure is either temporary, then it is tried again with growing
pauses until patience is at its end; or it is not (credentials, a missing bucket), then it is raised at once.
"""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from cloudai.errors import CloudAIError, StoreError

__all__ = ["explained", "persist"]

log = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 15.0  # seconds
_QUIET = 2.0  # seconds of trying again that nobody needs to be told of

_NOT_LET_IN = frozenset(
    ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AllAccessDisabled", "403")
)
_BUSY = frozenset(
    [
        "SlowDown",
        "RequestTimeout",
        "OperationAborted",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "BadDigest",
        "NoSuchUpload",
    ]
)
"""S3's own codes for "try again", beside every status from 500 on."""
_CUT = frozenset(  # by name, so that nothing of botocore and aiohttp is loaded for it
    [
        "HTTPClientError",
        "ConnectionError",
        "ClientConnectionError",
        "ClientPayloadError",
        "IncompleteRead",
        "ResponseParserError",
    ]
)
_OURS = frozenset(("builtins", "cloudai", "numpy", "pyarrow", "zlib"))
"""Where errors come from that say nothing about the store, such as a ValueError: they pass as they are."""
_WRONG_DISK = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG))


def persist(act: Callable[[], T], where: str, patience: float) -> T:
    """Return what `act` returns, trying again for `patience` seconds where it fails for a reason that may be over soon.

    Parameters
    ----------
    act : callable
        What is done; it may be done more than once.
    where : str
        The address that an error names.

    Raises
    ------
    StoreError
        If it fails for a reason that will not go away, or patience is at its end.
    FileNotFoundError, FileExistsError
        As `act` raises them: these are answers; and so is everything that has nothing to do with a store.
    """
    begin, pause = time.monotonic(), _FIRST_PAUSE
    while True:
        try:
            return act()
        except CloudAIError:
            raise
        except Exception as error:
            problem = explained(error, where)
            if problem is None:
                raise
            passed = time.monotonic() - begin
            if not problem.temporary or passed + pause > patience:
                raise problem from None
            log.log(logging.WARNING if passed > _QUIET else logging.INFO, "%s; trying again", problem.what)
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  so that not all come back at the same moment
        pause = min(2 * pause, _LONGEST_PAUSE)


def explained(error: Exception, where: str) -> StoreError | None:
    """Return a file system's error in our words; None where it is an answer.

    Examples
    --------
    >>> explained(ConnectionResetError(104, "Connection reset by peer"), "s3://models").temporary
    True
    >>> print(explained(PermissionError(13, "Permission denied"), "/models"))
    /models cannot be used: Permission denied
    Fix: choose a folder that you may write to
    >>> explained(FileNotFoundError("x"), "/models") is None
    True
    """
    code, status = _answer(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    if code == "NoSuchBucket":
        return StoreError(f"there is no bucket for {where}", fix="create it, or mend the name; is AWS_ENDPOINT_URL right?")
    if "NoCredentialsError" in names or "PartialCredentialsError" in names:
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and call again"
        return StoreError(f"there are no credentials for {where}", fix=fix)
    if code in _NOT_LET_IN or status in (401, 403):
        fix = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do, and call again"
        return StoreError(f"{where} does not accept the credentials: {_sentence(error)}", fix=fix)
    if code in _BUSY or status >= 500 or status == 429:
        return StoreError(f"{where} is not answering properly: {_sentence(error)}", fix="try again later", temporary=True)
    if names & _CUT or isinstance(error, TimeoutError | ConnectionError):
        fix = "check the network, and AWS_ENDPOINT_URL if you set it; then call again"
        return StoreError(f"{where} cannot be reached: {_sentence(error)}", fix=fix, temporary=True)
    if isinstance(error, FileNotFoundError | FileExistsError):
        return None
    if isinstance(error, OSError) and not code:
        return _of_disk(error, where)
    if not code and type(error).__module__.partition(".")[0] in _OURS:
        return None
    return StoreError(
        f"{where} cannot be used: {_sentence(error)}", fix="check the address, the region and the bucket's settings"
    )


def _of_disk(error: OSError, where: str) -> StoreError:
    if error.errno in _WRONG_DISK or isinstance(error, PermissionError):
        return StoreError(f"{where} cannot be used: {_sentence(error)}", fix="choose a folder that you may write to")
    fix = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the disk or the network"
    return StoreError(f"{where} cannot be read or written: {_sentence(error)}", fix=fix, temporary=True)


def _answer(error: Exception) -> tuple[str, int]:
    """Return the code and the HTTP status of S3's answer, which s3fs leaves in the cause; empty where there was none."""
    for candidate in (error, error.__cause__):
        response: Any = getattr(candidate, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response.get("Error", {}).get("Code", "")), int(status)
    return "", 0


def _sentence(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).strip().split("\n")[0].rstrip(".")
