"""One side of `overhead`: a plain script; prints when its imports were done and when its first step was.

Run: python side_plain.py <digits.npz>
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import workload

if __name__ == "__main__":
    imported = time.time()
    print(json.dumps({"imported": imported, "first_step": workload.train(Path(sys.argv[1]))}))
