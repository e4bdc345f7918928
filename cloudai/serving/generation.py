"""Text that a model writes, piece by piece: what is asked for, what comes, and what every engine can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = [
    "Deliver",
    "EngineBusyError",
    "Finish",
    "GenerationEngine",
    "Likelihood",
    "Order",
    "Piece",
    "Sampling",
    "Ticket",
    "Watcher",
]

Finish = Literal["stop", "length", "error"]
"""Why a text ended: by itself or at a stop string, at the most tokens, or by a failure of the model."""


class EngineBusyError(Exception):
    """There is no place for another text; `seconds` is when one may be free."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no place is free for {seconds:.0f} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and where a text ends.

    Attributes
    ----------
    max_tokens : int
        The most tokens to write.
    temperature : float
        0 takes the likeliest token each time; 1 draws by the model's own probabilities.
    top_p : float
        Draw among the likeliest tokens that together have this probability.
    stop : tuple of str
        Texts before which to end; they are not part of what is written.
    seed : int, optional
        The same seed draws the same text again; without one each text is drawn anew.
    presence_penalty, frequency_penalty : float
        Taken off the logits of tokens that were written already: once, and for each time.
    likelihoods : int, optional
        Tell for each token how likely it was, and so many of the likeliest ones beside it; None tells nothing.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    likelihoods: int | None = None

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is taken and nothing else is asked."""
        penalties = self.presence_penalty or self.frequency_penalty
        return self.temperature == 0 and not penalties and self.likelihoods is None


@dataclass(frozen=True)
class Likelihood:
    """How likely a token was, as the natural logarithm of its probability, and the likeliest ones in its place."""

    token: int
    logarithm: float
    best: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What was written since the last piece.

    Attributes
    ----------
    text : str
        Never half a character, and nothing that may still turn out to be a stop string.
    tokens : int
        How many tokens were written since; a token that ends the text counts.
    finish : str, optional
        Set in the last piece.
    likelihoods : tuple of Likelihood
        One for each token since, if asked for.
    """

    text: str
    tokens: int
    finish: Finish | None = None
    likelihoods: tuple[Likelihood, ...] = ()


@dataclass(frozen=True)
class Order:
    """A text to be written.

    Attributes
    ----------
    prompt : sequence of int
        Tokens, at least one; with ``sampling.max_tokens`` no more than the engine's context.
    opening : sequence of int
        Tokens that the text goes on from where the two are put together, so that a space between them is not lost.
    choice : int
        Which of several texts for one prompt it is: with the same seed, each is another one.
    """

    prompt: Sequence[int]
    sampling: Sampling
    opening: Sequence[int] = ()
    choice: int = 0


Deliver = Callable[[Piece], None]
"""Takes the pieces of one text, in the event loop."""


class Watcher(Protocol):
    """Is told what an engine does; it may be called in the engine's own thread."""

    def first(self, seconds: float, prompt_tokens: int) -> None:
        """Count a text's first token, and how long after it was asked for it came."""

    def wrote(self, tokens: int) -> None:
        """Count the tokens of a step."""

    def ended(self, finish: str) -> None:
        """Count the end of a text, by itself or cancelled."""


class Ticket(Protocol):
    """A text that is waited for."""

    def cancel(self) -> None:
        """Write no more of it; its place is free for another one. May be repeated, and come too late."""


class GenerationEngine(Protocol):
    """Writes many texts at the same time."""

    @property
    def context(self) -> int:
        """How many tokens a prompt and what is written after it may have together."""

    @property
    def running(self) -> int:
        """How many texts are being written."""

    @property
    def waiting(self) -> int:
        """How many texts wait for a place."""

    async def start(self) -> None:
        """Begin to take texts; called in the event loop that the pieces are to come in."""

    async def close(self) -> None:
        """Drop what is unfinished, and end."""

    def write(self, order: Order, deliver: Deliver) -> Ticket:
        """Write a text; `deliver` gets each piece, and the last one says how it ended.

        Raises
        ------
        EngineBusyError
            If too many wait already.
        """
