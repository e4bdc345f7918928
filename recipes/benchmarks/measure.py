"""What every benchmark here needs: fresh processes in a home of their own, figures with their spread, and how to show them."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Finished:
    """A process that has ended well: what it printed last, and what it took from start to end."""

    answer: Any
    started: float
    wall: float
    cpu: float


@dataclass
class Figure:
    """One figure, measured several times, each time in another process."""

    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    def to_json(self) -> dict[str, Any]:
        """Return the median, the spread, and how many processes they come from."""
        spread = {"median": self.median, "low": min(self.values), "high": max(self.values)}
        return {"unit": self.unit, **{name: round(value, 3) for name, value in spread.items()}, "processes": len(self.values)}


@dataclass(frozen=True)
class Aim:
    """What a figure should be at most, or at least."""

    name: str
    value: float
    aim: float
    least: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return its fields and whether it is met."""
        met = self.value >= self.aim if self.least else self.value <= self.aim
        return {**asdict(self), "value": round(self.value, 3), "met": met}


@dataclass
class Report:
    """Everything that one benchmark found."""

    benchmark: str
    quick: bool
    figures: dict[str, Figure] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    aims: list[Aim] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """What was not measured, and why."""

    def add(self, name: str, unit: str, value: float) -> None:
        """Add one process' value to a figure."""
        self.figures.setdefault(name, Figure(unit)).values.append(value)

    def add_ratio(self, name: str, theirs: Figure, ours: Figure) -> None:
        """Add how many times ours theirs is: the median over rounds where both took turns, else the ratio of the medians."""
        if len(theirs.values) == len(ours.values):
            self.ratios[name] = statistics.median(their / our for their, our in zip(theirs.values, ours.values, strict=True))
        else:
            self.ratios[name] = theirs.median / ours.median

    def show(self, machine: Mapping[str, Any]) -> None:
        """Print tables, and as the last line all of it as one JSON object."""
        print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()))
        rows = [_row(name, figure) for name, figure in self.figures.items()]
        print_table(("figure", "median", "low … high", "processes"), rows)
        print_table(("ratio", ""), [(name, f"{ratio:.2f} ×") for name, ratio in self.ratios.items()])
        print_table(("aim", "is", "should be", ""), [_aim_row(aim) for aim in self.aims])
        print_table(("not measured", "because"), list(self.skipped.items()))
        print(json.dumps(self.to_json(machine)), flush=True)

    def to_json(self, machine: Mapping[str, Any]) -> dict[str, Any]:
        """Return all of it."""
        figures = {
            "machine": dict(machine),
            "measured": {name: figure.to_json() for name, figure in self.figures.items()},
            "ratios": {name: round(ratio, 3) for name, ratio in self.ratios.items()},
            "skipped": self.skipped,
        }
        aims = [aim.to_json() for aim in self.aims]
        return {"benchmark": self.benchmark, "quick": self.quick, "figures": figures, "aims": aims}


def _row(name: str, figure: Figure) -> tuple[str, ...]:
    low, high = min(figure.values), max(figure.values)
    return name, f"{figure.median:.4g} {figure.unit}", f"{low:.4g} … {high:.4g}", str(len(figure.values))


def _aim_row(aim: Aim) -> tuple[str, ...]:
    return aim.name, f"{aim.value:.4g}", f"{'≥' if aim.least else '≤'} {aim.aim:g}", "met" if aim.to_json()["met"] else "MISSED"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their columns; nothing where there are none."""
    if not rows:
        return
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (columns, *rows)]
    print("\n".join(["", lines[0], "─" * len(lines[0]), *lines[1:]]))


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Say when this is, on what machine, how busy it was, and with which versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{package: version_of(package) for package in packages},
    }


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@contextmanager
def temporary_home() -> Iterator[Path]:
    """Make a folder for all that a benchmark writes; at the end, also an early one, its processes and the folder go."""
    home = Path(tempfile.mkdtemp(prefix="bench-"))
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield home
    finally:
        signal.signal(signal.SIGTERM, before)
        while left := processes_of(home):
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=1.0)
        shutil.rmtree(home, ignore_errors=True)


def processes_of(home: Path) -> list[psutil.Process]:
    """Return the processes that were started with this home, or below it, and live."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            theirs = process.environ().get("CLOUDAI_HOME", "")
            if (theirs + "/").startswith(f"{home}/") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def run_python(home: Path, *argv: str, timeout: float = 180.0) -> Finished:
    """Run a fresh interpreter to its end, and read the last line that it prints as JSON."""
    cpu_before, started, begin = _children_cpu(), time.time(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *argv], env=environment(home), cwd=HERE, capture_output=True, text=True, timeout=timeout, check=False
    )
    wall = time.perf_counter() - begin
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return Finished(json.loads(done.stdout.splitlines()[-1]), started, wall, _children_cpu() - cpu_before)


def environment(home: Path) -> dict[str, str]:
    """Return an environment in which nobody tracks or calls home, and byte code is cached, as a user's is."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDAI_")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    home.mkdir(parents=True, exist_ok=True)
    ours = {"CLOUDAI_HOME": str(home), "CLOUDAI_TRACKING": "none", "TMPDIR": str(home)}
    return env | ours | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "MLFLOW_DISABLE_TELEMETRY": "true"}


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
