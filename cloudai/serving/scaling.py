"""The autoscaling policy of a deployment: where it is kept, what a place must be able to do for it, how it is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloudai.drivers.protocols import Scaling, ServeDriver
from cloudai.errors import SpecError
from cloudai.specs.serving import AutoscalingPolicy
from cloudai.state.ledger import Record

__all__ = ["check_autoscaling", "policy_of", "price_now", "replicas_text", "to_driver"]


def policy_of(record: Record) -> AutoscalingPolicy:
    """Return the policy that was asked for last."""
    return AutoscalingPolicy.model_validate(record.desired.get("autoscaling") or record.spec.get("autoscaling") or {})


def to_driver(policy: AutoscalingPolicy) -> Scaling:
    """Return what a driver needs to know of it."""
    return Scaling(policy.min_replicas, policy.max_replicas, policy.target_ongoing_requests)


def check_autoscaling(policy: AutoscalingPolicy, driver: ServeDriver) -> None:
    """Refuse what the place cannot do.

    Raises
    ------
    SpecError
        If it cannot change the number of replicas, or cannot let all of them end.
    """
    can = driver.capabilities
    if can.autoscaling == "no" and policy.max_replicas > 1:
        raise SpecError(f"{driver.name!r} runs one replica of each revision", fix="leave autoscaling out, or deploy elsewhere")
    if policy.min_replicas == 0 and not can.scale_to_zero:
        raise SpecError(f"on {driver.name!r} no deployment can sleep", fix="give min_replicas=1 or more, or deploy elsewhere")


def price_now(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the price of an hour as things stand: a place that bills does so for each replica.

    None before a place was taken.
    """
    price: Mapping[str, Any] | None = status.get("price")
    if price is None or "billed" not in status or "revisions" not in status:
        return price
    return {**price, "per_hour": price["per_hour"] * sum(row["replicas"] for row in status["revisions"])}


def replicas_text(policy: AutoscalingPolicy) -> str:
    """Say in words how many replicas each revision has."""
    if policy.is_fixed:
        return f"{policy.max_replicas} of each revision"
    asks = f"{policy.target_ongoing_requests:g} ongoing requests each"
    return f"{policy.min_replicas} to {policy.max_replicas} of each revision, for {asks}"
