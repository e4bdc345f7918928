"""Kill -9 at a random moment: whoever dies, the run succeeds with the weights of an undisturbed one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import cloudai
from cloudai.state.leader import supervisor_pid
from tests.conftest import kill, processes_of, wait_until
from tests.flow import work

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights that a run has which nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code = """
    import cloudai
    from tests.flow import work
    run = cloudai.train(work.network(), work.data(), name="calm", epochs=work.EPOCHS).wait(120)
    assert run.status.attempt == 1 and run.exact
    print(work.weights(run))
    cloudai.cleanup().apply()
    """
    env = {**os.environ, "CLOUDAI_HOME": str(folder), "CLOUDAI_TRACKING": "none"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def train(name: str, epochs: int = work.EPOCHS) -> cloudai.Run:
    return cloudai.train(work.network(), work.data(), name=name, epochs=epochs, lease="5m")


def some_time_into(run: cloudai.Run) -> float:
    """Wait for a random moment after the first step, and return it."""
    wait_until(lambda: run.refresh() or run.status.step is not None, what="the first step")
    delay = random.uniform(0, 1.5)
    time.sleep(delay)
    return delay


def finished(name: str, undisturbed: str, told: str) -> cloudai.Run:
    """Attach by name, as a new process would, and check the outcome."""
    run = cloudai.attach(f"run/{name}").wait(120)
    assert work.weights(run) == undisturbed, told
    return run


def test_the_process_that_called_train(home, undisturbed):
    code = """
    import time, cloudai
    from tests.flow import work
    run = cloudai.train(work.network(), work.data(), name="orphan", epochs=work.EPOCHS)
    print("called", flush=True)
    time.sleep(600)
    """
    caller = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE)
    assert caller.stdout.readline() == b"called\n"
    delay = random.uniform(0, 2.0)
    time.sleep(delay)
    caller.kill()
    caller.wait()
    run = finished("orphan", undisturbed, f"the caller was killed {delay:.3f} s after its call")
    assert run.status.attempt == 1


def test_the_worker(home, undisturbed):
    run = train("worker")
    delay = some_time_into(run)
    kill(run.status.pid)
    run = finished("worker", undisturbed, f"the worker was killed {delay:.3f} s after its first step")
    assert run.status.attempt == 2
    told = [event.what for event in run._ledger.events("run", "worker")]
    assert any("killed by SIGKILL; coming back from" in what for what in told)


def test_the_worker_twice_and_its_whole_tree(home, undisturbed):
    run = train("tree")
    for attempt in (1, 2):
        wait_until(lambda n=attempt: run.refresh() or run._worker.get("attempt") == n, what=f"attempt {attempt}")
        time.sleep(random.uniform(0, 0.8))
        for process in processes_of(home):
            if supervisor_pid(home) != process.pid:
                kill(process.pid)
        wait_until(lambda n=attempt: run.refresh() or run.status.attempt > n or run.ended, what="the next attempt")
    assert finished("tree", undisturbed, "the tree was killed twice").status.attempt == 3


def test_the_supervisor(home, undisturbed):
    run = train("supervisor")
    delay = random.uniform(0, 2.5)
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        kill(supervisor_pid(home) or 0) if supervisor_pid(home) else None
        time.sleep(0.4)
    run = finished("supervisor", undisturbed, f"the supervisor was killed again and again for {delay:.3f} s")
    assert run.status.attempt == 1, "a new supervisor takes over what runs, and starts nothing twice"


def test_everything_at_once(home, undisturbed):
    """A power cut: nothing is left but the disk."""
    code = """
    import time, cloudai
    from tests.flow import work
    cloudai.train(work.network(), work.data(), name="cut", epochs=work.EPOCHS)
    time.sleep(600)
    """
    caller = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT)
    wait_until(lambda: (home / "store/runs/cut/status.json").exists(), what="the worker")
    delay = random.uniform(0, 1.5)
    time.sleep(delay)
    caller.kill()
    caller.wait()
    while left := processes_of(home):
        for process in left:
            kill(process.pid)
    finished("cut", undisturbed, f"everything was killed {delay:.3f} s after the worker's start")


def test_cleanup_leaves_no_process_and_no_port(home):
    run = train("left", epochs=100_000)
    deployed = cloudai.deploy(train("to-deploy", epochs=2), name="left").wait(60)
    some_time_into(run)
    port = int(deployed.url.rpartition(":")[2])
    cloudai.cleanup().apply()
    assert len(cloudai.ps()) == 0
    assert run.refresh() or run.phase == "cancelled"
    assert deployed.refresh() or deployed.phase == "deleted"
    wait_until(lambda: not processes_of(home), what="the end of all processes")
    import socket

    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
