"""What is alive, what it costs, and its end: nothing runs on after a cleanup, the supervisor included."""

from __future__ import annotations

import shutil
import time

import torch

import cloudai
from cloudai.planning.spending import Spending
from cloudai.state.leader import supervisor_pid
from tests.conftest import processes_of, wait_until
from tests.flow import work


def test_after_a_cleanup_no_handle_starts_a_supervisor_again(home):
    run = cloudai.train(work.network(), work.data(), name="long", epochs=1_000_000)
    wait_until(lambda: run.refresh() or run.status.step is not None)
    done = cloudai.cleanup().apply()
    assert "Cleanup has ended" in str(done)
    assert "run/long" in str(done)
    time.sleep(1.5)
    assert supervisor_pid(home) is None
    assert not processes_of(home)
    assert run.phase == "cancelled" or run.refresh() or run.phase == "cancelled"


def test_currencies_are_not_added_up(home, monkeypatch):
    from cloudai.inventory import Inventory, Ledgered
    from cloudai.state.ledger import open_ledger

    ledger = open_ledger()
    record = ledger.create("run", "one", {}, {})
    spent = [Spending(1.0, 2.0, "USD", "x"), Spending(1.0, 3.0, "EUR", "x"), Spending(1.0, 1.0, "USD", "x")]
    inventory = Inventory(ledger, [Ledgered(record, [], one) for one in spent])
    assert inventory.totals == {"USD": 3.0, "EUR": 3.0}
    assert "these have cost 3.00 USD + 3.00 EUR" in str(inventory)


def test_ps_shows_processes_prices_leases_and_holders(home, monkeypatch):
    monkeypatch.setenv("CLOUDAI_LOCAL_PRICE_PER_HOUR", "0.5")
    rows = work.data()[0][:, :8]
    deployment = cloudai.deploy(work.recorded_model(torch.nn.Linear(8, 2), rows, name="d"), lease="2h").wait(60)
    wait_until(lambda: "this process" in str(cloudai.ps()), what="the sign of the holder")
    text = str(cloudai.ps())
    assert "12.00 USD" in text, "what it costs in a day"
    assert "1 h 59 min" in text
    assert all(str(pid) in text for row in deployment.revisions for pid in row["pids"])


def test_a_supervisor_whose_home_is_removed_ends(home):
    cloudai.train(work.network(), work.data(), name="long", epochs=1_000_000)
    pid = wait_until(lambda: supervisor_pid(home))
    for process in processes_of(home):
        if process.pid != pid:
            process.kill()
    from cloudai.state import handles

    handles._handles.clear()
    shutil.rmtree(home, ignore_errors=True)
    wait_until(lambda: not processes_of(home), what="the end of the supervisor")
