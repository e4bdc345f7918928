"""One side of `overhead`: bare Ray Train. Run: python side_ray.py <digits.npz> <0: its local mode, 1: one worker>."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import ray
import ray.train
import ray.train.torch
import workload


def train_function(config: Mapping[str, str]) -> None:
    first = workload.train(Path(config["data"]), ray.train.torch.prepare_model)
    Path(config["answer"]).write_text(json.dumps({"first_step": first}))


def main(data: Path, workers: int) -> None:
    answer = data.with_name("ray-answer.json")
    answer.unlink(missing_ok=True)
    if workers:
        workload_path = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
        temp = str(data.with_name("ray"))
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, runtime_env=workload_path, _temp_dir=temp)
    trainer = ray.train.torch.TorchTrainer(
        train_function,
        train_loop_config={"data": str(data), "answer": str(answer)},
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
        run_config=ray.train.RunConfig(storage_path=str(data.with_name("ray-results"))),
    )
    trainer.fit()
    if workers:
        ray.shutdown()
    print(answer.read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
