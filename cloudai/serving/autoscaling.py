"""How many replicas a revision should have: a pure step from what was decided before and what is seen now.

The whole state is a few numbers that go to the ledger whenever they change, so that a restarted supervisor goes on from there;
under a steady load nothing changes and nothing is written. The form follows Ray Serve's ``AutoscalingConfig`` and the
stabilisation window of Kubernetes' HorizontalPodAutoscaler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cloudai.specs.serving import AutoscalingPolicy

__all__ = ["Observation", "Scale", "due", "initial", "step"]

_SLACK = 0.1  # the share of a replica that may be missing: 8.5 requests at a target of 8 are no reason for a second one


@dataclass(frozen=True)
class Observation:
    """What is seen of a revision at a moment.

    Attributes
    ----------
    at : float
        Unix time.
    ongoing : float
        Requests that are worked on and that wait, averaged over about as long as passes between two observations; 0 only
        if there was none.
    ready : int
        Replicas that take requests.
    """

    at: float
    ongoing: float
    ready: int


@dataclass(frozen=True)
class Scale:
    """How many replicas there should be, and since when another number would do.

    Attributes
    ----------
    replicas : int
        How many there should be now.
    more_since, fewer_since : float or None
        Unix time from which on more were needed, or fewer enough; None where that is not so.
    enough : int
        The most that were needed since ``fewer_since``.
    """

    replicas: int
    more_since: float | None = None
    fewer_since: float | None = None
    enough: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for the ledger."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scale:
        """Read what `to_json` returned."""
        return cls(**data)


def initial(policy: AutoscalingPolicy) -> Scale:
    """Return what a new revision begins with: at least one replica, which shows that it starts at all."""
    return Scale(max(1, policy.min_replicas))


def step(policy: AutoscalingPolicy, scale: Scale, seen: Observation) -> Scale:
    """Return how many replicas there should be from now on.

    More as soon as they have been needed for ``upscale_delay``, and at once where somebody waits and nobody is ready. Fewer
    after they have been enough for ``downscale_delay``, and then as many as were needed at most in that time. None after
    nobody has asked for ``downscale_to_zero_delay``. What a changed policy does not allow is set right at once.

    Examples
    --------
    >>> policy = AutoscalingPolicy(max_replicas=4, target_ongoing_requests=2)
    >>> scale = step(policy, Scale(1), Observation(at=0, ongoing=6, ready=1))
    >>> scale.replicas
    3
    >>> scale = step(policy, scale, Observation(at=10, ongoing=1, ready=3))
    >>> scale.replicas, step(policy, scale, Observation(at=70, ongoing=1, ready=3)).replicas
    (3, 1)
    """
    within = max(policy.min_replicas, min(policy.max_replicas, scale.replicas))
    if within != scale.replicas:
        scale = Scale(within)
    needed = _needed(policy, seen.ongoing)
    if needed > scale.replicas:
        return _more(policy, scale, needed, seen)
    if needed < scale.replicas:
        return _fewer(policy, scale, needed, seen)
    return Scale(scale.replicas)


def _needed(policy: AutoscalingPolicy, ongoing: float) -> int:
    needed = math.ceil(ongoing / policy.target_ongoing_requests - _SLACK)
    return max(policy.min_replicas, min(policy.max_replicas, max(needed, int(ongoing > 0))))


def _more(policy: AutoscalingPolicy, scale: Scale, needed: int, seen: Observation) -> Scale:
    since = _since(scale.more_since, seen.at)
    at_once = not seen.ready and not scale.replicas
    if at_once or seen.at - since >= policy.upscale_delay:
        return Scale(needed)
    return Scale(scale.replicas, more_since=since)


def _fewer(policy: AutoscalingPolicy, scale: Scale, needed: int, seen: Observation) -> Scale:
    if not seen.ready:
        return Scale(scale.replicas)  # silence while nobody can answer says nothing
    since = _since(scale.fewer_since, seen.at)
    enough = needed if scale.fewer_since is None else max(needed, scale.enough)
    waited = Scale(scale.replicas, fewer_since=since, enough=enough)
    lasted = seen.at - since
    if enough == 0:
        if lasted >= _to_zero(policy):
            return Scale(0)
        # the last one stays a while longer; the silence goes on being counted
        return replace(waited, replicas=1) if lasted >= policy.downscale_delay else waited
    return Scale(enough) if lasted >= policy.downscale_delay else waited


def due(policy: AutoscalingPolicy, scale: Scale) -> float | None:
    """Return the unix time at which `step` decides otherwise although nothing else changes; None where it does not."""
    if scale.more_since is not None:
        return scale.more_since + policy.upscale_delay
    if scale.fewer_since is None:
        return None
    delays = [policy.downscale_delay] if scale.enough or scale.replicas > 1 else []
    delays += [] if scale.enough else [_to_zero(policy)]
    return scale.fewer_since + min(delays)


def _to_zero(policy: AutoscalingPolicy) -> float:
    delay = policy.downscale_to_zero_delay
    return policy.downscale_delay if delay is None else delay


def _since(before: float | None, now: float) -> float:
    """Return since when it is so: a clock that was set back begins anew."""
    return now if before is None or before > now else before
