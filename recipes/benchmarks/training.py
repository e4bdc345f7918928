"""How fast cloudai trains, beside a loop written by hand and the transformers Trainer, in one run; and what checkpoints cost.

Run: python recipes/benchmarks/training.py [--quick]. Each figure comes from fresh processes on one core; the sides take turns,
so that whatever else the machine does hits all of them. How to read it: docs/explanation/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measure import Aim, Report, machine, run_python, temporary_home

PACKAGES = ("cloudai", "torch", "transformers", "accelerate", "ray")
LOOP_AIM, DEFAULTS_AIM, TUNED_AIM, CHECKPOINTS_AIM = 0.98, 1.3, 1.0, 1.0
LOSS_AIM = 1.1
"""Speed counts only where as much is learned: ours may end with at most so many times the validation loss of the Trainer."""
FINE_TUNING = (
    ("text-cloudai", "text-trainer", DEFAULTS_AIM),
    ("text-cloudai", "text-tuned", TUNED_AIM),
    ("text-grouped", "text-tuned", TUNED_AIM),
)
"""Ours as it is by default, and with batches of like length, which the tuned Trainer has."""

FULL: dict[str, Any] = {
    "rounds": 2, "width": 512, "epochs": 8, "batch": 64, "texts": 200, "files": 250, "hidden": 128, "layers": 4,
    "vocabulary": 8000, "longest": 256, "text_epochs": 2, "text_batch": 16, "validation": 0.1,
    "large_width": 6450, "large_steps": 150, "large_every": 12.0, "two_workers": True,
}  # fmt: skip
QUICK: dict[str, Any] = {
    **FULL, "rounds": 1, "epochs": 4, "texts": 40, "files": 20, "text_epochs": 1, "hidden": 32, "layers": 2,
    "large_width": 1024, "large_steps": 150, "large_every": 0.5, "two_workers": False,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, once each, without Ray: to see that it runs")
    quick = parser.parse_args().quick
    scale = QUICK if quick else FULL
    report = Report("training", quick)
    with temporary_home() as home:
        prepare(home, scale)
        for number in range(scale["rounds"]):
            measure_loop(report, home, scale, number)
            measure_texts(report, home, scale, number)
        measure_checkpoints(report, home, scale)
        measure_two_workers(report, home, scale)
    add_ratios_and_aims(report)
    report.show(machine(PACKAGES))


def prepare(home: Path, scale: dict[str, Any]) -> None:
    """Write the data, and the model that all sides begin with."""
    import corpus
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    copies = 20
    inputs = np.tile(digits.data, (copies, 1)).astype("float32") / 16
    np.savez(home / "digits.npz", inputs=inputs, targets=np.tile(digits.target, copies).astype("int64"))
    texts, labels = corpus.docstrings(scale["texts"], scale["files"])
    (home / "texts.json").write_text(json.dumps({"texts": texts, "labels": labels}), encoding="utf-8")
    write_model(home / "model", texts, scale)


def write_model(folder: Path, texts: list[str], scale: dict[str, Any]) -> None:
    """Write a BERT with random weights, and a tokenizer trained on the texts."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=scale["vocabulary"], special_tokens=marks))
    trained.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=trained, model_max_length=512, **special)
    config = transformers.BertConfig(
        vocab_size=trained.get_vocab_size(), hidden_size=scale["hidden"], num_hidden_layers=scale["layers"],
        num_attention_heads=scale["hidden"] // 32, intermediate_size=4 * scale["hidden"], num_labels=4,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def side(home: Path, folder: Path, name: str, scale: dict[str, Any], timeout: float = 1800.0) -> dict[str, float]:
    answer: dict[str, float] = run_python(
        home, "side_training.py", name, str(folder), json.dumps(scale), timeout=timeout
    ).answer
    return answer


def measure_loop(report: Report, home: Path, scale: dict[str, Any], number: int) -> None:
    for name in ("loop-plain", "loop-cloudai"):
        found = side(home / f"{name}-{number}", home, name, scale)
        report.add(f"{name}", "rows/s", found["rows_per_s"])


def measure_texts(report: Report, home: Path, scale: dict[str, Any], number: int) -> None:
    texts = text_scale(scale)
    for name in ("text-cloudai", "text-trainer", "text-grouped", "text-tuned"):
        if name in ("text-trainer", "text-tuned") and find_spec("accelerate") is None:
            report.skipped[name] = "accelerate is not installed"
            continue
        found = side(home / f"{name}-{number}", home, name, texts)
        report.add(name, "s", found["seconds"])
        report.add(f"{name}, validation loss", "", found["val_loss"])
        report.add(f"{name}, validation accuracy", "", found["val_accuracy"])


def text_scale(scale: dict[str, Any]) -> dict[str, Any]:
    return {**scale, "epochs": scale["text_epochs"], "batch": scale["text_batch"]}


def measure_checkpoints(report: Report, home: Path, scale: dict[str, Any]) -> None:
    found = side(home / "large", home, "checkpoints", scale)
    units = {"size_mb": "MB", "interval_s": "s", "stall_s": "s", "write_s": "s", "cost_s": "s", "share_percent": "%"}
    for name, value in found.items():
        report.add(f"checkpoint, {name.rpartition('_')[0]}", units[name], value)


def measure_two_workers(report: Report, home: Path, scale: dict[str, Any]) -> None:
    if not scale["two_workers"]:
        report.skipped["two workers"] = "the start of Ray takes half a minute: not with --quick"
        return
    report.add("loop-two-workers", "rows/s", side(home / "two", home, "loop-two-workers", scale)["rows_per_s"])
    report.add("text-two-workers", "s", side(home / "text-two", home, "text-two-workers", text_scale(scale))["seconds"])


def compare_fine_tuning(report: Report, ours: str, peer: str, aim: float) -> None:
    """Add how many times as fast ours is, and whether it learns as much meanwhile."""
    figures = report.figures
    time, loss = f"fine-tuning time, {peer} / {ours}", f"validation loss, {ours} / {peer}"
    report.add_ratio(time, figures[peer], figures[ours])
    report.aims.append(Aim(f"fine-tuning speed, {ours} over {peer}", report.ratios[time], aim, least=True))
    report.add_ratio(loss, figures[f"{ours}, validation loss"], figures[f"{peer}, validation loss"])
    report.aims.append(Aim(loss, report.ratios[loss], LOSS_AIM))


def add_ratios_and_aims(report: Report) -> None:
    """Add what is asked for: how many times as fast ours is."""
    figures = report.figures
    report.add_ratio("throughput, cloudai / loop written by hand", figures["loop-cloudai"], figures["loop-plain"])
    report.aims.append(
        Aim("throughput over a loop written by hand", report.ratios[next(iter(report.ratios))], LOOP_AIM, least=True)
    )
    for ours, peer, aim in FINE_TUNING:
        if peer in figures:
            compare_fine_tuning(report, ours, peer, aim)
    if "loop-two-workers" in figures:
        report.add_ratio("throughput, two workers / one, small module", figures["loop-two-workers"], figures["loop-cloudai"])
        report.add_ratio("speed, two workers / one, fine-tuning", figures["text-cloudai"], figures["text-two-workers"])
    share = figures["checkpoint, share"].median
    report.aims.append(Aim("time lost to checkpoints at one failure an hour, %", share, CHECKPOINTS_AIM))


if __name__ == "__main__":
    main()
