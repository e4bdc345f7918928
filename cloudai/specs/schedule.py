"""When a training is done again: five fields as in a crontab, in a time zone."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from cloudai.display import nearest
from cloudai.errors import SpecError
from cloudai.specs.search import Search
from cloudai.specs.training import TrainSpec
from cloudai.specs.validation import Spec

__all__ = ["STAMP", "ScheduleSpec", "TableSpec", "next_times", "previous_time"]

STAMP = "%Y%m%d-%H%M"
"""How the time of a run stands in its name, in UTC: so no two times have one name, also where clocks are set back."""

_FIX = (
    "write five fields: minute, hour, day of the month, month, day of the week; such as '0 3 * * *' or '*/30 9-17 * * mon-fri'"
)


def next_times(cron: str, zone: str, after: float) -> Iterator[float]:
    """Yield the times of an expression after a unix time, as unix times.

    Day of the month and day of the week: where both are given, either is enough. Where clocks are set forward, a time that does
    not exist comes right after the gap; where they are set back, a fixed time comes once. That is what Debian's cron does, and
    `cronsim <https://pypi.org/project/cronsim/>`_, which does the work.

    Examples
    --------
    >>> first = next(next_times("0 3 * * *", "Europe/Berlin", datetime(2026, 7, 1, tzinfo=UTC).timestamp()))
    >>> datetime.fromtimestamp(first, UTC).isoformat()
    '2026-07-01T01:00:00+00:00'
    """
    from cronsim import CronSim

    for moment in CronSim(cron, datetime.fromtimestamp(after, _zone(zone))):
        if moment.timestamp() > after:  # an hour that comes twice begins again
            yield moment.timestamp()


def previous_time(cron: str, zone: str, until: float) -> float:
    """Return the last time of an expression that is not after a unix time."""
    from cronsim import CronSim

    start = datetime.fromtimestamp(until + 1.0, _zone(zone))
    return next(at for moment in CronSim(cron, start, reverse=True) if (at := moment.timestamp()) <= until)


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else zoneinfo.ZoneInfo(name)


def _cron(value: object) -> str:
    """Return the expression in one form, or say what is wrong with it."""
    from cronsim import CronSim, CronSimError

    text = " ".join(value.split()) if isinstance(value, str) else ""
    if len(text.split()) != 5 or len(text) > 500:
        raise SpecError(f"{value!r} is no schedule", fix=_FIX)
    try:
        next(CronSim(text, datetime(2026, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise SpecError(f"the schedule {text!r} has a {str(error).lower()}", fix=_FIX) from None
    except StopIteration:
        raise SpecError(f"the schedule {text!r} names no time that ever comes", fix=_FIX) from None
    return text


def _known_zone(name: str) -> str:
    try:
        _zone(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = sorted(zoneinfo.available_timezones())
        fix = nearest(name, known) if known else "pip install tzdata: this machine knows no time zones"
        raise SpecError(f"there is no time zone {name!r}", fix=fix) from None
    return name


class TableSpec(Spec):
    """Files that are looked at anew for each run."""

    source: tuple[str, ...]
    """Full paths, folders or patterns."""
    target: str = ""
    features: tuple[str, ...] | None = None
    text: str = ""


class ScheduleSpec(Spec):
    """A training that is done again and again."""

    cron: Annotated[str, BeforeValidator(_cron)]
    timezone: Annotated[str, AfterValidator(_known_zone)] = "UTC"
    train: TrainSpec
    """What each run is, but for its name and its files."""
    table: TableSpec | None = Field(default=None)
    """The data, where it is surveyed for each run; None where the work brings its own."""
    search: Search | None = None
    """Where each run is a search."""
