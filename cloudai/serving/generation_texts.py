"""Tokens become texts while they come: no half characters, and nothing after a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["TextStream"]

_UNFINISHED = "\ufffd"  # what a tokenizer writes for bytes that are not a character yet
_LONGEST_RUN = 16  # a tokenizer with a token for each byte shows a whole run of them as unfinished until its end is there
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
    >>> [stream.add(ord(letter)) for letter in "an END"], stream.stopped
    (['a', 'n', ' ', '', '', ''], True)
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, stop: Sequence[str] = (), opening: Sequence[int] = ()
    ) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._tokens = list(opening[-_LOOK_BACK:])
        self._begun = len(self._tokens)  # those before are there for what they do to the ones after them
        self._told = len(decode(self._tokens)) if self._tokens else 0  # characters of these tokens
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Return what can be told now that this token has come."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        known = max(self._told, len(text) - _unsure(text))
        fresh, self._told = text[self._told : known], known
        if fresh and known == len(text):
            self._tokens = self._tokens[self._begun :]
            self._begun, self._told = len(self._tokens), len(self._decode(self._tokens))
        return self._release(fresh)

    def end(self) -> str:
        """Return what was held back, after the last token."""
        if self.stopped:
            return ""
        fresh = self._release(self._decode(self._tokens)[self._told :])
        return fresh if self.stopped else fresh + self._held

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


def _unsure(text: str) -> int:
    """Return how many characters at the end may still become others: bytes of a character that is not whole yet."""
    run = len(text) - len(text.rstrip(_UNFINISHED))
    return run if run <= _LONGEST_RUN else 1


def _overlap(text: str, stop: str) -> int:
    """Return how long the longest end of `text` is with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
