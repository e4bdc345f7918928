from __future__ import annotations

import io
import stat
import subprocess
import sys
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudai.capture.bundle import Bundle, carries, loaded, resolve
from cloudai.errors import IntegrityError

FILES = {"helpers_a/__init__.py": b"", "helpers_a/deep.py": b"VALUE = 1\n", "work_a.py": b"def f():\n    return 1\n"}
BUNDLE = Bundle(FILES, {"f": "work_a:f"})


def zipped(members, compression=zipfile.ZIP_STORED, mode=stat.S_IFREG | 0o644):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, compression
            archive.writestr(info, content)
    return stream.getvalue()


MANIFEST = ("bundle.json", b'{"format":1,"entries":{}}')


def test_a_bundle_survives_its_zip():
    again = Bundle.from_zip(BUNDLE.to_zip())
    assert again == BUNDLE
    assert again.digest == BUNDLE.digest
    assert dict(again.entries) == {"f": "work_a:f"}


def test_the_zip_and_the_digest_depend_on_the_content_alone():
    turned = Bundle(dict(reversed(FILES.items())), {"f": "work_a:f"})
    assert turned.to_zip() == BUNDLE.to_zip()
    assert turned.digest == BUNDLE.digest
    code = "import sys; from cloudai.capture.bundle import Bundle; pipe = sys.stdin.buffer, sys.stdout.buffer;"
    code += "pipe[1].write(Bundle.from_zip(pipe[0].read()).to_zip())"
    elsewhere = subprocess.run([sys.executable, "-c", code], input=BUNDLE.to_zip(), capture_output=True, check=True)
    assert elsewhere.stdout == BUNDLE.to_zip()


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,4}(/[a-z]{1,4}){0,2}\.py", fullmatch=True), st.binary(max_size=40), max_size=4))
def test_any_files_come_back_or_collide(files):
    try:
        bundle = Bundle(files, {})
    except IntegrityError:
        assert any(f"{path}/" in other for path in files for other in files)
        return
    assert dict(Bundle.from_zip(bundle.to_zip()).files) == files


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["a.py", "b.py", "c.py"]), st.sampled_from([b"", b"1", b"11"])), st.data())
def test_different_contents_have_different_digests(files, data):
    other = data.draw(st.dictionaries(st.sampled_from(["a.py", "b.py", "c.py"]), st.sampled_from([b"", b"1", b"11"])))
    assert (Bundle(files, {}).digest == Bundle(other, {}).digest) == (files == other)


def test_a_bundle_cannot_be_changed():
    with pytest.raises(TypeError):
        BUNDLE.files["x.py"] = b""
    with pytest.raises(AttributeError):
        BUNDLE.files = {}


BAD_PATHS = ["/etc/x.py", "../x.py", "a/../../x.py", "./x.py", "a//x.py", "C:\\x.py", "a\\x.py", "c:x.py", "x.txt", "x", ""]
BAD_PATHS += ["a/.py/", "a /x.py", "x\n.py", "x\x00.py", "a*.py", "x" * 300 + ".py", "...", "sub/", "x.pyc"]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_could_lead_elsewhere_is_refused(path):
    with pytest.raises(IntegrityError):
        Bundle({path: b""}, {})
    with pytest.raises(IntegrityError):
        Bundle.from_zip(zipped([MANIFEST, (path, b"")]))


@pytest.mark.parametrize("paths", [("a.py", "A.py"), ("straße.py", "STRASSE.py"), ("ﬁle.py", "file.py"), ("a.py", "a.py/b.py")])
def test_paths_that_are_one_on_some_file_system_are_refused(paths):
    with pytest.raises(IntegrityError):
        Bundle(dict.fromkeys(paths, b""), {})


def test_a_path_that_stands_twice_is_refused():
    with pytest.warns(UserWarning, match="Duplicate"):
        data = zipped([MANIFEST, ("a.py", b"1"), ("a.py", b"2")])
    with pytest.raises(IntegrityError, match="twice"):
        Bundle.from_zip(data)


def test_links_folders_and_devices_are_refused():
    for mode in (stat.S_IFLNK | 0o777, stat.S_IFDIR | 0o755, stat.S_IFCHR, 0):
        with pytest.raises(IntegrityError, match="plain file"):
            Bundle.from_zip(zipped([MANIFEST, ("a.py", b"/etc/passwd")], mode=mode))


def test_a_compressed_bomb_is_refused_before_it_is_read():
    data = zipped([MANIFEST, ("a.py", b"0" * 50_000_000)], zipfile.ZIP_DEFLATED)
    assert len(data) < 100_000
    with pytest.raises(IntegrityError, match="compressed"):
        Bundle.from_zip(data)


def test_too_large_a_bundle_is_refused_with_its_size():
    with pytest.raises(IntegrityError, match="67,108,865 bytes"):
        Bundle({"a.py": bytes(64 * 2**20 + 1)}, {})
    with pytest.raises(IntegrityError, match="10001 files"):
        Bundle({f"a{i}.py": b"" for i in range(10_001)}, {})


def test_a_header_that_lies_about_the_size_is_refused():
    data = bytearray(zipped([MANIFEST, ("a.py", b"x" * 100)]))
    place = data.rfind(b"PK\x01\x02") + 24
    data[place : place + 4] = (2**31).to_bytes(4, "little")
    with pytest.raises(IntegrityError):
        Bundle.from_zip(bytes(data))


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"format":2,"entries":{}}',
        b'{"format":1,"entries":[]}',
        b'{"format":1,"entries":{"f":"os"}}',
        b'{"format":1,"entries":{"f":"a:b c"}}',
        b'{"format":1,"entries":{"f":"../a:b"}}',
        b'{"format":1,"entries":{"f":1}}',
    ],
)
def test_a_wrong_manifest_is_refused(manifest):
    with pytest.raises(IntegrityError):
        Bundle.from_zip(zipped([("bundle.json", manifest)]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_zip_is_refused_or_means_the_same_files(data):
    damaged = bytearray(BUNDLE.to_zip())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(len(damaged) - 2, len(damaged)))])
    try:
        again = Bundle.from_zip(cut)
    except IntegrityError:
        return
    assert set(again.files.values()) <= set(FILES.values())  # every content is covered by a checksum


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip", zipped([]), zipped([("a.py", b"")])])
def test_what_is_no_bundle_is_refused(data):
    with pytest.raises(IntegrityError):
        Bundle.from_zip(data)


def test_code_is_importable_only_while_it_is_loaded(tmp_path):
    with loaded(BUNDLE.to_zip(), tmp_path) as root:
        assert (root / "helpers_a" / "deep.py").read_bytes() == b"VALUE = 1\n"
        assert resolve("work_a:f")() == 1
        assert resolve("helpers_a.deep:VALUE") == 1
        assert carries("helpers_a.deep:anything")
        assert not carries("os:path")
    assert str(root) not in sys.path
    assert "work_a" not in sys.modules
    assert not carries("work_a:f")
    with pytest.raises(IntegrityError, match="no 'work_a:f'"):
        resolve("work_a:f")


def test_two_bundles_with_the_same_module_names_live_in_one_process(tmp_path):
    bundles = [
        Bundle({f"cloudai_work_0000000{i}.py": b"from shared_x import VALUE", "shared_x.py": b"VALUE = %d" % i}, {})
        for i in (1, 2)
    ]
    with loaded(bundles[0], tmp_path):
        first = resolve("cloudai_work_00000001:VALUE")
        shared = sys.modules["shared_x"]
        with loaded(bundles[1], tmp_path):
            assert resolve("cloudai_work_00000002:VALUE") == 2
            assert resolve("shared_x:VALUE") == 2
        assert sys.modules["shared_x"] is shared
        assert (first, resolve("shared_x:VALUE")) == (1, 1)
    assert "shared_x" not in sys.modules


def test_a_module_of_the_kernel_steps_aside_and_comes_back(tmp_path, monkeypatch):
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "shared_y.py").write_text("VALUE = 'kernel'")
    monkeypatch.syspath_prepend(tmp_path / "kernel")
    import shared_y

    with loaded(Bundle({"shared_y.py": b"VALUE = 'bundle'"}, {}), tmp_path):
        assert resolve("shared_y:VALUE") == "bundle"
    assert sys.modules["shared_y"] is shared_y
    del sys.modules["shared_y"]


def test_loading_ends_also_when_the_code_fails(tmp_path):
    before = list(sys.path)
    bundle = Bundle({"fails_z.py": b"import no_such_module_z"}, {})
    with pytest.raises(ModuleNotFoundError, match="no_such_module_z"), loaded(bundle, tmp_path):
        resolve("fails_z:f")
    assert sys.path == before


@pytest.mark.parametrize("location", ["os:system", "subprocess:run", "builtins:eval", "importlib:import_module"])
def test_the_standard_library_is_never_resolved(location):
    with pytest.raises(IntegrityError, match="standard library"):
        resolve(location)


@pytest.mark.parametrize(
    "location", ["", ":", "work", "work_a:", "work_a:f()", "no_such_module_b:f", "numpy:no_such_name", "a b:c"]
)
def test_a_location_that_leads_nowhere_is_refused(location):
    with pytest.raises(IntegrityError):
        resolve(location)


def test_a_location_does_not_lead_through_another_module(tmp_path):
    with loaded(Bundle({"through_c.py": b"import os\nfrom os import path"}, {}), tmp_path):
        for location in ("through_c:os.system", "through_c:os", "through_c:path.join"):
            with pytest.raises(IntegrityError, match="another module"):
                resolve(location)


def test_an_object_of_an_installed_package_is_resolved():
    assert resolve("hypothesis.strategies:integers") is st.integers


def test_the_report_says_what_was_captured():
    main = b"import numpy as np\nfrom helpers_a import deep\nSIZE = 3\n"
    main += b"\n\ndef f():\n    return np.ones(SIZE)\n\n\nclass Net:\n    pass\n"
    bundle = Bundle({**FILES, "cloudai_work_12345678.py": main}, {"f": "cloudai_work_12345678:f"})
    text = bundle.report().text()
    rows = [line.split() for line in text.splitlines()]
    assert ["SIZE", "value", "the", "notebook", "8"] in rows
    assert ["f", "function", "the", "notebook", "33"] in rows
    assert ["Net", "class", "the", "notebook", "19"] in rows
    assert ["helpers_a.deep", "module", "a", "local", "file", "10"] in rows
    assert "imports: numpy" in text
    assert bundle.digest[:12] in text
    assert "<table>" in bundle._repr_mimebundle_()["text/html"]
