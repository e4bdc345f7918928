"""The ledger: one truth for many kernels at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from cloudai.errors import NotFoundError, SpecError
from cloudai.state.ledger import Holder, Ledger


def another(ledger):
    """The same ledger, as another process would open it."""
    return Ledger(ledger.path, url=ledger.url)


def test_what_is_recorded_is_found_by_another_connection(ledger):
    ledger.create("run", "one", {"epochs": 3}, {"cancel": False})
    other = another(ledger)
    record = other.get("run", "one")
    assert (record.phase, record.spec, record.desired, record.ref) == ("queued", {"epochs": 3}, {"cancel": False}, "run/one")


def test_a_name_is_taken_once(ledger):
    ledger.create("run", "one", {}, {})
    with pytest.raises(SpecError, match="there is a run 'one' already"):
        ledger.create("run", "one", {}, {})
    ledger.create("deployment", "one", {}, {})


def test_only_an_ended_object_is_replaced(ledger):
    ledger.create("deployment", "one", {"v": 1}, {})
    with pytest.raises(SpecError, match="already"):
        ledger.replace("deployment", "one", {"v": 2}, {})
    ledger.observe("deployment", "one", "deleted", {})
    assert ledger.replace("deployment", "one", {"v": 2}, {}).spec == {"v": 2}


def test_find_by_reference_or_by_a_name_that_is_unique(ledger):
    ledger.create("run", "one", {}, {})
    ledger.create("deployment", "two", {}, {})
    ledger.create("run", "two", {}, {})
    assert ledger.find("run/one").name == ledger.find("one").name == "one"
    with pytest.raises(NotFoundError, match="any of several"):
        ledger.find("two")
    with pytest.raises(NotFoundError, match="did you mean 'one'"):
        ledger.find("run/onee")
    with pytest.raises(NotFoundError, match="no kind"):
        ledger.find("rnu/one")
    with pytest.raises(NotFoundError, match="no run, deployment, monitor or schedule"):
        ledger.find("three")


def test_wishes_and_observations_do_not_overwrite_each_other(ledger):
    ledger.create("run", "one", {}, {"a": 1})
    ledger.want("run", "one", {"cancel": True})
    ledger.observe("run", "one", "running", {"step": 3})
    record = ledger.get("run", "one")
    assert record.desired == {"a": 1, "cancel": True}
    assert record.status == {"step": 3}
    assert record.phase == "running"


def test_what_has_ended_stays_ended(ledger):
    ledger.create("run", "one", {}, {})
    ledger.observe("run", "one", "cancelled", {})
    ledger.observe("run", "one", "running", {"late": True})
    assert ledger.get("run", "one").phase == "cancelled"
    assert ledger.records(alive=True) == []


def test_events_tell_the_story_in_order(ledger):
    ledger.create("run", "one", {}, {})
    ledger.observe("run", "one", "running", {})
    ledger.observe("run", "one", "running", {"step": 1})
    ledger.observe("run", "one", "recovering", {}, event="killed by SIGKILL; coming back from step 5")
    assert [event.what for event in ledger.events("run", "one")] == [
        "queued",
        "running",
        "killed by SIGKILL; coming back from step 5",
    ]


def test_many_writers_lose_nothing(ledger):
    ledger.create("run", "one", {}, {})

    def write(i):
        for j in range(20):
            ledger.observe("run", "one", "running", {f"{i}-{j}": 1})

    threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.get("run", "one").status) == 120


def test_a_change_by_another_connection_is_noticed(ledger):
    other = another(ledger)
    before = ledger.revision()
    assert ledger.revision() == before
    other.create("run", "one", {}, {})
    assert ledger.revision() != before


def test_holders_are_live_processes(ledger):
    ledger.create("run", "one", {}, {})
    ledger.hold("run", "one")
    code = (
        "import sys, pathlib; from cloudai.state.ledger import Ledger; L = Ledger(pathlib.Path(sys.argv[1]), url=sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", f"{code}; L.hold('run', 'one')", str(ledger.path), ledger.url], check=True)
    assert ledger.holders("run", "one") == [Holder(os.getpid())]
    assert str(ledger.holders("run", "one")[0]) == "this process"


def test_models_are_recorded_once(ledger):
    ledger.add_model("digits", "1.0.0", "uri", "digest", "run")
    ledger.add_model("digits", "1.0.0", "uri", "other digest", "run")
    ledger.add_model("other", "1.0.0", "uri", "digest", "run")
    assert ledger.models("digits") == [("digits", "1.0.0", "uri", "digest")]
