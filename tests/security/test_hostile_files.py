"""Files of an attacker in the place of every file that cloudai reads: an error of two lines, and nothing is run."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cloudai
from cloudai.artifacts import trees
from cloudai.artifacts.model import Model
from cloudai.artifacts.store import Store, sha256
from cloudai.capture.bundle import Bundle
from cloudai.drivers.samples import read_samples
from cloudai.errors import CloudAIError, IntegrityError
from cloudai.specs.training import TrainSpec
from cloudai.state.ledger import Ledger
from cloudai.statistics.profiles import Profile
from cloudai.training.advance import _Advance
from cloudai.training.checkpoints import Checkpoints
from cloudai.training.context import Solo
from cloudai.training.execution import execute
from cloudai.training.journal import JournalReader
from cloudai.training.stopping import Stop
from cloudai.training.worker import main as work_on
from tests.flow import work

ROWS = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")


class Touches:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def attacks(mark: Path) -> dict[str, bytes]:
    """The same attack in each form that a careless reader would fall for."""
    saved, array = io.BytesIO(), io.BytesIO()
    torch.save({"weights": Touches(mark)}, saved)
    np.save(array, np.array([Touches(mark)], dtype=object), allow_pickle=True)
    legacy = io.BytesIO()
    torch.save(Touches(mark), legacy, _use_new_zipfile_serialization=False)
    return {
        "pickle": pickle.dumps(Touches(mark)),
        "old pickle": pickle.dumps(Touches(mark), protocol=0),
        "torch": saved.getvalue(),
        "old torch": legacy.getvalue(),
        "numpy": array.getvalue(),
        "deep JSON": b"[" * 200_000,
        "deep object": b'{"a":' * 200_000,
        "long number": b'{"step": ' + b"9" * 100_000 + b"}",
        "empty": b"",
        "null": b"null",
        "zeros": bytes(4096),
    }


FORMS = list(attacks(Path("x")))


@pytest.fixture
def mark(tmp_path):
    path = tmp_path / "touched"
    yield path
    assert not path.exists(), "the attacker's code was run"


def test_the_attacks_work_on_a_careless_reader(tmp_path):
    """Else the other tests here would show nothing."""
    for form in ("pickle", "old pickle", "torch", "old torch", "numpy"):
        path = tmp_path / form.replace(" ", "-")
        data = io.BytesIO(attacks(path)[form])
        if "torch" in form:
            torch.load(data, weights_only=False)
        elif form == "numpy":
            np.load(data, allow_pickle=True)
        else:
            pickle.load(data)
        assert path.exists()


@pytest.fixture
def model(home):
    return work.recorded_model(torch.nn.Linear(3, 2), ROWS, name="small")


def folder_of(model):
    return Path(model.uri)


@pytest.mark.parametrize("form", FORMS)
def test_in_the_place_of_a_models_files(model, mark, form):
    for name in ("module.safetensors", "profile.bin", "example.safetensors", "manifest.json"):
        path = folder_of(model) / name
        good = path.read_bytes()
        path.write_bytes(attacks(mark)[form])
        for read in (lambda: Model.open(model.uri, model.digest).verify(), lambda: Model.open(model.uri).predict(ROWS)):
            with pytest.raises(IntegrityError) if name in ("module.safetensors", "manifest.json") else _either():
                read()
        path.write_bytes(good)


def _either():
    import contextlib

    return contextlib.suppress(IntegrityError)


@pytest.mark.parametrize("form", FORMS)
def test_with_digests_that_fit(model, mark, form):
    """The attacker may write the manifest too: it is then opened by its path, and the bytes are the only defence."""
    manifest = json.loads((folder_of(model) / "manifest.json").read_bytes())
    data = attacks(mark)[form]
    for name, read in {
        "module.safetensors": lambda m: m.module(),
        "profile.bin": lambda m: m.profile,
        "example.safetensors": lambda m: m.example,
        "code.zip": lambda m: m.module(),
    }.items():
        hostile = json.loads(json.dumps(manifest))
        hostile["files"][name] = {"sha256": sha256(data), "size": len(data)}
        good = (folder_of(model) / name).read_bytes() if (folder_of(model) / name).exists() else None
        (folder_of(model) / name).write_bytes(data)
        (folder_of(model) / "manifest.json").write_text(json.dumps(hostile))
        with pytest.raises(IntegrityError) as caught:
            read(Model.open(model.uri))
        assert caught.value.fix
        if name == "code.zip":
            with pytest.raises(IntegrityError):
                read(Model.open(model.uri, sha256((folder_of(model) / "manifest.json").read_bytes())))
        (folder_of(model) / name).unlink() if good is None else (folder_of(model) / name).write_bytes(good)


@pytest.mark.parametrize("form", FORMS)
def test_in_the_place_of_a_bundle_a_tree_a_profile_and_samples(mark, tmp_path, form):
    data = attacks(mark)[form]
    for read in (Bundle.from_zip, trees.load, Profile.from_bytes):
        with pytest.raises(IntegrityError):
            read(data)
    (tmp_path / "9999999999999999-1-1.safetensors").write_bytes(data)
    assert read_samples(tmp_path, since=0, limit=10) == []


@pytest.mark.parametrize("form", FORMS)
def test_in_the_place_of_a_runs_files(mark, tmp_path, form):
    data, store = attacks(mark)[form], Store(str(tmp_path / "store"))
    run = store.at("runs/r")
    reader = JournalReader(run)
    for name, read in {
        "status.json": reader.status, "result.json": reader.result, "error.json": reader.error,
        "metrics/0001-000000.json": reader.rows,
    }.items():  # fmt: skip
        run.write(name, data)
        with pytest.raises(IntegrityError):
            read()
    run.write("job.json", data)
    with pytest.raises(CloudAIError):
        work_on(["--store", str(tmp_path / "store"), "--run", "r", "--attempt", "1"])
    run.write("checkpoints/step-000000000003/manifest.json", data)
    run.write("checkpoints/step-000000000002/rank-0.safetensors", data)
    run.write("checkpoints/step-000000000002/manifest.json", json.dumps({"step": 2, "parts": [sha256(data)]}).encode())
    assert Checkpoints(run, 2).latest() is None, "what is damaged is passed over"


@pytest.mark.parametrize("form", FORMS)
def test_in_the_place_of_the_works_code_module_and_data(home, mark, form):
    data, store = attacks(mark)[form], Store(str(home / "store"))
    for part, suffix in (("code", ".zip"), ("module", ".safetensors"), ("data", ".safetensors")):
        key = f"{part}/{sha256(data)}{suffix}"
        store.write(key, data)
        spec = TrainSpec.of(
            name=f"r-{part}", model_name="m", lease=None, store=store.root, tracking="none",
            work={"kind": "module" if part == "module" else "function", "entry": "work:f", part: key},
        )  # fmt: skip
        try:
            assert execute(spec, 1, Solo(), Stop()) == 1
        except IntegrityError:
            continue
        assert JournalReader(store.at(f"runs/{spec.name}")).error()["fix"]


@pytest.mark.parametrize("form", ["pickle", "torch", "zeros", "deep JSON"])
def test_in_the_place_of_the_ledger(home, mark, form):
    data = attacks(mark)[form]
    home.mkdir(mode=0o700)
    (home / "ledger.sqlite").write_bytes(data)
    with pytest.raises(CloudAIError) as caught:
        cloudai.ps()
    assert caught.value.fix


def test_a_job_that_somebody_changed_is_not_worked_on(tmp_path):
    """Who can write to the store could else let the worker run any code that lies there."""
    store = Store(str(tmp_path))
    spec = TrainSpec.of(
        name="r", model_name="m", lease=None, store=str(tmp_path), tracking="none", work={"kind": "function", "entry": "a:b"}
    )
    asked = spec.model_dump_json().encode()
    store.write("runs/r/job.json", asked.replace(b'"a:b"', b'"evil:f"'))
    with pytest.raises(IntegrityError, match="not what was recorded"):
        work_on(["--store", str(tmp_path), "--run", "r", "--attempt", "1", "--digest", sha256(asked)])


@pytest.mark.parametrize(
    "change",
    [
        {"uri": "/tmp/elsewhere"}, {"uri": "s3://evil/models/m/1.0.0"}, {"name": "other"}, {"version": "../../x"},
        {"version": None}, {"digest": ""}, {"digest": 5},
    ],
)  # fmt: skip
def test_a_result_does_not_make_the_ledger_vouch_for_another_model(home, change):
    store = Store(str(home / "store"))
    spec = TrainSpec.of(name="r", model_name="m", lease=None, store=store.root, tracking="none", work={"kind": "module"})
    ledger = Ledger(home / "ledger.sqlite")
    record = ledger.create("run", "r", spec.model_dump(mode="json"), {})
    model = {"name": "m", "version": "1.0.0", "uri": store.uri("models/m/1.0.0"), "digest": "0" * 64}
    run = _Advance(ledger, record)
    with pytest.raises(IntegrityError, match="not its own"):
        run._succeeded({"why_not_exact": "", "model": model | change})
    assert ledger.models() == []
    run._succeeded({"why_not_exact": "", "model": model})
    assert len(ledger.models()) == 1


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
META = {"cloudai.tree": '{"tensor": "tree"}'}
LIES = {
    "a header of 2^63 bytes": safetensors({"tree": TENSOR}, bytes(8), length=2**63),
    "a header longer than the file": safetensors({"tree": TENSOR}, bytes(8), length=10_000),
    "overlapping tensors": safetensors({"tree": TENSOR, "b": TENSOR, "__metadata__": META}, bytes(8)),
    "offsets outside": safetensors({"tree": TENSOR | {"data_offsets": [0, 2**40]}, "__metadata__": META}, bytes(8)),
    "offsets backwards": safetensors({"tree": TENSOR | {"data_offsets": [8, 0]}, "__metadata__": META}, bytes(8)),
    "a huge shape": safetensors({"tree": TENSOR | {"shape": [2**40, 2**40]}, "__metadata__": META}, bytes(8)),
    "a negative shape": safetensors({"tree": TENSOR | {"shape": [-2]}, "__metadata__": META}, bytes(8)),
    "an unknown dtype": safetensors({"tree": TENSOR | {"dtype": "OBJ"}, "__metadata__": META}, bytes(8)),
    "no tree": safetensors({"tree": TENSOR}, bytes(8)),
    "a tree that is no JSON": safetensors({"tree": TENSOR, "__metadata__": {"cloudai.tree": "{"}}, bytes(8)),
    "a list as header": safetensors([1]),
    "metadata that is a list": safetensors({"__metadata__": [1], "tree": TENSOR}, bytes(8)),
}
TREES = [
    {}, {"dict": None}, {"dict": [[[1], 2]]}, {"dict": [[1]]}, {"dict": {"a": 1}}, {"list": 3}, {"tuple": None}, {"bytes": 5},
    {"bytes": "zz"}, {"float": "x"}, {"float": []}, {"tensor": "nothing"}, {"tensor": []}, {"array": "tree"},
    {"array": "tree", "shape": [3, 3]}, {"array": "tree", "shape": [2**70]}, {"array": "tree", "shape": "x"}, {"other": 1},
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies(lie, tmp_path):
    for read in (trees.load, Profile.from_bytes):
        with pytest.raises(IntegrityError):
            read(LIES[lie])
    (tmp_path / "9999999999999999-1-1.safetensors").write_bytes(LIES[lie])
    assert read_samples(tmp_path, since=0, limit=10) == []


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_a_tree_that_lies(tree):
    for nested in (tree, {"list": [tree]}, {"dict": [["a", tree]]}):
        with pytest.raises(IntegrityError):
            trees.load(safetensors({"tree": TENSOR, "__metadata__": {"cloudai.tree": json.dumps(nested)}}, bytes(8)))


def test_a_tree_without_end():
    deep = '{"list":[' * 50_000 + "1" + "]}" * 50_000
    with pytest.raises(IntegrityError):
        trees.load(safetensors({"tree": TENSOR, "__metadata__": {"cloudai.tree": deep}}, bytes(8)))


GOOD_TREE = trees.dump({"a": [torch.arange(5), np.arange(3.0), (1, "x", None, 2.5)], "b": b"bytes"})
GOOD_PROFILE = Profile.of({"x": np.arange(50.0), "plan": np.array(["a", "b"] * 25)}).to_bytes()
GOOD_BUNDLE = Bundle({"work.py": b"def f(): return 1"}, {"f": "work:f"}).to_zip()


@pytest.mark.parametrize(
    ("read", "good"), [(trees.load, GOOD_TREE), (Profile.from_bytes, GOOD_PROFILE), (Bundle.from_zip, GOOD_BUNDLE)]
)
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_is_read_or_refused(read, good, data):
    """Bytes replaced, cut out and put in: an IntegrityError, or something that is as good as the original."""
    spoilt = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(spoilt)))
        cut = data.draw(st.integers(0, 12))
        spoilt[at : at + cut] = data.draw(st.binary(max_size=12))
    try:
        read(bytes(spoilt))
    except IntegrityError as error:
        assert error.fix
        assert len(str(error)) < 2000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_manifest_with_anything_replaced_is_shown_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("model")
    good = {
        "format": 1, "name": "m", "version": "1.0.0", "created": "2026-01-02T03:04:05+00:00",
        "files": {"module.safetensors": {"sha256": "0" * 64, "size": 3}}, "metrics": {"loss": 0.5}, "lineage": {"run": "r"},
        "features": ["a"], "signature": {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 2]}], "outputs": []},
    }  # fmt: skip
    place = good
    while isinstance(place, dict | list) and place:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(json_values)
            break
        place = place[key]
    (folder / "manifest.json").write_text(json.dumps(good))
    try:
        model = Model.open(str(folder))
    except IntegrityError:
        return
    assert model.card().text()
    assert model.card().html()
    if good["files"]:
        with pytest.raises(IntegrityError):
            model.verify()


@pytest.mark.parametrize(
    "name", ["../../secret", "/etc/passwd", "a/../../x", "..", ".", "", "a/b", "a\\b", "C:x", "a\0b", "a\x1b[2Jb", ".hidden"]
)
def test_a_manifest_names_only_files_of_its_own_folder(model, name):
    (folder_of(model).parent / "secret").write_text("not the model's")
    path = folder_of(model) / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"][name] = {"sha256": sha256(b"not the model's"), "size": 15}
    path.write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="its files are not what they should be"):
        Model.open(model.uri)


def test_a_link_in_the_place_of_a_models_folder_or_file_is_still_checked(model, home, tmp_path):
    """A link may lead anywhere: the digests say what counts, not the place."""
    folder, elsewhere = folder_of(model), tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    assert Model.open(model.uri, model.digest).verify().digest == model.digest
    secret = tmp_path / "secret"
    secret.write_text("of somebody else")
    (elsewhere / "module.safetensors").unlink()
    (elsewhere / "module.safetensors").symlink_to(secret)
    with pytest.raises(IntegrityError, match="not what was recorded"):
        Model.open(model.uri, model.digest).module()


def test_a_link_is_replaced_and_not_followed(tmp_path):
    """Somebody plants a link where we are about to write."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    store = Store(str(tmp_path / "store"))
    store.write("runs/r/status.json", b"{}")
    for name in ("status.json", "claim"):
        (tmp_path / "store/runs/r" / name).unlink(missing_ok=True)
        (tmp_path / "store/runs/r" / name).symlink_to(victim)
    store.write("runs/r/status.json", b"{}")
    assert not store.create("runs/r/claim", b"{}")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "store/runs/r/status.json").is_symlink()


@pytest.mark.parametrize("name", ["../escape.py", "/abs.py", "a/../../b.py", "..\\b.py", "link.py"])
def test_an_archive_stays_in_its_folder(tmp_path, name):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("bundle.json", json.dumps({"format": 1, "entries": {}}))
        info = zipfile.ZipInfo(name)
        info.external_attr = (0o120777 if name == "link.py" else 0o100644) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(IntegrityError):
        Bundle.from_zip(stream.getvalue())


def test_nothing_in_the_package_can_read_a_pickle():
    """The readers that run what they read are not called anywhere, so no file can reach them."""
    forbidden = {
        ("pickle", "load"), ("pickle", "loads"), ("torch", "load"), ("np", "load"), ("numpy", "load"), ("joblib", "load"),
        ("marshal", "load"), ("marshal", "loads"), ("shelve", "open"), ("yaml", "load"), ("pd", "read_pickle"),
        ("zipfile", "extractall"), ("tarfile", "open"),
    }  # fmt: skip
    found = []
    for path in Path(cloudai.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                pair = tuple(name.rsplit(".", 1))
                suspect = pair in forbidden or name in ("eval", "exec", "compile", "__import__")
                suspect = suspect or name.endswith(("all_gather_object", "broadcast_object_list", ".extractall"))
                if suspect:
                    found.append(f"{path.name}:{node.lineno} {name}")
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                found += [
                    f"{path.name}:{node.lineno} imports {n}" for n in names if n in ("pickle", "dill", "cloudpickle", "joblib")
                ]
    assert found == []
