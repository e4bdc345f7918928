"""One side of `overhead`: a plain script. Run: python side_plain.py <digits.npz>; prints when its first step was."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import workload

if __name__ == "__main__":
    print(json.dumps({"first_step": workload.train(Path(sys.argv[1]))}))
