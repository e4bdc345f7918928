"""One step of a language model for several texts at once, each at a place of its own: keys and values of its tokens in rows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

__all__ = ["Decoder", "RowDecoder", "TurnDecoder", "decoder_for"]

_FIRST_WIDTH = 64  # tokens of a row at first; it doubles as texts get longer


class Decoder(Protocol):
    """Computes the next token's logits of texts that it remembers."""

    @property
    def token_bytes(self) -> int:
        """Bytes that a token of one text takes."""

    def add(self) -> None:
        """Make room for another text, the last one."""

    def remove(self, row: int) -> None:
        """Forget a text; the last one takes its place."""

    def clear(self) -> None:
        """Forget all texts."""

    def step(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """Go on with some texts.

        Parameters
        ----------
        rows : sequence of int
            Which texts.
        tokens : sequence of sequences of int
            The next tokens of each, at least one.
        starts : sequence of int
            How many tokens of each are known already.

        Returns
        -------
        Tensor of shape (len(rows), vocabulary)
            The logits after the last token of each.
        """


class RowDecoder:
    """All texts in one tensor for each layer, a row for each text, from its first token on; steps are computed together.

    A row is as wide as the longest text, so memory is texts × longest. Nothing is moved when a text comes; when one ends,
    the last row takes its place.
    """

    def __init__(self, model: Any, *, capacity: int) -> None:
        self._model, self._capacity = model, capacity
        self._cache = _RowCache()
        self._rows = 0

    @property
    def token_bytes(self) -> int:
        """Bytes that a token of one text takes; known after the first step."""
        return sum(layer.token_bytes for layer in self._cache.layers)

    def add(self) -> None:
        """Make room for another text, the last one."""
        self._rows += 1

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """Forget a text; the last one takes its place."""
        self._rows -= 1
        for layer in self._cache.layers:
            layer.remove(row, self._rows)

    def clear(self) -> None:
        """Forget all texts."""
        self._rows, self._cache = 0, _RowCache()

    @torch.inference_mode()
    def step(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """Go on with some texts; see `Decoder.step`."""
        lengths = [len(row) for row in tokens]
        longest = max(lengths)
        ids = torch.tensor([[*row, *([row[-1]] * (longest - len(row)))] for row in tokens])
        columns = torch.tensor(starts).unsqueeze(1) + torch.arange(longest)
        width = int(columns.max()) + 1
        self._cache.plan(rows, columns, width, self._rows)
        ends = sorted(set(lengths))
        logits = self._model(
            input_ids=ids,
            position_ids=columns.clamp(max=self._capacity - 1),  # of what is only filled up
            attention_mask=_mask(columns, width, self._model.dtype),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor([end - 1 for end in ends]),
        ).logits
        picked = torch.tensor([ends.index(length) for length in lengths])
        found: torch.Tensor = logits[torch.arange(len(rows)), picked]
        return found


def _mask(columns: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Let each token look back on its own text; what was filled up lies ahead of all that counts."""
    ahead = torch.arange(width) > columns.unsqueeze(-1)
    return torch.zeros(ahead.shape, dtype=dtype).masked_fill(ahead, torch.finfo(dtype).min).unsqueeze(1)


class _RowCache(Cache):
    """What a model of transformers asks for keys and values."""

    layers: list[Any]

    def __init__(self) -> None:
        make: Any = self._layer  # as a class: it is called for each layer when that is first asked for
        super().__init__(layer_class_to_replicate=make)

    def _layer(self) -> _RowLayer:
        layer = _RowLayer()  # type: ignore[no-untyped-call]
        layer.plan = self._plan
        return layer

    def plan(self, rows: Sequence[int], columns: torch.Tensor, width: int, all_rows: int) -> None:
        """Say where the keys and values of the next step go."""
        self._plan = _Plan(rows, columns, width, all_rows)
        for layer in self.layers:
            layer.plan = self._plan


class _Plan:
    """The rows of a step, and the columns that its tokens take."""

    def __init__(self, rows: Sequence[int], columns: torch.Tensor, width: int, all_rows: int) -> None:
        first, count = rows[0], len(rows)
        together = list(rows) == list(range(first, first + count))
        self.numbers = torch.tensor(rows)
        self.rows: Any = slice(first, first + count) if together else self.numbers  # a slice copies nothing
        self.columns, self.width, self.all_rows = columns, width, all_rows


class _RowLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, as [row, column, head, number]."""

    is_sliding = False
    plan: _Plan
    keys: Any
    values: Any

    @property
    def token_bytes(self) -> int:
        """Bytes of a token of one text."""
        return sum(math.prod(tensor.shape[2:]) * tensor.element_size() for tensor in (self.keys, self.values))

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Begin with no room; `update` makes it."""
        both = (key_states, value_states)
        self.keys, self.values = (states.new_zeros(0, 0, states.shape[1], states.shape[3]) for states in both)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep a step's keys and values, and return all of its rows."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        plan = self.plan
        self.keys = self._kept(self.keys, key_states, plan)
        self.values = self._kept(self.values, value_states, plan)
        rows, columns = plan.rows, slice(plan.width)
        return self.keys[rows, columns].transpose(1, 2), self.values[rows, columns].transpose(1, 2)

    def _kept(self, store: torch.Tensor, states: torch.Tensor, plan: _Plan) -> torch.Tensor:
        rows, width = store.shape[:2]
        if plan.all_rows > rows or plan.width > width:
            rows = rows if plan.all_rows <= rows else max(plan.all_rows, 2 * rows)
            width = width if plan.width <= width else max(plan.width, 2 * width, _FIRST_WIDTH)
            larger = store.new_zeros(rows, width, *store.shape[2:])  # zeros: what is masked must still be a number
            larger[: store.shape[0], : store.shape[1]] = store
            store = larger
        store[plan.numbers.unsqueeze(1), plan.columns] = states.transpose(1, 2)
        return store

    def remove(self, row: int, last: int) -> None:
        """Put the last row into the place of another; with none left, give all the memory back."""
        if last == 0:
            self.keys, self.values = self.keys[:0, :0].clone(), self.values[:0, :0].clone()
        elif row != last < len(self.keys):  # else the last one has not been stepped yet
            self.keys[row], self.values[row] = self.keys[last], self.values[last]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Not asked where the mask is given whole."""
        return self.plan.width, 0

    def get_seq_length(self) -> int:
        """Not asked where the positions are given."""
        return int(self.plan.columns[0, 0])

    def get_max_length(self) -> int:
        """No end of its own."""
        return -1


class TurnDecoder:
    """Texts one after the other in each step, each with the cache that its model makes; for models that rows do not fit."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._caches: list[Any] = []

    @property
    def token_bytes(self) -> int:
        """An estimate from the model's sizes."""
        config = self._model.config
        width = int(getattr(config, "hidden_size", 0) or 1024)
        return 2 * width * int(getattr(config, "num_hidden_layers", 0) or 16) * int(self._model.dtype.itemsize)

    def add(self) -> None:
        """Make room for another text, the last one."""
        self._caches.append(DynamicCache(config=self._model.config))

    def remove(self, row: int) -> None:
        """Forget a text; the last one takes its place."""
        last = self._caches.pop()
        if row < len(self._caches):
            self._caches[row] = last

    def clear(self) -> None:
        """Forget all texts."""
        self._caches.clear()

    @torch.inference_mode()
    def step(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """Go on with some texts; see `Decoder.step`."""
        del starts  # each cache knows
        return torch.cat([self._last(self._caches[row], ids) for row, ids in zip(rows, tokens, strict=True)])

    def _last(self, cache: Any, ids: Sequence[int]) -> torch.Tensor:
        logits: torch.Tensor = self._model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True).logits
        return logits[:, -1]


def decoder_for(model: Any, *, capacity: int) -> Decoder:
    """Return what steps a model: rows where they fit it and give the same, tried on a few tokens; turns elsewhere."""
    if _looks_at_all(model.config, capacity) and _takes_rows(model):
        decoder = RowDecoder(model, capacity=capacity)
        if _same_in_rows(model, decoder):
            return decoder
    return TurnDecoder(model)


def _looks_at_all(config: Any, capacity: int) -> bool:
    """Whether every layer looks back on the whole text, as far as it may go."""
    window = int(getattr(config, "sliding_window", None) or 0)
    kinds = getattr(config, "layer_types", None)
    slides = 0 < window < capacity and (kinds is None or "sliding_attention" in kinds)
    others = set(kinds or ()) - {"full_attention", "sliding_attention"}
    return not slides and not others


def _takes_rows(model: Any) -> bool:
    taken = inspect.signature(model.forward).parameters
    attention = getattr(model.config, "_attn_implementation", "")
    return {"position_ids", "past_key_values", "logits_to_keep"} <= set(taken) and attention in {"sdpa", "eager"}


@torch.inference_mode()
def _same_in_rows(model: Any, decoder: RowDecoder) -> bool:
    """Try two texts that begin, go on and end at different steps, against the model without any cache."""
    vocabulary = int(model.config.vocab_size)
    long, short = [7 % vocabulary, 3 % vocabulary, 5 % vocabulary], [2 % vocabulary]
    try:
        decoder.add()
        decoder.add()
        first = decoder.step([0, 1], [short, long[:2]], [0, 0])
        decoder.remove(0)
        then = decoder.step([0], [long[2:]], [2])
        decoder.remove(0)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return False
    found = torch.stack([first[0], first[1], then[0]]).float()
    alone = torch.stack([model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in (short, long[:2], long)]).float()
    share = max(1e-3, 4 * torch.finfo(model.dtype).eps)  # of the largest logit: what rounding may change
    return torch.allclose(found, alone, rtol=0.0, atol=share * float(alone.abs().max()))
