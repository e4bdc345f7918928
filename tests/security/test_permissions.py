"""What cloudai writes is the user's alone, whatever the umask; and it is not led astray where others may write."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cloudai.artifacts.store import Store
from cloudai.files import append_to, private_folder, replace_file
from cloudai.state.ledger import Ledger
from tests.conftest import processes_of, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_all_of_a_home_is_private_under_an_open_umask(home):
    """Also where the home was there already, open to everybody: then each thing in it must be closed."""
    home.mkdir()
    home.chmod(0o777)
    code = """
    import os
    os.umask(0)
    import numpy as np, torch, cloudai
    rows = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
    run = cloudai.train(torch.nn.Linear(3, 2), (rows, (rows[:, 0] > 0).astype(int)), epochs=1, model_name="m").wait(100)
    deployment = cloudai.deploy(run.model).wait(100)
    deployment.predict(rows[:2])
    cloudai.monitor(deployment, every="1s")
    print(deployment.token_file)
    """
    env = os.environ | {"CLOUDAI_TRACKING": ""}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    entries = {path.name: rights(path) for path in home.iterdir()}
    assert {"ledger.sqlite", "store", "local", "leases", "tokens", "supervisor.log", "mlflow.db"} <= entries.keys()
    assert {name: oct(mode) for name, mode in entries.items() if mode & 0o077} == {}
    inside = [path for path in home.rglob("*") if path.exists() and "__pycache__" not in str(path)]
    assert [str(path) for path in inside if path.is_dir() and rights(path) & 0o077] == []
    token = Path(done.stdout.strip())
    assert rights(token) == 0o600
    for kind in ("log", "command.json", "*.safetensors", "*.json"):
        loose = [path for path in inside if path.match(kind) and path.is_file() and rights(path) & 0o077]
        assert loose == [], kind
    for process in processes_of(home):
        process.kill()
    wait_until(lambda: not processes_of(home))


def test_folders_and_files_under_an_open_umask(tmp_path, open_umask):
    private_folder(tmp_path / "a/b/c")
    replace_file(tmp_path / "a/b/c/file", b"x")
    append_to(tmp_path / "a/log").close()
    Ledger(tmp_path / "h/ledger.sqlite").create("run", "r", {}, {})
    store = Store(str(tmp_path / "store"))
    store.write("x/y", b"")
    store.create("x/z", b"")
    for path in tmp_path.rglob("*"):
        assert rights(path) & 0o077 == 0, path
    assert (tmp_path / "h/ledger.sqlite-wal").exists()


def test_a_folder_that_is_shared_with_a_group_stays_shared(tmp_path):
    before = os.umask(0o077)
    try:
        team = tmp_path / "team"
        team.mkdir()
        team.chmod(0o2770)
        store = Store(str(team))
        store.write("models/m/file", b"x")
        store.create("models/m/claim", b"x")
        for path in team.rglob("*"):
            assert rights(path) & 0o777 == (0o770 if path.is_dir() else 0o660)
    finally:
        os.umask(before)


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "log").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        append_to(tmp_path / "log")
    (tmp_path / "file").symlink_to(victim)
    replace_file(tmp_path / "file", b"ours")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "file").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_home_of_another_user_is_refused(home, tmp_path):
    """In /tmp anybody can make the folder first."""
    import cloudai
    from cloudai.errors import CloudAIError

    home.mkdir()
    os.chown(home, 12345, 12345)
    with pytest.raises(CloudAIError, match="belongs to another user") as caught:
        cloudai.ps()
    assert "CLOUDAI_HOME" in caught.value.fix
