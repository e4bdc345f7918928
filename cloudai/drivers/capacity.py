"""What fits on a Ray cluster: now, when others have ended, or never. Pure arithmetic over what its nodes have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloudai.drivers.protocols import Needs

__all__ = ["Fit", "Node", "fit", "nodes_of", "room", "share_of"]

_RECENT = 3600.0
"""Seconds for which a node that is gone may still come back, or another in its place."""
_SMALLEST_SHARE = 0.001
"""How much of an accelerator's name each worker takes, which is how Ray asks for a type."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes
    ----------
    total, used : Mapping[str, float]
        Amounts by the names that Ray has for them: ``CPU``, ``GPU``, ``memory`` in bytes, ``accelerator_type:A100``.
    gone_at : float or None
        The unix time at which it was lost; None while it is there.
    """

    total: Mapping[str, float]
    used: Mapping[str, float] = field(default_factory=dict)
    gone_at: float | None = None

    @property
    def free(self) -> dict[str, float]:
        """What nobody uses."""
        return {name: amount - self.used.get(name, 0.0) for name, amount in self.total.items()}


@dataclass(frozen=True)
class Fit:
    """Whether work fits.

    Attributes
    ----------
    why_not : str
        Why not; empty where it fits now.
    temporary : bool
        Whether that may be over soon.
    """

    why_not: str = ""
    temporary: bool = False


def nodes_of(listed: Sequence[Mapping[str, Any]], usage: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Node]:
    """Read the nodes from ``/api/v0/nodes`` and what is in use from ``/api/cluster_status``."""
    return [_node(entry, usage.get(str(entry.get("node_id")), {})) for entry in listed]


def _node(entry: Mapping[str, Any], usage: Mapping[str, Sequence[float]]) -> Node:
    gone = None if entry.get("state") == "ALIVE" else float(entry.get("end_time_ms") or 0) / 1000
    used = {name: float(pair[0]) for name, pair in usage.items()}
    return Node({name: float(amount) for name, amount in (entry.get("resources_total") or {}).items()}, used, gone)


def share_of(needs: Needs) -> dict[str, float]:
    """Return what one worker takes, in Ray's names."""
    kind = {f"accelerator_type:{needs.gpu_type}": _SMALLEST_SHARE} if needs.gpu_type else {}
    amounts = {"CPU": needs.cpus, "GPU": float(needs.gpus), "memory": float(needs.memory), **kind}
    return {name: amount for name, amount in amounts.items() if amount}


def fit(nodes: Sequence[Node], needs: Needs, now: float) -> Fit:
    """Say whether all workers have room at once, each on one machine.

    Parameters
    ----------
    now : float
        The unix time.
    """
    share = share_of(needs)
    alive = [node for node in nodes if node.gone_at is None]
    if room((node.free for node in alive), share) >= needs.workers:
        return Fit()
    wanted = f"needs {needs.workers} × {_words(share)}"
    most = room((node.total for node in alive), share)
    if most >= needs.workers:
        return Fit(f"{wanted}, and other work has taken too much of it", temporary=True)
    lately = [node for node in nodes if node.gone_at is None or now - node.gone_at < _RECENT]
    if room((node.total for node in lately), share) >= needs.workers:
        return Fit(f"{wanted}, and the cluster has lost a machine that it would need", temporary=True)
    machines = f"{len(alive)} machine{'s' * (len(alive) != 1)}"
    return Fit(f"{wanted}, and the cluster ({machines}, together {_words(_sum(alive))}) has room for {most}")


def room(amounts: Iterable[Mapping[str, float]], share: Mapping[str, float]) -> int:
    """Return how many workers have room, each on one machine."""
    return sum(min(math.floor(have.get(name, 0.0) / amount + _ROUNDING) for name, amount in share.items()) for have in amounts)


def _sum(nodes: Iterable[Node]) -> dict[str, float]:
    total: dict[str, float] = {"CPU": 0.0}
    for node in nodes:
        for name in ("CPU", "GPU", "memory"):
            if node.total.get(name):
                total[name] = total.get(name, 0.0) + node.total[name]
    return total


def _words(amounts: Mapping[str, float]) -> str:
    """Say amounts in words, such as ``2 cores, 1.0 GiB``."""
    return ", ".join(_word(name, amount) for name, amount in amounts.items())


def _word(name: str, amount: float) -> str:
    if name == "CPU":
        return f"{amount:g} core{'s' * (amount != 1)}"
    if name == "memory":
        return f"{amount / 2**30:.1f} GiB"
    return f"{amount:g} {name}" if name == "GPU" else name.partition(":")[2]
