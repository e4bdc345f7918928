"""What clients of OpenAI's interface ask for, checked: what cannot be done is refused, nothing is passed over in silence."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloudai.display import nearest
from cloudai.serving.asgi import HttpError
from cloudai.serving.generation import Sampling

__all__ = ["ChatRequest", "CompletionRequest", "EmbeddingsRequest", "Message"]

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
"""Values that ask for nothing: with them a request may name what we cannot do."""

_Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
_Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
_Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class _Request(_Model):
    model: str
    user: str | None = None
    """Says nothing to the model; taken, because clients send it."""

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Read a request's body.

        Raises
        ------
        HttpError
            400 with the parameter that is wrong or not supported.
        """
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            raise HttpError(400, "the body is not JSON", fix="send one JSON object") from None
        if not isinstance(value, dict):
            raise HttpError(400, "the body is not a JSON object", fix='send {"model": ...}')
        try:
            return cls.model_validate({key: one for key, one in value.items() if not _says_nothing(key, one)})
        except ValidationError as error:
            raise _explain(error, list(cls.model_fields)) from None


class StreamOptions(_Model):
    """What a stream tells beside the text."""

    include_usage: bool = False


class _Writing(_Request, ABC):
    """What chats and completions have in common."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    n: int = Field(default=1, ge=1, le=16)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0

    @property
    @abstractmethod
    def likelihoods(self) -> int | None:
        """How many likeliest tokens to tell beside each token; None for nothing at all."""

    @property
    def most_tokens(self) -> int | None:
        """The most tokens to write; None for as many as there is room for."""
        return self.max_tokens

    @property
    def tells_usage(self) -> bool:
        """Whether the last part of a stream says how many tokens there were."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, prompt_tokens: int, context: int) -> Sampling:
        """Return how to write after a prompt of so many tokens.

        Raises
        ------
        HttpError
            400 if prompt and text do not fit into the model's context.
        """
        room = context - prompt_tokens
        most = self.most_tokens or room
        if most > room or room < 1:
            what = f"the prompt has {prompt_tokens} tokens" + (f" and {most} more are asked for" if room > 0 else "")
            fix = f"ask for at most {room}, or shorten the prompt" if room > 0 else "shorten the prompt"
            what = f"{what}; the model takes {context} in all"
            raise HttpError(400, what, fix=fix, code="context_length_exceeded", param=self._prompt_name)
        return Sampling(
            max_tokens=most,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            likelihoods=self.likelihoods,
        )

    @property
    def _prompt_name(self) -> str:
        return "prompt"

    def _check_stream(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise HttpError(400, "stream_options is for streams only", fix="set stream to true", param="stream_options")


class TextPart(_Model):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(_Model):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """Return it as chat templates of transformers know it; they have no word for ``developer`` yet."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content} | ({"name": self.name} if self.name else {})


class ChatRequest(_Writing):
    """A chat that is to go on."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def likelihoods(self) -> int | None:
        """How many likeliest tokens to tell beside each token; None for nothing at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_tokens(self) -> int | None:
        """The most tokens to write; None for as many as there is room for."""
        return self.max_completion_tokens or self.max_tokens

    def model_post_init(self, context: Any) -> None:
        """Check what parameters say of each other."""
        del context
        self._check_stream()
        if self.top_logprobs is not None and not self.logprobs:
            raise HttpError(400, "top_logprobs needs logprobs", fix="set logprobs to true", param="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            what = "max_tokens and max_completion_tokens differ"
            raise HttpError(400, what, fix="give max_completion_tokens only", param="max_tokens")

    @property
    def _prompt_name(self) -> str:
        return "messages"


class CompletionRequest(_Writing):
    """Prompts to be written on."""

    prompt: str | _Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[_Tokens], Field(min_length=1)]
    max_tokens: int | None = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=5)

    @property
    def likelihoods(self) -> int | None:
        """How many likeliest tokens to tell beside each token; None for nothing at all."""
        return self.logprobs

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """Each prompt, as a text or as tokens."""
        prompt: Any = self.prompt
        single = isinstance(prompt, str) or isinstance(prompt[0], int)
        return [prompt] if single else prompt

    def model_post_init(self, context: Any) -> None:
        """Check what parameters say of each other."""
        del context
        self._check_stream()


class EmbeddingsRequest(_Request):
    """Texts to be embedded."""

    input: str | Annotated[list[str], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)

    @property
    def texts(self) -> list[str]:
        """Each text."""
        return [self.input] if isinstance(self.input, str) else self.input


def _says_nothing(key: str, value: Any) -> bool:
    return value is None or value in _NEUTRAL.get(key, ())


def _explain(error: ValidationError, known: list[str]) -> HttpError:
    errors = error.errors(include_url=False, include_context=False)
    first = max(errors, key=lambda one: len(one["loc"]))  # of several forms the one that came furthest
    place = [str(part) for part in first["loc"] if isinstance(part, int) or str(part).replace("_", "").isalnum()]
    param = ".".join(part for part in place if part not in {"str", "int", "list"})[:200]
    if first["type"] == "extra_forbidden":
        named = param.rpartition(".")[2]
        what, code = f"the parameter {param} is not supported", "unsupported_parameter"
        return HttpError(400, what, fix=f"leave {named} out; {nearest(named, known)}", param=param, code=code)
    reason = str(first["msg"])
    return HttpError(400, f"{param}: {reason[0].lower()}{reason[1:]}", fix="mend it, or leave it out", param=param)
