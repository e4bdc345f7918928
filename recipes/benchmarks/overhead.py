"""What cloudai adds to what you wait for, beside its peers, in one run.

Run: python recipes/benchmarks/overhead.py [--quick]. Each figure comes from fresh processes with warm file caches; the sides
take turns, so that whatever else the machine does hits all of them. How to read it: docs/explanation/benchmarks.md.
"""

from __future__ import annotations

import argparse
import compileall
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from measure import HERE, Aim, Figure, Finished, Report, machine, run_python, temporary_home

IMPORT_AIM_MS = 60.0
CALL_AIM_MS = 100.0
PEERS = ("ray", "mlflow", "litserve")
PACKAGES = ("cloudai", "torch", *PEERS)
RAY_SIDES = {0: "bare Ray Train, its local mode", 1: "bare Ray Train, one worker"}
LEAST_MS = 1.0
"""A ratio to less than this would be a ratio to noise."""


@dataclass(frozen=True)
class Scale:
    """How many processes each figure comes from."""

    cheap: int
    dear: int
    ray_workers: int
    recovery: bool


FULL = Scale(cheap=15, dear=5, ray_workers=1, recovery=True)
QUICK = Scale(cheap=3, dear=1, ray_workers=0, recovery=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="once each, without a real Ray worker: to see that it runs")
    quick = parser.parse_args().quick
    report = Report("overhead", quick)
    scale = QUICK if quick else FULL
    with temporary_home() as home:
        data = write_digits(home / "digits.npz")
        warm_up(home, data, quick=quick)
        measure_imports(report, home, scale)
        measure_first_steps(report, home, data, scale)
    add_ratios(report)
    add_aims(report)
    report.show(machine(PACKAGES))


def write_digits(path: Path) -> Path:
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez(path, inputs=digits.data[:1200].astype("float32"), targets=digits.target[:1200].astype("int64"))
    return path


def warm_up(home: Path, data: Path, *, quick: bool) -> None:
    """Compile cloudai's modules as pip does; and let every file be read once, unless that would take too long."""
    for folder in (HERE, HERE.parents[1] / "cloudai"):
        compileall.compile_dir(folder, quiet=2)
    if not quick:
        for name in ("", "cloudai", *installed_peers()):
            import_in_fresh_process(home, name)
        run_python(home, "side_plain.py", str(data))
        run_python(home / "warm-up", "side_cloudai.py", str(data))


def installed_peers() -> list[str]:
    return [name for name in PEERS if find_spec(name) is not None]


def import_in_fresh_process(home: Path, name: str) -> tuple[float, float, int]:
    """Return wall ms, CPU ms and modules of a process that imports a package and ends; of a bare one without a name."""
    code = f"import {name or 'sys'}, sys; print(len(sys.modules))"
    done = run_python(home, "-c", code)
    return 1e3 * done.wall, 1e3 * done.cpu, done.answer


def measure_imports(report: Report, home: Path, scale: Scale) -> None:
    """Measure each import together with a bare interpreter right before it, and subtract that."""
    report.skipped |= {f"import {name}": "it is not installed" for name in PEERS if name not in installed_peers()}
    for number in range(scale.cheap):
        for name in ("cloudai", *(installed_peers() if number < scale.dear else ())):
            bare = import_in_fresh_process(home, "")
            wall, cpu, modules = (ours - theirs for ours, theirs in zip(import_in_fresh_process(home, name), bare, strict=True))
            report.add(f"import {name}, wall", "ms", wall)
            report.add(f"import {name}, CPU", "ms", cpu)
            report.add(f"import {name}, modules", "", modules)


def measure_first_steps(report: Report, home: Path, data: Path, scale: Scale) -> None:
    """Measure from a call or a process' start to the first optimiser step; the sides take turns."""
    for number in range(scale.dear):
        plain = run_python(home, "side_plain.py", str(data))
        report.add("first step, plain script", "s", first_step(plain))
        report.add("first step, plain script, after its imports", "s", plain.answer["first_step"] - plain.answer["imported"])
        measure_session(report, home / f"session-{number}", data, recovery=scale.recovery)
        measure_ray(report, home, data, 0)
    for _ in range(scale.ray_workers):
        measure_ray(report, home, data, 1)
    if not scale.ray_workers:
        report.skipped[f"first step, {RAY_SIDES[1]}"] = "it takes half a minute: not with --quick"
    if not scale.recovery:
        report.skipped["worker killed (-9) → next step"] = "not with --quick"


def measure_ray(report: Report, home: Path, data: Path, workers: int) -> None:
    name = f"first step, {RAY_SIDES[workers]}"
    if "ray" in installed_peers():
        report.add(name, "s", first_step(run_python(home, "side_ray.py", str(data), str(workers))))
    else:
        report.skipped[name] = "ray is not installed"


def first_step(done: Finished) -> float:
    """Return the seconds from the start of a script to its first optimiser step."""
    return float(done.answer["first_step"] - done.started)


def measure_session(report: Report, home: Path, data: Path, *, recovery: bool) -> None:
    """Take one session of `side_cloudai` into the report."""
    taken = run_python(home, "side_cloudai.py", str(data), *(["--recovery"] if recovery else [])).answer
    report.add("what the user imports: torch and the data", "s", taken["user_imports_s"])
    report.add("import cloudai + first train call", "ms", taken["import_and_train_ms"])
    report.add("second train call", "ms", taken["second_train_ms"])
    report.add("first deploy call", "ms", taken["first_deploy_ms"])
    report.add("second deploy call", "ms", taken["second_deploy_ms"])
    report.add("first step, cloudai cold", "s", taken["first_first_step_s"])
    report.add("first step, cloudai warm", "s", taken["second_first_step_s"])
    if recovery:
        report.add("worker killed (-9) → next step", "s", taken["recovery_s"])


def add_ratios(report: Report) -> None:
    """Add the headline: how many times ours each peer takes."""
    imported = Figure("ms", [max(LEAST_MS, report.figures["import cloudai, CPU"].median)])
    for name in installed_peers():
        report.add_ratio(f"import {name} / import cloudai, CPU", report.figures[f"import {name}, CPU"], imported)
    for state in ("cold", "warm"):
        ours = report.figures[f"first step, cloudai {state}"]
        for side in ("plain script", *RAY_SIDES.values()):
            name = f"first step, {side}"
            if name in report.figures:
                report.add_ratio(f"{name} / cloudai {state}", report.figures[name], ours)


def add_aims(report: Report) -> None:
    report.aims.append(Aim("import cloudai, wall ms", report.figures["import cloudai, wall"].median, IMPORT_AIM_MS))
    for name in ("second train call", "second deploy call"):
        report.aims.append(Aim(f"{name}, ms", report.figures[name].median, CALL_AIM_MS))


if __name__ == "__main__":
    main()
