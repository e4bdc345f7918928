"""How the next token of each text is chosen from the model's logits."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from cloudai.serving.generation import Likelihood, Sampling

__all__ = ["Sampler", "choose"]

_FIRST_LOOK = 512  # so many of the likeliest tokens nearly always hold top_p; sorting a whole vocabulary is slow


class Sampler:
    """Chooses the tokens of one text. Its random numbers are its own: what else is computed with it changes nothing.

    Parameters
    ----------
    choice : int
        Which of several texts for the same prompt it is; each is another one, also with a seed.
    """

    def __init__(self, sampling: Sampling, *, choice: int = 0) -> None:
        self.sampling = sampling
        seed = secrets.randbits(64) if sampling.seed is None else abs(sampling.seed) * 2 + (sampling.seed < 0)
        self._random = np.random.default_rng([seed, choice])
        self._written: Counter[int] = Counter()

    def pick(self, logits: torch.Tensor) -> tuple[int, Likelihood | None]:
        """Choose a token by logits of shape (vocabulary,), and say how likely it was for the model itself."""
        adjusted = self._penalised(logits.float())
        token = self._drawn(adjusted) if self.sampling.temperature > 0 else int(adjusted.argmax())
        self._written[token] += 1
        return token, self._likelihood(logits, token)

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        once, each = self.sampling.presence_penalty, self.sampling.frequency_penalty
        if not self._written or not (once or each):
            return logits
        tokens = torch.tensor(list(self._written))
        times = torch.tensor(list(self._written.values()), dtype=logits.dtype)
        return logits.index_add(0, tokens, -(once + each * times))

    def _drawn(self, logits: torch.Tensor) -> int:
        """Draw a token: the point in the summed probabilities that a number in [0, 1) says."""
        scaled = logits.double() / self.sampling.temperature
        probabilities = torch.softmax(scaled, dim=-1)
        tokens = None
        if self.sampling.top_p < 1:
            probabilities, tokens = _nucleus(probabilities, self.sampling.top_p)
        summed = probabilities.cumsum(0)
        place = int(torch.searchsorted(summed, self._random.random() * float(summed[-1]), right=True))
        place = min(place, len(summed) - 1)
        return place if tokens is None else int(tokens[place])

    def _likelihood(self, logits: torch.Tensor, token: int) -> Likelihood | None:
        most = self.sampling.likelihoods
        if most is None:
            return None
        logarithms = torch.log_softmax(logits.float(), dim=-1)
        values, tokens = logarithms.topk(min(most, len(logarithms)))
        best = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
        return Likelihood(token, float(logarithms[token]), best)


def choose(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[tuple[int, Likelihood | None]]:
    """Choose the next token of each text, by logits of shape (texts, vocabulary)."""
    likeliest = logits.argmax(dim=-1).tolist()
    return [
        (likeliest[row], None) if sampler.sampling.plain else sampler.pick(logits[row]) for row, sampler in enumerate(samplers)
    ]


def _nucleus(probabilities: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fewest likeliest tokens that together have `top_p`, likeliest first.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", https://arxiv.org/abs/1904.09751.
    """
    best, tokens = probabilities.topk(min(_FIRST_LOOK, len(probabilities)))
    if float(best.sum()) < top_p:
        best, tokens = probabilities.sort(descending=True, stable=True)
    kept = int((best.cumsum(0) < top_p).sum()) + 1
    return best[:kept], tokens[:kept]
