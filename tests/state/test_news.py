"""News for the supervisor: told, taken once, and looked at at once."""

from __future__ import annotations

import threading
import time

from cloudai.agents import supervisor
from cloudai.state import news
from cloudai.state.ledger import Ledger
from tests.conftest import wait_until


def test_what_is_told_is_taken_once(tmp_path):
    assert news.take(tmp_path) == set()
    for _ in range(2):
        news.tell(news.file(tmp_path, "deployment", "a.b"))
    news.tell(news.file(tmp_path, "run", "c"))
    assert news.take(tmp_path) == {("deployment", "a.b"), ("run", "c")}
    assert news.take(tmp_path) == set()


def test_where_nothing_can_be_written_nothing_fails(tmp_path):
    (tmp_path / "news").write_text("a file where the folder should be")
    news.tell(news.file(tmp_path, "deployment", "a"))
    assert not (tmp_path / "news" / "deployment.a").exists()


def test_the_supervisor_looks_at_once_at_what_it_is_told_of(home, monkeypatch):
    """What is as it should be is looked at once a second; news make it a matter of milliseconds."""
    ledger = Ledger(home / "ledger.sqlite")
    for name in ("calm", "told"):
        ledger.create("deployment", name, {}, {})
        ledger.observe("deployment", name, "ready", {})
    looks = {"calm": [], "told": []}
    monkeypatch.setattr(supervisor._api, "advance", lambda ledger, record: looks[record.name].append(time.monotonic()))
    thread = threading.Thread(target=supervisor._Supervisor(ledger).run, args=(0.1,))
    thread.start()
    try:
        for _ in range(3):
            wait_until(lambda: all(looks.values()))
            before, calm = len(looks["told"]), len(looks["calm"])
            told = time.monotonic()
            news.tell(ledger.news_file("deployment", "told"))
            wait_until(lambda before=before: len(looks["told"]) > before)
            assert looks["told"][before] - told < 0.9
            assert len(looks["calm"]) <= calm + 1
    finally:
        for name in looks:
            ledger.observe("deployment", name, "deleted", {})
        thread.join(30)
    assert not thread.is_alive()
