"""The token of a deployment: who can read its file may ask the deployment, nobody else.

The token stands in a file of the user's alone and nowhere else: processes are given the path, clients read the file.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from cloudai.errors import SpecError
from cloudai.files import private_folder, replace_file

__all__ = ["ensure_token", "read_token", "renew_token", "token_digest", "token_path"]

_BYTES = 32


def token_path(home: Path, deployment: str) -> Path:
    """Return where the token of a deployment stands."""
    return home / "tokens" / f"deployment-{deployment}"


def ensure_token(path: Path) -> None:
    """Make a token unless there is one."""
    if not path.exists():
        renew_token(path)


def renew_token(path: Path) -> None:
    """Make a new token in the place of any before."""
    private_folder(path.parent)
    replace_file(path, secrets.token_urlsafe(_BYTES).encode() + b"\n")


def read_token(path: Path) -> str:
    """Read a token.

    Raises
    ------
    SpecError
        If it cannot be read, or others can read it too.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as file:
            mode, text = os.fstat(handle).st_mode, file.read(4096)
    except OSError as error:
        raise SpecError(f"the token file {path} cannot be read: {error.strerror}", fix="deployment.rotate_token()") from None
    if mode & 0o077:
        raise SpecError(f"others can read the token file {path}", fix=f"chmod 600 {path}, and deployment.rotate_token()")
    token = text.strip().decode("ascii", "replace")
    if len(token) < 16 or not token.isprintable() or " " in token:
        raise SpecError(f"the token file {path} holds no token of 16 letters or more", fix="deployment.rotate_token()")
    return token


def token_digest(token: str) -> str:
    """Return what a server elsewhere is told in a token's place: it can check a token by it, and nobody can tell it from it.

    A plain SHA-256 is enough: a token is 256 random bits, so there is nothing to be guessed.
    """
    return hashlib.sha256(token.encode()).hexdigest()
