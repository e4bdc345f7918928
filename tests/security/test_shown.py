"""Names and texts of others, shown in cards and widgets: no markup, and nothing that a terminal obeys."""

from __future__ import annotations

import html.parser
import json

import pytest
import torch

import cloudai
from cloudai.artifacts.store import Store
from cloudai.display import Card, Curve, Table
from cloudai.inventory import Inventory
from cloudai.serving.deployment import Deployment
from cloudai.specs.serving import DeploySpec
from cloudai.specs.training import TrainSpec
from cloudai.state.ledger import open_ledger
from cloudai.training.run import Run

EVIL = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>\x1b[2J\u202egpj.exe&"


class Tags(html.parser.HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def check(shown):
    bundle = shown._repr_mimebundle_() if hasattr(shown, "_repr_mimebundle_") else {
        "text/html": shown.html(), "text/plain": shown.text()
    }  # fmt: skip
    page, text = bundle["text/html"], bundle["text/plain"]
    found = Tags(page)
    assert not {"script", "img", "iframe", "object"} & found.tags
    assert not {name for name in found.attributes if name.startswith("on")} | {"src", "href"} & found.attributes
    for dangerous in ("\x1b", "\u202e"):
        assert dangerous not in page + text
    assert "alert(1)" in text, "it is shown, and harmless"


def test_every_part_of_a_card():
    table = Table((EVIL, "b"), [(EVIL, EVIL)], title=EVIL)
    curves = [Curve(EVIL, [1, 2], [3, 4]), Curve(EVIL, [], [])]
    check(Card(EVIL, [(EVIL, EVIL)], curves=curves, tables=[table], notes=[EVIL]))


@pytest.fixture
def run(home):
    store = str(home / "store")
    spec = TrainSpec.of(name="r", model_name="m", lease=None, store=store, tracking="none", work={"kind": "function"})
    ledger = open_ledger()
    ledger.create("run", "r", spec.model_dump(mode="json"), {})
    folder = Store(store).at("runs/r")
    folder.write_json("status.json", {"step": 3, "total_steps": 9, "doing": EVIL, "tracking": EVIL})
    rows = [[1, {EVIL: 0.5, "loss": 1.0}, 0.0], [2, {EVIL: 0.4, "loss": 0.5}, 0.0]]
    folder.write("metrics/0001-000000.json", json.dumps(rows).encode())
    change = {"reason": EVIL, "fix": EVIL, "frames": EVIL, "place": EVIL, "why_not_exact": EVIL}
    ledger.observe("run", "r", "failed", change, event=EVIL)
    run = Run(ledger, ledger.get("run", "r"))
    run.refresh()
    return run


def test_a_run_with_evil_metrics_and_errors(run):
    check(run)


def test_the_live_widget_of_such_a_run(run):
    from cloudai.widgets.run import RunView

    seen = []

    def values(widget):
        seen.extend(str(getattr(widget, name)) for name in ("value", "description") if hasattr(widget, name))
        for child in getattr(widget, "children", ()):
            values(child)

    view = RunView(run)
    values(view.box)
    view.close()
    page = "".join(seen)
    assert "alert(1)" in page
    found = Tags(page)
    assert not {"script", "img"} & found.tags
    assert not {name for name in found.attributes if name.startswith("on")}


def test_a_deployment_with_evil_revisions(home):
    ledger = open_ledger()
    spec = DeploySpec.of(name="d", lease=None)
    desired = {"revisions": {EVIL: {}}, "rollout": {"stable": EVIL}}
    ledger.create("deployment", "d", spec.model_dump(mode="json"), desired)
    row = {"id": EVIL, "ready": True, "replicas": 1, "traffic": 100, "reason": EVIL, "pids": []}
    ledger.observe("deployment", "d", "failing", {"url": EVIL, "reason": EVIL, "revisions": [row]})
    check(Deployment(ledger, ledger.get("deployment", "d")))
    assert isinstance(cloudai.ps(), Inventory)


def test_a_model_with_evil_metrics_and_lineage(home):
    from tests.flow import work
    from tests.security.test_hostile_files import ROWS

    model = work.recorded_model(torch.nn.Linear(3, 2), ROWS, name="small")
    model.metrics, model.lineage = {EVIL: 1.0}, {EVIL: EVIL}
    check(model)


def test_a_captured_name_in_a_bundle_report():
    from cloudai.capture.bundle import Bundle

    bundle = Bundle({"work.py": b"import os\nprint('<script>alert(1)</script>')"}, {EVIL: "work:f"})
    assert "<script>alert" not in bundle.report().html()
