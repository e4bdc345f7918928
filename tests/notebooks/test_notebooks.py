"""The notebooks run from top to bottom, survive the end of their kernel, and read well as text and as HTML."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from tests.conftest import processes_of

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
QUICKSTART = NOTEBOOKS[0]
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    """Return a function that copies a notebook into a folder of its own; what it started there is killed in the end."""
    folders = []

    def copy(notebook: Path) -> Path:
        folder = tmp_path_factory.mktemp(notebook.stem)
        folders.append(folder)
        return Path(shutil.copy(notebook, folder))

    yield copy
    for folder in folders:
        for process in processes_of(folder / ".cloudai"):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def environment(folder: Path) -> dict[str, str]:
    """The environment without our settings, and with Jupyter's and IPython's files in a folder of their own."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDAI_")}
    return {**ours, "IPYTHONDIR": str(folder / "ipython"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}


@pytest.fixture(scope="module")
def in_nbval(visit):
    """Each notebook on its way through ``pytest --nbval-lax``, beside the tests that need no core of their own."""
    started = {}
    for notebook in NOTEBOOKS:
        copy = visit(notebook)
        command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", copy.name]
        process = subprocess.Popen(
            command, cwd=copy.parent, env=environment(copy.parent), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started[notebook] = process, copy.parent
    yield started
    for process, _ in started.values():
        process.kill()
        process.communicate()


class Visit:
    """A notebook executed cell by cell, in one kernel after another."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.notebook = nbformat.read(path, as_version=4)
        self._client = self._new_client()

    def _new_client(self) -> NotebookClient:
        client = NotebookClient(self.notebook, timeout=120, resources={"metadata": {"path": str(self.folder)}})
        client.store_widget_state = False  # as JupyterLab saves notebooks
        client.km = KernelManager(kernel_name="python3")
        client.start_new_kernel(env=environment(self.folder), cwd=str(self.folder))
        client.start_new_kernel_client()
        return client

    def restart(self) -> None:
        """Kill the kernel as the machine's failure would, and start a fresh one."""
        process = self._client.km.provisioner.process
        process.kill()
        process.wait(10)
        self._client.kc.stop_channels()
        self._client = self._new_client()

    def run(self, first: str, last: str) -> None:
        """Execute the cells from one id to another."""
        ids = [cell.id for cell in self.notebook.cells]
        for index in range(ids.index(first), ids.index(last) + 1):
            self._client.execute_cell(self.notebook.cells[index], index)

    def run_code(self, code: str) -> str:
        """Execute a line that is not in the notebook, and return what it prints."""
        cell = nbformat.v4.new_code_cell(code)
        self.notebook.cells.append(cell)
        self._client.execute_cell(cell, len(self.notebook.cells) - 1)
        self.notebook.cells.pop()
        return "".join(output.get("text", "") for output in cell.outputs)

    def shown(self, name: str) -> dict[str, str]:
        """What the first displayed object of a cell gave to show itself."""
        [cell] = [cell for cell in self.notebook.cells if cell.id == name]
        return next(output.data for output in cell.outputs if output.output_type in ("execute_result", "display_data"))

    def close(self) -> None:
        self._client.km.shutdown_kernel(now=True)
        self._client.kc.stop_channels()


@pytest.fixture(scope="module")
def resumed(visit, in_nbval):
    """The quickstart, whose kernel was killed in the middle of the training."""
    notebook = Visit(visit(QUICKSTART))
    notebook.run("setup", "train")
    notebook.run_code("while run.status.attempt < 2: time.sleep(0.1)")
    [name] = re.findall(r"cloudai\.attach\('(run/[^']+)'\)", notebook.shown("train")["text/plain"])
    notebook.restart()
    notebook.run("setup", "setup")
    notebook.run("data", "data")
    notebook.run_code(f"run = cloudai.attach({name!r})")
    notebook.run("attach", "check")
    yield notebook
    notebook.close()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert "widgets" not in notebook.metadata
    assert all(re.fullmatch("[a-z-]+", cell.id) for cell in notebook.cells), "ids say what a cell is for and stay as they are"


def test_a_fresh_kernel_goes_on_where_the_killed_one_was(resumed):
    assert resumed.run_code("print(run.phase, run.status.attempt, run.exact)") == "succeeded 2 True\n"
    assert resumed.run_code("print(cloudai.attach('deployment/digits').phase)") == "deleted\n"


def test_every_displayed_object_has_plain_text(resumed):
    displayed = [
        (cell.id, output.data)
        for cell in resumed.notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type in ("execute_result", "display_data")
    ]
    assert {"plan", "train", "wait", "model", "deploy", "second", "drift", "decide", "costs", "ps"} <= {
        name for name, _ in displayed
    }
    for name, data in displayed:
        text = data["text/plain"]
        assert text.strip(), name
        assert not re.search(r"<\w+ object at|VBox\(|Box\(", text), f"{name} shows {text}"


@pytest.mark.parametrize("name", ["train", "second"])
def test_widgets_bring_their_card_for_readers_without_widgets(resumed, name):
    data = resumed.shown(name)
    assert WIDGET in data
    assert "brings it back" in data["text/plain"]
    assert "<table>" in data["text/html"]


def test_as_html_it_has_the_tables_the_curve_and_the_words(resumed):
    html, _ = HTMLExporter().from_notebook_node(resumed.notebook)
    seen = re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)
    assert seen.count("<table") > 10
    assert re.search(r'<svg aria-label="loss: [^"]+ over step [^"]+"[^>]*>\s*<polyline', seen)
    words = ["Why not", "succeeded", "bit for bit", "float32[n, 64]", "canary", "input[20]", "retrain", "Alive: nothing"]
    assert not [word for word in words if word.lower() not in seen.lower()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_passes_nbval_and_leaves_nothing_behind(in_nbval, path):
    process, folder = in_nbval[path]
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert [process.cmdline() for process in processes_of(folder / ".cloudai")] == []


def test_it_can_be_visited_again(resumed):
    resumed.run("setup", "attach")
    resumed.run("deploy", "predict")
    resumed.run("cleanup", "cleanup")
    assert "Alive: nothing" in resumed.shown("cleanup")["text/plain"]
