"""What a user asks for when deploying."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cloudai.specs.resources import Resources
from cloudai.specs.training import Name
from cloudai.specs.units import Bytes, Seconds
from cloudai.specs.validation import Spec

__all__ = ["DeploySpec", "Runtime", "ServerLimits"]


Runtime = Literal["auto", "onnx", "torch"]
"""What runs torch models in service: ONNX Runtime, torch, or the first where it can and answers the same."""


class ServerLimits(Spec):
    """What one server takes on."""

    max_body: Bytes = 16 * 2**20
    """Bytes of a request."""
    max_in_flight: int = Field(default=256, ge=1)
    """Requests at once; more are answered 429 with Retry-After."""
    max_batch: int = Field(default=64, ge=1)
    """Rows computed together at most, where that pays; 1 computes each request by itself."""
    target_latency: Seconds | None = None
    """Seconds that an answer should take: requests that would have to wait longer are answered 429 at once."""
    timeout: Seconds = 30.0
    """Seconds for one request."""
    sample_rate: float = Field(default=1.0, ge=0, le=1)
    """The share of requests whose rows are kept for the monitor."""


class DeploySpec(Spec):
    """A deployment as asked for."""

    name: Name
    on: str = "local"
    port: int = Field(default=0, ge=0, le=65535)
    """0 lets the driver choose."""
    resources: Resources = Resources()
    limits: ServerLimits = ServerLimits()
    lease: Seconds | None
    """Seconds that it stays up without a live handle; None for ever."""
