"""MLflow's database on SQLite: made whole or not at all, whoever makes it, and whoever is killed meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from cloudai.tracking.mlflow import _make_database
from tests.conftest import ROOT, wait_until
from tests.tracking.conftest import mlflow_client

MAKE = "import sys; from cloudai.tracking.mlflow import _make_database; _make_database(sys.argv[1])"


@pytest.mark.slow
def test_many_may_make_it_at_once_and_one_who_is_killed_leaves_nothing_half(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    makers = [subprocess.Popen([sys.executable, "-c", MAKE, uri], cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(3)]
    wait_until(lambda: list(tmp_path.glob(".mlflow.db.*.tmp")), timeout=60)
    assert not (tmp_path / "mlflow.db").exists()
    makers[0].kill()
    assert [maker.wait(120) for maker in makers] == [-9, 0, 0]
    client = mlflow_client(uri)
    client.create_run(client.create_experiment("whole"))
    assert (tmp_path / "mlflow.db").stat().st_mode & 0o077 == 0


def test_what_one_who_was_killed_left_is_removed_after_a_while(tmp_path, template):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "mlflow.db").write_bytes(template.read_bytes())
    old, new = tmp_path / ".mlflow.db.old.tmp", tmp_path / ".mlflow.db.new.tmp-journal"
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    _make_database(uri)
    assert (old.exists(), new.exists()) == (False, True)
