"""The first thing that a job does on the cluster: see that what it needs is there, and become the command.

The command takes this process's place, so that a signal and an exit code are the command's own.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec

__all__ = ["ENVIRONMENT", "main", "packed"]

ENVIRONMENT = "CLOUDAI_JOB_ENVIRONMENT"
"""Carries the variables whose values Ray would change: it replaces what looks like a variable in them."""

_NEEDED = ("numpy", "psutil", "pydantic", "fsspec", "safetensors")
_LACKING = 78  # EX_CONFIG of sysexits.h


def packed(env: Mapping[str, str]) -> str:
    """Return variables as a text that nothing on the way takes for something else."""
    return base64.b64encode(json.dumps(dict(env)).encode()).decode()


def main() -> None:
    """Become ``python`` with the arguments given."""
    lacking = [name for name in _NEEDED if find_spec(name) is None]
    if lacking:
        what = f"the Python that the cluster starts jobs with ({sys.executable}) lacks {', '.join(lacking)}"
        sys.exit(_say(f'{what}\nFix: install "cloudai[ray]" on all machines of the cluster, and have its python first in PATH'))
    env = dict(os.environ)
    env.update(json.loads(base64.b64decode(env.pop(ENVIRONMENT, "e30="))))
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], env)  # noqa: S606  no shell is meant


def _say(text: str) -> int:
    sys.stderr.write(text + "\n")
    return _LACKING


if __name__ == "__main__":
    main()
