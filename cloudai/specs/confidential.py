"""What is a secret, so that none gets into what is kept: refused where it is given, blackened where it turns up in a text.

A name is split into words, so that ``hf_token`` is one and ``tokenizer``, ``token_count`` and ``eos_token`` are not.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO
from urllib.parse import quote

from cloudai.errors import SpecError

__all__ = [
    "environment_secrets",
    "has_credentials",
    "is_secret_name",
    "redact",
    "redacted",
    "refuse_credentials",
    "refuse_secrets",
    "start_log",
    "why_secret",
]

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_ENDINGS = ("password", "passwd", "passphrase", "apikey")
_KEY_OWNERS = frozenset({"api", "access", "secret", "private", "signing", "encryption", "ssh"})
_TOKEN_OWNERS = frozenset(
    {"access", "api", "auth", "bearer", "bot", "csrf", "deploy", "gh", "git", "github", "gitlab", "hf", "hub", "huggingface"}
    | {
        "id",
        "jwt",
        "jupyter",
        "mlflow",
        "npm",
        "oauth",
        "pypi",
        "refresh",
        "secret",
        "session",
        "slack",
        "user",
        "vault",
        "wandb",
    }
)
"""Whose token is a secret. ``eos``, ``pad``, ``mask`` or ``max`` tokens are words of a language model."""

_KNOWN = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS
    r"|\b(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{50,}\b"
    r"|\bglpat-[A-Za-z0-9_-]{20,}|\bhf_[A-Za-z0-9]{30,}\b|\bxox[abprs]-[A-Za-z0-9-]{20,}"
    r"|\bsk-(?:proj-|ant-[a-z0-9]+-)?[A-Za-z0-9_-]*[A-Za-z0-9]{20,}"  # OpenAI, Anthropic
    r"|\bAIza[A-Za-z0-9_-]{35}\b"  # Google
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----(?:[\s\S]*?-----END (?:[A-Z]+ )*PRIVATE KEY-----)?"
)
"""Secrets that are known by their form."""

_IN_URL = re.compile(r"(?<=://)[^/?#\s@'\"]+@|(?<=://)[^/?#\s'\"]*:[^/?#\s'\"]*@")
_SHORTEST = 6
_PLACEHOLDER = re.compile(r"[<${%].*|(?i:x+|\*+|\.+|none|null|true|false|change_?me|your.*)")
_FIX = "read it inside the function, from os.environ or a file, and leave it out here"
_BLACK = "[redacted]"


def is_secret_name(name: str) -> bool:
    """Whether a variable, option or environment variable of this name holds a secret.

    Examples
    --------
    >>> [is_secret_name(name) for name in ("api_key", "AWS_SECRET_ACCESS_KEY", "dbPassword", "hf_token")]
    [True, True, True, True]
    >>> [is_secret_name(name) for name in ("tokenizer", "token_count", "eos_token", "keyboard", "passwordless", "key")]
    [False, False, False, False, False, False]
    """
    words: list[str] = [word.lower() for word in _WORDS.findall(name)] or [""]
    before, last = words[-2] if len(words) > 1 else "", words[-1]
    if last == "key":
        return before in _KEY_OWNERS
    if last == "token":
        return before == "" or before in _TOKEN_OWNERS
    if last == "pwd":  # alone it is the working folder
        return before not in ("", "old")
    return last == "secret" or last.endswith(_ENDINGS)


def why_secret(name: str, value: object, known: Sequence[tuple[str, str]] | None = None) -> str:
    """Return why a value under a name is taken for a secret; an empty text where it is not.

    Parameters
    ----------
    known : sequence of (variable, value), optional
        What `environment_secrets` returned, where many values are looked at.

    Examples
    --------
    >>> why_secret("password", "hunter-2"), why_secret("password", None), why_secret("password", "password")
    ('it is named like one', '', '')
    >>> why_secret("x", "AKIAIOSFODNN7EXAMPLE")
    'it has the form of one'
    """
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not isinstance(text, str) or len(text) < _SHORTEST:
        return ""
    if _KNOWN.search(text):
        return "it has the form of one"
    for variable, secret in environment_secrets() if known is None else known:
        if secret in text:
            return f"it holds the value of ${variable}"
    plain = not re.search(r"\s", text) and not _PLACEHOLDER.fullmatch(text)
    return "it is named like one" if is_secret_name(name) and plain and not is_secret_name(text) else ""


def refuse_secrets(values: Mapping[str, Any], owner: str) -> None:
    """Refuse values that look like secrets: they would be written down.

    Raises
    ------
    SpecError
        Naming the first, as ``owner['name']``.
    """
    known = environment_secrets()
    for label, name, value in _leaves(values, owner, owner):
        reason = why_secret(name, value, known)
        if reason:
            raise SpecError(f"{label} looks like a secret ({reason}), and it would be written down", fix=_FIX)


def _leaves(value: Any, label: str, name: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the texts in a value with their label, and the name that each of them goes by."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{label}[{key!r}]", str(key))
    elif isinstance(value, list | tuple | set | frozenset):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{label}[{number}]", name)
    elif isinstance(value, str | bytes):
        yield label, name, value


def has_credentials(url: str) -> bool:
    """Whether an address, also one in a chain of them, holds a user name or password.

    Examples
    --------
    >>> has_credentials("simplecache::s3://me:hunter2@bucket/x"), has_credentials("s3://bucket/me@home")
    (True, False)
    """
    return _IN_URL.search(url) is not None


def refuse_credentials(url: str, what: str) -> None:
    """Refuse an address with a user name or password in it: addresses are copied into jobs, logs and cards.

    Raises
    ------
    SpecError
        Without the address.
    """
    if has_credentials(url):
        fix = "leave them out; stores and servers read them from their own variables and files, such as AWS_ACCESS_KEY_ID"
        raise SpecError(f"{what} holds a user name or password", fix=fix)


def redact(text: str) -> str:
    """Return a text with all secrets in it blackened.

    These are the values of environment variables that are named like secrets, what is known by its form, and user names
    and passwords in addresses.

    Examples
    --------
    >>> redact("cannot open s3://me:hunter2@bucket/x with AKIAIOSFODNN7EXAMPLE")
    'cannot open s3://[redacted]@bucket/x with [redacted]'
    """
    for variable, secret in environment_secrets():
        for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe="")):
            text = text.replace(form, f"[redacted: ${variable}]")
    return _IN_URL.sub(f"{_BLACK}@", _KNOWN.sub(_BLACK, text))


def redacted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with their texts redacted."""
    return {key: redact(value) if isinstance(value, str) else value for key, value in values.items()}


def environment_secrets() -> list[tuple[str, str]]:
    """Return the names and values of the environment's secrets, the longest value first.

    Values below 8 letters, and plain words below 16, are left out: every text would be full of them.
    """
    found = [(name, value) for name, value in os.environ.items() if _in_earnest(value) and _names_a_secret(name)]
    return sorted(found, key=lambda pair: -len(pair[1]))


def _in_earnest(value: str) -> bool:
    return len(value) >= 16 or (len(value) >= 8 and not value.isalpha())


def _names_a_secret(variable: str) -> bool:
    return is_secret_name(variable) or variable.upper().endswith("_TOKEN")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Output:
    """A text stream that blackens what is written to it, piece by piece; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def start_log() -> None:
    """Let this process, one of ours, log to stderr in one format, and blacken secrets in all that it logs and prints.

    Python's own words about an error that ends the process go the same way. What is written past ``sys.stdout`` and
    ``sys.stderr``, as C code does, is not seen.
    """
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), _Output):
            setattr(sys, name, _Output(getattr(sys, name)))
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
