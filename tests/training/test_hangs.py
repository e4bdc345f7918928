"""Workers that hang: by a clock that is handed in, and for real with SIGSTOP and a function that never comes back."""

from __future__ import annotations

import os
import signal
import time

import pytest

import cloudai
from cloudai import errors
from cloudai.drivers.local.driver import LocalDriver
from cloudai.drivers.protocols import Job, Needs
from cloudai.specs.training import FailurePolicy, TrainSpec, Work
from cloudai.training.hangs import HangWatch, Heartbeat, patience
from cloudai.training.limits import Pulse
from tests.conftest import wait_until
from tests.flow import work


def watch(kind="module", hang=None):
    failure = FailurePolicy.of(hang=hang)
    spec = TrainSpec(
        model_name="m", name="m", work=Work(kind=kind), failure=failure, lease=None, store="/nowhere", tracking="none"
    )
    return HangWatch(spec)


def beat(alive, steps=10, slowest=0.5, stepping=True):
    return {"attempt": 1, "beat": {"alive": alive, "steps": steps, "slowest": slowest, "stepping": stepping}}


def silence_until(watch, status, seconds, look=10.0):
    """Look again and again, and return after how many seconds the silence is a hang; None where it never is."""
    now = 1000.0
    watch.look(status(0), now)
    for i in range(1, int(seconds / look) + 1):
        if watch.look(status(i), now + i * look):
            return i * look
    return None


def test_a_worker_that_writes_nothing_hangs_after_five_minutes():
    assert silence_until(watch(), lambda i: beat(7), 3600) == 300
    assert silence_until(watch("function"), lambda i: beat(7), 3600) == 300


def test_a_worker_that_lives_and_does_not_step_hangs_too():
    assert silence_until(watch(), lambda i: beat(i), 3600) == 300
    assert silence_until(watch(), lambda i: beat(i, steps=i), 3600) is None


def test_how_long_a_step_may_take_is_known_from_those_before():
    assert silence_until(watch(), lambda i: beat(i, slowest=60.0), 3600) == 1200
    assert silence_until(watch(hang="30s"), lambda i: beat(i, slowest=60.0), 3600) == 30
    assert patience(None, 0.0) == 300


def test_what_is_no_step_may_take_half_an_hour():
    assert silence_until(watch(hang="30s"), lambda i: beat(i, steps=0), 7200) == 1800
    assert silence_until(watch(hang="30s"), lambda i: beat(i, stepping=False), 7200) == 1800
    assert silence_until(watch(), lambda i: None, 7200) == 1800


def test_a_function_may_compute_as_long_as_it_likes_unless_the_user_says_otherwise():
    assert silence_until(watch("function"), lambda i: beat(i), 10**5) is None
    assert silence_until(watch("function", hang="1m"), lambda i: beat(i), 3600) == 60
    assert silence_until(watch("function", hang="1m"), lambda i: beat(i, steps=0), 10**5) is None


def test_a_supervisor_that_slept_has_not_seen_silence():
    one = watch()
    one.look(beat(7), 1000.0)
    assert not one.look(beat(7), 1000.0 + 8 * 3600)
    assert one.look(beat(7), 1000.0 + 8 * 3600 + 1) == ""


def test_a_worker_of_another_kind_is_left_alone():
    assert silence_until(watch(), lambda i: {"attempt": 1, "step": 4}, 10**5) is None


def test_a_heartbeat_says_how_the_worker_steps():
    beats = []
    pulse = Pulse(time.monotonic)
    heart = Heartbeat(pulse, beats.append, 0.05)
    pulse.beat()
    wait_until(lambda: beats and beats[-1]["steps"] == 1)
    heart.rest()
    wait_until(lambda: not beats[-1]["stepping"])
    heart.close()
    assert [one["alive"] for one in beats] == list(range(1, len(beats) + 1))


@pytest.mark.parametrize("wrong", [0, "0s", "soon", -1])
def test_a_limit_that_means_nothing_is_refused(home, wrong):
    with pytest.raises(errors.SpecError):
        cloudai.train(work.network(), work.data(), hang=wrong)


def test_a_job_that_was_stopped_ends_all_the_same(tmp_path):
    driver = LocalDriver(tmp_path)
    job = Job("still", ("-c", "import time; time.sleep(600)"), needs=Needs())
    driver.submit(job, next(iter(driver.offers(Needs()))), key="still")
    pid = driver.status("still").pid
    os.kill(pid, signal.SIGSTOP)
    begin = time.monotonic()
    driver.cancel("still")
    assert driver.status("still").phase == "cancelled"
    assert time.monotonic() - begin < 9, "it heard of it, and did not have to be killed"


def test_a_stopped_worker_is_noticed_and_comes_back(home):
    run = cloudai.train(work.network(), work.data(), epochs=400, hang="2s", max_failures=1, name="still")
    pid = wait_until(lambda: run.status.checkpoint and run.status.pid, 60, "a checkpoint")
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: run.status.attempt == 2 and run.status.resumed_from, 60, "the second attempt")
    events = [event.what for event in run._ledger.events("run", "still")]
    assert any("the worker hangs: it has written nothing for" in event for event in events), events
    assert run._record.status["attempts"][0]["failure"] is True
    run.cancel()


def test_a_function_that_never_comes_back_leaves_its_stacks_in_the_log(home):
    def stuck(context):
        import time

        context.report({"loss": 1.0})
        context.report({"loss": 1.0})
        time.sleep(600)

    run = cloudai.train(stuck, hang="2s", max_failures=0, name="stuck")
    with pytest.raises(errors.RunFailedError, match="hangs: no step for"):
        run.wait(60, progress=False)
    assert any("in stuck" in line for line in run.logs())
