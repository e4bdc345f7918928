"""Tables in files: all formats give the same arrays, a mistake is told with its place, and only what was asked for is read."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest

from cloudai.errors import DataError, StoreError
from cloudai.training import tables
from cloudai.training.data import parse_data, read_source
from cloudai.training.tables import Table

FRAME = pd.DataFrame(
    {"age": [20, 30, 40, 51], "pay": [1.5, 2.5, 3.5, 4.25], "own": [True, False, True, True], "label": [0, 1, 0, 2]}
)
INPUTS = FRAME[["age", "pay", "own"]].to_numpy("float32")


def as_csv(frame, path):
    frame.to_csv(path, index=False)


def as_jsonl(frame, path):
    frame.to_json(path, orient="records", lines=True)


WRITERS = {
    "t.csv": as_csv,
    "t.csv.gz": as_csv,
    "t.jsonl": as_jsonl,
    "t.jsonl.gz": as_jsonl,
    "t.parquet": lambda frame, path: frame.to_parquet(path),
}


def written(folder, name="t.csv", frame=FRAME):
    path = folder / name
    WRITERS[f"t{''.join(path.suffixes)}"](frame, path)
    return str(path)


def read(table, **options):
    """Look, and read as a worker would."""
    return read_source(parse_data(table, **options).source, patience=0.0)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_what_a_frame_gives(tmp_path, name):
    path = written(tmp_path, name)
    looked, asked = parse_data(Table(path, target="label")), parse_data((FRAME.drop(columns="label"), FRAME["label"]))
    assert looked.features == asked.features == ("age", "pay", "own")
    assert looked.rows == (4 if name == "t.parquet" else 0)
    assert {part: (array.shape[1:], array.dtype) for part, array in looked.arrays.items()} == {
        part: (array.shape[1:], array.dtype) for part, array in asked.arrays.items()
    }
    found = read(Table(path, target="label"))
    for part in ("inputs", "targets"):
        assert np.array_equal(found.arrays[part], asked.arrays[part])
        assert found.arrays[part].dtype == asked.arrays[part].dtype
    assert found.features == asked.features


@pytest.mark.parametrize("name", WRITERS)
def test_columns_by_name_and_in_the_order_asked_for(tmp_path, name):
    table = Table(written(tmp_path, name), target="label", features=["pay", "age"])
    assert np.array_equal(read(table).arrays["inputs"], INPUTS[:, [1, 0]])
    assert parse_data(table).features == ("pay", "age")


def test_folders_patterns_and_lists_are_read_in_order_of_name(tmp_path):
    for day, rows in (("b", FRAME[2:]), ("a", FRAME[:2])):
        written(tmp_path, f"{day}.csv", rows)
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".hidden.csv").write_text("x\n1\n")
    (tmp_path / "notes.txt").touch()
    for source in (tmp_path, str(tmp_path / "*.csv"), [tmp_path / "a.csv", tmp_path / "b.csv"]):
        assert np.array_equal(read(Table(source, target="label")).arrays["inputs"], INPUTS)
    swapped = read(Table([tmp_path / "b.csv", tmp_path / "a.csv"], target="label")).arrays["inputs"]
    assert np.array_equal(swapped, np.concatenate([INPUTS[2:], INPUTS[:2]]))


def test_a_url_of_any_file_system(tmp_path):
    with fsspec.open("memory://here/t.csv", "w") as file:
        FRAME.to_csv(file, index=False)
    found = parse_data(Table("memory://here/t.csv", target="label"))
    assert found.source.files[0].path == "memory:///here/t.csv"
    assert np.array_equal(read_source(found.source, patience=0.0).arrays["inputs"], INPUTS)


def test_integers_stay_integers_only_where_they_are_needed(tmp_path):
    path = written(tmp_path, frame=FRAME[["age", "label"]])
    assert read(Table(path, target="label"), integers=True).arrays["inputs"].dtype == np.int64
    assert read(Table(path, target="label")).arrays["inputs"].dtype == np.float32
    mixed = written(tmp_path)
    assert read(Table(mixed, target="label"), integers=True).arrays["inputs"].dtype == np.float32


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_a_column_of_lists_is_the_whole_input(tmp_path, name):
    frame = pd.DataFrame({"tokens": [[1, 2, 3], [4, 5, 6]], "label": [0, 1]})
    path = written(tmp_path, name, frame)
    assert read(Table(path, target="label")).arrays["inputs"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert read(Table(path, target="label"), integers=True).arrays["inputs"].dtype == np.int64
    ragged = written(tmp_path, f"r{name}", pd.DataFrame({"tokens": [[1, 2], [4, 5], [6]], "label": [0, 1, 0]}))
    with pytest.raises(
        DataError, match=r"'tokens' has 2 values in its first row and 1 in row 3 of .*\nFix: give lists of equal"
    ):
        read(Table(ragged, target="label"))


@pytest.mark.parametrize("name", WRITERS)
def test_texts_are_read_where_they_are_asked_for(tmp_path, name):
    frame = pd.DataFrame({"id": [1, 2], "text": ['He said "NA",\tand left', "1.5"], "label": [1, 0]})
    table = Table(written(tmp_path, name, frame), target="label", text="text")
    found = read(table)
    assert found.arrays["inputs"].tolist() == frame["text"].tolist()
    assert (found.arrays["inputs"].dtype, found.arrays["targets"].tolist(), found.features) == (object, [1, 0], ())
    assert parse_data(table).arrays["inputs"].dtype == object


def test_texts_in_memory_only_where_they_are_asked_for():
    found = parse_data((["good", "bad"], [1, 0]), texts=True)
    assert (found.arrays["inputs"].tolist(), found.arrays["targets"].dtype) == (["good", "bad"], np.int64)
    with pytest.raises(DataError, match="row 1 of the inputs is a float, not a text"):
        parse_data((["good", float("nan")], [1, 0]), texts=True)
    with pytest.raises(DataError, match="encode texts"):
        parse_data((["good", "bad"], [1, 0]))


def test_a_target_that_turns_out_to_be_real(tmp_path):
    rows = "\n".join(f"{i},{i % 3}" for i in range(300_000))
    path = tmp_path / "t.csv"
    path.write_text(f"x,y\n{rows}\n")
    assert read(Table(path, target="y")).arrays["targets"].dtype == np.int64
    path.write_text(f"x,y\n{rows}\n7,0.5\n")
    assert read(Table(path, target="y")).arrays["targets"].dtype == np.float32


def changed(**columns):
    return FRAME.assign(**columns)


LOOKS_WRONG = {
    "unknown target": (FRAME, {"target": "labl"}, "has no column 'labl'\nFix: did you mean 'label'"),
    "unknown feature": (FRAME, {"features": ["age", "payy"]}, "no column 'payy'\nFix: did you mean 'pay'"),
    "target as feature": (FRAME, {"features": ["age", "label"]}, "'label' is named twice"),
    "text": (
        changed(city=["Rome", "Oslo", "Bern", "Rome"]),
        {},
        "'city' of .* holds text\nFix: encode it as numbers, or leave",
    ),
    "text target": (changed(label=["a", "b", "a", "b"]), {}, "'label' of .* holds text\nFix: number the classes"),
    "date": (changed(day=pd.to_datetime(["2026-01-01"] * 4)), {}, "'day' of .* holds (timestamp|date)"),
    "no feature": (FRAME[["label"]], {}, "has no column beside 'label'"),
}


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
@pytest.mark.parametrize("case", LOOKS_WRONG)
def test_what_is_wrong_with_the_columns_is_said_before_a_run_begins(tmp_path, case, name):
    frame, options, message = LOOKS_WRONG[case]
    with pytest.raises(DataError, match=message) as caught:
        parse_data(Table(written(tmp_path, name, frame), **{"target": "label", **options}))
    assert len(str(caught.value).split("\n")) == 2


@pytest.mark.parametrize("name", WRITERS)
def test_missing_values_are_told_with_column_and_row(tmp_path, name):
    path = written(tmp_path, name, changed(pay=[1.5, 2.0, np.nan, np.nan]))
    with pytest.raises(DataError, match=r"'pay' has 2 values missing or infinite, the first in row 3 of .*\nFix: drop or fill"):
        read(Table(path, target="label"))


def test_what_is_wrong_far_inside_is_told_by_the_worker(tmp_path):
    good = "\n".join(f"{i},1.5,0" for i in range(200_000))
    path = tmp_path / "t.csv"
    for bad, message in (
        (",1.0,1", "'a' has a value missing or infinite, the first in row 200001 of"),
        ("3,x,1", "'b' of .* holds 'x', which is no"),
    ):
        path.write_text(f"a,b,y\n{good}\n{bad}\n")
        source = parse_data(Table(path, target="y")).source
        with pytest.raises(DataError, match=message) as caught:
            read_source(source, patience=0.0)
        assert len(str(caught.value).split("\n")) == 2


FILES_WRONG = {
    "empty": ("t.csv", b"", "is empty"),
    "header only": ("t.csv", b"a,label\n", "are empty"),
    "ragged": ("t.csv", b"a,label\n1,2\n1,2,3\n", "cannot be read as csv"),
    "no table": ("t.parquet", b"hello", "cannot be read as parquet"),
    "cut": ("t.csv.gz", gzip.compress(b"a,label\n1,2\n" * 100)[:-20], "cannot be read as csv"),
    "not packed": ("t.csv.gz", b"a,label\n1,2\n", "cannot be read as csv"),
    "bad lines": ("t.jsonl", b'{"a": 1, "label": 0}\n{"a": \n', "cannot be read as jsonl"),
    "kinds change": ("t.jsonl", b'{"a": 1, "label": 0}\n{"a": "x", "label": 0}\n', "cannot be read as jsonl"),
    "twice": ("t.csv", b"a,a,label\n1,2,3\n", "two columns named 'a'"),
    "other format": ("t.xlsx", b"PK", "no file of a known format"),
}


@pytest.mark.parametrize("case", FILES_WRONG)
def test_files_that_cannot_be_read(tmp_path, case):
    name, data, message = FILES_WRONG[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read(Table(tmp_path / name, target="label"))
    assert len(str(caught.value).split("\n")) == 2


def test_places_that_are_not_there(tmp_path, monkeypatch):
    for source in (tmp_path / "no.csv", tmp_path / "*.csv", tmp_path, "memory://nothing/x.csv"):
        with pytest.raises(DataError, match="there is no "):
            parse_data(Table(source, target="y"))
    with pytest.raises(DataError, match="several formats"):
        parse_data(Table([written(tmp_path), written(tmp_path, "t.parquet")], target="label"))


SECRETS = ["https://me:pw@host/t.csv", "https://b.s3.amazonaws.com/t.csv?X-Amz-Signature=ab", "https://host/t.csv?sig=ab"]


@pytest.mark.parametrize("url", SECRETS)
def test_an_address_with_a_secret_is_not_written_down(url):
    with pytest.raises(DataError, match="holds a password or a signature") as caught:
        parse_data(Table(url, target="y"))
    assert "pw" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize("change", ["rewritten", "touched", "gone"])
def test_a_file_that_was_changed_is_not_read(tmp_path, change):
    path = written(tmp_path)
    source = parse_data(Table(path, target="label")).source
    if change == "gone":
        Path(path).unlink()
    elif change == "touched":
        os.utime(path, (time.time(), time.time() + 5))
    else:
        written(tmp_path, frame=FRAME[:2])
    with pytest.raises(DataError, match="since the run was asked for") as caught:
        read_source(source, patience=0.0)
    assert len(str(caught.value).split("\n")) == 2


def test_the_digest_is_that_of_files_and_columns(tmp_path):
    path = written(tmp_path)
    one, same = (parse_data(Table(path, target="label")).source.digest for _ in range(2))
    assert one == same
    assert one != parse_data(Table(path, target="label", features=["age"])).source.digest
    written(tmp_path, frame=FRAME[:3])
    assert one != parse_data(Table(path, target="label")).source.digest


def test_looking_does_not_read_a_large_file(tmp_path):
    path = tmp_path / "t.csv"
    with path.open("w") as file:
        file.write("a,y\n" + "1,0\n" * 4)
        file.seek(8 * 2**30)  # a hole: it takes no space
        file.write("\n")
    begin = time.monotonic()
    assert parse_data(Table(path, target="y")).rows == 0
    assert time.monotonic() - begin < 2


def test_a_worker_elsewhere_cannot_read_this_machine(tmp_path):
    source = parse_data(Table(written(tmp_path), target="label")).source
    with pytest.raises(DataError, match=r"a worker on 'cluster' cannot read /.*\nFix: copy it to a place"):
        tables.check_reach(source, "cluster")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.parquet"])
def test_s3_gives_the_same_also_when_requests_fail(tmp_path, bucket, s3, name):
    path, url = written(tmp_path, name), f"{bucket}/in/{name}"
    fsspec.filesystem("s3", skip_instance_cache=True).put_file(path, url)
    s3.fail("cut", times=1, method="HEAD")
    looked = parse_data(Table(f"{bucket}/in", target="label"))
    assert looked.source.files[0].path == url
    s3.fail("half", times=1, method="GET")
    s3.fail(503, times=1, method="GET")
    assert np.array_equal(read_source(looked.source, patience=10.0).arrays["inputs"], INPUTS)
    assert s3.failed >= 2
    s3.mend()
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(url, b"another")
    with pytest.raises(DataError, match="was changed since"):
        read_source(looked.source, patience=0.0)


def test_s3_says_what_is_missing(bucket, monkeypatch):
    with pytest.raises(DataError, match=f"there is no {bucket}/no.csv"):
        parse_data(Table(f"{bucket}/no.csv", target="y"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(StoreError, match=f"there are no credentials for {bucket}\nFix: set AWS_ACCESS_KEY_ID"):
        parse_data(Table(f"{bucket}/no.csv", target="y"))


def test_the_spec_survives_json(tmp_path):
    source = parse_data(Table(written(tmp_path), target="label")).source
    assert type(source).parse(source.model_dump_json()) == source
    assert json.loads(source.model_dump_json())["files"][0]["size"] > 0
