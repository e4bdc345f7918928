"""The comparison with the transformers Trainer runs at small size, and says what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "benchmarks" / "bert_large.py"


@pytest.mark.slow
def test_both_sides_are_measured_and_nothing_is_left(tmp_path):
    argv = [sys.executable, str(RECIPE), "--quick", "--price", "0.5"]
    done = subprocess.run(argv, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["benchmark"], found["quick"]) == ("bert_large", True)
    measured = found["figures"]["measured"]
    ours, theirs = (measured[f"{side}, sequences per second"]["median"] for side in ("cloudai", "transformers Trainer"))
    (aim,) = found["aims"]
    assert aim["value"] == pytest.approx(ours / theirs, rel=0.01)
    assert aim["met"] == (aim["value"] >= aim["aim"])
    hours, cost = (measured[name]["median"] for name in measured if "extrapolated" in name)
    assert cost == pytest.approx(hours * 0.5, rel=0.01)
    assert "cloudai, MFU" in found["figures"]["skipped"]
    assert list(tmp_path.iterdir()) == []
