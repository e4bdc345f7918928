"""Addresses: wrong ones are errors at once, and what is right means the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import cloudai
from cloudai.errors import SpecError
from cloudai.tracking import check_address, parse_address
from tests.conftest import ROOT


def train(context):
    context.report({"loss": 1.0}, step=0)


@pytest.mark.parametrize(
    ("address", "what", "fix"),
    [
        ("wanbd://me/p", "no tracker for 'wanbd://me/p'", "did you mean 'wandb'"),
        ("mlruns", "'mlruns' is no address of a tracker", "sqlite:///mlflow.db"),
        ("sqlite://", "names no file", "sqlite:///runs.db"),
        ("sqlite:///:memory:", "names no file", "sqlite:///runs.db"),
        ("wandb://me", "names no project", "wandb://ENTITY/PROJECT"),
        ("wandb://me/p?modus=x", "names no project", "wandb://ENTITY/PROJECT"),
        ("wandb://me/p?mode=disabled", "no mode 'disabled'", "offline"),
    ],
)
def test_a_wrong_address_is_an_error_of_train_and_leaves_nothing(home, monkeypatch, address, what, fix):
    monkeypatch.setenv("CLOUDAI_TRACKING", address)
    with pytest.raises(SpecError, match=what.replace("?", r"\?")) as caught:
        cloudai.train(train)
    assert fix in caught.value.fix
    assert cloudai.ps().entries == []
    assert not (home / "store").exists()


def test_a_relative_database_is_the_same_one_for_every_process(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse_address("sqlite:///runs.db") == f"sqlite:///{tmp_path}/runs.db"
    assert parse_address(f"sqlite+pysqlite:///{tmp_path}/runs.db") == f"sqlite+pysqlite:///{tmp_path}/runs.db"


def test_the_mode_of_wandb_travels_in_the_address(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert parse_address("wandb://me/p") == "wandb://me/p?mode=offline"
    monkeypatch.delenv("WANDB_MODE")
    assert parse_address("wandb://me/p?mode=offline") == "wandb://me/p?mode=offline"


def test_wandb_without_a_key_is_an_error_and_with_one_in_netrc_is_not(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(SpecError, match=r"no key for Weights & Biases at api\.wandb\.ai"):
        check_address("wandb://me/p")
    check_address("wandb://me/p?mode=offline")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password canary-secret\n")
    (tmp_path / "netrc").chmod(0o600)
    check_address("wandb://me/p")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_API_KEY", "canary-secret")
    check_address("wandb://me/p")


HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
import cloudai
try:
    cloudai.train(lambda context: None)
except cloudai.errors.MissingExtraError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("address", "hidden", "extra"),
    [
        ("", "mlflow", "train"),
        ("http://127.0.0.1:1", "mlflow", "train"),
        ("", "sqlalchemy", "train"),
        ("wandb://me/p", "wandb", "wandb"),
    ],
)
def test_a_package_that_is_not_installed_is_an_error_of_train(home, address, hidden, extra):
    env = os.environ | {"CLOUDAI_TRACKING": address}
    command = [sys.executable, "-c", HIDE.format(hidden={hidden})]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"needs {hidden}, which is not installed" in done.stdout
    assert f'Fix: pip install "cloudai[{extra}]"' in done.stdout


def test_importing_the_registry_brings_no_tracker():
    code = "import sys, cloudai.tracking; print({'mlflow', 'wandb', 'importlib.metadata'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"
