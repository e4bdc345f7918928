"""Answers in the form of OpenAI's interface: whole, or part by part."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloudai.serving.asgi import json_bytes
from cloudai.serving.generation import Likelihood, Piece

__all__ = ["DONE", "Answer", "ChatAnswer", "CompletionAnswer", "event", "models_list"]

DONE = b"data: [DONE]\n\n"
"""The end of a stream."""


def event(value: Mapping[str, Any]) -> bytes:
    """Return one event of a stream (server-sent events)."""
    return b"data: " + json_bytes(value) + b"\n\n"


def models_list(entries: Sequence[str], created: int) -> list[dict[str, Any]]:
    """Describe models."""
    return [{"id": name, "object": "model", "created": created, "owned_by": "cloudai"} for name in entries]


@dataclass
class _Choice:
    text: list[str] = field(default_factory=list)
    likelihoods: list[Likelihood] = field(default_factory=list)
    tokens: int = 0
    finish: str | None = None


class Answer(ABC):
    """An answer that grows.

    Parameters
    ----------
    identity : str
        The request's.
    model : str
        The name that the answer bears.
    choices : int
        How many texts there will be.
    prompt_tokens : int
        Of all prompts together.
    word : callable
        Returns a token as a text.
    """

    prefix: str
    whole_kind: str
    part_kind: str

    def __init__(self, identity: str, model: str, choices: int, prompt_tokens: int, word: Callable[[int], str]) -> None:
        self._head = {"id": f"{self.prefix}-{identity}", "created": int(time.time()), "model": model}
        self._choices = [_Choice() for _ in range(choices)]
        self._prompt_tokens, self._word = prompt_tokens, word

    def add(self, index: int, piece: Piece) -> None:
        """Take the next piece of a text."""
        choice = self._choices[index]
        choice.text.append(piece.text)
        choice.likelihoods += piece.likelihoods
        choice.tokens += piece.tokens
        choice.finish = piece.finish or choice.finish

    @property
    def unfinished(self) -> int:
        """How many texts have not ended."""
        return sum(choice.finish is None for choice in self._choices)

    @property
    def usage(self) -> dict[str, int]:
        """How many tokens there were."""
        written = sum(choice.tokens for choice in self._choices)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self._prompt_tokens + written,
        }

    def whole(self) -> dict[str, Any]:
        """Return the whole answer."""
        choices = [
            {
                "index": index,
                **self._text("".join(choice.text)),
                "logprobs": self._logprobs(choice.likelihoods),
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(self._choices)
        ]
        return {**self._head, "object": self.whole_kind, "choices": choices, "usage": self.usage}

    def first_parts(self) -> Iterable[dict[str, Any]]:
        """Return what a stream begins with."""
        return ()

    def part(self, index: int, piece: Piece, *, tells_usage: bool) -> dict[str, Any]:
        """Return the part of a stream for a piece."""
        choice = {
            "index": index,
            **self._delta(piece.text),
            "logprobs": self._logprobs(piece.likelihoods),
            "finish_reason": piece.finish,
        }
        return self._part([choice]) | ({"usage": None} if tells_usage else {})

    def usage_part(self) -> dict[str, Any]:
        """Return the last part of a stream that tells usage."""
        return self._part([]) | {"usage": self.usage}

    def _part(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self.part_kind, "choices": choices}

    @abstractmethod
    def _text(self, text: str) -> dict[str, Any]:
        """Return what a choice of a whole answer has of its text."""

    @abstractmethod
    def _delta(self, text: str) -> dict[str, Any]:
        """Return what a part of a stream has of its text."""

    @abstractmethod
    def _logprobs(self, likelihoods: Sequence[Likelihood]) -> dict[str, Any] | None:
        """Return how likely the tokens were, where that was asked for."""


class ChatAnswer(Answer):
    """A message of the assistant."""

    prefix, whole_kind, part_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first_parts(self) -> Iterable[dict[str, Any]]:
        """Say who speaks."""
        for index in range(len(self._choices)):
            delta = {"role": "assistant", "content": ""}
            yield self._part([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def _text(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _logprobs(self, likelihoods: Sequence[Likelihood]) -> dict[str, Any] | None:
        if not likelihoods:
            return None
        return {
            "content": [
                self._entry(one.token, one.logarithm) | {"top_logprobs": [self._entry(*best) for best in one.best]}
                for one in likelihoods
            ],
            "refusal": None,
        }

    def _entry(self, token: int, logarithm: float) -> dict[str, Any]:
        word = self._word(token)
        return {"token": word, "logprob": logarithm, "bytes": list(word.encode())}


class CompletionAnswer(Answer):
    """A text that goes on from a prompt."""

    prefix, whole_kind, part_kind = "cmpl", "text_completion", "text_completion"

    def _text(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, likelihoods: Sequence[Likelihood]) -> dict[str, Any] | None:
        if not likelihoods:
            return None
        return {
            "tokens": [self._word(one.token) for one in likelihoods],
            "token_logprobs": [one.logarithm for one in likelihoods],
            "top_logprobs": [{self._word(token): logarithm for token, logarithm in one.best} for one in likelihoods],
        }
