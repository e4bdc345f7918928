from __future__ import annotations

import os
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from cloudai.drivers.samples import read_samples
from cloudai.serving.samples import SampleLog


@pytest.fixture
def open_log(tmp_path):
    logs, dropped = [], []

    def make(*, rate=1.0, max_bytes=2**20, **options):
        log = SampleLog(tmp_path / "samples", rate=rate, max_bytes=max_bytes, dropped=dropped.append, **options)
        logs.append(log)
        log.dropped_rows = dropped
        return log

    yield make
    for log in logs:
        log.close()


def put(log, number, rows=1, width=2):
    x = np.full((rows, width), number, "float32")
    drawn = log.draw({"x": x})
    if drawn is not None:
        log.keep(f"id-{number}", drawn, {"y": x[:, 0] * 2, "ok": np.ones(rows, bool)}, rows=rows)
    return drawn is not None


def read(log, since=0.0, limit=10**6):
    return read_samples(log._folder, since, limit)


def numbers(blocks):
    return [float(value) for block in blocks for value in block.inputs["x"][:, 0]]


def test_rows_come_back_with_ids_times_inputs_and_outputs(open_log):
    log = open_log()
    before = time.time()
    put(log, 3, rows=2)
    put(log, 4)
    log.flush()
    [block] = read(log)
    assert block.ids.tolist() == ["id-3", "id-3", "id-4"]
    assert ((before <= block.times) & (block.times <= time.time())).all()
    assert block.inputs["x"].tolist() == [[3, 3], [3, 3], [4, 4]]
    assert block.outputs["y"].tolist() == [6, 6, 8]
    assert block.outputs["ok"].dtype == bool


def test_a_drawn_request_is_a_copy_of_what_came(open_log):
    x = np.ones((1, 2), "float32")
    drawn = open_log().draw({"x": x})
    x *= 0
    assert drawn["x"].tolist() == [[1, 1]]


def test_the_share_that_is_kept_is_the_rate(open_log):
    log = open_log(rate=0.2, max_bytes=2**26)
    kept = sum(put(log, i) for i in range(5000))
    assert abs(kept - 1000) < 5 * np.sqrt(5000 * 0.2 * 0.8)
    assert not any(put(open_log(rate=0.0), i) for i in range(100))


def test_of_many_requests_chance_keeps_no_more_than_are_wanted(open_log):
    log = open_log(most_requests=50, flush_seconds=0.1)
    wait_for(lambda: [put(log, i) for i in range(100)] and log.share < 1)
    assert log.share < 0.5
    wait_for(lambda: log.share == 1)  # when nobody asks any more


def test_waiting_rows_are_written_after_a_second_and_many_at_once(open_log):
    log = open_log(flush_rows=10, flush_seconds=0.3)
    put(log, 1)
    assert read(log) == []
    wait_for(lambda: numbers(read(log)) == [1])
    log = open_log(flush_rows=10, flush_seconds=60)
    for i in range(2, 12):
        put(log, i)
    wait_for(lambda: numbers(read(log)) == list(range(1, 12)))


def wait_for(condition, timeout=5.0):
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_reading_goes_on_from_the_last_time_without_loss_or_repetition(open_log):
    log = open_log(max_bytes=2**24)
    for i in range(300):
        put(log, i, rows=1 + i % 3, width=2 + i % 2)  # two shapes: two blocks whose times interleave
        if i % 7 == 0:
            log.flush()
    log.flush()
    seen, since = [], 0.0
    while blocks := read(log, since, limit=10):
        seen += numbers(blocks)
        assert sum(len(block.times) for block in blocks) <= 12
        since = max(block.times.max() for block in blocks)
    assert sorted(seen) == [i for i in range(300) for _ in range(1 + i % 3)]


def test_the_oldest_files_are_dropped_beyond_the_bound(open_log):
    log = open_log(max_bytes=20_000)
    for i in range(50):
        put(log, i, rows=20)
        log.flush()
    assert sum(path.stat().st_size for path in log._folder.iterdir()) <= 20_000
    left = sorted(set(numbers(read(log))))
    assert left == list(range(int(left[0]), 50))


def test_rows_that_do_not_fit_into_memory_are_dropped_and_counted(open_log):
    log = open_log(max_bytes=1000, flush_seconds=60)
    put(log, 1, rows=20)
    put(log, 2, rows=2000)
    put(log, 3)
    log.flush()
    assert log.dropped_rows == [2000]
    assert set(numbers(read(log))) <= {1, 3}


def test_damaged_and_foreign_files_are_passed_over(open_log):
    log = open_log()
    put(log, 1)
    log.flush()
    [good] = log._folder.iterdir()
    data, stamp = good.read_bytes(), int(time.time() * 1e6)
    (log._folder / f"{stamp}-1-1.safetensors").write_bytes(data[: len(data) // 2])
    (log._folder / f"{stamp}-1-2.safetensors").write_bytes(b"")
    (log._folder / f"{stamp}-1-3.safetensors").write_bytes(os.urandom(500))
    save_file({"0/times": np.zeros(3)}, log._folder / f"{stamp}-1-4.safetensors")
    lengths = {"0/times": np.full(3, time.time()), "0/ids": np.zeros((2, 64), np.uint8)}
    save_file(lengths, log._folder / f"{stamp}-1-5.safetensors", {"format": "cloudai.samples/1"})
    save_file({"0/times": np.full(1, time.time())}, log._folder / f"{stamp}-1-6.safetensors", {"format": "cloudai.samples/1"})
    (log._folder / "other.safetensors").write_bytes(data)
    (log._folder / f"{stamp}-1-7.safetensors").mkdir()
    assert numbers(read(log)) == [1]
    assert read_samples(log._folder / "missing", 0.0, 10) == []


def test_what_a_killed_server_left_half_written_goes_away(open_log, tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / ".1-1-1.safetensors.77.tmp").write_bytes(b"half")
    open_log()
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_loses_rows_and_says_so(open_log):
    log = open_log(flush_seconds=60)
    put(log, 1, rows=5)
    log._folder.rename(log._folder.with_name("away"))
    with pytest.raises(OSError):
        log.flush()
    assert log.dropped_rows == [5]
    log._folder.with_name("away").rename(log._folder)
    put(log, 2)
    log.flush()
    assert numbers(read(log)) == [2]


def test_texts_come_back_and_count_by_their_length(open_log, tmp_path):
    log = open_log(max_bytes=1000)
    texts = np.array(["good", "", "schön 🎉"], dtype=object)
    log.keep("a", log.draw({"text": texts}), {"label": texts[::-1], "score": np.ones(3)}, rows=3)
    log.keep("b", log.draw({"text": np.array(["x" * 2000], dtype=object)}), {"label": texts[:1], "score": np.ones(1)}, rows=1)
    log.flush()
    (block,) = read(log)
    assert block.inputs["text"].tolist() == texts.tolist()
    assert block.outputs["label"].tolist() == texts[::-1].tolist()
    assert log.dropped_rows == [1], "the long one did not fit"


def test_a_file_whose_texts_do_not_fit_is_passed_over(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    tensors = {
        "0/ids": np.zeros((1, 64), np.uint8),
        "0/times": np.ones(1),
        "0/input/text": np.frombuffer(b"good", np.uint8),
        "0/input-ends/text": np.array([9]),
    }
    save_file(tensors, folder / f"{10**16}-1-0.safetensors", {"format": "cloudai.samples/1"})
    assert read_samples(folder, 0.0, 10) == []
