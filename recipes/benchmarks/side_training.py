"""One side of `training`, in a process of its own; prints what it found as one JSON object.

Run: python side_training.py <side> <folder> <scale as JSON>; the folder holds what `training` has prepared for all sides.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cloudai.training.meter import Meter

if TYPE_CHECKING:
    import cloudai

SEED = 0
RATE = 5e-4
Scale = dict[str, Any]


def network(width: int) -> torch.nn.Module:
    torch.manual_seed(SEED)
    layers = [torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Dropout(0.1)]
    layers += [torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Dropout(0.1)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, 10))


def arrays(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / "digits.npz") as saved:
        return saved["inputs"], saved["targets"]


def rate_of(steps: int, begin: float, end: float, rows: int) -> float:
    """Return rows per second from the end of one step to the end of another."""
    return rows * steps / (end - begin)


# ── a module ──


def loop_plain(folder: Path, scale: Scale) -> dict[str, float]:
    """Train with the loop that a tutorial of PyTorch writes by hand, without checkpoints, reports or anything else."""
    torch.set_num_threads(1)
    inputs, targets = (torch.from_numpy(array) for array in arrays(folder))
    module = network(scale["width"])
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE)
    ended: list[float] = []
    for _ in range(scale["epochs"]):
        for rows in torch.split(torch.randperm(len(inputs)), scale["batch"]):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(inputs[rows]), targets[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        ended.append(time.perf_counter())
    return {"rows_per_s": rate_of(len(ended) - 1, ended[0], ended[-1], len(inputs))}


def loop_cloudai(folder: Path, scale: Scale) -> dict[str, float]:
    """Do the same through `cloudai.train`, as users get it: in a worker, with checkpoints, reports and a lease."""
    return _module_run(folder, scale, workers=1)


def loop_two_workers(folder: Path, scale: Scale) -> dict[str, float]:
    """Do the same with two workers, a core for each."""
    return _module_run(folder, scale, workers=2)


def _module_run(folder: Path, scale: Scale, workers: int) -> dict[str, float]:
    import cloudai

    options: dict[str, Any] = {"epochs": scale["epochs"], "batch_size": scale["batch"], "lr": RATE, "validation": 0.0}
    run = cloudai.train(network(scale["width"]), arrays(folder), num_workers=workers, **options)
    try:
        run.wait(900, progress=False)
        return {"rows_per_s": _epochs_rate(run, len(arrays(folder)[0]))}
    finally:
        cloudai.cleanup().apply()


def _epochs_rate(run: cloudai.Run, rows: int) -> float:
    """Return rows per second between the ends of the first and the last epoch."""
    from cloudai.training.job import RunFiles
    from cloudai.training.journal import JournalReader

    ends = [row.at for row in JournalReader(RunFiles(run.spec).folder).rows() if "epoch" in row.metrics]
    return rate_of(len(ends) - 1, ends[0], ends[-1], rows)


# ── a transformer on texts of varied length ──


def model_folder(folder: Path) -> Path:
    return folder / "model"


def texts(folder: Path) -> tuple[list[str], list[str]]:
    saved = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    return saved["texts"], saved["labels"]


def text_cloudai(folder: Path, scale: Scale) -> dict[str, float]:
    """Fine-tune with `cloudai.train`; what the peers are told, it is told too."""
    return _text_run(folder, scale)


def text_grouped(folder: Path, scale: Scale) -> dict[str, float]:
    """Do the same with rows of like length in one step, as the tuned Trainer does."""
    return _text_run(folder, scale, group_by_length=True)


def text_two_workers(folder: Path, scale: Scale) -> dict[str, float]:
    """Do the same with two workers, a core for each."""
    return _text_run(folder, scale, num_workers=2)


def _text_run(folder: Path, scale: Scale, **more: Any) -> dict[str, float]:
    import cloudai

    given, labels = texts(folder)
    options: dict[str, Any] = {"epochs": scale["epochs"], "batch_size": scale["batch"], "lr": RATE, "max_grad_norm": 1.0}
    options |= {
        "lr_schedule": "linear",
        "validation": scale["validation"],
        "seed": SEED,
        "max_length": scale["longest"],
        **more,
    }
    run = cloudai.train(str(model_folder(folder)), (given, labels), **options)
    try:
        run.wait(1800, progress=False)
        steps = run.history("loss")[0][-1]
        from cloudai.training.job import RunFiles
        from cloudai.training.journal import JournalReader

        reader = JournalReader(RunFiles(run.spec).folder)
        rows = [row for row in reader.rows() if "loss" in row.metrics]
        seconds = (rows[-1].at - rows[0].at) * steps / (rows[-1].step - rows[0].step)
        return {"seconds": seconds, "val_loss": run.metrics["val_loss"], "val_accuracy": run.metrics["val_accuracy"]}
    finally:
        cloudai.cleanup().apply()


def text_trainer(folder: Path, scale: Scale) -> dict[str, float]:
    """Fine-tune with the transformers Trainer and its defaults: batches at random, padded to their longest row."""
    return _trainer(folder, scale)


def text_tuned(folder: Path, scale: Scale) -> dict[str, float]:
    """Do the same, tuned: rows of like length in one batch, and the optimiser that takes one pass over memory."""
    return _trainer(folder, scale, train_sampling_strategy="group_by_length", optim="adamw_torch_fused")


def _trainer(folder: Path, scale: Scale, **tuned: Any) -> dict[str, float]:
    import transformers

    from cloudai.training.examples import split

    torch.set_num_threads(1)
    transformers.set_seed(SEED)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder(folder))
    given, labels = texts(folder)
    names = sorted(set(labels))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(model_folder(folder), num_labels=len(names))
    tokens = tokenizer(given, truncation=True, max_length=scale["longest"])["input_ids"]
    rows = [{"input_ids": ids, "labels": names.index(label)} for ids, label in zip(tokens, labels, strict=True)]
    parts = split(len(rows), scale["validation"], SEED)
    train, held = ([rows[place] for place in part.tolist()] for part in (parts.train, parts.validation))
    clock = _Clock.of(transformers)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"), num_train_epochs=scale["epochs"], per_device_train_batch_size=scale["batch"],
        learning_rate=RATE, weight_decay=0.0, use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no",
        disable_tqdm=True, seed=SEED, **tuned,
    )  # fmt: skip
    collator = transformers.DataCollatorWithPadding(tokenizer)
    trainer = transformers.Trainer(model, arguments, collator, train, held, callbacks=[clock])
    trainer.train()
    found = trainer.evaluate()
    predictions = trainer.predict(held).predictions.argmax(axis=1)  # type: ignore[union-attr]
    accuracy = float(np.mean(predictions == np.array([row["labels"] for row in held])))
    return {"seconds": clock.seconds(), "val_loss": float(found["eval_loss"]), "val_accuracy": accuracy}


class _Clock:
    """Reads the clock at the end of each step."""

    @staticmethod
    def of(transformers: Any) -> Any:
        class Clock(transformers.TrainerCallback):  # type: ignore[misc]
            def __init__(self) -> None:
                self.ended: list[float] = []

            def on_step_end(self, *_: Any, **__: Any) -> None:
                self.ended.append(time.perf_counter())

            def seconds(self) -> float:
                """Return the seconds of all steps, from those after the first."""
                return (self.ended[-1] - self.ended[0]) * len(self.ended) / (len(self.ended) - 1)

        return Clock()


# ── checkpoints ──


def checkpoints(folder: Path, scale: Scale) -> dict[str, float]:
    """Train a module of which a checkpoint is large, and say what share of the time the chosen interval would cost.

    A step's time beside what steps take while nothing is written, added up over the steps during which a checkpoint was copied
    or on its way, is what one checkpoint costs; that cost divided by the interval is the share of the time that is lost.
    """
    import tempfile

    from cloudai.artifacts.store import Store
    from cloudai.specs.training import CheckpointPolicy, Loop, TrainSpec, Work
    from cloudai.training import loop
    from cloudai.training.cadence import Cadence
    from cloudai.training.checkpoints import Checkpoints
    from cloudai.training.context import Context
    from cloudai.training.examples import Supervised

    torch.set_num_threads(1)
    width, rows = scale["large_width"], scale["large_steps"] * 16
    layers = [torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, width), torch.nn.Linear(width, 10)]
    inputs, targets = arrays(folder)
    spec = TrainSpec.of(
        name="large", model_name="large", work=Work(kind="module", rows=rows), store="", tracking="none", lease=60,
        loop=Loop.of(epochs=1, batch_size=16, validation=0.0), checkpoint=CheckpointPolicy.of(every=scale["large_every"]),
    )  # fmt: skip
    log = _StepLog()

    class Timed(Supervised):
        def loss(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
            log.step(busy=context.saving)
            return super().loss(module, rows)

    with tempfile.TemporaryDirectory(dir=folder) as place:
        context = Context(spec, None, Checkpoints(Store(place), keep=2), meter=log)
        examples = Timed(np.resize(inputs, (rows, 64)), np.resize(targets, rows), "cross_entropy")
        loop.fit(torch.nn.Sequential(*layers), context, examples)
        context.settle()
        size = max(sum(file.stat().st_size for file in step.iterdir()) for step in (Path(place) / "checkpoints").iterdir())
    cadence = Cadence(longest=None, mtbf=3600.0, spot=False, failures=0, worked=0.0)
    cadence.learn(stall=log.stall(), writing=context.writing_seconds)
    interval = cadence.interval(0.0)
    found = {"size_mb": size / 1e6, "interval_s": interval, "stall_s": log.stall(), "write_s": context.writing_seconds}
    return {**found, "cost_s": log.cost(), "share_percent": 100 * log.cost() / interval}


class _StepLog(Meter):
    """How long steps took, and whether a checkpoint was copied or written meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._last, self._was_busy = time.perf_counter(), True  # the first step has no beginning
        self._quiet: list[float] = []
        self._busy: list[float] = []
        self._stalls: list[float] = []

    def step(self, *, busy: bool) -> None:
        now = time.perf_counter()
        (self._busy if busy or self._was_busy else self._quiet).append(now - self._last)
        self._last, self._was_busy = now, busy

    def stalled(self, seconds: float) -> None:
        if seconds > 1e-3:
            self._stalls.append(seconds)
            self._was_busy = True

    def stall(self) -> float:
        """Return the seconds for which training stood still for one checkpoint; the first is left out, it allocates memory."""
        return statistics.median(self._stalls[1:] or self._stalls)

    def cost(self) -> float:
        """Return what one checkpoint costs in seconds: the copy, and the steps that were slower beside the writing."""
        quiet = statistics.median(self._quiet)
        return sum(taken - quiet for taken in self._busy) / len(self._stalls)


SIDES: dict[str, Callable[[Path, Scale], dict[str, float]]] = {
    "loop-plain": loop_plain,
    "loop-cloudai": loop_cloudai,
    "loop-two-workers": loop_two_workers,
    "text-cloudai": text_cloudai,
    "text-trainer": text_trainer,
    "text-grouped": text_grouped,
    "text-two-workers": text_two_workers,
    "text-tuned": text_tuned,
    "checkpoints": checkpoints,
}


def main(argv: Sequence[str]) -> None:
    side, folder, scale = argv
    print(json.dumps(SIDES[side](Path(folder), json.loads(scale))))


if __name__ == "__main__":
    main(sys.argv[1:])
