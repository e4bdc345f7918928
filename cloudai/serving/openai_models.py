"""The names of a model in OpenAI's interface."""

from __future__ import annotations

import time

from cloudai.serving.asgi import Exchange, HttpError, json_bytes
from cloudai.serving.faces import Host, Routes

__all__ = ["Models"]


class Models:
    """The one model that is here, under its name and with its version."""

    def __init__(self, host: Host) -> None:
        self.name = host.name
        self._names = (host.name, f"{host.name}@{host.version}")
        self._created = int(time.time())

    def routes(self) -> Routes:
        """Return the paths that describe it."""
        return {"/v1/models": ("GET", self._list)} | {f"/v1/models/{name}": ("GET", self._one(name)) for name in self._names}

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

    async def _list(self, exchange: Exchange) -> None:
        await exchange.reply(200, json_bytes({"object": "list", "data": [self._entry(self.name)]}))

    def _one(self, name: str):  # noqa: ANN202
        async def describe(exchange: Exchange) -> None:
            await exchange.reply(200, json_bytes(self._entry(name)))

        return describe

    def _entry(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "cloudai"}
