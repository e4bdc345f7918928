"""The names of a model in OpenAI's interface."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

from cloudai.serving.asgi import Exchange, HttpError, json_bytes
from cloudai.serving.faces import Routes

__all__ = ["Models"]


class Models:
    """The one model that is here, under its name, and under its name with the version."""

    def __init__(self, name: str, version: str) -> None:
        self._names = (name, f"{name}@{version}")
        self._created = int(time.time())

    def routes(self) -> Routes:
        """Return the paths that describe it."""
        one: Routes = {f"/v1/models/{name}": ("GET", self._describer(self._entry(name))) for name in self._names}
        listed = {"object": "list", "data": [self._entry(self._names[0])]}
        return {"/v1/models": ("GET", self._describer(listed)), **one}

    def check(self, asked: str) -> None:
        """Refuse another model's name.

        Raises
        ------
        HttpError
            404 with the names that are known.
        """
        if asked not in self._names:
            fix = f"ask for {self._names[0]!r} or {self._names[1]!r}"
            raise HttpError(404, f"there is no model {asked[:200]!r} here", fix=fix, param="model", code="model_not_found")

    def _entry(self, name: str) -> Mapping[str, object]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "cloudai"}

    @staticmethod
    def _describer(about: Mapping[str, object]) -> Callable[[Exchange], Awaitable[None]]:
        async def describe(exchange: Exchange) -> None:
            await exchange.reply(200, json_bytes(about))

        return describe
