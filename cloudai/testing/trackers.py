"""A suite of tests that every tracker must pass; pytest is needed only here.

A tracker's own test file is a class with two fixtures::

    class TestMine(TrackerConformance):
        @pytest.fixture
        def make(self, tmp_path):
            return lambda: MyTracker(f"mine://{tmp_path}", tmp_path)

        @pytest.fixture
        def read(self, tmp_path):
            return lambda experiment: [...]  # what lies there now, as `Recorded`

A test that it cannot pass is declared with its reason in ``gaps``, and must fail then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest

from cloudai.tracking import Row, TrackedModel, TrackedRun, Tracker

__all__ = ["Make", "Read", "Recorded", "TrackerConformance"]


@dataclass(frozen=True)
class Recorded:
    """What a tracker holds of one run, as read back from where it keeps it."""

    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    """Parameters, and where the tracker has no tags, the tags too."""
    metrics: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """Steps and values of each metric, in order of step."""
    models: Sequence[tuple[str, str, str]] = ()
    """Name, version and digest of each model version that it has registered."""
    succeeded: bool | None = None
    """None while it has not ended."""


Make = Callable[[], Tracker]
"""Returns a new tracker, as another process would make it, in the same place each time."""

Read = Callable[[str], Sequence[Recorded]]
"""Returns all runs of an experiment, in the order in which they were begun."""

RUN = TrackedRun(
    identity="0123456789abcdef0123456789abcdef",
    name="digits-3f2a",
    experiment="conformance",
    started_at=1_700_000_000.0,
    params={"lr": "0.1", "epochs": "3"},
    tags={"cloudai.run": "digits-3f2a", "cloudai.data": "abc"},
)
ROWS = [
    Row(0, {"loss": 2.0}, 1_700_000_001.0),
    Row(1, {"loss": 1.5}, 1_700_000_002.0),
    Row(2, {"loss": 1.0, "val_loss": 1.25}, 1_700_000_003.0),
]
MODEL = TrackedModel("conformance", "1.0.0", "s3://bucket/models/conformance/1.0.0", "d" * 64)
ENDED_AT = 1_700_000_010.0
WHOLE = {"loss": [(0, 2.0), (1, 1.5), (2, 1.0)], "val_loss": [(2, 1.25)]}
CALLS: Sequence[tuple[str, Callable[[Tracker], None]]] = (
    ("start", lambda tracker: tracker.start(RUN)),
    ("log", lambda tracker: tracker.log(ROWS[:2])),
    ("log more", lambda tracker: tracker.log(ROWS[2:])),
    ("register", lambda tracker: tracker.register(MODEL)),
    ("end", lambda tracker: tracker.end(True, ENDED_AT)),
)


def _tell(tracker: Tracker, calls: int = len(CALLS)) -> None:
    for _, call in CALLS[:calls]:
        call(tracker)


class TrackerConformance:
    """The tests; subclass it with the fixtures ``make`` and ``read``."""

    gaps: ClassVar[Mapping[str, str]] = {}
    """Tests that this tracker cannot pass, each with its reason."""

    @pytest.fixture
    def make(self) -> Make:
        """Return a function that makes the tracker."""
        raise NotImplementedError

    @pytest.fixture
    def read(self) -> Read:
        """Return a function that reads back what is recorded."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _declared(self, request: pytest.FixtureRequest) -> None:
        reason = self.gaps.get(request.function.__name__)
        if reason is not None:
            request.node.add_marker(pytest.mark.xfail(reason=reason, strict=True))

    def test_it_records_params_metrics_model_and_end(self, make: Make, read: Read) -> None:
        """Everything that is told can be read back."""
        _tell(make())
        (recorded,) = read(RUN.experiment)
        assert recorded.name == RUN.name
        assert {**recorded.params, **RUN.params} == dict(recorded.params)
        assert recorded.metrics == WHOLE
        assert recorded.models == [(MODEL.name, MODEL.version, MODEL.digest)]
        assert recorded.succeeded is True

    def test_a_failed_run_is_recorded_as_failed(self, make: Make, read: Read) -> None:
        """The end says whether it succeeded."""
        tracker = make()
        _tell(tracker, 3)
        tracker.end(False, ENDED_AT)
        assert [recorded.succeeded for recorded in read(RUN.experiment)] == [False]

    @pytest.mark.parametrize("twice", range(1, len(CALLS)), ids=[name for name, _ in CALLS[1:]])
    def test_a_call_that_comes_again_changes_nothing(self, make: Make, read: Read, twice: int) -> None:
        """The same call again, because its answer was lost."""
        tracker = make()
        for number, (_, call) in enumerate(CALLS):
            call(tracker)
            if number == twice:
                call(tracker)
        (recorded,) = read(RUN.experiment)
        assert (recorded.metrics, recorded.models) == (WHOLE, [(MODEL.name, MODEL.version, MODEL.digest)])

    @pytest.mark.parametrize("calls", range(1, len(CALLS) + 1), ids=[f"after {name}" for name, _ in CALLS])
    def test_another_process_that_tells_all_again_leaves_one_whole_record(self, make: Make, read: Read, calls: int) -> None:
        """A process died after some calls; the next one begins anew with everything."""
        _tell(make(), calls)
        _tell(make())
        (recorded,) = read(RUN.experiment)
        assert (recorded.metrics, recorded.models) == (WHOLE, [(MODEL.name, MODEL.version, MODEL.digest)])
        assert recorded.succeeded is True

    def test_a_model_in_a_folder_of_this_machine_is_recorded_too(self, make: Make, read: Read, tmp_path: Path) -> None:
        """A tracker elsewhere cannot see it, and has its name, version and digest all the same."""
        tracker = make()
        _tell(tracker, 3)
        tracker.register(replace(MODEL, uri=str(tmp_path / "models" / "1.0.0")))
        tracker.end(True, ENDED_AT)
        assert read(RUN.experiment)[0].models == [(MODEL.name, MODEL.version, MODEL.digest)]

    def test_a_run_that_comes_back_goes_on_after_its_end(self, make: Make, read: Read) -> None:
        """A worker was stopped and ended the record; the next one goes on with it to success."""
        first = make()
        first.start(RUN)
        first.log(ROWS[:1])
        first.end(False, ENDED_AT - 5)
        _tell(make())
        (recorded,) = read(RUN.experiment)
        assert (recorded.metrics, recorded.succeeded) == (WHOLE, True)

    def test_runs_of_one_name_are_kept_apart_by_their_identity(self, make: Make, read: Read) -> None:
        """Two users may give the same name."""
        _tell(make())
        other = make()
        other.start(TrackedRun("f" * 32, RUN.name, RUN.experiment, RUN.started_at + 1))
        other.log([Row(0, {"loss": 9.0}, 1_700_000_001.0)])
        other.end(True, ENDED_AT)
        assert [recorded.metrics for recorded in read(RUN.experiment)] == [WHOLE, {"loss": [(0, 9.0)]}]

    def test_values_that_are_no_numbers_stop_nothing(self, make: Make, read: Read) -> None:
        """NaN and infinity may be kept or not; what else was told is there."""
        tracker = make()
        tracker.start(RUN)
        tracker.log([Row(0, {"a": math.nan, "b": math.inf, "loss": 1.0}, 1_700_000_001.0)])
        tracker.end(True, ENDED_AT)
        assert read(RUN.experiment)[0].metrics["loss"] == [(0, 1.0)]

    def test_odd_names_and_long_values_stop_nothing(self, make: Make, read: Read) -> None:
        """A user's config may hold anything; what else was told is there."""
        odd = TrackedRun(RUN.identity, RUN.name, RUN.experiment, RUN.started_at, {"größe?": "x" * 10_000, "": "1", "lr": "0.1"})
        tracker = make()
        tracker.start(odd)
        tracker.log([Row(0, {"loss [%]": 1.0, "loss": 2.0}, 1_700_000_001.0)])
        tracker.end(True, ENDED_AT)
        (recorded,) = read(RUN.experiment)
        assert recorded.params["lr"] == "0.1"
        assert recorded.metrics["loss"] == [(0, 2.0)]

    def test_thousands_of_rows_at_once(self, make: Make, read: Read) -> None:
        """More than one request takes."""
        tracker = make()
        tracker.start(RUN)
        tracker.log([Row(step, {"loss": float(step)}, 1_700_000_000.0 + step) for step in range(2500)])
        tracker.end(True, ENDED_AT)
        assert read(RUN.experiment)[0].metrics["loss"] == [(step, float(step)) for step in range(2500)]

    def test_making_one_touches_nothing_and_nothing_lies_in_the_working_folder(
        self, make: Make, read: Read, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A factory only makes the object; files go where the tracker was told, never where the user works."""
        folder: Path = tmp_path_factory.mktemp("working")
        monkeypatch.chdir(folder)
        make()
        _tell(make())
        assert list(folder.iterdir()) == []
