"""The main job: what a user does from training to monitoring, on real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

import cloudai
from cloudai import errors
from cloudai.state import lease
from tests.conftest import kill, wait_until
from tests.flow import work

ROOT = Path(__file__).parents[2]
ROWS = np.random.default_rng(0).normal(size=(400, 8)).astype("float32")
CLASSES = (ROWS[:, 0] > 0).astype(int)


def own_loop(context):
    """A training function of a user's own, with everything that a context offers."""
    module = torch.nn.Linear(8, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=context.config["lr"])
    state = context.restore(module=module, optimizer=optimizer)
    inputs, targets = (torch.from_numpy(context.data[name]) for name in ("inputs", "targets"))
    for epoch in range(state.get("epoch", -1) + 1, context.config["epochs"]):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(inputs), targets)
        loss.backward()
        optimizer.step()
        time.sleep(context.config["pause"])
        context.report({"loss": loss}, step=epoch, checkpoint={"module": module, "optimizer": optimizer, "epoch": epoch})
    return module


def test_a_function_of_ones_own_comes_back_from_its_checkpoint(home):
    config = {"lr": 0.5, "epochs": 30, "pause": 0.05}
    calm = cloudai.train(own_loop, (ROWS, CLASSES), name="calm", config={**config, "pause": 0})
    run = cloudai.train(own_loop, (ROWS, CLASSES), name="own", config=config)
    wait_until(lambda: run.refresh() or (run.status.step or 0) > 8)
    kill(run.status.pid)
    run.wait(60)
    assert run.status.attempt == 2
    assert run.status.resumed_from >= 7
    steps, losses = run.history("loss")
    assert steps == list(range(30)), "no step is missing, none is there twice"
    assert losses == calm.wait(60).history("loss")[1]
    assert not run.exact
    assert "your own function" in run.why_not_exact
    assert np.array_equal(run.model.predict(ROWS), calm.model.predict(ROWS))


def test_a_function_may_make_no_model(home):
    def measures(context):
        context.report({"answer": 42})

    run = cloudai.train(measures, name="measures").wait(60)
    assert run.metrics == {"answer": 42.0}
    with pytest.raises(errors.NotReadyError, match="made no model"):
        _ = run.model


class Scaled(torch.nn.Module):
    """A class of the user's own, which travels with the model."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor
        self.inner = torch.nn.Linear(8, 2)

    def forward(self, rows):
        return self.inner(rows) * self.factor


def test_a_module_of_the_users_class_is_trained_deployed_and_vouched_for(home):
    run = cloudai.train(Scaled(2.0), (ROWS, CLASSES), model_name="scaled", epochs=2).wait(60)
    model = cloudai.load_model("scaled")
    assert model.digest == run.model.digest
    deployment = cloudai.deploy(model).wait(60)
    assert np.allclose(deployment.predict(ROWS[:5]), model.predict(ROWS[:5]), atol=1e-6)
    with pytest.raises(errors.IntegrityError, match="nothing vouches for it"):
        cloudai.Model.open(model.uri).predict(ROWS)


def test_versions_say_what_changed(home):
    first = cloudai.train(work.network(), work.data(), model_name="m", epochs=1).wait(60).model
    same = cloudai.train(work.network(), work.data(), model_name="m", epochs=1).wait(60).model
    inputs, targets = work.data()
    other_data = cloudai.train(work.network(), (inputs[:1000], targets[:1000]), model_name="m", epochs=1).wait(60).model
    other_shape = cloudai.train(torch.nn.Linear(16, 7), work.data(), model_name="m", epochs=1).wait(60).model
    assert [m.version for m in (first, same, other_data, other_shape)] == ["1.0.0", "1.0.1", "1.1.0", "2.0.0"]
    assert cloudai.load_model("m").version == "2.0.0"
    assert cloudai.load_model("m@1.0.1").digest == same.digest
    with pytest.raises(errors.NotFoundError, match="no version '9"):
        cloudai.load_model("m@9.0.0")
    assert work.weights_of(first) == work.weights_of(same), "same seed, data and code: same weights"


def test_a_deployment_from_call_to_end(home):
    model = work.recorded_model(torch.nn.Linear(8, 2), ROWS, name="small")
    deployment = cloudai.deploy(model).wait(60)
    expected = model.predict(ROWS[:3])
    assert np.allclose(deployment.predict(ROWS[:3]), expected, atol=1e-6)
    line = deployment.curl(ROWS[:1])
    answer = json.loads(subprocess.run(line, shell=True, capture_output=True, check=True).stdout)
    assert np.allclose(answer["outputs"][0]["data"], expected[0], atol=1e-6)
    text = _metrics(home, deployment.token_file.read_text().strip())
    assert 'ml_inference_latency_count{instance="127.0.0.1:' in text
    assert 'model_name="small",version="1.0.0"' in text
    assert deployment.metrics()["requests"] == 2

    better = work.recorded_model(torch.nn.Linear(8, 2), ROWS, name="small", run="second")
    deployment.canary(better, percent=30).wait(60)
    assert deployment.traffic == {"v1.0.0": 70, "v1.0.1": 30}
    seen = [tuple(deployment.predict(ROWS[:1])[0]) for _ in range(100)]
    assert 10 < sum(np.allclose(s, better.predict(ROWS[:1])[0], atol=1e-6) for s in seen) < 55
    deployment.canary(percent=0).wait(60)
    assert deployment.traffic == {"v1.0.0": 100}
    deployment.canary(percent=50).promote().wait(60)
    assert deployment.traffic == {"v1.0.1": 100}
    assert np.allclose(deployment.predict(ROWS[:3]), better.predict(ROWS[:3]), atol=1e-6)
    deployment.rollback().wait(60)
    assert np.allclose(deployment.predict(ROWS[:3]), expected, atol=1e-6)
    with pytest.raises(errors.SpecError, match="deploy it under another name"):
        deployment.canary(work.recorded_model(torch.nn.Linear(8, 5), ROWS, name="wide"))
    deployment.delete()
    wait_until(lambda: deployment.refresh() or deployment.ended)
    with pytest.raises(errors.NotReadyError, match="is deleted"):
        deployment.promote()
    assert cloudai.deploy(model).wait(60).traffic == {"v1.0.0": 100}, "the name is free again"


def _metrics(home, token):
    state = json.loads(next((home / "local/deployments").glob("*/revisions/*/*/server.json")).read_text())
    asked = urllib.request.Request(f"http://127.0.0.1:{state['port']}/metrics", headers={"authorization": f"Bearer {token}"})
    return urllib.request.urlopen(asked).read().decode()


def test_a_killed_server_and_a_killed_router_come_back_on_the_same_address(home):
    deployment = cloudai.deploy(work.recorded_model(torch.nn.Linear(8, 2), ROWS, name="small")).wait(60)
    url, expected = deployment.url, deployment.predict(ROWS[:1])
    for victim in ("revision", "router"):
        pids = deployment.revisions[0]["pids"] if victim == "revision" else deployment._record.status["router"]
        kill(pids[0])

        def is_back(before=pids):
            deployment.refresh()
            now = deployment.revisions[0]["pids"] + deployment._record.status["router"]
            return deployment.phase == "ready" and before[0] not in now

        wait_until(is_back, what=f"the {victim}")
        assert deployment.url == url
        assert np.array_equal(deployment.predict(ROWS[:1]), expected)


def test_a_deployment_of_a_run_waits_for_its_model(home):
    run = cloudai.train(torch.nn.Linear(8, 2), (ROWS, CLASSES), epochs=2, model_name="soon")
    deployment = cloudai.deploy(run)
    assert deployment.predict(ROWS[:2]).shape == (2, 2)
    failing = cloudai.train(torch.nn.Linear(8, 1), (ROWS * 1e18, ROWS[:, 0] * 1e18), loss="mse", optimizer="sgd", lr=10.0)
    with pytest.raises(errors.RunFailedError, match="failed and left no model"):
        cloudai.deploy(failing, name="never").wait(60)


def test_leases_end_what_nobody_renews(home):
    """A process trains and deploys with a lease of seconds, and is killed."""
    code = """
    import time, torch, cloudai
    from tests.flow import work
    import numpy as np
    rows = np.zeros((50, 16), "float32")
    cloudai.deploy(work.recorded_model(torch.nn.Linear(16, 4), rows, name="short"), lease="4s").wait(60)
    run = cloudai.train(work.network(), work.data(), name="short", epochs=1_000_000, lease="4s")
    while run.refresh() or run.status.step is None:
        time.sleep(0.05)
    print("up", flush=True)
    time.sleep(600)
    """
    caller = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE)
    assert caller.stdout.readline() == b"up\n"
    assert lease.read(home / "leases/run-short.json") > time.time()
    caller.kill()
    caller.wait()
    from cloudai.state.ledger import open_ledger

    ledger = open_ledger()
    wait_until(lambda: ledger.find("run/short").ended and ledger.find("deployment/short").ended, what="the end of the leases")
    assert "lease has passed" in ledger.find("run/short").status["reason"]
    assert "lease has passed" in ledger.find("deployment/short").status["reason"]
    assert list((home / "store/runs/short/checkpoints").glob("*/manifest.json")), "the last checkpoint stays"


def test_the_supervisor_watches_windows_and_decides(home):
    model = work.recorded_model(torch.nn.Linear(8, 2), ROWS, name="watched")
    deployment = cloudai.deploy(model).wait(60)
    drift = cloudai.DriftPolicy(min_rows=50)
    watch = cloudai.monitor(deployment, every="1s", drift=drift)
    shifted = ROWS.copy()
    shifted[:, 2] += 1.0

    def drifted():
        deployment.predict(shifted)
        watch.refresh()
        return any(decision.kind == "retrain" for decision in watch.decisions)

    wait_until(drifted, what="a decision")
    decision = next(d for d in watch.decisions if d.kind == "retrain")
    assert decision.request == {"verb": "retrain", "features": ["input[2]"]}
    assert sum(d.kind == "retrain" for d in watch.decisions) == 1, "asked for once within the cool-down"
    assert {f.feature for f in watch.findings if f.drifted} <= {"input[2]"}
    assert "retrain" in str(watch)
    other = cloudai.attach("monitor/watched")
    other.stop()
    wait_until(lambda: watch.refresh() or watch.ended)


def test_a_new_process_finds_everything_by_name(home):
    cloudai.train(torch.nn.Linear(8, 2), (ROWS, CLASSES), name="known", epochs=1, model_name="known").wait(60)
    cloudai.deploy("known").wait(60)
    code = """
    import cloudai, numpy as np
    run = cloudai.attach("run/known")
    print(run.phase, sorted(run.metrics), len(run.history("loss")[0]) > 0, run.model.version)
    print(cloudai.attach("deployment/known").predict(np.zeros((1, 8))).shape)
    print([entry.record.ref for entry in cloudai.ps().entries])
    cloudai.cleanup().apply()
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, check=True
    ).stdout
    lines = out.splitlines()
    assert lines[0].startswith("succeeded ['epoch', 'epoch_loss', 'loss', 'val_accuracy', 'val_loss'] True 1.0.0")
    assert lines[1] == "(1, 2)"
    assert lines[2] == "['deployment/known']"
    assert [e.record.ref for e in cloudai.ps().entries] == ["deployment/known"], "this process still holds it"


def test_ctrl_c_stops_the_waiting_and_not_the_run(home):
    code = """
    import signal
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with SIGINT ignored
    import cloudai
    from tests.flow import work
    run = cloudai.train(work.network(), work.data(), name="long", epochs=1_000_000)
    print("waiting", flush=True)
    run.wait()
    print("after", run.ended, flush=True)
    """
    import signal

    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert out == "after False\n"
    assert "cloudai.attach('run/long')" in err
    assert not cloudai.attach("run/long").ended
