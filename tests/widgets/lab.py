"""A real JupyterLab and a real browser for the tests of this room."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import nbformat

from tests.conftest import wait_until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
QUIET = {"@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}}
"""Settings of JupyterLab under which it asks its user nothing."""


class Lab:
    """A JupyterLab server with one notebook, and all of its files in one folder.

    Parameters
    ----------
    folder : Path
        The folder.
    cells : mapping of str to str
        The notebook's cells by id.
    """

    def __init__(self, folder: Path, cells: dict[str, str]) -> None:
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(code, id=name) for name, code in cells.items()],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        (folder / "files").mkdir(parents=True)
        nbformat.write(notebook, folder / "files" / "test.ipynb")
        for name, values in QUIET.items():
            path = folder / "settings" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(values))
        self.folder, self.port = folder, _free_port()
        self.url = f"http://127.0.0.1:{self.port}/lab/tree/test.ipynb?reset"

    def __enter__(self) -> Lab:
        places = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
        places = {f"JUPYTER_{name}": value for name, value in places.items()}
        places |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython"}
        options = [f"--port={self.port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.folder / 'files'}"]
        options += ["--no-browser", "--allow-root", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
        with (self.folder / "lab.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *options],
                env={**os.environ, **{name: str(self.folder / value) for name, value in places.items()}},
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers, what="JupyterLab")
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()  # it ends its kernel
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "lab.log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api", timeout=1):
                return True
        except OSError:
            return False


class Page:
    """The notebook in a browser."""

    def __init__(self, browser, url: str) -> None:
        self.errors: list[str] = []
        self.page = browser.new_page(viewport={"width": 1000, "height": 1300}, device_scale_factor=1.5)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.goto(url)
        self.page.get_by_text("| Idle").wait_for()

    def command(self, name: str, **arguments: str) -> None:
        """Run a command of JupyterLab, as its menu does; do not wait for it."""
        self.page.evaluate("([name, args]) => { window.jupyterapp.commands.execute(name, args) }", [name, arguments])

    def cell(self, index: int):
        """Return a code cell, to look into."""
        return self.page.locator(".jp-CodeCell").nth(index)

    def running(self, index: int) -> bool:
        """Whether a cell runs, or waits for that."""
        return self.cell(index).locator(".jp-InputPrompt").inner_text() == "[*]:"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
