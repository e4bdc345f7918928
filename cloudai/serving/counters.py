"""What a deployment's router has counted of one revision, and what came since the last look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cloudai.drivers.protocols import Metric

__all__ = ["Counts", "read_counts"]

_LOST_CLIENT = 499
_CLIENTS_FAULT = 400
_OVERLOADED = 429
_SERVERS_FAULT = 500


@dataclass(frozen=True)
class Counts:
    """Requests of one revision.

    Attributes
    ----------
    requests : int
        All that it answered, or should have.
    errors : int
        Of these, answered with a status from 400 on; not those whose client went away.
    failed : int
        Of these, by the fault of the revision: 429 and from 500 on.
    broken : int
        Of these, broken off in the middle: what one death of a process does to many requests at once.
    slower : mapping of float to int
        By seconds: how many took longer.
    compared : int
        Answers to mirrored requests.
    differing : mapping of float to int
        By the difference: how many of them differ by more; what failed differs by more than anything.
    """

    requests: int = 0
    errors: int = 0
    failed: int = 0
    broken: int = 0
    slower: Mapping[float, int] = field(default_factory=dict)
    compared: int = 0
    differing: Mapping[float, int] = field(default_factory=dict)

    def since(self, before: Counts) -> Counts:
        """Return what came after `before`; where a router began to count anew, all of it did."""
        if self.requests < before.requests or self.compared < before.compared:
            before = Counts()
        one_death = max(0, self.broken - before.broken - 1)  # what broke off together was one event, not so many
        return Counts(
            self.requests - before.requests - one_death,
            max(0, self.errors - before.errors - one_death),
            max(0, self.failed - before.failed - one_death),
            min(1, max(0, self.broken - before.broken)),
            _less(self.slower, before.slower),
            self.compared - before.compared,
            _less(self.differing, before.differing),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for the ledger."""
        by_text = {name: {str(key): n for key, n in getattr(self, name).items()} for name in ("slower", "differing")}
        return {**asdict(self), **by_text}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Counts:
        """Read what `to_json` returned."""
        by_number = {name: {float(key): n for key, n in data[name].items()} for name in ("slower", "differing")}
        return cls(**{**data, **by_number})


def read_counts(metrics: Iterable[Metric]) -> dict[str, Counts]:
    """Add up what all routers of a deployment say, by revision.

    Read are ``cloudai_requests_total{revision, code}``, ``cloudai_broken_total{revision}``,
    ``cloudai_request_duration_seconds_bucket{revision, le}`` and ``cloudai_shadow_difference_bucket{revision, le}``.
    """
    codes: dict[str, dict[int, int]] = {}
    broken: dict[str, int] = {}
    took: dict[str, dict[float, int]] = {}
    differ: dict[str, dict[float, int]] = {}
    for metric in metrics:
        revision, count = metric.labels.get("revision", ""), int(metric.value)
        if metric.name == "cloudai_requests_total":
            _add(codes.setdefault(revision, {}), int(metric.labels["code"]), count)
        elif metric.name == "cloudai_broken_total":
            _add(broken, revision, count)
        elif metric.name == "cloudai_request_duration_seconds_bucket":
            _add(took.setdefault(revision, {}), float(metric.labels["le"]), count)
        elif metric.name == "cloudai_shadow_difference_bucket":
            _add(differ.setdefault(revision, {}), float(metric.labels["le"]), count)
    known = {revision for revision in (*codes, *differ) if revision}
    return {
        revision: _counts(codes.get(revision, {}), broken.get(revision, 0), took.get(revision, {}), differ.get(revision, {}))
        for revision in known
    }


def _counts(codes: Mapping[int, int], broken: int, took: Mapping[float, int], differ: Mapping[float, int]) -> Counts:
    errors = {code: n for code, n in codes.items() if code >= _CLIENTS_FAULT and code != _LOST_CLIENT}
    failed = sum(n for code, n in errors.items() if code >= _SERVERS_FAULT or code == _OVERLOADED)
    compared = differ.get(float("inf"), 0)
    return Counts(sum(codes.values()), sum(errors.values()), failed, broken, _above(took), compared, _above(differ))


def _above(cumulative: Mapping[float, int]) -> dict[float, int]:
    """Turn "at most so much" into "more than that"."""
    total = cumulative.get(float("inf"), 0)
    return {bound: total - n for bound, n in sorted(cumulative.items()) if bound != float("inf")}


def _less(now: Mapping[float, int], before: Mapping[float, int]) -> dict[float, int]:
    return {bound: n - before.get(bound, 0) for bound, n in now.items()}


def _add(counts: dict[Any, int], key: Any, count: int) -> None:
    counts[key] = counts.get(key, 0) + count
