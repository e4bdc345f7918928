"""Published prices for comparison: dated, with their source, and never chosen, since no driver here can launch them."""

from __future__ import annotations

import csv
import functools
from importlib import resources

from cloudai.display import nearest
from cloudai.drivers.protocols import Needs, Offer
from cloudai.errors import NotFoundError

__all__ = ["offer_of", "reference_offers"]


@functools.cache
def _rows() -> list[dict[str, str]]:
    text = resources.files("cloudai.planning").joinpath("catalog.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def reference_offers(needs: Needs) -> list[Offer]:
    """Return the published prices of machines that would be large enough, the cheapest of each provider."""
    fitting = [row for row in _rows() if _fits(row, needs)]
    cheapest: dict[str, dict[str, str]] = {}
    for row in sorted(fitting, key=lambda row: float(row["usd_per_hour"])):
        cheapest.setdefault(row["provider"], row)
    return [_offer(row) for row in cheapest.values()]


def offer_of(instance: str) -> Offer:
    """Return the published price of a machine by its name, in the region where it costs least.

    Raises
    ------
    NotFoundError
        If none of that name is listed.

    Examples
    --------
    >>> offer_of("Standard_NC6s_v3").price_per_hour
    3.06
    """
    found = [row for row in _rows() if row["instance"] == instance]
    if not found:
        fix = nearest(instance, sorted({row["instance"] for row in _rows()}))
        raise NotFoundError(f"no price is published here for {instance!r}", fix=fix)
    return _offer(min(found, key=lambda row: float(row["usd_per_hour"])))


def _fits(row: dict[str, str], needs: Needs) -> bool:
    enough = float(row["vcpu"]) >= needs.cpus and float(row["memory_gib"]) * 2**30 >= needs.memory
    gpus = int(row["gpus"]) >= needs.gpus and (not needs.gpu_type or row["gpu"] == needs.gpu_type)
    return enough and gpus and needs.workers == 1


def _offer(row: dict[str, str]) -> Offer:
    return Offer(
        driver=row["provider"],
        place=_place(row),
        price_per_hour=float(row["usd_per_hour"]),
        currency="USD",
        source=row["source"],
        as_of=row["date"],
        available=False,
        why_not=f"for comparison only: no installed driver launches on {row['provider']}",
    )


def _place(row: dict[str, str]) -> str:
    gpus = f"{row['gpus']} × {row['gpu']}, " if int(row["gpus"]) else ""
    return f"{row['instance']} ({gpus}{row['vcpu']} vCPU) in {row['region']}"
