"""Wrong input: two lines that say what and how to mend it, at once, and nothing left behind."""

from __future__ import annotations

import http.client
import json
import linecache
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch

import cloudai
from cloudai import errors
from cloudai.artifacts.store import Store
from tests.conftest import kill, processes_of, wait_until
from tests.flow import work

ROWS = np.random.default_rng(0).normal(size=(200, 8)).astype("float32")
CLASSES = (ROWS[:, 0] > 0).astype(int)


def cell(name: str, source: str):
    """Define a function as a notebook cell does."""
    file = f"<cell {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names = {"__name__": "__main__", "TABLE": np.zeros((1000, 1000)), "LOCK": threading.Lock()}
    exec(compile(source, file, "exec"), names)
    return names[name]


uses_table = cell("uses_table", "def uses_table(context):\n    return TABLE.sum()\n")
uses_lock = cell("uses_lock", "def uses_lock(context):\n    with LOCK:\n        return None\n")
uses_nothing_known = cell("uses_nothing_known", "def uses_nothing_known(context):\n    return nothing_known\n")


def fits(context):
    return torch.nn.Linear(8, 2)


def network():
    return torch.nn.Linear(8, 2)


def train(data=(ROWS, CLASSES), what=None, **options):
    return cloudai.train(what or network(), data, **options)


HOLED = ROWS.copy()
HOLED[7, 3] = np.nan

AT_ONCE = {
    "unknown driver": (lambda: train(on="lcoal"), errors.NotFoundError, "did you mean 'local'"),
    "unknown option": (lambda: train(epoch=3), errors.SpecError, "did you mean 'epochs'"),
    "option out of range": (lambda: train(epochs=0), errors.SpecError, "epochs=0"),
    "not a name": (lambda: train(name="My Run"), errors.SpecError, "lower-case letters"),
    "too large to carry": (lambda: train(None, uses_table), errors.CaptureError, "‘TABLE’ \\(ndarray, 8 MB\\)"),
    "cannot be carried": (lambda: train(None, uses_lock), errors.CaptureError, "‘LOCK’ \\(lock\\)"),
    "undefined name": (lambda: train(None, uses_nothing_known), errors.CaptureError, "‘nothing_known’ is not defined"),
    "loop option for a function": (lambda: train(None, fits, epochs=3), errors.SpecError, "pass it in config="),
    "no data": (lambda: train(None), errors.SpecError, "pass data="),
    "not trainable": (lambda: train(None, 7), errors.SpecError, "cannot train int"),
    "texts without data": (lambda: train(None, "bert-base"), errors.DataError, "nothing to train on"),
    "no such folder": (lambda: train(None, "./none"), errors.NotFoundError, "no folder './none'"),
    "NaN": (lambda: train((HOLED, CLASSES)), errors.DataError, "the first at \\[7, 3\\]"),
    "wrong dtype": (lambda: train((ROWS.astype(str), CLASSES)), errors.DataError, "give numbers"),
    "lengths": (lambda: train((ROWS, CLASSES[:5])), errors.DataError, "different lengths"),
    "empty": (lambda: train((ROWS[:0], CLASSES[:0])), errors.DataError, "at least one row"),
    "shape": (lambda: train((ROWS[:, :3], CLASSES)), errors.DataError, "rows of shape \\[3\\]"),
    "classes": (lambda: train((ROWS, CLASSES + 5)), errors.DataError, "targets go from 5 to 6"),
    "real targets": (lambda: train((ROWS, CLASSES / 2)), errors.DataError, "loss='mse'"),
    "no GPU": (lambda: train(resources=cloudai.Resources(gpus=64)), errors.PlacementError, "this machine has"),
    "too many cores": (lambda: train(resources=cloudai.Resources(cpus=1e6)), errors.PlacementError, "this machine has"),
    "too much memory": (lambda: train(resources=cloudai.Resources(memory="900TB")), errors.PlacementError, "GiB of memory"),
    "too many workers": (lambda: train(num_workers=512, batch_size=512), errors.PlacementError, "this machine has"),
    "unknown run": (lambda: cloudai.attach("run/nothing"), errors.NotFoundError, "there is no run 'nothing'"),
    "unknown model": (lambda: cloudai.load_model("nothing"), errors.NotFoundError, "there is no model 'nothing'"),
    "nothing to deploy": (lambda: cloudai.deploy(3), errors.SpecError, "give a Model, a Run"),
    "unknown option of deploy": (lambda: cloudai.deploy("m", nme="x"), errors.SpecError, "did you mean 'name'"),
    "no reference": (lambda: cloudai.attach(3), errors.NotFoundError, "3 is no reference"),
    "a policy of one's own": (lambda: cloudai.DriftPolicy(alarm_rate=2), errors.SpecError, "alarm_rate=2"),
    "resources with a wrong word": (lambda: cloudai.Resources(cpu=1), errors.SpecError, "did you mean 'cpus'"),
    "a function that takes no context": (
        lambda: train(None, lambda: None),
        errors.SpecError,
        "cannot be called with a context",
    ),
    "nothing to watch": (lambda: cloudai.monitor("nothing"), errors.NotFoundError, "there is no deployment 'nothing'"),
}


@pytest.mark.parametrize("case", AT_ONCE)
def test_the_error_comes_at_once_and_nothing_is_left(home, case):
    act, kind, message = AT_ONCE[case]
    with pytest.raises(kind, match=message) as caught:
        act()
    assert str(caught.value).split("\n")[1].startswith("Fix: ")
    assert len(str(caught.value).split("\n")) == 2
    assert len(cloudai.costs()) == 0
    assert not processes_of(home)
    assert not (home / "store").exists()


def test_a_plan_says_it_too_and_why_not(home):
    plan = cloudai.plan(network(), (ROWS, CLASSES), resources=cloudai.Resources(gpus=64))
    assert "needs 64 × GPU, this machine has" in plan.explain()
    with pytest.raises(errors.PlacementError, match="needs 64 × GPU"):
        plan.apply()
    with pytest.raises(errors.SpecError, match="comes too late"):
        cloudai.train(plan, seed=3)


@pytest.mark.parametrize("extra", ["torch", "ray"])
def test_a_missing_extra_is_named_with_its_install_line(home, extra):
    """A real interpreter in which the package cannot be found."""
    code = f"""
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == {extra!r} else real(name, *a)
import cloudai
def work(context): return None
try:
    cloudai.train(work, num_workers=2)
except cloudai.errors.MissingExtraError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert extra in out
    assert f'Fix: pip install "cloudai[{"train" if extra == "torch" else "ray"}]"' in out


def test_an_error_in_the_users_function_keeps_its_frames(home):
    def broken(context):
        rows = [1, 2, 3]
        return rows[7]

    run = cloudai.train(broken, name="broken")
    with pytest.raises(errors.RunFailedError, match=r"IndexError: list index out of range") as caught:
        run.wait(60)
    assert "return rows[7]" in caught.value.frames
    assert "cloudai/" not in caught.value.frames
    assert run.status.attempt == 1, "an error that would come again is not tried again"
    with pytest.raises(errors.RunFailedError):
        _ = run.model


def test_a_loss_that_is_not_finite_stops_the_run(home):
    run = cloudai.train(torch.nn.Linear(8, 1), (ROWS * 1e18, ROWS[:, 0] * 1e18), loss="mse", optimizer="sgd", lr=10.0, epochs=5)
    with pytest.raises(errors.RunFailedError, match=r"loss is (nan|inf) at step") as caught:
        run.wait(60)
    assert "learning rate" in caught.value.fix


@pytest.fixture
def with_model(home):
    """A model in the store and in the ledger, as a run leaves it."""
    return work.recorded_model(network(), ROWS, name="small")


@pytest.mark.parametrize("file", ["module.safetensors", "manifest.json", "profile.bin"])
def test_a_tampered_model_is_refused(with_model, file):
    store = Store(with_model.uri)
    data = bytearray(store.read(file))
    data[len(data) // 2] ^= 1
    store.write(file, bytes(data))
    with pytest.raises(errors.IntegrityError, match="not what was recorded"):
        cloudai.load_model("small").verify()
    with pytest.raises(errors.IntegrityError, match="not what was recorded"):
        cloudai.deploy("small")
    assert len(cloudai.costs()) == 0


def test_a_file_too_many_or_too_few_is_refused(with_model):
    store = Store(with_model.uri)
    store.write("extra.py", b"print('run me')")
    with pytest.raises(errors.IntegrityError, match=r"does not belong: 'extra\.py'"):
        cloudai.load_model("small").verify()
    store.remove("extra.py")
    store.remove("profile.bin")
    with pytest.raises(errors.IntegrityError, match=r"lacks the file 'profile\.bin'"):
        cloudai.load_model("small").verify()


def test_a_corrupt_checkpoint_falls_back_to_the_one_before(home):
    calm = cloudai.train(work.network(), work.data(), name="calm", epochs=100).wait(120)
    often = cloudai.CheckpointPolicy(every=0.2)
    run = cloudai.train(work.network(), work.data(), name="hurt", epochs=100, checkpoint=often)
    folder = home / "store/runs/hurt/checkpoints"
    wait_until(lambda: len(list(folder.glob("*/manifest.json"))) == 2, what="two checkpoints")
    while run.status.attempt < 2:  # the last one at the moment of the kill is damaged before the worker is back
        kill(wait_until(lambda: run.refresh() or run.status.pid))
        newest = max(folder.glob("*/rank-0.safetensors"))
        newest.write_bytes(newest.read_bytes()[:100])
        wait_until(lambda: run.refresh() or run.status.attempt > 1)
    run.wait(120)
    assert work.weights(run) == work.weights(calm)
    assert any("going back to the one before" in line for line in run.logs())


def test_a_taken_port_is_an_error_at_once(with_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(errors.SpecError, match=f"the port {port} cannot be used") as caught:
            cloudai.deploy(with_model, port=port)
    assert "another port" in caught.value.fix
    assert len(cloudai.costs()) == 0


def test_wrong_requests(with_model):
    limits = cloudai.ServerLimits(max_body="4kB")
    deployment = cloudai.deploy(with_model, limits=limits).wait(60)
    port = int(deployment.url.rpartition(":")[2])

    def post(body, length=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        token = deployment.token_file.read_text().strip()
        headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
        connection.request("POST", "/v2/models/small/infer", data, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def tensor(**change):
        return {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 8], "data": [0.0] * 8, **change}]}

    assert post(tensor())[0] == 200
    for body, status in [
        (tensor(shape=[1, 7], data=[0.0] * 7), 400),
        (tensor(name="wrong"), 400),
        (tensor(datatype="INT64", data=[0] * 8), 400),
        (tensor(data=[0.0] * 3), 400),
        ({"inputs": []}, 400),
        (b"{", 400),
        (tensor(data=["x"] * 8), 400),
        (b" " * 5000, 413),
    ]:
        found, answer = post(body)
        assert found == status, (body, answer)
        assert answer["error"]
    with pytest.raises(errors.RequestError, match=r"has shape \[2, 3\]"):
        deployment.predict(np.zeros((2, 3)))
    with pytest.raises(errors.RequestError, match="dtype"):
        deployment.predict(np.array([["a"] * 8]))
    with pytest.raises(errors.RequestError, match="no input 'x'"):
        deployment.predict({"x": np.zeros((2, 8))})
    with pytest.raises(errors.RequestError, match=r"too large|limit|bytes"):
        deployment.predict(np.zeros((500, 8)))


def test_columns_are_taken_by_name_or_refused(home):
    frame = pd.DataFrame(ROWS[:, :3], columns=["a", "b", "c"])
    cloudai.train(torch.nn.Linear(3, 2), (frame, CLASSES), model_name="named", epochs=1).wait(60)
    model = cloudai.load_model("named")
    expected = model.predict(frame)
    assert np.array_equal(model.predict(frame[["c", "a", "b"]]), expected)
    deployment = cloudai.deploy(model).wait(60)
    assert np.allclose(deployment.predict(frame[["b", "c", "a"]][:5]), expected[:5], atol=1e-6)
    with pytest.raises(errors.RequestError, match="the column 'c' is missing"):
        model.predict(frame[["a", "b"]])
    with pytest.raises(errors.RequestError, match="not trained on a column 'd'"):
        deployment.predict(frame.assign(d=1.0))
    shifted = frame[["c", "b", "a"]].assign(b=frame["b"] + 1)
    watch = cloudai.monitor(deployment, drift=cloudai.DriftPolicy(min_rows=50))
    assert watch.check(shifted).drifted == ("b",)
    assert watch.check(frame[["b", "a", "c"]]).state == "no drift"


def test_a_canary_must_be_another_model(with_model):
    deployment = cloudai.deploy(with_model).wait(60)
    with pytest.raises(errors.SpecError, match="is the stable revision already"):
        deployment.canary("small")
    with pytest.raises(errors.SpecError, match="cannot deploy int"):
        deployment.canary(3)
    deployment.delete()
    assert deployment.wait(60).phase == "deleted"
    with pytest.raises(errors.NotReadyError, match="'small' is deleted"):
        deployment.predict(ROWS[:1])
    with pytest.raises(errors.NotReadyError, match="is deleted"):
        deployment.canary("small")


def test_leaving_the_process_from_a_function_is_an_error_and_not_a_crash(home):
    def leaves(context):
        raise SystemExit(3)

    run = cloudai.train(leaves, name="leaves")
    with pytest.raises(errors.RunFailedError, match="SystemExit: 3"):
        run.wait(60)
    assert run.status.attempt == 1


def test_two_deployments_of_one_name(with_model):
    cloudai.deploy(with_model)
    with pytest.raises(errors.SpecError, match="there is a deployment 'small' already"):
        cloudai.deploy(with_model)


def test_asking_too_early(home):
    run = cloudai.train(work.network(), work.data(), epochs=1000)
    with pytest.raises(errors.NotReadyError, match=r"run\.wait\(\) first"):
        _ = run.model
    with pytest.raises(errors.NotReadyError, match="is still"):
        run.wait(0.2)
    run.cancel()
    began = time.monotonic()
    with pytest.raises(errors.RunFailedError, match="cancelled"):
        run.wait(30)
    assert time.monotonic() - began < 15
    run.cancel()
