"""A measurement beside what others have published, as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from cloudai.benchmarking.measurement import Measurement
from cloudai.benchmarking.published import Published, published
from cloudai.benchmarking.workloads import WORKLOADS
from cloudai.display import Card, Shown, Table, duration, money
from cloudai.planning.spending import Price

__all__ = ["BenchmarkResult", "Row"]

_BITS = {"bfloat16": 16, "FP16": 16, "float32": 32, "FP32": 32, "TF32": 32}
"""What may be compared as to speed: a ratio of 16 to 32 bits would be one of precision."""


@dataclass(frozen=True)
class Row:
    """One line of the table; None is what is not known.

    Attributes
    ----------
    per_second : float or None
        Sequences.
    hours : float or None
        Of the whole workload.
    hours_are : str
        ``"measured"``; ``"extrapolated"``, by the speed; or ``"claimed-unverified"``.
    epochs : str
        Of those hours.
    latency_ms : float or None
        Of one sequence.
    cost : float or None
        Of those hours at that price.
    ratio : float or None
        How many times as fast as this row the measured one is, where both are of the same definition and precision.
    kind : str
        Where the row's own figures come from: ``"measured"``, ``"published"`` or ``"claimed-unverified"``.
    """

    platform: str
    hardware: str
    dtype: str
    batch: int | None
    per_second: float | None
    hours: float | None
    hours_are: Literal["measured", "extrapolated", "claimed-unverified"]
    epochs: str
    latency_ms: float | None
    price_per_hour: float | None
    cost: float | None
    currency: str
    ratio: float | None
    kind: Literal["measured", "published", "claimed-unverified"]
    source: str


class BenchmarkResult(Shown):
    """What a benchmark found.

    Attributes
    ----------
    measurement : Measurement
        All figures of this machine.
    price : Price or None
        What an hour of it costs, and who says so; None where nobody does.
    rows : list of Row
        The measured row, and below it what others have published of the same workload.
    """

    def __init__(self, measurement: Measurement, price: Price | None, platform: str) -> None:
        self.measurement, self.price, self._platform = measurement, price, platform
        self.rows = [self._own(), *(self._other(row) for row in self._comparable())]

    def __repr__(self) -> str:
        return f"BenchmarkResult({self.measurement.workload!r}, per_second={self.measurement.per_second:.4g})"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON: the measurement, the price and the rows."""
        price = None if self.price is None else self.price.to_json()
        return {"measurement": self.measurement.model_dump(mode="json"), "price": price, "rows": [asdict(r) for r in self.rows]}

    def _comparable(self) -> list[Published]:
        """Return what was published of the workload, if it still is the one that was measured."""
        known = WORKLOADS.get(self.measurement.workload)
        return published(known.ref) if known is not None and known.digest == self.measurement.digest else []

    def _epochs(self) -> int:
        known = WORKLOADS.get(self.measurement.workload)
        return known.epochs if known is not None else 1

    def _own(self) -> Row:
        found, price = self.measurement, self.price
        return Row(
            platform=self._platform,
            hardware=found.device,
            dtype=found.dtype,
            batch=found.batch,
            per_second=found.per_second,
            hours=found.hours,
            hours_are=found.hours_are,
            epochs=str(self._epochs()),
            latency_ms=None if found.latency is None else found.latency.p50,
            price_per_hour=None if price is None else price.per_hour,
            cost=None if price is None else price.per_hour * found.hours,
            currency="" if price is None else price.currency,
            ratio=None,
            kind="measured",
            source=f"this run, {found.at[:10]}",
        )

    def _other(self, row: Published) -> Row:
        """Return a published row; its hours follow from its speed, for as many epochs as ours."""
        found = self.measurement
        hours, hours_are, epochs = row.hours, "claimed-unverified", row.epochs
        if row.per_second is not None:
            sequences = WORKLOADS[row.workload].sequences
            hours, hours_are, epochs = sequences / row.per_second / 3600, "extrapolated", str(self._epochs())
        same = row.per_second is not None and _BITS.get(row.dtype) == _BITS[found.dtype]
        return Row(
            platform=row.platform,
            hardware=row.hardware + (f", {row.software}" if row.software else ""),
            dtype=row.dtype,
            batch=row.batch,
            per_second=row.per_second,
            hours=hours,
            hours_are=hours_are,  # type: ignore[arg-type]
            epochs=epochs,
            latency_ms=row.latency_ms,
            price_per_hour=row.price_per_hour,
            cost=row.cost,
            currency="USD" if row.price_per_hour is not None else "",
            ratio=found.per_second / row.per_second if same and row.per_second is not None else None,
            kind=row.kind,
            source=", ".join(part for part in (row.source, row.date) if part) + (f" ({row.note})" if row.note else ""),
        )

    def card(self) -> Card:
        """Show the figures of this machine, and the table."""
        found = self.measurement
        return Card(
            f"Benchmark {found.workload}",
            [(name, text) for name, text in self._facts() if text],
            tables=[_table(self.rows)],
            notes=[*found.notes, *_notes(self.rows), f"workload {found.digest[:12]}"],
        )

    def _facts(self) -> list[tuple[str, str]]:
        found = self.measurement
        certain = "" if found.low is None or found.high is None else f", 95 % between {found.low:.4g} and {found.high:.4g}"
        speed = f"{found.per_second:.4g} sequences per second{certain} ({found.steps} steps in {found.seconds:.3g} s)"
        latency = found.latency
        p99 = "" if latency is None or latency.p99 is None else f", p99 {latency.p99:.3g}"
        one = "" if latency is None else f"p50 {latency.p50:.3g}, p95 {latency.p95:.3g}{p99} ms over {latency.runs} runs"
        return [
            ("device", f"{found.device}, {found.dtype}"),
            ("speed", speed),
            ("at once", f"{found.micro_batch} of {found.batch} sequences"),
            ("whole workload", f"{found.sequences} sequences, {duration(3600 * found.hours)} ({found.hours_are})"),
            ("latency, one sequence", one),
            ("F1, exact match", "" if found.f1 is None else f"{found.f1:.2f}, {found.exact_match:.2f} of 100"),
            ("MFU", self._utilisation()),
            ("peak memory", f"{found.peak_bytes / 2**30:.2f} GiB of the {found.peak_of}"),
            ("energy", "" if found.joules is None else f"{found.joules:.3g} J for each sequence ({found.joules_of})"),
            ("price", self._price()),
        ]

    def _utilisation(self) -> str:
        found = self.measurement
        if found.mfu is None or found.peak is None:
            return ""
        return f"{found.mfu:.1%} of {found.peak / 1e12:.4g} TFLOP/s in {found.dtype}, as published ({found.peak_as_of})"

    def _price(self) -> str:
        if self.price is None:
            return "not known: pass price_per_hour=, or set local_price_per_hour"
        return f"{money(self.price.per_hour, self.price.currency)} per hour: {self.price.source}"


_COLUMNS = ("platform", "hardware", "dtype", "batch", "per second", "hours", "epochs", "ms", "per hour", "cost", "ratio", "is")


def _table(rows: list[Row]) -> Table:
    return Table(_COLUMNS, [_cells(row, number) for number, row in enumerate(rows)])


def _cells(row: Row, number: int) -> tuple[str, ...]:
    hours = "" if row.hours is None else f"{_number(row.hours)}{'*' if row.hours_are == 'extrapolated' else ''}"
    return (
        row.platform,
        row.hardware,
        row.dtype,
        "" if row.batch is None else str(row.batch),
        _number(row.per_second),
        hours,
        row.epochs,
        _number(row.latency_ms),
        _money(row.price_per_hour, row.currency),
        _money(row.cost, row.currency),
        "" if row.ratio is None else f"{row.ratio:.3g} ×",
        row.kind,
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _money(value: float | None, currency: str) -> str:
    return "" if value is None else money(value, currency)


def _notes(rows: list[Row]) -> list[str]:
    """Say what the marks mean, and where the rows come from."""
    notes = ["* extrapolated: the sequences of all epochs at the row's speed"]
    if any(row.ratio is not None for row in rows):
        notes.append("ratio: how many times as fast this machine is, among rows of as many bits")
    others = [row for row in rows if row.kind != "measured"]
    for kind in ("published", "claimed-unverified"):
        sources = list(dict.fromkeys(row.source for row in others if row.kind == kind))
        notes += [f"{kind}: {source}" for source in sources]
    return notes
