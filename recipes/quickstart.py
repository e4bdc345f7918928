"""The main job, end to end, on this machine: plan, train, deploy, roll out, monitor, clean up. Run: make quickstart."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import torch
from sklearn.datasets import load_digits

import cloudai

EPOCHS = 60
PRICE = 0.05  # what an hour of this machine costs, in USD: your figure; without one, costs are shown as not counted


def heading(text: str) -> None:
    print(f"\n── {text} " + "─" * max(0, 100 - len(text)))


def network(width: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(width, 10))


def kill_once(run: cloudai.Run) -> None:
    """Kill the worker, as a failing machine would, as soon as there is a checkpoint to come back to."""
    while run.status.pid is None or run.status.checkpoint is None:
        time.sleep(0.05)
        run.refresh()
    os.kill(run.status.pid, signal.SIGKILL)
    print(f"killed the worker (process {run.status.pid}) at step {run.status.step}")


def main() -> None:
    cloudai.settings.configure(local_price_per_hour=PRICE)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    train_rows, fresh_rows = order[:1200], order[1200:]
    data = (digits.data[train_rows], digits.target[train_rows])
    fresh = digits.data[fresh_rows].astype("float32")

    heading("1. Plan: where, how long, how much, and why not elsewhere")
    torch.manual_seed(0)
    plan = cloudai.plan(network(64), data, model_name="digits", epochs=EPOCHS, lr=3e-3, seed=0)
    print(plan)

    heading("2. Train; the worker is killed once and comes back by itself")
    run = cloudai.train(plan)
    kill_once(run)
    run.wait()
    print(run)
    print(f"its parameters, metrics and model are in MLflow: mlflow ui --backend-store-uri {run.spec.tracking}")

    heading("3. The model: versioned, hashed, verified")
    model = cloudai.load_model(f"digits@{run.model.version}").verify()
    print(model)
    accuracy = (model.predict(fresh).argmax(axis=1) == digits.target[fresh_rows]).mean()
    print(f"accuracy on {len(fresh)} rows that it has not seen: {accuracy:.3f}")

    heading("4. Deploy it as a service")
    deployment = cloudai.deploy(model, name="digits").wait()
    print("predicted:", deployment.predict(fresh[:8]).argmax(axis=1), " true:", digits.target[fresh_rows][:8])
    print("the same from a shell:\n  " + deployment.curl(fresh[:1]))

    heading("5. A second version: canary, promote, roll back")
    torch.manual_seed(1)
    second = cloudai.train(network(96), data, model_name="digits", epochs=EPOCHS // 2, lr=3e-3, seed=1).wait()
    for act in (lambda: deployment.canary(second, percent=20), deployment.promote, deployment.rollback):
        act().wait()
        print("traffic:", deployment.traffic)

    heading("6. Monitor: find a drift, and leave what has not drifted alone")
    watch = cloudai.monitor(deployment, every="1m", drift=cloudai.DriftPolicy(alarm_rate=0.01))
    rng = np.random.default_rng(0)
    windows = 100
    alarms = sum(watch.check(fresh[rng.choice(len(fresh), 400, replace=False)]).state == "drift" for _ in range(windows))
    print(f"{windows} windows without drift: {alarms} alarms, at most {watch.spec.drift.alarm_rate:.0%} of them stated")
    moved = [20, 34, 43]
    shifted = fresh.copy()
    shifted[:, moved] += 0.3 * digits.data[train_rows].std(axis=0)[moved]
    deployment.predict(shifted)
    report = watch.check()
    print(report)
    print(watch.decide(report))
    watch.stop()

    heading("7. What it cost, what is alive, and the end of it")
    print(cloudai.costs())
    print(cloudai.ps())
    print(cloudai.cleanup())
    cloudai.cleanup().apply()
    print(cloudai.ps())
    found = {f"input[{i}]" for i in moved}
    assert set(report.drifted) == found, f"found {report.drifted}, the shift was in {found}"
    assert alarms <= 5, f"{alarms} false alarms in {windows} windows"
    assert run.status.attempt == 2, "the run came back once"
    assert not len(cloudai.ps()), "nothing is left"


if __name__ == "__main__":
    main()
