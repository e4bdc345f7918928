"""A driver in a package of its own, found through its entry point: its own tests pass, and the verbs work on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

STORY = """
import numpy as np
import torch

import cloudai

assert "pocket" in cloudai.drivers.names()
rows = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
data = rows, (rows[:, 0] > 0).astype(int)
module = torch.nn.Linear(4, 2)

plan = cloudai.plan(module, data, on="pocket", name="small", epochs=1)
print("planned:", plan.offer.driver, plan.offer.place, plan.cost)
run = cloudai.train(plan).wait(60)
print("trained:", run.phase, run.status.attempt)
deployment = cloudai.deploy(run, on="pocket", name="service").wait(60)
print("deployed:", deployment.traffic, deployment.predict(rows).shape)
deployment.delete()
deployment.wait(60)
print("deleted:", deployment.phase)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Install the package as a user would, into a folder of its own; returns that folder and the package's tests."""
    folder = tmp_path_factory.mktemp("pocket")
    source = shutil.copytree(HERE / "cloudai-pocket", folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--target", str(folder / "site"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (folder / "site" / "cloudai_pocket-0.1.0.dist-info" / "entry_points.txt").exists()
    shutil.rmtree(source / "cloudai_pocket")  # what runs is what was installed
    return folder / "site", source / "tests"


def run(command, site, home, cwd):
    settings = {
        "CLOUDAI_HOME": str(home),
        "CLOUDAI_POCKET_HOME": str(home / "pocket"),
        "CLOUDAI_TRACKING": "none",
        "CLOUDAI_SUPERVISOR_IDLE": "5s",
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CLOUDAI_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=inherited | settings, capture_output=True, text=True, timeout=200
    )


def test_its_own_tests_pass(installed, home, tmp_path):
    site, tests = installed
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ["-q", "-p", "no:cacheprovider", "-c", str(tmp_path / "pytest.ini"), f"--basetemp={home / 'tests'}"]
    home.mkdir()
    done = run(["-m", "pytest", *options, str(tests)], site, home, tests.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "59 passed, 6 skipped" in done.stdout, (
        "it splits traffic and is not asked to scale; else it may neither skip nor lack clauses"
    )


def test_plan_train_and_deploy_on_it(installed, home, tmp_path):
    story = tmp_path / "story.py"
    story.write_text(textwrap.dedent(STORY))
    done = run([str(story)], installed[0], home, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert said["planned"].startswith("pocket the pocket")
    assert said["trained"] == "succeeded 1"
    assert said["deployed"] == "{'v1.0.0': 100} (64, 2)"
    assert said["deleted"] == "deleted"
    assert [path.name for path in (home / "pocket" / "jobs").glob("*/")] == ["small.1"]


def test_without_its_package_a_driver_is_not_known(home, tmp_path):
    code = "import cloudai; cloudai.drivers.registry.get('pocket')"
    done = run(["-c", code], tmp_path, home, tmp_path)
    assert "there is no driver 'pocket'\nFix: " in done.stderr


def test_the_page_that_tells_how_shows_all_of_it():
    page = (ROOT / "docs" / "how-to" / "write-a-driver.md").read_text(encoding="utf-8")
    package = HERE / "cloudai-pocket"
    sources = [path for path in package.rglob("*.*") if path.suffix in (".py", ".toml") and path.stem != "__init__"]
    assert len(sources) == 5
    for path in sources:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.strip().startswith("# ── ")]
        assert [line for line in lines if line not in page] == [], path.name
