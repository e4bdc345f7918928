"""The widgets in JupyterLab, in a real browser: they show what is so, and what is clicked happens.

``PICTURES_TO=docs/tutorials/pictures`` keeps the pictures that the tutorials show.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import cloudai
from tests.conftest import wait_until
from tests.widgets.lab import CHROMIUM, FLAGS, Lab, Page

sync_api = pytest.importorskip("playwright.sync_api")

CELLS = {
    "train": """
import time, torch, cloudai

inputs = torch.randn(1200, 64)
data = inputs, inputs[:, :10].argmax(dim=1)
network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
run = cloudai.train(network, data, name="digits-run", epochs=4000, lease="5m")
cloudai.widgets.show(run)
""".strip(),
    "rollout": 'cloudai.widgets.show(cloudai.attach("deployment/digits"))',
    "busy": "time.sleep(600)",
}
TRAIN, ROLLOUT, BUSY = range(3)


@pytest.fixture
def page(deployment, tmp_path):
    """The notebook, all of whose cells were started, in a browser."""
    with Lab(tmp_path / "lab", CELLS) as lab, sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        opened = Page(browser, lab.url)
        try:
            opened.command("notebook:run-all-cells")
            yield opened
        finally:
            opened.page.screenshot(path=tmp_path / "end.png")  # to look at when the test fails
            browser.close()


def take_pictures(page: Page, tmp_path: Path) -> None:
    """Save a picture of each widget, in the light and in the dark theme."""
    folder = Path(os.environ.get("PICTURES_TO", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for theme in ("Dark", "Light"):
        page.command("apputils:change-theme", theme=f"JupyterLab {theme}")
        page.page.locator(f"body[data-jp-theme-light={str(theme == 'Light').lower()}]").wait_for(state="attached")
        page.page.locator("#jupyterlab-splash").wait_for(state="detached")
        for name, cell in {"run": TRAIN, "rollout": ROLLOUT}.items():
            page.cell(cell).locator(".jp-OutputArea-output").screenshot(path=folder / f"{name}-{theme.lower()}.png")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_widgets_follow_and_act_while_a_cell_is_busy(page, deployment, tmp_path):
    run, rollout = page.cell(TRAIN), page.cell(ROLLOUT)
    run.locator("svg[role=img]").first.wait_for(timeout=60_000)
    run.get_by_text("● running").wait_for()
    wait_until(lambda: page.running(BUSY), what="the busy cell")
    deployment.wait()
    rollout.get_by_text("● ready").wait_for()

    slider = rollout.locator(".noUi-handle")
    slider.focus()
    for _ in range(5):
        slider.press("ArrowRight")
    wait_until(lambda: deployment.traffic == {"v1.0.0": 75, "v1.0.1": 25}, what="the slider's traffic")
    rollout.get_by_role("cell", name="25 %").wait_for()
    take_pictures(page, tmp_path)
    rollout.get_by_role("button", name="Promote").press("Enter")
    wait_until(lambda: deployment.traffic == {"v1.0.1": 100}, what="the promotion")
    rollout.get_by_role("button", name="Roll back").click()
    wait_until(lambda: deployment.traffic == {"v1.0.0": 100}, what="the way back")

    run.get_by_role("button", name="Cancel").click()
    wait_until(lambda: cloudai.attach("run/digits-run").phase == "cancelled", what="the end of the run")
    run.get_by_text("● cancelled").wait_for()
    assert page.running(BUSY), "all of that happened while a cell was busy"
    assert page.errors == []
