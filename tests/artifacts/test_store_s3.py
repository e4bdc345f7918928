"""The store on S3: what it promises holds on a real protocol, also where every second request fails."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import threading
import time

import pytest

from cloudai.artifacts import filesystems
from cloudai.artifacts.store import Store, content_key, sha256
from cloudai.artifacts.trees import Snapshot
from cloudai.errors import NotFoundError, StoreError
from cloudai.training.checkpoints import Checkpoints
from cloudai.training.journal import Journal, JournalReader
from tests.s3 import CANARY

BLOB = os.urandom(300_000)


@pytest.fixture
def store(bucket):
    return Store(f"{bucket}/deep/inside")


def test_round_trip_listing_and_removal(store):
    store.write("a/b/one.bin", b"1")
    store.write("a/b/two.bin", b"2")
    store.write("a/b/one.bin", b"changed")
    assert store.read("a/b/one.bin") == b"changed"
    assert (store.list("a/b"), store.list("a"), store.list("nothing")) == (["one.bin", "two.bin"], ["b"], [])
    assert store.walk("a") == ["a/b/one.bin", "a/b/two.bin"]
    assert (store.exists("a/b/two.bin"), store.exists("a/b"), store.exists("a/c")) == (True, True, False)
    store.remove_files(["a/b/two.bin", "a/b/never"])
    assert store.list("a/b") == ["one.bin"]
    store.remove("a")
    store.remove("a")
    assert store.walk("") == []
    with pytest.raises(NotFoundError, match="there is no s3://"):
        store.read("a/b/one.bin")


def test_what_another_wrote_is_seen_at_once(bucket):
    mine, other = Store(bucket), Store(bucket)
    assert (mine.list("x"), mine.exists("x/1"), mine.read_json("x/1")) == ([], False, None)
    other.write_json("x/1", {"n": 1})
    assert (mine.list("x"), mine.exists("x/1"), mine.read_json("x/1")) == (["1"], True, {"n": 1})
    other.write_json("x/1", {"n": 22})
    assert mine.read_json("x/1") == {"n": 22}
    other.remove("x")
    assert (mine.list("x"), mine.exists("x/1"), mine.read_json("x/1")) == ([], False, None)


def test_of_two_racing_writers_one_wins(store):
    won: list[int] = []
    start = threading.Barrier(8)

    def claim(i: int) -> None:
        start.wait()
        if store.create("claims/1", str(i).encode()):
            won.append(i)

    threads = [threading.Thread(target=claim, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("claims/1") == str(won[0]).encode()


def test_who_won_knows_it_though_the_answer_was_lost(store, s3):
    s3.fail("lost", times=3, method="PUT")
    assert store.create("claims/1", b"mine")
    assert not store.create("claims/1", b"mine")
    assert s3.failed == 3


@pytest.mark.parametrize("kind", [500, 503, "cut", "lost", "half", "half sent"])
def test_a_fault_that_passes_is_not_noticed(store, s3, kind):
    s3.fail(kind, times=3)
    key = content_key("data", BLOB, ".bin")
    store.put(key, BLOB)
    for act, answer in (
        (lambda: store.read_verified(key, sha256(BLOB)), BLOB),
        (lambda: store.list("data"), [key.removeprefix("data/")]),
        (lambda: store.read(key), BLOB),
        (lambda: store.remove(key), None),
    ):
        s3.fail(kind, times=1)
        assert act() == answer
    s3.mend()
    assert store.walk("") == []
    assert s3.failed >= 3


def test_a_service_that_says_nothing_is_given_up(bucket, s3, monkeypatch):
    monkeypatch.setitem(filesystems._OPTIONS["config_kwargs"], "read_timeout", 0.3)
    filesystems.forget_credentials()
    s3.fail("stall", times=2, seconds=1.0)
    assert Store(bucket).list("x") == []
    s3.fail("stall", seconds=1.0)
    begin = time.monotonic()
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        Store(bucket, patience=1.0).list("x")
    assert time.monotonic() - begin < 6
    assert caught.value.temporary
    filesystems.forget_credentials()


def test_patience_has_an_end_and_is_told_of(bucket, s3, caplog):
    caplog.set_level(logging.INFO)
    s3.fail(503)
    begin = time.monotonic()
    with pytest.raises(StoreError, match=r"^s3://test-.* is not answering properly: by plan\nFix: try again later$") as caught:
        Store(bucket, patience=3.0).write("x", b"")
    assert time.monotonic() - begin < 8
    assert caught.value.__cause__ is None
    assert caught.value.temporary
    assert "trying again" in caplog.text


WRONG = {
    "no credentials": ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "there are no credentials for s3://"),
    "no network": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot be reached"),
}
ACTS = {
    "read": lambda store: store.read("x"),
    "read_json": lambda store: store.read_json("x"),
    "write": lambda store: store.write("x", b"1"),
    "create": lambda store: store.create("x", b"1"),
    "put": lambda store: store.put("x", b"1"),
    "list": lambda store: store.list("x"),
    "walk": lambda store: store.walk("x"),
    "exists": lambda store: store.exists("x"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_waiting_would_not_mend_is_said_in_two_lines(bucket, case, monkeypatch):
    environment, message = WRONG[case]
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    for name, value in environment.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    for name, act in itertools.islice(ACTS.items(), 3):
        with pytest.raises(StoreError, match=message) as caught:
            act(Store(bucket, patience=0.0))
        assert len(str(caught.value).split("\n")) == 2, name


@pytest.mark.parametrize("act", ["read_json", "put", "list"])
def test_a_missing_bucket_is_not_an_empty_one(s3, act):
    with pytest.raises(StoreError, match="there is no bucket for s3://nowhere-at-all/x\nFix: create it"):
        ACTS[act](Store("s3://nowhere-at-all/x"))


@pytest.mark.parametrize("act", ["read", "put", "exists"])
def test_refused_credentials_are_said_at_once(bucket, s3, act):
    s3.fail(403)
    with pytest.raises(StoreError, match="does not accept the credentials") as caught:
        ACTS[act](Store(bucket))
    assert CANARY not in str(caught.value)
    assert s3.failed == 1, "nothing is gained by asking again"


def test_mended_credentials_count_at_the_next_call(bucket, monkeypatch):
    store = Store(bucket)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreError, match="no credentials"):
        store.write("x", b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    store.write("x", b"1")
    assert store.read("x") == b"1"


def test_an_upload_in_parts_that_is_cut_leaves_nothing(bucket, s3, monkeypatch):
    monkeypatch.setattr(filesystems, "_PART", 5 * 2**20)  # S3 takes no smaller ones
    large = bytes(11 * 2**20)
    store = Store(bucket, patience=0.0)
    s3.fail("half sent", method="PUT", path="partNumber=3")
    with pytest.raises(StoreError):
        store.write("large", large)
    assert (store.exists("large"), store.list("")) == (False, [])
    s3.mend()
    s3.fail("half sent", method="PUT", path="partNumber=2", times=1)
    store.write("large", large)
    assert store.read_verified("large", sha256(large)) == large


def _read_in_child(store: Store, queue) -> None:
    queue.put(store.read("x"))


def test_a_forked_process_and_many_threads_share_nothing_that_breaks(store):
    store.write("x", b"1")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(store, queue))
    child.start()
    assert queue.get(timeout=30) == b"1"
    child.join()
    read: list[bytes] = []
    threads = [threading.Thread(target=lambda: read.extend(store.read("x") for _ in range(5))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [b"1"] * 40


def checkpoint(checkpoints: Checkpoints, step: int) -> bool:
    part = Snapshot()
    part.take({"shared": {"step": step}, "own": None})
    return checkpoints.commit(step, [checkpoints.write_part(step, 0, part)])


def test_a_checkpoint_takes_few_requests(store, s3):
    checkpoints = Checkpoints(store, keep=2)
    for step in range(3):
        assert checkpoint(checkpoints, step)
    s3.reset()
    checkpoint(checkpoints, 3)
    assert (s3.count("PUT"), s3.count("GET"), s3.count("POST"), s3.count()) == (2, 1, 1, 4)
    assert checkpoints.steps() == [2, 3]
    s3.reset()
    assert checkpoints.latest().step == 3
    assert s3.count() == 4, "a listing, the manifest, and the part with its size"


def test_a_checkpoint_that_cannot_be_written_is_left_out_and_no_half_of_it_is_read(store, s3, caplog):
    checkpoints = Checkpoints(store.patient(0.0), keep=2)
    assert checkpoint(checkpoints, 1)
    s3.fail(500, path="step-000000000002/manifest")
    assert not checkpoint(checkpoints, 2)
    s3.fail("half sent", path="step-000000000003/rank")
    assert not checkpoint(checkpoints, 3)
    assert "the checkpoint of step 3 is left out" in caplog.text
    s3.mend()
    assert checkpoints.latest().step == 1
    assert checkpoint(checkpoints, 4)
    assert checkpoint(checkpoints, 5)
    assert checkpoints.steps() == [4, 5], "what was left out is tidied up"


def test_a_store_that_fails_at_the_return_does_not_make_a_fresh_start(store, s3):
    checkpoints = Checkpoints(store.patient(0.0), keep=2)
    checkpoint(checkpoints, 7)
    s3.fail(500, method="GET", path="rank-0")
    with pytest.raises(StoreError):
        checkpoints.latest()


def test_the_journal_writes_only_news_and_is_read_with_one_request(store, s3, monkeypatch):
    monkeypatch.setattr("cloudai.training.journal._FIRST_FLUSH", 100.0)
    journal, reader = Journal(store, 1, {"pid": 7}), JournalReader(store)
    journal.add(1, {"loss": 1.0})
    assert journal.flush()
    reader.status()
    assert [row.step for row in reader.rows(after_status=True)] == [1]
    s3.reset()
    assert journal.flush()
    assert s3.count() == 0
    for _ in range(3):
        reader.status()
        assert len(reader.rows(after_status=True)) == 1
    assert s3.count() == 3
    journal.add(2, {"loss": 0.5})
    s3.reset()
    journal.flush()
    assert s3.count("PUT") == s3.count() == 2
    reader.status()
    assert [row.step for row in reader.rows(after_status=True)] == [1, 2]
    journal.close()


def test_a_journal_outlives_a_store_that_fails_for_a_while(store, s3, caplog):
    journal = Journal(store.patient(0.0), 1, {})
    s3.fail(503)
    journal.add(1, {"loss": 1.0})
    assert not journal.flush()
    journal.add(2, {"loss": 0.5})
    s3.mend()
    journal.close()
    assert [row.step for row in JournalReader(store).rows()] == [1, 2]
    assert "trying again" in caplog.text


def test_nothing_logs_the_secret(store, s3, caplog):
    caplog.set_level(logging.INFO)
    s3.fail("cut", times=4)
    store.write("x", b"1")
    s3.fail(403, times=1)
    with pytest.raises(StoreError):
        store.read("x")
    assert CANARY not in caplog.text + repr(store) + repr(vars(store))
