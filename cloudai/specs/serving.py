"""What a user asks for when deploying."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from cloudai.errors import SpecError
from cloudai.specs.resources import Resources
from cloudai.specs.tls import Tls
from cloudai.specs.training import Name
from cloudai.specs.units import Bytes, Seconds
from cloudai.specs.validation import Spec

__all__ = ["AutoscalingPolicy", "DeploySpec", "Runtime", "ServerLimits"]


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


class AutoscalingPolicy(Spec):
    """How many replicas a deployment has, by how busy they are. The names are Ray Serve's.

    There are as many as bring each of them to ``target_ongoing_requests``. More are started as soon as they are needed; fewer
    are kept only after they would have been enough for a while.

    Raises
    ------
    SpecError
        If ``min_replicas`` is above ``max_replicas``.

    Examples
    --------
    >>> policy = AutoscalingPolicy(max_replicas=4, downscale_delay="2m")
    >>> policy.min_replicas, policy.downscale_delay
    (1, 120.0)
    """

    min_replicas: int = Field(default=1, ge=0, le=1024)
    """0 lets a deployment sleep that nobody asks; the next request waits until it is awake."""
    max_replicas: int = Field(default=1, ge=1, le=1024)
    """Of each revision."""
    target_ongoing_requests: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    """Requests that each replica should be working on, or that wait for it, on average."""
    upscale_delay: Seconds = 0.0
    """Seconds for which more must be needed before more are started."""
    downscale_delay: Seconds = 60.0
    """Seconds for which fewer must have been enough before replicas are ended."""
    downscale_to_zero_delay: Seconds | None = None
    """Seconds without any request before the last replica is ended; by default ``downscale_delay``."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.min_replicas > self.max_replicas:
            raise SpecError(
                f"min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}",
                fix=f"give max_replicas={self.min_replicas} or more",
            )

    @classmethod
    def fixed(cls, replicas: int) -> AutoscalingPolicy:
        """Return the policy that keeps so many, however busy they are.

        Raises
        ------
        SpecError
            If it is not a number from 1 to 1024.
        """
        if type(replicas) is not int or not 1 <= replicas <= 1024:
            fix = "give 1 or more; AutoscalingPolicy(min_replicas=0) lets it sleep while nobody asks"
            raise SpecError(f"there cannot be {replicas!r} replicas", fix=fix)
        return cls(min_replicas=replicas, max_replicas=replicas)

    @property
    def is_fixed(self) -> bool:
        """Whether the number never changes."""
        return self.min_replicas == self.max_replicas


def _policy(value: Any) -> Any:
    if isinstance(value, AutoscalingPolicy | dict):
        return value
    fix = "write AutoscalingPolicy(max_replicas=4), or AutoscalingPolicy.fixed(2)"
    raise SpecError(f"{value!r} is no autoscaling policy", fix=fix)


class DeploySpec(Spec):
    """A deployment as asked for."""

    name: Name
    on: str = "local"
    port: int = Field(default=0, ge=0, le=65535)
    """0 lets the driver choose."""
    grpc_port: int | None = Field(default=None, ge=0, le=65535)
    """The port for gRPC; 0 lets the driver choose, without it gRPC is not spoken."""
    host: str = Field(default="127.0.0.1", min_length=1)
    """The address to listen on; beyond this machine only with `tls`."""
    tls: Tls | None = None
    """The files of TLS; without them, plain HTTP."""
    resources: Resources = Resources()
    limits: ServerLimits = ServerLimits()
    runtime: Runtime = "auto"
    """What runs a torch model: ONNX Runtime where that answers the same, or one of them always."""
    access_log: str = ""
    """A file on the place that gets a line for each request, without what it asked; empty for none."""
    payload_log: str = ""
    """A file on the place, or an http(s) address, that gets the kept requests as CloudEvents; empty for none."""
    autoscaling: Annotated[AutoscalingPolicy, BeforeValidator(_policy)] = AutoscalingPolicy()
    lease: Seconds | None
    """Seconds that it stays up without a live handle; None for ever."""
