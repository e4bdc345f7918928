"""The trials of a search: what each is, as the ledger keeps it, and what each reported."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cloudai.display import nearest
from cloudai.errors import SpecError
from cloudai.specs.confidential import refuse_secrets
from cloudai.specs.search import Search
from cloudai.specs.training import OF_TEXTS, Loop, TrainSpec
from cloudai.state.ledger import Record
from cloudai.training.job import RunFiles
from cloudai.training.journal import JournalReader, Row

__all__ = ["TrialState", "is_search", "parent_of", "reports_of", "search_of", "states_of", "trial_spec", "trial_specs"]

_CONFIG = "config."
_FIXED = ("loss", "validation")  # values of one metric could not be compared
_SUFFIX = 4  # a dash and three digits
_REMOTE_LOOK = 2.0  # seconds between two looks at a store where a look is a request that costs money


@dataclass
class TrialState:
    """A trial, as the search's record has it.

    Attributes
    ----------
    phase : str
        ``running``, then ``succeeded``, ``stopped`` (early), ``limited`` (its part of the budget is used up, or the deadline
        reached), ``failed``, ``cancelled`` or ``rejected``.
    rungs : dict
        The metric at each rung that it came to, by the number of reports.
    judged : int
        How many reports have been judged.
    limits : dict
        What it may cost and until when, as `Limits`: its part of the search's budget.
    """

    name: str
    parameters: dict[str, Any]
    phase: str = "running"
    rungs: dict[str, float] = field(default_factory=dict)
    judged: int = 0
    value: float | None = None
    step: int | None = None
    reason: str = ""
    fix: str = ""
    limits: dict[str, Any] = field(default_factory=dict)

    @property
    def under_way(self) -> bool:
        """Whether it has not ended."""
        return self.phase == "running"

    @property
    def stopping(self) -> bool:
        """Whether it was found too weak."""
        return self.phase == "running" and bool(self.reason)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON for the ledger."""
        return asdict(self)


def is_search(record: Record) -> bool:
    """Whether a run is a search."""
    return record.kind == "run" and bool(record.desired.get("search"))


def parent_of(record: Record) -> str:
    """Return the name of the search that a run is a trial of; empty for other runs."""
    return str(record.desired.get("parent") or "")


def search_of(record: Record) -> Search:
    """Return what is searched."""
    return Search.model_validate(record.desired["search"])


def states_of(record: Record) -> list[TrialState]:
    """Return the trials of a search that were begun, in order."""
    return [TrialState(**state) for state in record.status.get("trials", [])]


def trial_specs(base: TrainSpec, search: Search) -> list[TrainSpec]:
    """Return the spec of each trial, or refuse a search that cannot be.

    Raises
    ------
    SpecError
        If a key of the space is no option of this work, a drawn value is wrong, or the metric is not one of the loop's.
    """
    if len(base.name) > 63 - _SUFFIX:
        raise SpecError(f"the name {base.name!r} is too long for a search", fix=f"give name= up to {63 - _SUFFIX} characters")
    for key in search.space:
        _check_key(key, base)
    refuse_secrets(search.model_dump(), "search")
    _check_metric(base, search)
    return [trial_spec(base, drawn, number) for number, drawn in enumerate(search.drawn(base.seed), start=1)]


def trial_spec(base: TrainSpec, parameters: Mapping[str, Any], number: int) -> TrainSpec:
    """Return the spec of one trial; its model has a name of its own until the best is known."""
    name = f"{base.name}-{number:03d}"
    config = {key.removeprefix(_CONFIG): value for key, value in parameters.items() if key.startswith(_CONFIG)}
    options = {key: value for key, value in parameters.items() if not key.startswith(_CONFIG)}
    loop = Loop.of(**{**base.loop.model_dump(), **options})
    if not base.scaling.sizes(loop.batch_size):
        what = f"batch_size={loop.batch_size} cannot be split over {base.scaling.num_workers} workers"
        raise SpecError(what, fix="draw from sizes that all workers can share equally")
    return base.model_copy(
        update={"name": name, "model_name": name, "loop": loop, "config": {**base.config, **config}},
    )


def _check_key(key: str, base: TrainSpec) -> None:
    options = [name for name in Loop.model_fields if name not in _FIXED]
    if base.work.kind != "text":
        options = [name for name in options if name not in OF_TEXTS]
    elif base.work.text.task == "embeddings":
        options.remove("group_by_length")
    if base.work.kind == "function":
        if key.startswith(_CONFIG) and len(key) > len(_CONFIG):
            return
        fix = f"your function reads its config: search 'config.{key}', and read context.config[{key!r}]"
        raise SpecError(f"the search has {key!r}, and you pass a function", fix=fix)
    if key in _FIXED:
        raise SpecError(f"{key!r} cannot be searched: the trials could not be compared", fix=f"give {key}= to train")
    if key not in options:
        raise SpecError(f"the search has {key!r}, which is no option of the built-in loop", fix=nearest(key, options))


def _check_metric(base: TrainSpec, search: Search) -> None:
    """Refuse a metric that the built-in loop will not report; what a function reports is its own affair."""
    if base.work.kind == "function":
        return
    known = ["epoch_loss", "loss"]
    if base.loop.validation > 0:
        known += ["val_loss"] + ["val_accuracy"] * (base.loop.loss == "cross_entropy")
    if search.metric not in known:
        raise SpecError(f"the metric {search.metric!r} is not reported", fix=nearest(search.metric, known))


def reports_of(spec: TrainSpec, metric: str, *, ended: bool, since: float) -> list[Row]:
    """Return each report of a metric by a trial, in order of step.

    Parameters
    ----------
    ended : bool
        Whether the trial has ended, so that nothing more comes.
    since : float
        When the trial was recorded: a name may be used again in another home with the same store.
    """
    return _followed(spec.store, spec.name, since).reports(spec, metric, ended=ended)


class _Followed:
    """What was read of a trial's journal, so that each file is read once."""

    def __init__(self) -> None:
        self._reader: JournalReader | None = None
        self._rows: Sequence[Row] = ()
        self._next = float("-inf")

    def reports(self, spec: TrainSpec, metric: str, *, ended: bool) -> list[Row]:
        if self._reader is None:
            self._reader = JournalReader(RunFiles(spec).folder)
        if ended or time.monotonic() >= self._next:
            self._reader.status()
            self._rows = self._reader.rows(after_status=not ended)
            self._next = time.monotonic() + (0.0 if self._reader.store.is_local else _REMOTE_LOOK)
        return [row for row in self._rows if metric in row.metrics]


@functools.lru_cache(maxsize=256)
def _followed(store: str, name: str, since: float) -> _Followed:
    return _Followed()
