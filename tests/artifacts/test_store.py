"""The store: whole files, under names that stay inside it, locally and on an object store's protocol."""

from __future__ import annotations

import pickle
import threading
import uuid

import pytest

from cloudai.artifacts.store import Store, canonical_json, content_key, sha256
from cloudai.errors import IntegrityError, NotFoundError, SpecError, StoreError


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    return Store(str(tmp_path / "store") if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


def test_round_trip_and_listing(store):
    store.write("a/b/one.bin", b"1")
    store.write("a/b/two.bin", b"2")
    store.write("a/b/one.bin", b"changed")
    assert store.read("a/b/one.bin") == b"changed"
    assert store.list("a/b") == ["one.bin", "two.bin"]
    assert store.list("nothing") == []
    assert store.exists("a/b/two.bin")
    store.remove("a/b")
    store.remove("a/b")
    assert not store.exists("a/b/two.bin")


def test_create_lets_one_win(store):
    assert store.create("claims/1", b"first")
    assert not store.create("claims/1", b"second")
    assert store.read("claims/1") == b"first"


def test_create_is_exclusive_between_threads(tmp_path):
    store, won = Store(str(tmp_path)), []
    threads = [
        threading.Thread(target=lambda i=i: store.create("x/claim", str(i).encode()) and won.append(i)) for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("x/claim") == str(won[0]).encode()


def test_missing_files(store):
    with pytest.raises(NotFoundError, match="there is no"):
        store.read("nothing")
    assert store.read_json("nothing") is None


def test_changed_bytes_are_refused(store):
    store.write("file", b"content")
    assert store.read_verified("file", sha256(b"content")) == b"content"
    store.write("file", b"Content")
    with pytest.raises(IntegrityError, match="not what was recorded"):
        store.read_verified("file", sha256(b"content"))


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff"])
def test_json_that_is_none(store, text):
    store.write("status.json", text)
    with pytest.raises(IntegrityError, match="not a JSON object"):
        store.read_json("status.json")


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a\\b", "a\0b"])
def test_names_stay_inside(store, key):
    for act in (lambda: store.read(key), lambda: store.write(key, b""), lambda: store.remove(key), lambda: store.at(key)):
        with pytest.raises(IntegrityError, match="not a name inside the store"):
            act()


def test_an_unknown_protocol_is_named():
    with pytest.raises(SpecError, match="nonsense://x"):
        Store("nonsense://x")


def test_content_is_written_once(store):
    key = content_key("code", b"abc", ".zip")
    store.put(key, b"abc")
    store.put(key, b"abc")
    assert store.list("code") == [f"{sha256(b'abc')}.zip"]


def test_canonical_json_does_not_depend_on_order():
    assert canonical_json({"b": 1, "a": [1.5]}) == canonical_json({"a": [1.5], "b": 1}) == b'{"a":[1.5],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


def test_half_a_write_is_never_read(tmp_path):
    """A reader that polls while a writer replaces sees one whole file or the other."""
    store = Store(str(tmp_path))
    blobs = [bytes([i]) * 200_000 for i in range(8)]
    store.write("f", blobs[0])
    done = threading.Event()

    def write():
        for _ in range(10):
            for blob in blobs:
                store.write("f", blob)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert store.read("f") in blobs
    writer.join()


def test_a_place_that_cannot_be_written_is_said_in_two_lines(tmp_path):
    (tmp_path / "file").touch()
    store = Store(str(tmp_path / "file" / "store"))
    for act in (
        lambda: store.write("a/b", b""),
        lambda: store.create("a/b", b""),
        lambda: store.list("a"),
        lambda: store.read("a"),
    ):
        with pytest.raises(
            StoreError, match="cannot be used: Not a directory\nFix: choose a folder that you may write to"
        ) as caught:
            act()
        assert isinstance(caught.value, OSError)
        assert not caught.value.temporary
    assert pickle.loads(pickle.dumps(StoreError("a", fix="b", temporary=True))).temporary
