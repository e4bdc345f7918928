"""Canary secrets lie where real ones do; after a whole life of a model they are searched for in everything that was kept."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExecutePreprocessor

from tests.conftest import processes_of, wait_until

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "canary1/AwsSecret+42",
    "MLFLOW_TRACKING_PASSWORD": "canary2-mlflow-42",
    "WANDB_API_KEY": "canary3wandb42canary3wandb42",
    "PGPASSWORD": "canary4 pg 'quoted' 42",
}
GIVEN = {"captured": "canary5-captured-42", "config": "canary6-config-42", "url": "canary7-url-42"}
CANARIES = [*ENVIRONMENT.values(), *GIVEN.values()]

CELLS = [
    """
import os, time
import numpy as np, torch, cloudai
rows = np.random.default_rng(0).normal(size=(80, 3)).astype("float32")
classes = (rows[:, 0] > 0).astype(int)

def refused(act):
    try:
        act()
        print("NOT REFUSED")
    except cloudai.errors.CloudAIError as error:
        print(type(error).__name__, error)
""",
    f"""
api_key = {GIVEN["captured"]!r}; where = api_key

def leaky(context):
    return torch.nn.Linear(3, 2) if api_key else None

refused(lambda: cloudai.train(leaky, (rows, classes)))
refused(lambda: cloudai.plan(leaky, (rows, classes)))
""",
    f"""
def honest(context):
    module = torch.nn.Linear(3, 2)
    print("printed", os.environ["WANDB_API_KEY"])
    context.report({{"loss": 0.5}}, checkpoint={{"module": module}})
    return module

class Secretive(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.access_token = torch.nn.Linear(3, 2), {GIVEN["config"]!r}
    def forward(self, x):
        return self.inner(x)

refused(lambda: cloudai.train(honest, (rows, classes), config={{"deep": [{{"token": {GIVEN["config"]!r}}}]}}))
refused(lambda: cloudai.train(honest, (rows, classes), config={{"note": "x" + os.environ["AWS_SECRET_ACCESS_KEY"]}}))
refused(lambda: cloudai.train(Secretive(), (rows, classes)))
""",
    f"""
url = "://me:{GIVEN["url"]}@127.0.0.1:1/x"
refused(lambda: cloudai.settings.configure(store="s3" + url))
refused(lambda: cloudai.settings.configure(tracking="http" + url))
refused(lambda: cloudai.train(torch.nn.Linear(3, 2), "https" + url))
refused(lambda: cloudai.load_model("s3" + url))
refused(lambda: cloudai.Model.open("https" + url))
""",
    """
def failing(context):
    raise ValueError("cannot log in with " + os.environ["MLFLOW_TRACKING_PASSWORD"] + " or " + os.environ["PGPASSWORD"])

bad = cloudai.train(failing, (rows, classes), name="bad")
refused(bad.wait)
print(*bad.logs(), sep="\\n")
bad
""",
    """
print(cloudai.plan(honest, (rows, classes)))
run = cloudai.train(honest, (rows, classes), name="good", model_name="m", config={"tokenizer": "wordpiece-large-42"}).wait()
print(*run.logs(), sep="\\n")
run
""",
    """
deployment = cloudai.deploy(run).wait()
deployment.predict(rows)
print(deployment.curl(rows[:1]), repr(deployment), deployment.metrics())
deployment
""",
    """
watch = cloudai.monitor(deployment, every="1s")
end = time.monotonic() + 60
while not watch.reports and time.monotonic() < end:
    deployment.predict(rows); time.sleep(0.2); watch.refresh()
print(repr(watch), repr(run), repr(run.model), repr(watch.check(rows)))
watch
""",
    "cloudai.settings.current()",
    "cloudai.ps()",
    "cloudai.costs()",
    "run.model",
    "print('TOKEN FILE', deployment.token_file); print('COMMANDS'); print(os.popen('ps axww -o args').read())",
]
LAST = "cloudai.cleanup().apply()"


def pieces(path: Path):
    """Yield what is in a file, also inside of archives and as a database tells it."""
    data = path.read_bytes()
    yield str(path), data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from ((f"{path}!{name}", archive.read(name)) for name in archive.namelist())
    if data.startswith(b"SQLite format 3"):
        with sqlite3.connect(path) as db:
            yield f"{path} as SQL", "\n".join(db.iterdump()).encode()


def forms(secret: str) -> set[bytes]:
    from urllib.parse import quote

    return {form.encode() for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe=""))}


def where_found(secret: str, places) -> list[str]:
    return sorted(where for where, data in places if any(form in data for form in forms(secret)))


@pytest.mark.timeout(400)
def test_no_canary_is_found_anywhere(home, tmp_path, monkeypatch):
    env = os.environ | ENVIRONMENT | {"CLOUDAI_TRACKING": "", "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython")}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in [*CELLS, LAST]])
    outputs, token = run_notebook(notebook, tmp_path, home)
    places = [*outputs, *(piece for path in home.rglob("*") if path.is_file() for piece in pieces(path))]
    for secret in [*CANARIES, token]:
        assert where_found(secret, places) == [], secret
    joined = outputs[0][1]
    assert b"NOT REFUSED" not in joined
    assert joined.count(b"CaptureError ") == 2
    assert b"looks like a secret" in joined
    assert b"wordpiece-large-42" in b"".join(data for _, data in places), "the search finds what is kept"
    assert b"cannot log in with [redacted: $MLFLOW_TRACKING_PASSWORD] or [redacted: $PGPASSWORD]" in joined
    assert b"printed [redacted: $WANDB_API_KEY]" in joined


def run_notebook(notebook, folder, home):
    """Execute it; return its outputs, as text, JSON and page, what is on the disk before the end, and the token."""
    *_, last = notebook.cells
    before = {}

    class Looks(ExecutePreprocessor):
        def preprocess_cell(self, cell, resources, index):
            if cell is last:  # what goes with the end must hold none either
                for path in home.rglob("*"):
                    if path.is_file() and "tokens" not in path.parts:
                        before.update(pieces(path))
                before["token"] = next((home / "tokens").iterdir()).read_bytes()
            return super().preprocess_cell(cell, resources, index)

    Looks(timeout=200, kernel_name="python3").preprocess(notebook, {"metadata": {"path": str(folder)}})
    wait_until(lambda: not processes_of(home), timeout=60, what="the end of all processes")
    token = before.pop("token").decode().strip()
    for cell in notebook.cells:
        cell.source = ""  # the user's own words hold the captured ones
    page, _ = HTMLExporter().from_notebook_node(notebook)
    return [("outputs", json.dumps(notebook).encode()), ("page", page.encode()), *before.items()], token


def test_the_search_would_find_one(tmp_path):
    """In a file, in an archive, in a database and in the words of JSON."""
    secret = ENVIRONMENT["PGPASSWORD"]
    (tmp_path / "log").write_text(f"x{secret}y")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("code.py", repr(secret))
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute("CREATE TABLE t (x)")
        db.execute("INSERT INTO t VALUES (?)", (json.dumps({"a": secret}),))
    found = where_found(secret, [piece for path in tmp_path.iterdir() for piece in pieces(path)])
    assert {str(tmp_path / "log"), f"{tmp_path / 'a.zip'}!code.py", f"{tmp_path / 'db'}"} <= set(found)
