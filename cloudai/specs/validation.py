"""The base of every spec, and the one place where pydantic's errors become ours."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from cloudai.display import nearest
from cloudai.errors import SpecError

__all__ = ["Spec"]


class Spec(BaseModel):
    """A frozen request; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _explain(type(self), error) from None

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Build the spec from a user's words, such as ``every="5m"`` for a number of seconds.

        Raises
        ------
        SpecError
            With the first field that is wrong, what is wrong with it, and how to mend it.
        """
        return cls(**values)

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read the spec back from JSON.

        Raises
        ------
        SpecError
            If the text is not such a spec.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise _explain(cls, error) from None


def _explain(cls: type[Spec], error: ValidationError) -> SpecError:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return SpecError(f"{cls.__name__} has no field {place!r}", fix=nearest(place, list(cls.model_fields)))
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SpecError):
        return SpecError(f"{place}: {cause.what}" if place else cause.what, fix=cause.fix)
    reason = first["msg"].removeprefix("Value error, ")
    return SpecError(
        f"{place}={first['input']!r}: {reason[0].lower()}{reason[1:]}", fix=f"see help({cls.__module__}.{cls.__name__})"
    )
