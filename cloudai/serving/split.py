"""Which revision gets which share of the traffic: a state and the steps from one to the next, nothing else.

The whole state of a rollout is in the ledger before anything is done about it, so going back needs nothing but this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from cloudai.errors import SpecError

__all__ = ["Split"]


@dataclass(frozen=True)
class Split:
    """What a deployment's traffic should be.

    Attributes
    ----------
    stable : str
        The revision that is trusted.
    canary : str
        The revision on trial; empty where there is none.
    percent : int
        The canary's share of the traffic.
    previous : str
        The revision to go back to: it is kept up, without traffic. Empty where there is none.

    Examples
    --------
    >>> state = Split("v1.0.0").start_canary("v1.1.0", 10)
    >>> state.traffic
    {'v1.0.0': 90, 'v1.1.0': 10}
    >>> state.promote().traffic
    {'v1.1.0': 100}
    >>> state.promote().rollback().traffic
    {'v1.0.0': 100}
    """

    stable: str
    canary: str = ""
    percent: int = 0
    previous: str = ""

    @property
    def traffic(self) -> dict[str, int]:
        """The percentage of each revision that has any; they sum to 100."""
        if not self.canary:
            return {self.stable: 100}
        shares = {self.stable: 100 - self.percent, self.canary: self.percent}
        return {revision: share for revision, share in shares.items() if share or revision == self.canary}

    @property
    def kept(self) -> set[str]:
        """The revisions that must be up."""
        return {revision for revision in (self.stable, self.canary, self.previous) if revision}

    def start_canary(self, revision: str, percent: int) -> Split:
        """Put a revision on trial, or change the share of the one that is.

        Raises
        ------
        SpecError
            If the share is not a whole percentage, the revision is the stable one, or another one is on trial.
        """
        if not isinstance(percent, int) or isinstance(percent, bool) or not 0 <= percent <= 100:
            raise SpecError(f"a canary cannot have {percent!r} percent of the traffic", fix="give a whole number from 0 to 100")
        if not revision:
            raise SpecError("there is no canary whose share could change", fix="start one with deployment.canary(model)")
        if revision == self.stable:
            raise SpecError(f"{revision!r} is already the stable revision", fix="deploy another version as the canary")
        if self.canary not in ("", revision):
            raise SpecError(f"{self.canary!r} is on trial already", fix="promote() it or roll back() first")
        return replace(self, canary=revision, percent=percent)

    def promote(self) -> Split:
        """Trust the canary with all the traffic; the stable revision stays up to go back to."""
        if not self.canary:
            raise SpecError("there is no canary to promote", fix="start one with deployment.canary(model)")
        return Split(stable=self.canary, previous=self.stable)

    def rollback(self) -> Split:
        """Go back: from a canary to the stable revision, or from a promoted one to the one before."""
        if self.canary:
            return replace(self, canary="", percent=0)
        if not self.previous:
            raise SpecError(
                "there is nothing to roll back to", fix="the first revision can only be replaced: deployment.canary(model)"
            )
        return Split(stable=self.previous)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for the ledger."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Split:
        """Read what `to_json` returned."""
        return cls(**data)
