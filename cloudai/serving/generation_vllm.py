"""vLLM as the engine, where it is installed and sees a GPU.

Written against vLLM's interface as published (``AsyncLLMEngine``, its version 1); it has not been run here. vLLM computes
tokens; texts, stop strings and limits are ours, so that they are the same with every engine.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cloudai.artifacts.text_files import written
from cloudai.artifacts.text_models import TextModel
from cloudai.serving.generation import Deliver, EngineBusyError, Finish, Likelihood, Order, Piece, Watcher
from cloudai.serving.generation_texts import TextStream

__all__ = ["VllmEngine", "vllm_is_there"]

_SEED_BITS = 63
_logger = logging.getLogger(__name__)


def vllm_is_there() -> bool:
    """Whether vLLM is installed and there is a GPU for it."""
    return importlib.util.find_spec("vllm") is not None and torch.cuda.is_available()


class VllmEngine:
    """Writes texts with vLLM, which batches them itself.

    Parameters
    ----------
    model : TextModel
        Its files are given to vLLM in a folder that goes with the engine.
    most : int
        Texts that may be written or wait; more are refused.
    """

    def __init__(
        self, model: TextModel, *, decode: Callable[[Sequence[int]], str], ends: frozenset[int], watcher: Watcher, most: int
    ) -> None:
        self.context = model.capacity
        self._model, self._decode, self._ends, self._watcher, self._most = model, decode, ends, watcher, most
        self._texts: set[_Text] = set()

    @property
    def running(self) -> int:
        """How many texts are being written."""
        return sum(text.begun for text in self._texts)

    @property
    def waiting(self) -> int:
        """How many texts have no token yet."""
        return len(self._texts) - self.running

    async def start(self) -> None:
        """Load the model into vLLM."""
        import vllm

        self._vllm: Any = vllm
        self._folder = tempfile.TemporaryDirectory(prefix="cloudai-vllm-")
        for name, content in written(self._model).items():
            (Path(self._folder.name) / name).write_bytes(content)
        arguments = vllm.AsyncEngineArgs(model=self._folder.name, max_model_len=self.context, disable_log_stats=True)
        self._engine: Any = vllm.AsyncLLMEngine.from_engine_args(arguments)

    async def close(self) -> None:
        """End vLLM's processes."""
        for text in list(self._texts):
            text.cancel()
        self._engine.shutdown()
        self._folder.cleanup()

    def write(self, order: Order, deliver: Deliver) -> _Text:
        """Write a text; see `GenerationEngine.write`."""
        if len(self._texts) >= self._most:
            raise EngineBusyError(1.0)
        text = _Text(order, deliver, TextStream(self._decode, stop=order.sampling.stop, opening=order.opening))
        text.task = asyncio.create_task(self._follow(text))
        self._texts.add(text)
        text.task.add_done_callback(lambda _: self._texts.discard(text))  # also of a task that was cancelled before it began
        return text

    async def _follow(self, text: _Text) -> None:
        """Hand a text out as it comes; whoever leaves the loop early has vLLM drop it."""
        finish = "cancelled"
        prompt = self._vllm.TokensPrompt(prompt_token_ids=list(text.order.prompt))
        outputs = self._engine.generate(prompt, self._parameters(text.order), uuid.uuid4().hex)
        try:
            async for output in outputs:
                piece = self._piece(text, output.outputs[0])
                text.deliver(piece)
                if piece.finish:
                    finish = piece.finish
                    break
        except Exception:
            finish = "error"
            _logger.exception("vLLM failed on a text")
            text.deliver(Piece("", 0, "error"))
        finally:
            self._watcher.ended(finish)
            await outputs.aclose()

    def _parameters(self, order: Order) -> Any:
        sampling = order.sampling
        return self._vllm.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=None if sampling.seed is None else (sampling.seed * 1_000_003 + order.choice) % 2**_SEED_BITS,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            stop_token_ids=sorted(self._ends),
            logprobs=sampling.likelihoods,
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
        )

    def _piece(self, text: _Text, output: Any) -> Piece:
        """Take what vLLM has written since the last time."""
        tokens = list(output.token_ids)
        if not text.begun and tokens:
            text.begun = True
            self._watcher.first(time.monotonic() - text.asked, len(text.order.prompt))
        self._watcher.wrote(len(tokens))
        told = "".join(text.stream.add(token) for token in tokens if token not in self._ends and not text.stream.stopped)
        finish: Finish | None = "length" if output.finish_reason == "length" else "stop" if output.finish_reason else None
        if finish or text.stream.stopped:
            told += text.stream.end()
            finish = "stop" if text.stream.stopped else finish
        return Piece(told, len(tokens), finish, _likelihoods(tokens, output.logprobs, text.order.sampling.likelihoods))


class _Text:
    """A text that vLLM writes."""

    task: asyncio.Task[None]

    def __init__(self, order: Order, deliver: Deliver, stream: TextStream) -> None:
        self.order, self.deliver, self.stream = order, deliver, stream
        self.asked, self.begun = time.monotonic(), False

    def cancel(self) -> None:
        """Write no more of it."""
        self.task.cancel()


def _likelihoods(tokens: Sequence[int], given: Any, most: int | None) -> tuple[Likelihood, ...]:
    """Translate vLLM's logprobs: for each token a mapping of tokens to objects with ``logprob``."""
    if most is None or given is None:
        return ()
    return tuple(
        Likelihood(token, float(entry[token].logprob), _best(entry, most)) for token, entry in zip(tokens, given, strict=True)
    )


def _best(entry: Any, most: int) -> tuple[tuple[int, float], ...]:
    ordered = sorted(((int(token), float(one.logprob)) for token, one in entry.items()), key=lambda pair: -pair[1])
    return tuple(ordered[:most])
