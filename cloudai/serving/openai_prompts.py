"""Prompts as tokens, and tokens as texts, with a tokenizer of our own."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

from cloudai.artifacts.text_models import TextModel
from cloudai.serving.asgi import HttpError

__all__ = ["Prompts"]


class Prompts:
    """Turns prompts and chats into tokens.

    Parameters
    ----------
    model : TextModel
        Whose tokenizer is taken; a copy, since a tokenizer keeps its settings in itself, and others use it too.
    """

    def __init__(self, model: TextModel) -> None:
        self._tokenizer: Any = copy.deepcopy(model.tokenizer)
        self._stand_in = model.stand_in
        self._lock = threading.Lock()
        self._vocabulary = int(model.model.config.vocab_size)
        self._special = frozenset(self._tokenizer.all_special_ids)

    def of_text(self, text: str) -> list[int]:
        """Return the tokens of a text as the model is trained on it, at least one."""
        _check_unicode(text)
        with self._lock:
            tokens: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tokens or [self._stand_in]

    def count(self, text: str) -> int:
        """Return how many tokens a text has with those that mark its begin and end."""
        _check_unicode(text)
        with self._lock:
            return len(self._tokenizer(text, verbose=False, truncation=False)["input_ids"])

    def of_tokens(self, tokens: Sequence[int]) -> list[int]:
        """Return tokens that a client has made itself.

        Raises
        ------
        HttpError
            400 if the model has no such tokens.
        """
        if max(tokens) >= self._vocabulary:
            what = f"there is no token {max(tokens)}"
            raise HttpError(400, what, fix=f"the model has {self._vocabulary}; or send texts", param="prompt")
        return list(tokens)

    def of_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the tokens of a chat, put together by the tokenizer's own template (Jinja, in its sandbox).

        Raises
        ------
        HttpError
            400 if there is no template, or it refuses the messages.
        """
        if not self._tokenizer.chat_template:
            fix = "set tokenizer.chat_template before training or bringing the model, or ask /v1/completions"
            what = "the model's tokenizer has no chat template"
            raise HttpError(400, what, fix=fix, param="messages", code="no_chat_template")
        for message in messages:
            _check_unicode(message["content"])
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # noqa: BLE001  what a template raises is as various as templates are
            what = f"the model's chat template refuses these messages: {str(error)[:200]}"
            raise HttpError(400, what, fix="send the roles in the order that it wants", param="messages") from None
        return self.of_text(text)

    def text(self, tokens: Sequence[int]) -> str:
        """Return tokens as a text, without those that only mark something."""
        text: str = self._tokenizer.decode([token for token in tokens if token not in self._special])
        return text

    def word(self, token: int) -> str:
        """Return one token as it is, for a list of likelihoods."""
        text: str = self._tokenizer.decode([token])
        return text


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise HttpError(400, f"a text has half a character at {error.start}", fix="send valid Unicode") from None
