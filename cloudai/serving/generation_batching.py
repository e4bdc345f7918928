"""Continuous batching: texts join and leave between two steps of the model, which go on for all that are there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import psutil
import torch

from cloudai.serving.generation import Deliver, EngineBusyError, Finish, Likelihood, Order, Piece, Watcher
from cloudai.serving.generation_rows import Decoder
from cloudai.serving.generation_sampling import Sampler, choose
from cloudai.serving.generation_texts import TextStream

__all__ = ["BatchingEngine"]

_PROMPT_TOKENS = 512  # of prompts in one step: longer ones are read in parts, so that the other texts go on
_MEMORY_SHARE = 0.4  # of the free memory, for keys and values; growing needs old and new for a moment
_FORGETTING = 0.2  # weight of the newest text in the mean of how long one takes
_logger = logging.getLogger(__name__)


class _Text:
    """A text that is being written, and the ticket of whoever waits for it."""

    def __init__(self, order: Order, deliver: Deliver, decode: Callable[[Sequence[int]], str]) -> None:
        self.tokens, self.prompt_length = list(order.prompt), len(order.prompt)
        self.longest = self.prompt_length + order.sampling.max_tokens
        self.deliver = deliver
        self.stream = TextStream(decode, stop=order.sampling.stop, opening=order.opening)
        self.sampler = Sampler(order.sampling, choice=order.choice)
        self.known = 0  # tokens that the decoder has
        self.asked = self.seated = time.monotonic()
        self.cancelled = False

    def cancel(self) -> None:
        """Write no more; the engine sees it before its next step."""
        self.cancelled = True

    @property
    def left(self) -> int:
        """How many of its tokens the decoder has not seen."""
        return len(self.tokens) - self.known

    def add(self, token: int, likelihood: Likelihood | None, *, ends: bool) -> Piece:
        """Take the next token and return what can be told of it."""
        self.tokens.append(token)
        text = "" if ends else self.stream.add(token)
        full = len(self.tokens) >= self.longest
        finish: Finish | None = "stop" if ends or self.stream.stopped else "length" if full else None
        if finish:
            text += self.stream.end()
            finish = "stop" if self.stream.stopped else finish
        return Piece(text, 1, finish, (likelihood,) if likelihood else ())


class BatchingEngine:
    """Writes texts with a decoder, in a thread of its own.

    Parameters
    ----------
    decoder : Decoder
        Computes logits.
    decode : callable
        Turns tokens into text.
    ends : collection of int
        Tokens that end a text.
    context : int
        How many tokens a prompt and its text may have.
    most_running : int
        Texts that are written at the same time; on processors more than the default gain little and make each slower.
    most_waiting : int
        Texts that may wait for a place; more are refused.
    patience : float
        Seconds: a text that is likely to wait longer is refused at once.
    memory : int, optional
        Bytes for what the decoder keeps of texts; by default a share of what is free.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        decode: Callable[[Sequence[int]], str],
        ends: frozenset[int],
        context: int,
        watcher: Watcher,
        most_running: int = 32,
        most_waiting: int = 64,
        patience: float = 30.0,
        memory: int | None = None,
    ) -> None:
        self.context = context
        self._decoder, self._decode, self._ends, self._watcher = decoder, decode, ends, watcher
        self._most_running, self._most_waiting, self._patience = most_running, most_waiting, patience
        memory = memory or int(_MEMORY_SHARE * psutil.virtual_memory().available)
        self._room = max(context, memory // max(1, decoder.token_bytes))  # in tokens; one text always has a place
        self._seated: list[_Text] = []
        self._waiting: deque[_Text] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)

    @property
    def running(self) -> int:
        """How many texts are being written."""
        return len(self._seated)

    @property
    def waiting(self) -> int:
        """How many texts wait for a place."""
        return len(self._waiting)

    async def start(self) -> None:
        """Begin; pieces come in the event loop of the caller."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Drop what is unfinished, and end after the step that is being computed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, 5.0)

    def write(self, order: Order, deliver: Deliver) -> _Text:
        """Write a text; see `GenerationEngine.write`."""
        text = _Text(order, deliver, self._decode)
        with self._changed:
            wait = self._wait()
            if len(self._waiting) >= self._most_waiting or wait > self._patience:
                raise EngineBusyError(max(1.0, wait))
            self._waiting.append(text)
            self._changed.notify()
        return text

    def _wait(self) -> float:
        """Estimate the seconds until a new text gets a place, from how long others have held theirs."""
        ahead = len(self._waiting) - (self._most_running - len(self._seated))
        return self._seconds * max(0, ahead + 1) / self._most_running

    def _run(self) -> None:
        while self._has_work():
            try:
                self._seat()
                self._read_prompts()
                self._write_on()
            except Exception:
                _logger.exception("the model failed on %d texts", len(self._seated))
                self._fail_all()

    def _has_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._seated)
            return not self._closed

    def _seat(self) -> None:
        """Let go of what was cancelled, and give free places to those who wait, in their order."""
        for row in reversed(range(len(self._seated))):
            if self._seated[row].cancelled:
                self._leave(row, "cancelled")
        with self._changed:
            cancelled = sum(text.cancelled for text in self._waiting)
            if cancelled:
                self._waiting = deque(text for text in self._waiting if not text.cancelled)
            while self._waiting and self._fits(self._waiting[0]):
                text = self._waiting.popleft()
                text.seated = time.monotonic()
                self._decoder.add()
                self._seated.append(text)
        for _ in range(cancelled):
            self._watcher.ended("cancelled")

    def _fits(self, text: _Text) -> bool:
        """Whether there is a place, and memory for all if each becomes as long as it may."""
        longest = max(other.longest for other in (text, *self._seated))
        return len(self._seated) < self._most_running and (len(self._seated) + 1) * longest <= self._room

    def _read_prompts(self) -> None:
        """Read the next part of prompts, the oldest first, with so many others as fit beside it."""
        rows = [row for row, text in enumerate(self._seated) if text.left > 1 or not text.known]
        if not rows:
            return
        part = min(self._seated[rows[0]].left, _PROMPT_TOKENS)
        self._step(rows[: max(1, _PROMPT_TOKENS // part)], part)

    def _write_on(self) -> None:
        rows = [row for row, text in enumerate(self._seated) if text.known and text.left == 1]
        if rows:
            self._step(rows, 1)

    def _step(self, rows: Sequence[int], part: int) -> None:
        """Compute a step of some texts; those that are read to their end get another token."""
        texts = [self._seated[row] for row in rows]
        parts = [text.tokens[text.known : text.known + part] for text in texts]
        logits = self._decoder.step(rows, parts, [text.known for text in texts])
        for text, tokens in zip(texts, parts, strict=True):
            text.known += len(tokens)
        ready = [place for place, text in enumerate(texts) if text.left == 0]
        if ready:
            logits = logits if len(ready) == len(texts) else logits[ready]
            self._hand_out([texts[place] for place in ready], [rows[place] for place in ready], logits)

    def _hand_out(self, texts: Sequence[_Text], rows: Sequence[int], logits: torch.Tensor) -> None:
        chosen = choose(logits, [text.sampler for text in texts])
        pieces: list[tuple[_Text, Piece]] = []
        for text, (token, likelihood) in zip(texts, chosen, strict=True):
            if len(text.tokens) == text.prompt_length:
                self._watcher.first(time.monotonic() - text.asked, text.prompt_length)
            pieces.append((text, text.add(token, likelihood, ends=token in self._ends)))
        self._watcher.wrote(len(texts))
        ended = [(row, piece.finish) for row, (_, piece) in zip(rows, pieces, strict=True) if piece.finish]
        for row, finish in sorted(ended, reverse=True):  # from behind: whoever leaves, the last one takes his place
            self._leave(row, finish)
        self._tell(pieces)

    def _tell(self, pieces: Sequence[tuple[_Text, Piece]]) -> None:
        """Deliver in the event loop, all pieces of a step at once."""

        def deliver() -> None:
            for text, piece in pieces:
                if not text.cancelled:
                    text.deliver(piece)

        with contextlib.suppress(RuntimeError):  # the loop has ended with the process
            self._loop.call_soon_threadsafe(deliver)

    def _leave(self, row: int, finish: str | None) -> None:
        text, last = self._seated[row], self._seated.pop()
        if row < len(self._seated):
            self._seated[row] = last
        self._decoder.remove(row)
        self._watcher.ended(str(finish))
        if finish != "cancelled":
            held = time.monotonic() - text.seated
            self._seconds = held if not self._seconds else math.fsum(((1 - _FORGETTING) * self._seconds, _FORGETTING * held))

    def _fail_all(self) -> None:
        """End every text that is being written: the decoder's memory of them cannot be trusted."""
        failed, self._seated = self._seated, []
        self._decoder.clear()
        self._tell([(text, Piece("", 0, "error")) for text in failed])
        for _ in failed:
            self._watcher.ended("error")
