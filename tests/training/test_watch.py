"""The watch in a worker: what it sees reaches the status, and what is wrong is said once."""

from __future__ import annotations

import pytest
import torch

import cloudai
from cloudai.artifacts.store import Store
from cloudai.errors import NotReadyError, SpecError
from cloudai.training import watch as watch_module
from cloudai.training.anomalies import Anomaly
from cloudai.training.journal import Journal, JournalReader
from cloudai.training.meter import Meter
from cloudai.training.performance import Performance
from cloudai.training.watch import Watch
from tests.conftest import wait_until
from tests.flow import work


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A watch that looks when it is told to, with its meter and the reader of what it writes."""
    monkeypatch.setattr(watch_module, "_EVERY", 3600.0)
    store = Store(str(tmp_path))
    journal, meter = Journal(store, 1, {}), Meter()
    found = Watch(meter, journal, store)
    yield found, meter, journal, JournalReader(store)
    found.close()
    journal.close()


def test_what_is_seen_reaches_whoever_reads_the_status(watched):
    watch, meter, journal, reader = watched
    module = torch.nn.Linear(64, 64)
    watch.works(module, [torch.zeros(8, 64)])
    meter.begin()
    for _ in range(20):
        module(torch.zeros(8, 64)).sum().backward()
        meter.ended(rows=8)
    watch.look()
    journal.flush()
    seen = Performance.parse(reader.status()["performance"])
    assert (seen.steps, reader.status()["anomalies"]) == (20, [])
    assert seen.flops_per_second == pytest.approx(seen.rows_per_second * 3 * 2 * 64 * 64)
    assert 0 < seen.utilisation < 1.5
    assert seen.memory > 0


def test_an_anomaly_is_in_the_status_while_it_lasts_and_in_the_log_once(watched, caplog):
    watch, meter, journal, reader = watched
    meter.begin()
    for _ in range(6):
        meter.waited(5.0)
        meter.ended(rows=8)
        watch.look()
    journal.flush()
    (anomaly,) = [Anomaly.parse(value) for value in reader.status()["anomalies"]]
    assert anomaly.kind == "waiting"
    assert caplog.text.count("waits for data") == 1
    for _ in range(12):
        meter.stalled(-5.0)  # the waits of before are out of the window now
        meter.ended(rows=8)
        watch.look()
    journal.flush()
    assert reader.status()["anomalies"] == []


def test_a_look_that_fails_ends_nothing(watched, monkeypatch, caplog):
    watch = watched[0]
    monkeypatch.setattr(watch_module.hardware, "use", lambda: 1 / 0)
    watch.close()
    assert "how the run fares cannot be told now" in caplog.text


def test_metrics_of_earlier_attempts_count_when_a_run_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(watch_module, "_EVERY", 3600.0)
    store = Store(str(tmp_path))
    for attempt, losses in ((1, [2.0] * 15), (2, [9.0] * 10)):
        journal = Journal(store, attempt, {})
        watch = Watch(Meter(), journal, store, resumed=attempt > 1)
        for step, loss in enumerate(losses, start=100 * attempt):
            journal.add(step, {"loss": loss})
            watch.reported(step, {"loss": loss})
        watch.close()
        journal.close()
    assert [value["kind"] for value in JournalReader(store).status()["anomalies"]] == ["exploding"]


def test_a_live_run_shows_how_it_fares_and_is_profiled_on_demand(home):
    run = cloudai.train(work.network(), work.data(), name="watched", epochs=400)
    with pytest.raises(SpecError, match="1 to 1000 steps"):
        run.profile(steps=0)
    trace = run.profile(steps=5)
    with pytest.raises(NotReadyError, match="has not been made yet"):
        _ = trace.table
    with pytest.raises(NotReadyError, match="is being made"):
        run.profile()
    assert trace.wait(60).done
    assert "aten::addmm" in trace.table
    assert trace.path.endswith(".json.gz")
    assert "perfetto" in str(trace)
    assert "ms by itself" in str(trace)
    assert "<td>aten::addmm</td>" in trace._repr_mimebundle_()["text/html"]
    wait_until(lambda: run.refresh() or run.performance is not None, what="a look")
    card = str(run)
    assert "rows/s" in card
    assert "checkpoints cost" in card
    run.cancel()
    wait_until(lambda: run.refresh() or run.ended, what="the end")
    assert run.performance.steps > 0
    with pytest.raises(NotReadyError, match="it takes no steps"):
        run.profile()
