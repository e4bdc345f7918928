"""User code as a value: a notebook's functions and classes, and all that they refer to, become a real module.

Nothing is pickled and nothing is run. What is typed into a notebook, a script or a session travels as source; installed
packages are imported where the work runs; local modules travel as files. A name that cannot travel is an error now, in
milliseconds, and not in a worker later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from cloudai.capture.bundle import MAIN_PREFIX, Bundle
from cloudai.capture.collector import Collector
from cloudai.specs.code_secrets import refuse_secrets_in_code

__all__ = ["capture", "locator"]


def capture(objects: Sequence[Callable[..., Any] | type]) -> Bundle:
    """Turn functions and classes, with all that they refer to, into a bundle of source files.

    The same definitions give the same bytes, in whatever order the cells ran; names that nothing refers to play no part.

    Parameters
    ----------
    objects : sequence of callable or type
        Functions and classes of a notebook, a script or a local module. Those of installed packages are only named.

    Returns
    -------
    Bundle
        Its ``entries`` say where each object is found, by its qualified name.

    Raises
    ------
    CaptureError
        If something they refer to cannot be carried, with its name, type, size, where it is used, and the fix. All that is
        wrong is found in one pass; the first five are shown. Also if the code holds what looks like a secret.

    Examples
    --------
    >>> import math
    >>> dict(capture([math.hypot]).entries)
    {'hypot': 'math:hypot'}
    """
    collector = Collector()
    expressions = [(_key(value), collector.entry(value, _key(value))) for value in objects]
    collector.finish()
    error = collector.problems.error()
    if error is not None:
        raise error
    files, main = dict(collector.modules.files), collector.source()
    name = MAIN_PREFIX + _fingerprint({**files, "": main.encode()})
    if main:
        files[f"{name}.py"] = main.encode()
    refuse_secrets_in_code(files, f"{name}.py")
    entries: dict[str, str] = {}
    for key, expression in expressions:
        entries[_unused(key, entries)] = expression if ":" in expression else f"{name}:{expression}"
    return Bundle(files, entries)


def locator(objects: Sequence[Any], bundle: Bundle) -> Callable[[Any], str]:
    """Return a function that says where an object of `objects` is found in the bundle captured from them.

    Examples
    --------
    >>> import math
    >>> locator([math.hypot], capture([math.hypot]))(math.hypot)
    'math:hypot'
    """
    known = {id(value): location for value, location in zip(objects, bundle.entries.values(), strict=True)}
    return lambda value: known[id(value)]


def _key(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__name__))


def _unused(key: str, taken: dict[str, str]) -> str:
    """Return the key, numbered if another object of that name came before."""
    number = 2
    unused = key
    while unused in taken:
        unused, number = f"{key}#{number}", number + 1
    return unused


def _fingerprint(files: dict[str, bytes]) -> str:
    parts = [part for path, content in sorted(files.items()) for part in (path.encode(), content)]
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()[:8]
