"""Two users with a home each share one ledger: each sees everything, and each ends only what is their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.conftest import processes_of, wait_until

ROOT = Path(__file__).parents[2]
USER = """
import sys
import cloudai
from tests.flow import work

name = sys.argv[1]
run = cloudai.train(work.network(), work.data(), name=name, epochs=1_000_000)
while run.refresh() or run.status.step is None:
    run.status
print("trains", flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
"""


class User:
    def __init__(self, name, home, url):
        self.name, self.home = name, home
        env = {**os.environ, "CLOUDAI_HOME": str(home), "CLOUDAI_LEDGER": url, "LOGNAME": name, "COLUMNS": "200"}
        argv = [sys.executable, "-c", textwrap.dedent(USER), name]
        self.process = subprocess.Popen(argv, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def says(self):
        return self.process.stdout.readline().strip()

    def ask(self, question):
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self.says()


@pytest.fixture
def users(home, postgres, tmp_path):
    url = postgres.database()
    both = [User(name, tmp_path / name, url) for name in ("ada", "bob")]
    yield both
    for user in both:
        user.process.kill()
        user.process.wait()
        while left := processes_of(user.home):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def test_two_users_with_two_homes_and_one_ledger(users):
    ada, bob = users
    assert [user.says() for user in users] == ["trains"] * 2
    for user in users:
        listed = user.ask("{e.record.ref: e.record.owner.split('@')[0] for e in cloudai.ps().entries}")
        assert eval(listed) == {"run/ada": "ada", "run/bob": "bob"}
        assert user.ask("'owner' in str(cloudai.ps()) and 'ada@' in str(cloudai.ps())") == "True"
        assert user.ask("[e.record.name for e in cloudai.cleanup().entries]") == f"['{user.name}']"
    assert bob.ask("cloudai.attach('run/ada').status.step is not None") == "True", "what one trains, the other can watch"
    assert eval(ada.ask("[e.record.name for e in cloudai.cleanup().apply().entries]")) == ["ada"]
    wait_until(lambda: not workers(ada), what="the end of ada's processes")
    assert bob.ask("cloudai.attach('run/ada').phase") == "cancelled"
    assert bob.ask("run.refresh() or run.phase") == "running"
    assert eval(bob.ask("[e.record.name for e in cloudai.cleanup().apply().entries]")) == ["bob"]
    wait_until(lambda: not workers(bob), what="the end of bob's processes")
    assert not (ada.home / "ledger.sqlite").exists()


def workers(user):
    """The processes of a home, the user's own apart: workers and the supervisor."""
    return [process for process in processes_of(user.home) if process.pid != user.process.pid]
