"""What the documentation says is so: its code runs, its commands, names and links exist, its lists are complete."""

from __future__ import annotations

import contextlib
import re
import shlex
import tomllib

import psutil
import pytest

import cloudai
from cloudai import AutoscalingPolicy, DriftPolicy, ServerLimits, cli, errors, settings
from cloudai.artifacts.store import Store
from cloudai.serving.router import RouterOptions
from cloudai.specs.monitoring import MonitorSpec
from cloudai.specs.training import FailurePolicy
from cloudai.training.hangs import patience
from cloudai.training.job import WORKER_PATIENCE
from cloudai.training.limits import RESERVE
from cloudai.training.notices import Aws
from docs import generate
from tests.conftest import processes_of, wait_until
from tests.docs import pages
from tests.s3 import make_bucket

RUNNABLE = [page for page in pages.PAGES if pages.runnable(page)]
SLOW = {
    "docs/how-to/serve-with-tls.md": "two deployments, which tests/flow/test_exposed.py has",
    "docs/how-to/train-with-several-workers.md": "starts a Ray cluster",
}
ON_S3 = {"docs/how-to/keep-artifacts-on-s3.md": "team-bucket"}
"""Pages that use S3, and the bucket that they have: a real server stands in for it."""
FIRST = pages.ROOT / "README.md"
"""Trains the model that other pages load."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One home for all pages: those after the first find the models that it made, and every page must leave nothing alive."""
    folder = tmp_path_factory.mktemp("docs") / "home"
    yield folder
    for process in processes_of(folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture(scope="module")
def first(home, tmp_path_factory):
    return pages.run(FIRST, home, tmp_path_factory.mktemp("first"))


def _case(page):
    marks = [pytest.mark.slow] if pages.name_of(page) in SLOW else []
    return pytest.param(page, id=pages.name_of(page), marks=marks)


@pytest.mark.parametrize("page", [_case(page) for page in RUNNABLE])
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(page, home, first, tmp_path, request):
    if pages.name_of(page) in ON_S3:
        make_bucket(request.getfixturevalue("s3"), ON_S3[pages.name_of(page)])
    code, output, problems = first if page == FIRST else pages.run(page, home, tmp_path)
    assert code == 0, f"{pages.name_of(page)}:\n{problems[-3000:]}"
    was = pages.printed(output)
    for line, said in pages.promised(page).items():
        assert pages.agrees(said, was[line]), (
            f"{pages.name_of(page)}, line {line} printed:\n{was[line]}\nThe page says:\n{said}"
        )
    wait_until(lambda: not processes_of(home), what="the end of the processes of the page")


def test_a_page_that_lies_is_noticed():
    assert pages.agrees("a … c\n…\nd\n", "a b c\nx\ny\nd\n")
    assert not pages.agrees("a … c\n", "a b d\n")
    assert not pages.agrees("a\n", "a\nb\n")


def test_few_blocks_are_not_run_and_each_says_why():
    left_out = [(pages.name_of(page), block.not_run) for page in pages.PAGES for block in pages.blocks(page) if block.not_run]
    assert len(left_out) <= 4, left_out
    assert all(len(reason) > 10 for _, reason in left_out)


def test_the_example_of_the_readme_has_at_most_forty_lines():
    lengths = [block.text.count("\n") for block in pages.blocks(FIRST) if block.kind == "python"]
    assert max(lengths) <= 40


@pytest.mark.parametrize("page", generate.pages(), ids=pages.name_of)
def test_generated_parts_are_as_the_code_is_now(page):
    text = page.read_text(encoding="utf-8")
    assert generate.rendered(text) == text, "run `python docs/generate.py`"


def _said() -> dict[str, str]:
    return {pages.name_of(page): page.read_text(encoding="utf-8") for page in pages.PAGES}


def test_every_make_target_that_is_named_exists():
    makefile = (pages.ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {
        (page, target) for page, text in _said().items() for target in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)
    }
    assert named
    assert {target for _, target in named} <= targets, named


def test_every_command_line_that_is_shown_can_be_parsed():
    shown = [
        line
        for page in pages.PAGES
        for block in pages.blocks(page)
        if block.kind == "shell"
        for line in block.text.splitlines()
    ]
    shown += [line for text in _said().values() for line in re.findall(r"`(cloudai (?!\.)[a-z][^`\n\[]*)`", text)]
    commands = [shlex.split(line)[1:] for line in shown if line.startswith("cloudai ")]
    assert len(commands) > 8
    for command in commands:
        cli._parser().parse_args(command)


def test_every_extra_that_is_named_exists():
    extras = tomllib.loads((pages.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {extra for text in _said().values() for extra in re.findall(r"cloudai\[(\w+)\]", text)}
    assert named <= set(extras), named - set(extras)


def test_every_public_name_setting_error_and_command_appears():
    text = "".join(_said().values())
    commands = generate._subparsers(cli._parser())
    names = [*cloudai.__all__, *settings.NAMES, *errors.__all__, *(f"cloudai {command}" for command in commands)]
    assert [name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)] == []


def test_every_dotted_name_that_is_mentioned_exists():
    mentioned = {name for text in _said().values() for name in re.findall(r"`cloudai\.(\w+)", text)}
    rooms = {path.stem for path in (pages.ROOT / "cloudai").iterdir()}
    assert mentioned <= {*dir(cloudai), *rooms}, mentioned - {*dir(cloudai), *rooms}


def test_the_tutorial_has_the_steps_of_the_recipe():
    recipe = (pages.ROOT / "recipes" / "quickstart.py").read_text(encoding="utf-8")
    tutorial = (pages.ROOT / "docs" / "tutorials" / "quickstart.md").read_text(encoding="utf-8")
    done = re.findall(r'heading\("(\d+\. .*)"\)', recipe)
    told = re.findall(r"^## (\d+\. .*)$", tutorial, re.MULTILINE)
    assert done
    assert [step for step, title in zip(done, told, strict=True) if not step.startswith(title)] == []


def test_the_numbers_on_the_pages_are_those_of_the_code():
    limits, router = ServerLimits(), RouterOptions(state=pages.ROOT)
    said = {
        "docs/reference/http.md": [
            f"| `max_body` | {limits.max_body >> 20} MiB |",
            f"| `max_in_flight` | {limits.max_in_flight} requests at once |",
            f"| `timeout` | {limits.timeout:g} s for one request |",
            f"The router takes {router.max_in_flight} requests at once, bodies of {router.max_body >> 20} MiB",
            f"{router.timeout:g} seconds for each",
            f"for up to {router.drain_timeout:g} seconds",
            f"up to {router.max_waiting} requests wait for one within their {router.timeout:g}",
        ],
        "docs/how-to/scale-a-deployment.md": [
            f"Up to {router.max_waiting} requests wait, each within the {router.timeout:g} seconds",
            "a minute by default" if AutoscalingPolicy().downscale_delay == 60 else "another default",
        ],
        "docs/how-to/monitor-drift.md": [f"`min_rows` ({DriftPolicy().min_rows})", "5 minutes by default"],
        "docs/explanation/drift.md": [f"`alarm_rate` ({DriftPolicy().alarm_rate})"],
        "docs/how-to/limit-a-run.md": [f"{RESERVE:g} seconds for its own end"],
        "docs/how-to/survive-preemptions.md": [f"every {Aws.pause:g} s", "at least five minutes", "they have half an hour"],
        "docs/how-to/train-your-own-loop.md": [f"{FailurePolicy().max_failures} times by default"],
        "docs/how-to/keep-artifacts-on-s3.md": [
            f"{Store('memory://x').patience:g} seconds in a notebook, {WORKER_PATIENCE / 60:g} minutes in a worker"
        ],
    }
    pieces = [(page, piece) for page, found in said.items() for piece in found]
    assert (MonitorSpec().every, patience(None, 0.0)) == (300, 300)
    assert [piece for page, piece in pieces if piece not in _said()[page]] == []


def test_every_file_that_the_pages_leave_behind_is_explained(home, first):
    said = _said()["docs/reference/files.md"]
    folders = [home, home / "local", home / "store", *(home / "store" / "runs").iterdir(), *(home / "local" / "jobs").iterdir()]
    names = {path.name.removesuffix("-wal").removesuffix("-shm") for folder in folders for path in folder.iterdir()}
    assert {"log", "exit", "status.json"} < names
    assert {name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)} == set()


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in _anchors(found.read_text(encoding="utf-8")), target


def test_every_page_is_reached_from_the_index():
    index = (pages.ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = {(pages.ROOT / "docs" / target.partition("#")[0]).resolve() for target in re.findall(r"\]\(([^)\s]+)\)", index)}
    unlinked = [p for p in pages.PAGES if (pages.ROOT / "docs") in p.parents and p.parent.name != "adr" and p not in linked]
    assert [pages.name_of(page) for page in unlinked if page.name != "README.md"] == []


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)
def test_nothing_names_a_machine(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.~>])/(?:home|root|work|Users|mnt)/", text)
    assert not re.search(r"\b(?:192\.168|10\.\d+|172\.16)\.\d+\.\d+\b", text)


def test_every_public_class_is_in_the_glossary():
    words = set(re.findall(r"\w+", (pages.ROOT / "docs/reference/glossary.md").read_text()))
    classes = {name for name in cloudai.__all__ if isinstance(getattr(cloudai, name), type)}
    assert classes <= words
