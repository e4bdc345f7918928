"""One side of `bert_large`, in a process of its own; prints what it found as one JSON object.

Run: python side_bert.py cloudai <workload> <device> <seconds>, or trainer <workload> <device> <seconds> <rows at once>.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import cloudai


def by_cloudai(workload: str, device: str, seconds: str) -> dict[str, Any]:
    """Measure as users do: in a worker, by the product's loop."""
    bench = cloudai.benchmark(workload, device=device, seconds=float(seconds), lease="1h")  # type: ignore[arg-type]
    try:
        return bench.wait(900, progress=False).result.measurement.model_dump()
    finally:
        cloudai.cleanup().apply()


def by_trainer(workload: str, device: str, seconds: str, at_once: str) -> dict[str, Any]:
    """Measure the Trainer as it is tuned for speed: one pass of the optimiser over memory, nothing logged, nothing saved."""
    import torch
    import transformers

    from cloudai.benchmarking import machine
    from cloudai.benchmarking.modules import build, operations, random_rows
    from cloudai.benchmarking.timing import StepTimes, rate
    from cloudai.benchmarking.workloads import find_workload
    from cloudai.training.devices import uses_bfloat16
    from cloudai.training.hardware import peak_of

    chosen, place = find_workload(workload), torch.device("cuda" if device == "gpu" else "cpu")
    bfloat16 = uses_bfloat16(chosen.precision, place)
    finder = build(chosen)
    times = StepTimes(place, float(seconds))

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self._ids = random_rows(chosen, 1024)

        def __len__(self) -> int:
            return chosen.features

        def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
            ends = torch.randint(chosen.length, (2,)).sort().values
            return {"input_ids": self._ids[number % 1024], "start_positions": ends[0], "end_positions": ends[1]}

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            control.should_training_stop = times.mark(state.global_step * chosen.batch_size)

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=int(at_once),
            gradient_accumulation_steps=chosen.batch_size // int(at_once),
            num_train_epochs=chosen.epochs,
            learning_rate=chosen.lr,
            lr_scheduler_type=chosen.lr_schedule,
            warmup_steps=chosen.warmup,
            weight_decay=chosen.weight_decay,
            max_grad_norm=chosen.max_grad_norm or 0.0,
            optim="adamw_torch_fused",
            bf16=bfloat16,
            use_cpu=device == "cpu",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        transformers.Trainer(finder.model, arguments, train_dataset=Rows(), callbacks=[Clock()]).train()
    speed = rate(times.rows(), times.durations()).mean
    peak_bytes, memory_of = machine.peak_memory(place)
    name, dtype = machine.name_of(place), "bfloat16" if bfloat16 else "float32"
    peak = peak_of(name, dtype)
    share = operations(chosen, finder) * speed / peak if peak else None
    found = {"per_second": speed, "mfu": share, "peak_bytes": peak_bytes, "peak_of": memory_of}
    return {**found, "device": name, "dtype": dtype}


SIDES = {"cloudai": by_cloudai, "trainer": by_trainer}


def main(argv: Sequence[str]) -> None:
    side, *words = argv
    print(json.dumps(SIDES[side](*words)))


if __name__ == "__main__":
    main(sys.argv[1:])
