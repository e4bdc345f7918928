"""Reading parquet beyond memory, batch by batch: cloudai's stream beside Ray Data, in one run.

    python recipes/benchmarks/streaming.py --rows 2000000 --columns 32

Each reader has a process of its own, so that its peak memory is its own. What is said: seconds until the first batch, rows a
second after it, peak memory of the process and its children, and whether two passes give the same batches in the same order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from pyarrow import parquet

BATCH = 256


def write(folder: Path, rows: int, columns: int) -> None:
    """Write eight files of row groups of 65,536 rows."""
    rng = np.random.default_rng(0)
    for number in range(8):
        count = rows // 8
        data = {f"x{i}": rng.normal(size=count).astype("float32") for i in range(columns)}
        parquet.write_table(
            pa.table({**data, "label": rng.integers(0, 10, count)}), folder / f"{number}.parquet", row_group_size=2**16
        )


def by_cloudai(folder: str) -> Iterator[np.ndarray]:
    """Read with a stream of one worker."""
    import torch

    from cloudai.specs.training import Loop
    from cloudai.training import tables
    from cloudai.training.streaming import Stream

    torch.set_num_threads(1)
    source = tables.survey(tables.Table(folder, target="label"), integers=False).source
    for batch in Stream(source, Loop.of(batch_size=BATCH, validation=0.0), 0).batches(0):
        yield batch.inputs(torch.arange(len(batch)))[0].numpy()


def by_ray(folder: str) -> Iterator[np.ndarray]:
    """Read with Ray Data, in order, with files and a local buffer of the same size shuffled."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", AUTOSCALER_METRIC_PORT="-1", RAY_AUTH_MODE="token")
    import ray

    ray.init(ignore_reinit_error=True, num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    found = ray.data.read_parquet(folder, shuffle=ray.data.FileShuffleConfig(seed=0))
    for batch in found.iter_batches(batch_size=BATCH, local_shuffle_buffer_size=16 * 4096, local_shuffle_seed=0):
        yield np.stack([column for name, column in batch.items() if name != "label"], axis=1).astype("float32")


def measured(read: Callable[[str], Iterator[np.ndarray]], folder: str) -> list[dict[str, object]]:
    """Read twice, and say how it went."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        own = psutil.Process()
        while not over.wait(0.05):
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    total += process.memory_full_info().uss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)

    threading.Thread(target=watch, daemon=True).start()
    passes = [one_pass(read, folder) for _ in range(2)]
    over.set()
    return [{**seen, "peak MiB": round(peak[0] / 2**20)} for seen in passes]


def one_pass(read: Callable[[str], Iterator[np.ndarray]], folder: str) -> dict[str, object]:
    """Read once; the digest is that of the first column in the order in which it came."""
    begin, first, rows, digest = time.perf_counter(), 0.0, 0, hashlib.sha256()
    for batch in read(folder):
        first = first or time.perf_counter()
        rows += len(batch)
        digest.update(np.ascontiguousarray(batch[:, 0]))
    rate = round(rows / (time.perf_counter() - first))
    return {"first batch s": round(first - begin, 2), "rows/s": rate, "order": digest.hexdigest()[:12], "rows": rows}


def _child(name: str, folder: str, answers: multiprocessing.Queue) -> None:
    answers.put(measured({"cloudai": by_cloudai, "ray data": by_ray}[name], folder))


def main() -> None:
    """Write the data, read it twice with each reader, and print what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--columns", type=int, default=32)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.rows, options.columns)
        for name in ("cloudai", "ray data"):
            answers = spawn.Queue()
            process = spawn.Process(target=_child, args=(name, folder, answers))
            process.start()
            for seen in answers.get(timeout=600):
                print(json.dumps({"reader": name, **seen}), flush=True)
            process.join(30)


if __name__ == "__main__":
    main()
