"""What was measured, as it is written into the run's folder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cloudai.benchmarking.workloads import Workload
from cloudai.planning.spending import Price
from cloudai.specs.validation import Spec

__all__ = ["FILE", "Asked", "Given", "Measurement", "Percentiles"]

FILE = "benchmark.json"
"""Its name in the run's folder."""


class Given(Spec):
    """What a user says that an hour costs, and where that comes from."""

    per_hour: float = Field(ge=0, allow_inf_nan=False)
    currency: str
    source: str

    def price(self) -> Price:
        """Return it as all prices are."""
        return Price(self.per_hour, self.currency, self.source)


class Asked(Spec):
    """What is to be measured: the configuration of the run."""

    workload: Workload
    mode: Literal["window", "full"] = "window"
    seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """The longest time of a window."""
    price: Given | None = None
    """What an hour costs, where the user says so; else what the place costs."""
    train: str = ""
    """Of a full run: the store's key of the training questions."""
    dev: str = ""
    """Of a full run: the store's key of the questions that are answered at the end."""


class Percentiles(Spec):
    """Milliseconds from the host and back, with one sequence."""

    p50: float
    p95: float
    p99: float | None
    runs: int


class Measurement(Spec):
    """What was measured of a workload; None where it could not be."""

    workload: str
    digest: str
    """Of the workload."""
    mode: Literal["window", "full"]
    at: str
    """When, as ISO 8601."""
    device: str
    dtype: str
    batch: int
    micro_batch: int
    """The sequences that went through the module at once."""
    steps: int
    seconds: float
    """How long those steps took."""
    per_second: float
    """Sequences."""
    low: float | None
    high: float | None
    """Where it lies with a confidence of 95 %."""
    hours: float
    """Of the whole workload."""
    hours_are: Literal["measured", "extrapolated"]
    sequences: int
    """Of the whole workload, or of the data given."""
    operations: float
    """Floating-point operations for each sequence."""
    mfu: float | None
    """The share of the device's peak that these operations are."""
    peak: float | None
    """Operations a second of dense matrices in this type, as the device's maker publishes it."""
    peak_as_of: str
    peak_bytes: int
    peak_of: str
    latency: Percentiles | None
    joules: float | None
    """For each sequence."""
    joules_of: str
    f1: float | None
    exact_match: float | None
    notes: tuple[str, ...] = ()
    versions: dict[str, str]
