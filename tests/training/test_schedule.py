"""Schedules on the simulated cloud: days in a moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import fsspec
import numpy as np
import pytest
import torch

import cloudai
from cloudai import Search, errors, uniform
from cloudai.state.ledger import Ledger, open_ledger
from cloudai.testing.simulation import Simulation
from cloudai.training import tables

START = datetime(2026, 1, 1, tzinfo=UTC)


TABLE = cloudai.Table("memory://rows/a.csv", target="y")


@pytest.fixture
def write():
    """What writes a file of rows that every process could reach."""
    files = fsspec.filesystem("memory")

    def write(rows):
        lines = [f"{x / 10},{x % 7},{x % 2}" for x in range(rows)]
        files.pipe_file("/rows/a.csv", "\n".join(["a,b,y", *lines, ""]).encode())

    yield write
    files.rm("/rows", recursive=True)


def schedule(data=None, work=None, **options):
    given = {"schedule": "0 3 * * *", "on": "simulated", "name": "nightly", "model_name": "m", "epochs": 1, **options}
    if work is not None:
        given.pop("epochs")
    return cloudai.train(work or torch.nn.Linear(2, 2), data, **given)


def load_and_train(context):
    """Work that brings its own data."""
    module = torch.nn.Linear(1, 1)
    module.example_input = torch.zeros(1, 1)
    context.report({"loss": 0.5})
    return module


def events():
    return [event.what for event in open_ledger().events("schedule", "nightly")]


def runs(handle):
    handle.refresh()
    return [(run.name, run.what) for run in handle.runs]


def test_each_time_starts_a_run_whose_model_is_the_next_version():
    with Simulation() as simulation:
        handle = schedule(work=load_and_train)
        assert repr(handle) == "Schedule('nightly', '0 3 * * *', phase='queued')"
        simulation.advance("1m")
        assert handle.next_times(2) == [START + timedelta(hours=3), START + timedelta(hours=27)]
        assert "scheduled, next 2026-01-01 03:00 UTC" in str(cloudai.ps())
        simulation.advance("52h")
        assert runs(handle) == [
            ("nightly-20260101-0300", "succeeded"),
            ("nightly-20260102-0300", "succeeded"),
            ("nightly-20260103-0300", "succeeded"),
        ]
        assert [version for _, version, *_ in open_ledger().models("m")] == ["1.0.0", "1.0.1", "1.0.2"]
        assert cloudai.attach("run/nightly-20260102-0300").model.version == "1.0.1"
        text, html = str(handle), handle._repr_mimebundle_()["text/html"]
        for said in ("0 3 * * * in UTC", "2026-01-04 03:00", "nightly-20260103-0300", "succeeded"):
            assert said in text
            assert said in html


def test_the_files_of_a_table_are_looked_at_anew_each_time(write):
    write(40)
    with Simulation() as simulation:
        handle = schedule(TABLE)
        simulation.advance("5h")
        write(30)
        simulation.advance("24h")
        fsspec.filesystem("memory").rm("/rows", recursive=True)
        simulation.advance("24h")
        write(50)
        simulation.advance("24h")
        assert [what for _, what in runs(handle)] == ["succeeded", "succeeded", handle.runs[2].what, "succeeded"]
        assert "no run: there is no memory://rows/a.csv" in handle.runs[2].what
        done = [cloudai.attach(f"run/{name}") for name, _ in runs(handle) if name]
        sizes = [run.spec.work.source.size for run in done]
        assert sizes[1] < sizes[0] < sizes[2]
        assert len({run.model.lineage["data"] for run in done}) == 3
        assert [run.model.version for run in done] == ["1.0.0", "1.1.0", "1.2.0"]
        assert handle.phase == "scheduled", "one bad night does not end it"


def test_a_store_of_data_that_is_away_is_asked_again(write, monkeypatch):
    write(40)
    away = []

    def flaky(table, *, integers):
        away.append(table)
        if len(away) < 4:
            raise errors.StoreError("the bucket does not answer", fix="wait", temporary=True)
        return tables.survey(table, integers=integers)

    with Simulation() as simulation:
        handle = schedule(TABLE)
        monkeypatch.setattr("cloudai.training.schedule.survey", flaky)
        simulation.advance("3h")
        assert "the bucket does not answer" in str(handle)
        simulation.advance("2h")
        assert runs(handle) == [("nightly-20260101-0300", "succeeded")]
        assert "waiting: the bucket does not answer" in events()


def test_a_time_zone_counts_and_its_clock_changes():
    with Simulation(start=datetime(2026, 3, 27, tzinfo=UTC)) as simulation:
        handle = schedule(work=load_and_train, timezone="Europe/Berlin")
        simulation.advance("80h")
        assert [name[-13:] for name, _ in runs(handle)] == ["20260327-0200", "20260328-0200", "20260329-0100", "20260330-0100"]


def test_cancelling_ends_it_and_lets_the_run_under_way_go_on():
    with Simulation() as simulation:
        handle = schedule(work=load_and_train)
        simulation.advance("3h30m")
        handle.cancel()
        simulation.advance("48h")
        assert (handle.phase, handle.next_times()) == ("cancelled", [])
        assert runs(handle) == [("nightly-20260101-0300", "succeeded")]
        assert len(cloudai.ps()) == 0
        again = schedule(work=load_and_train)
        assert again.phase == "queued", "its name is free again"


def test_no_two_runs_at_once():
    with Simulation(durations={"m": "90m"}) as simulation:
        handle = schedule(work=load_and_train, schedule="0 * * * *")
        simulation.advance("4h45m")
        assert runs(handle) == [
            ("nightly-20260101-0100", "succeeded"),
            ("", "skipped: nightly-20260101-0100 goes on"),
            ("nightly-20260101-0300", "succeeded"),
            ("", "skipped: nightly-20260101-0300 goes on"),
        ]


def test_a_run_that_goes_on_for_more_times_than_are_kept_stays_alone():
    with Simulation(durations={"m": "130m"}) as simulation:
        handle = schedule(work=load_and_train, schedule="* * * * *")
        simulation.advance("2h")
        first, *later = handle.runs
        assert (first.name, first.what) == ("nightly-20260101-0001", "running")
        assert {run.what for run in later} == {f"skipped: {first.name} goes on"}
        assert len(later) == 99
        assert [record.name for record in open_ledger().records("run")] == [first.name]


def test_a_run_that_nobody_holds_goes_on_to_its_end_unless_it_has_a_lease():
    with Simulation(durations={"m": "30h"}) as simulation:
        schedule(work=load_and_train)
        schedule(work=load_and_train, name="leased", lease="2h")
        simulation.advance("34h")
        assert cloudai.attach("run/nightly-20260101-0300").phase == "succeeded"
        assert cloudai.attach("run/leased-20260101-0300").phase == "cancelled"


def test_missed_times_are_caught_up_once():
    with Simulation() as simulation:
        handle = schedule(work=load_and_train)
        simulation.advance("1m")
        simulation.clock.move(simulation.clock.now() + 10 * 86400)  # nobody led meanwhile
        simulation.advance("2h")
        assert runs(handle) == [("nightly-20260110-0300", "succeeded")]
        assert "run nightly-20260110-0300 is due; earlier times were missed" in events()
        assert handle.next_times(1) == [datetime(2026, 1, 11, 3, tzinfo=UTC)]


def test_it_comes_back_by_its_name_and_cleanup_knows_it():
    with Simulation() as simulation:
        handle = schedule(work=load_and_train)
        simulation.advance("4h30m")
        back = cloudai.attach("schedule/nightly")
        assert back.spec == handle.spec
        assert back.runs == handle.runs
        assert [entry.record.ref for entry in cloudai.cleanup().entries] == ["schedule/nightly"]
        cloudai.cleanup().apply()
        assert back.ended or cloudai.attach("schedule/nightly").ended


def test_a_supervisor_that_dies_before_it_records_the_run_is_followed_by_one_that_does(monkeypatch):
    create, died = Ledger.create, []

    def dies_once(self, kind, name, *rest, **options):
        if kind == "run" and not died:
            died.append(name)
            raise errors.LedgerError("killed here", fix="start another")
        return create(self, kind, name, *rest, **options)

    with Simulation() as simulation:
        monkeypatch.setattr(Ledger, "create", dies_once)
        handle = schedule(work=load_and_train)
        with pytest.raises(errors.LedgerError, match="killed here"):
            simulation.advance("4h30m")
        simulation.advance("4h30m")
        assert runs(handle) == [("nightly-20260101-0300", "succeeded")]


def test_limits_are_those_of_each_run():
    with Simulation(durations={"m": "3h"}) as simulation:
        handle = schedule(work=load_and_train, budget=cloudai.Budget(usd=1))
        simulation.advance("60h")
        assert [what for _, what in runs(handle)] == ["stopped"] * 3
        assert simulation.bill.total == pytest.approx(3, abs=0.05)


def test_each_run_of_a_schedule_may_be_a_search():
    with Simulation() as simulation:
        search = Search({"config.x": uniform(0, 1)}, trials=2, metric="loss")
        handle = schedule(work=load_and_train, search=search)
        simulation.advance("5h")
        assert runs(handle) == [("nightly-20260101-0300", "succeeded")]
        assert len(cloudai.attach("run/nightly-20260101-0300").trials) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "0 25 * * *"}, "bad hour"),
        ({"schedule": "0 3 * *"}, r"'0 3 \* \*' is no schedule\n.*five fields"),
        ({"schedule": "0 0 3 * * *"}, "is no schedule"),
        ({"schedule": "0 0 31 2 *"}, "bad day-of-month"),
        ({"schedule": "0 0 1-7 * 1L"}, ""),
        ({"schedule": "@daily"}, "is no schedule"),
        ({"schedule": 3}, "3 is no schedule"),
        ({"timezone": "Europe/Berlni"}, r"no time zone 'Europe/Berlni'\n.*'Europe/Berlin'"),
        ({"timezone": "../etc/passwd"}, "no time zone"),
        ({"name": "n" * 60}, "too long for a schedule"),
        ({"deadline": datetime(2030, 1, 1, tzinfo=UTC)}, "is one time"),
        ({"search": Search({"lr": uniform(0, 1)})}, "you pass a function"),
    ],
)
def test_what_is_wrong_is_said_at_once(options, says):
    with Simulation():
        if not says:
            assert schedule(work=load_and_train, **options).phase == "queued"
            return
        with pytest.raises(errors.SpecError, match=f"(?s){says}"):
            schedule(work=load_and_train, **options)
        assert len(cloudai.ps()) == 0


def test_rows_given_by_value_are_refused_for_they_would_not_change():
    arrays = np.zeros((30, 2)), np.arange(30) % 2
    with Simulation():
        with pytest.raises(errors.SpecError, match=r"(?s)train on the same rows.*cloudai.Table"):
            schedule(arrays)
        with pytest.raises(errors.SpecError, match="every day"):  # the times first, or the fix would be followed in vain
            cloudai.train(torch.nn.Linear(2, 2), arrays, on="simulated", schedule="every day")
        with pytest.raises(errors.SpecError, match="timezone= is of a schedule"):
            cloudai.train(torch.nn.Linear(2, 2), arrays, on="simulated", timezone="UTC")
        with pytest.raises(errors.SpecError, match=r"(?s)a plan is of one run.*leave schedule= out"):
            cloudai.plan(torch.nn.Linear(2, 2), arrays, on="simulated", schedule="0 3 * * *")
        handle = schedule(arrays, load_and_train)
        assert handle.phase == "queued", "a function may load more itself"
