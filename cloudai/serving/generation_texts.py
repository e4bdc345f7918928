"""Tokens become texts while they come: no half characters, and nothing after a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["TextStream"]

_UNFINISHED = "\ufffd"  # what a tokenizer writes for bytes that are not a character yet
_LOOK_BACK = 6  # tokens; enough for a tokenizer that decides by the token before whether to write a space


class TextStream:
    """The text of tokens that come one by one.

    Parameters
    ----------
    decode : callable
        Turns tokens into text.
    stop : sequence of str
        Texts before which it ends.
    opening : sequence of int
        Tokens before the first one.

    Examples
    --------
    >>> stream = TextStream(lambda tokens: "".join(map(chr, tokens)), stop=("END",))
    >>> [stream.add(ord(letter)) for letter in "an END."], stream.stopped
    (['a', 'n', ' ', '', '', '', ''], True)
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, stop: Sequence[str] = (), opening: Sequence[int] = ()
    ) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._tokens = list(opening[-_LOOK_BACK:])
        self._told = len(self._tokens)  # tokens whose text is known
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Return what can be told now that this token has come."""
        self._tokens.append(token)
        text = self._decoded()
        return self._release(text) if text else ""

    def end(self) -> str:
        """Return what was held back, after the last token."""
        if self.stopped:
            return ""
        rest = self._release(self._decoded(last=True)) if self._told < len(self._tokens) else ""
        held, self._held = self._held, ""
        return rest if self.stopped else rest + held

    def _decoded(self, *, last: bool = False) -> str:
        """Decode the tokens not told yet behind those before them, and keep only as many as the next ones need."""
        before = self._decode(self._tokens[: self._told])
        text = self._decode(self._tokens)
        if len(text) <= len(before) or (text.endswith(_UNFINISHED) and not last):
            return ""
        self._tokens = self._tokens[self._told :] if self._told else self._tokens
        self._told = len(self._tokens)
        return text[len(before) :]

    def _release(self, text: str) -> str:
        """Let out what can no longer become a stop string."""
        if not self._stop:
            return text
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        kept = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """Return how long the longest end of `text` is with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
