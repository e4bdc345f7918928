"""A router that dies: its port stays open, the next one takes over, and only what it was working on is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time

import psutil
import pytest

from tests.conftest import wait_until
from tests.serving.processes import ask, body_of
from tests.serving.test_router import FACTORS, INFER, Load


@pytest.fixture(scope="module")
def replicas(start_once):
    servers = [start_once.server(name, factor=FACTORS["v1"]) for name in ("v1-a", "v1-b")]
    return [served.wait_until_ready() for served in servers]


@pytest.fixture
def routed(start, replicas):
    """A router before two replicas of one revision."""
    router = start.router()
    router.route({"v1": 100}, {"v1": replicas})
    return router.wait_until_ready()


def next_pid(router, before):
    return wait_until(lambda: (pid := router.state["pid"]) != before and psutil.pid_exists(pid) and pid)


def test_a_killed_router_refuses_nobody(routed):
    with Load(routed.port) as load:
        for _ in range(3):
            before, pid = sum(load.answers.values()), routed.state["pid"]
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            next_pid(routed, pid)
            assert time.monotonic() - killed < 3
            wait_until(lambda before=before: sum(load.answers.values()) > before + 50)
    assert len(load.troubles) <= 3 * 8, "each client had at most one request in flight at each death"
    kinds = {str(trouble).partition("(")[0] for trouble in load.troubles}
    assert kinds <= {"RemoteDisconnected", "ConnectionResetError", "IncompleteRead", "BrokenPipeError"}, kinds
    assert routed.process.poll() is None


def test_while_no_router_is_there_connections_wait(routed):
    pid = routed.state["pid"]
    routed.process.send_signal(signal.SIGSTOP)  # the keeper: nobody takes over
    try:
        os.kill(pid, signal.SIGKILL)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(routed.infer([[2, 0]])))
        asking.start()
        with socket.create_connection(("127.0.0.1", routed.port), timeout=1):
            pass
        asking.join(0.3)
        assert asking.is_alive()
    finally:
        routed.process.send_signal(signal.SIGCONT)
    asking.join(10)
    assert (answers[0].status, answers[0].y) == (200, [4.0])


@pytest.mark.parametrize("to_group", [False, True])
def test_told_to_end_it_drains_once_also_when_its_whole_group_is_told(routed, to_group):
    answers = []
    pending = threading.Thread(target=lambda: answers.append(routed.infer([[1, 0.8]])))
    pending.start()
    wait_until(lambda: b"cloudai_inflight 1.0" in routed.get("/metrics").body)
    child = routed.state["pid"]
    if to_group:
        os.kill(child, signal.SIGTERM)
    routed.terminate()
    wait_until(lambda: not routed.state["ready"])
    routed.terminate()  # by another one who wants it gone
    pending.join()
    assert answers[0].status == 200
    assert routed.exit_code() == 0
    assert not psutil.pid_exists(child)


def test_ctrl_c_after_a_first_signal_ends_both_at_once(routed):
    pending = threading.Thread(target=lambda: _infer_or_not(routed))
    pending.start()
    wait_until(lambda: b"cloudai_inflight 1.0" in routed.get("/metrics").body)
    child = routed.state["pid"]
    routed.terminate()
    wait_until(lambda: not routed.state["ready"])
    routed.process.send_signal(signal.SIGINT)
    assert routed.exit_code(5) == 128 + signal.SIGKILL
    assert not psutil.pid_exists(child)
    pending.join()


def _infer_or_not(router):
    with contextlib.suppress(OSError):
        ask(router.port, "POST", INFER, body_of([[1, 3]]))


def test_one_that_dies_again_and_again_is_given_up(start, tmp_path):
    """Its folder is gone, so that it cannot say where it listens."""
    router = start.router().wait_until_ready()
    pid, deaths = router.state["pid"], 0
    while router.process.poll() is None:
        os.kill(pid, signal.SIGKILL)
        deaths += 1
        pid = wait_until(lambda before=pid: router.process.poll() is not None or _child_of(router.process.pid, before))
    assert router.exit_code() == 128 + signal.SIGKILL
    assert 5 <= deaths <= 6, "the first may have lived long enough"


def _child_of(keeper, before):
    try:
        return next((child.pid for child in psutil.Process(keeper).children() if child.pid != before), None)
    except psutil.NoSuchProcess:
        return None
