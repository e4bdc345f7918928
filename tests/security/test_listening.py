"""What listens, and where: all that a train, a deploy and a monitor start."""

from __future__ import annotations

import contextlib
import subprocess
import urllib.error
import urllib.request

import numpy as np
import psutil
import pytest
import torch

import cloudai
from tests.conftest import processes_of, wait_until

ROWS = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
CLASSES = (ROWS[:, 0] > 0).astype(int)


def listening(processes) -> set[tuple[str, int]]:
    """Return the addresses that processes listen on: TCP, and UDP sockets that anybody may send to."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                bound_udp = connection.status == psutil.CONN_NONE and connection.laddr and not connection.raddr
                if connection.status == psutil.CONN_LISTEN or bound_udp:
                    found.add((connection.laddr.ip, connection.laddr.port))
    return found


def test_only_on_this_machine_and_only_with_the_token(home, monkeypatch):
    monkeypatch.setenv("CLOUDAI_TRACKING", "")  # MLflow on SQLite: no server
    before = listening([psutil.Process()])
    seen = set()
    run = cloudai.train(torch.nn.Linear(3, 2), (ROWS, CLASSES), model_name="small", epochs=200)
    while not run.ended:
        seen |= listening(processes_of(home))
        run.refresh()
    assert run.phase == "succeeded", run.status.reason
    assert seen == set(), "training with one worker listens nowhere"
    deployment = cloudai.deploy(run.model).wait(100)
    cloudai.monitor(deployment, every="1s")
    deployment.predict(ROWS[:2])
    addresses = listening(processes_of(home))
    assert {ip for ip, _ in addresses} == {"127.0.0.1"}
    assert len(addresses) == 2, "a router and a server"
    for _, port in addresses:
        for path in ("/metrics", "/v2", "/v2/models/small", "/internal/flush"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}")
    assert listening([psutil.Process()]) == before, "nothing listens in the kernel"
    with pytest.raises(Exception, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.2:{next(iter(addresses))[1]}/v2/health/live")
    old = deployment.token_file.read_text()
    deployment.rotate_token()
    assert deployment.token_file.read_text() != old
    assert deployment.predict(ROWS[:2]).shape == (2, 2)
    assert deployment.metrics()["requests"] == 2
    words = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    assert old.strip() not in words
    deployment.delete()
    wait_until(lambda: deployment.refresh() or deployment.ended)
    assert not deployment.token_file.exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ray_listens_further_and_asks_for_its_token(home):
    """What the page on security says of several workers; should this fail, one of both has become better."""
    pytest.importorskip("ray")
    run = cloudai.train(torch.nn.Linear(3, 2), (ROWS, CLASSES), model_name="two", epochs=100_000, num_workers=2)
    wait_until(lambda: run.refresh() or (run.status.step or 0) > 1 or run.ended, timeout=200, what="the first step")
    assert not run.ended, run.status.reason
    ours = {process.pid: process for process in processes_of(home)}
    for process in list(ours.values()):
        with contextlib.suppress(psutil.Error):
            ours |= {child.pid: child for child in process.children(recursive=True)}
    addresses = listening(ours.values())
    beyond = {ip for ip, _ in addresses} - {"127.0.0.1", "::1"}
    assert beyond, "Ray listens on every interface"
    ports = {port for ip, port in addresses if ip not in ("127.0.0.1", "::1")}
    for port in ports:
        with pytest.raises((OSError, urllib.error.HTTPError, Exception)) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=3)
        assert getattr(caught.value, "code", 401) in (401, 403, 404), port
    run.cancel()
    wait_until(lambda: run.refresh() or run.ended, timeout=100, what="the end")
