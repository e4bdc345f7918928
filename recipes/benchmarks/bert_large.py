"""BERT-Large on sequences of 384 tokens: speed, MFU and memory of cloudai beside the transformers Trainer, in one run.

Run: python recipes/benchmarks/bert_large.py [--quick] [--price PER_HOUR]. It needs a GPU; --quick takes two layers of 128 and a
processor. Both sides have the same architecture, random rows, optimiser, precision and rows at once; they take turns, each time
in a fresh process. It has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Aim, Report, machine, run_python, temporary_home

MFU_AIM = 0.45
RATIO_AIM = 1.0
PACKAGES = ("cloudai", "torch", "transformers", "accelerate")


@dataclass(frozen=True)
class Scale:
    """What is measured, and for how long."""

    workload: str
    device: str
    seconds: float
    rounds: int


FULL = Scale("bert-large-squad", "gpu", seconds=60.0, rounds=3)
QUICK = Scale("bert-tiny-squad", "cpu", seconds=5.0, rounds=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model on a processor: to see that it runs")
    parser.add_argument("--price", type=float, default=None, help="what an hour of this machine costs, in USD")
    args = parser.parse_args()
    report, scale = Report("bert_large", args.quick), QUICK if args.quick else FULL
    with temporary_home() as home:
        for number in range(scale.rounds):
            ours = measure_cloudai(report, home / f"ours-{number}", scale, args.price)
            measure_trainer(report, home / f"theirs-{number}", scale, ours["micro_batch"])
    sides = (report.figures[f"{side}, sequences per second"] for side in ("cloudai", "transformers Trainer"))
    report.add_ratio("cloudai ÷ transformers Trainer, sequences per second", *sides)
    add_aims(report)
    report.show({**machine(PACKAGES), "device": ours["device"], "workload": ours["workload"], "dtype": ours["dtype"]})


def measure_cloudai(report: Report, home: Path, scale: Scale, price: float | None) -> dict[str, Any]:
    """Take one benchmark into the report, and return what it measured."""
    side = run_python(home, "side_bert.py", "cloudai", scale.workload, scale.device, str(scale.seconds), timeout=900)
    found: dict[str, Any] = side.answer
    add_side(report, "cloudai", found)
    report.add("whole workload (extrapolated)", "h", found["hours"])
    for name, percentile in found["latency"].items():
        if percentile is not None and name != "runs":
            report.add(f"latency of one sequence, {name}", "ms", percentile)
    if price is None:
        report.skipped["cost of the whole workload"] = "no --price was given"
    else:
        report.add("cost of the whole workload (extrapolated)", "USD", price * found["hours"])
    return found


def measure_trainer(report: Report, home: Path, scale: Scale, micro_batch: int) -> None:
    words = (scale.workload, scale.device, str(scale.seconds), str(micro_batch))
    add_side(report, "transformers Trainer", run_python(home, "side_bert.py", "trainer", *words, timeout=900).answer)


def add_side(report: Report, side: str, found: dict[str, Any]) -> None:
    report.add(f"{side}, sequences per second", "", found["per_second"])
    report.add(f"{side}, peak memory of the {found['peak_of']}", "GiB", found["peak_bytes"] / 2**30)
    if found["mfu"] is None:
        report.skipped[f"{side}, MFU"] = f"the peak of {found['device']} in {found['dtype']} is not listed"
    else:
        report.add(f"{side}, MFU", "%", 100 * found["mfu"])


def add_aims(report: Report) -> None:
    for name, ratio in report.ratios.items():
        report.aims.append(Aim(name, ratio, RATIO_AIM, least=True))
    if "cloudai, MFU" in report.figures:
        report.aims.append(Aim("cloudai, MFU", report.figures["cloudai, MFU"].median / 100, MFU_AIM, least=True))


if __name__ == "__main__":
    main()
