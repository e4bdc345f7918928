from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import cloudai
from cloudai import Model, errors
from cloudai.artifacts.onnx_models import open_session
from tests.artifacts import graphs

X = np.random.default_rng(0).normal(size=(40, 2)).astype("float32")


def test_a_file_becomes_a_model_like_any_other(home, tmp_path):
    path = tmp_path / "linear.onnx"
    onnx.save(graphs.linear(), path)
    model = Model.from_onnx(path, name="lin", metrics={"r2": 0.5}, data=X)
    assert str(model.signature) == "x: float32[n, 2] → y: float32[n, 3]"
    assert (model.kind, model.version, model.profile.rows) == ("onnx", "1.0.0", 40)
    found = cloudai.load_model("lin").verify()
    assert np.allclose(found.predict(X.astype("float64").tolist()), X @ graphs.WEIGHT, atol=1e-6)
    assert Model.from_onnx(path.read_bytes(), name="lin-2").signature == model.signature
    with pytest.raises(errors.SpecError, match="no torch module"):
        model.module()
    with pytest.raises(errors.RequestError, match="shape"):
        model.predict(X[:, :1])


def test_tensors_beside_the_file_come_along(home, tmp_path):
    path = tmp_path / "linear.onnx"
    onnx.save(graphs.beside("w.bin"), path)
    (tmp_path / "w.bin").write_bytes(graphs.WEIGHT.tobytes())
    model = Model.from_onnx(path, name="lin")
    (tmp_path / "w.bin").unlink()
    assert np.allclose(cloudai.load_model("lin").predict(X), X @ graphs.WEIGHT, atol=1e-6)
    assert sorted(model.files()) == ["example.safetensors", "model.onnx"]


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "link.bin", "a\\..\\w.bin", ""])
def test_no_file_outside_of_the_models_folder_is_read(home, tmp_path, location):
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(graphs.WEIGHT.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "linear.onnx").write_bytes(graphs.beside(location).SerializeToString())
    with pytest.raises(errors.IntegrityError, match="outside of its folder"):
        Model.from_onnx(folder / "linear.onnx", name="lin")


def _mapping() -> bytes:
    zipmap = helper.make_node("ZipMap", ["x"], ["z"], domain="ai.onnx.ml", classlabels_strings=["a", "b"])
    value = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph([zipmap], "g", inputs, [helper.make_value_info("z", value)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def _total() -> bytes:
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.mark.parametrize(
    ("data", "kind", "what"),
    [
        (b"", errors.IntegrityError, "no ONNX model"),
        (b"\x80\x04K\x01.", errors.IntegrityError, "no ONNX model"),
        (graphs.linear().SerializeToString()[:-20], errors.IntegrityError, "no ONNX model"),
        (graphs.linear(op="MatMull").SerializeToString(), errors.IntegrityError, "malformed"),
        (graphs.linear(domain="evil", op="Run").SerializeToString(), errors.SpecError, "evil:Run"),
        (graphs.linear(opset=999).SerializeToString(), errors.SpecError, "opset 999"),
        (graphs.linear(batch=8).SerializeToString(), errors.SpecError, "fixed length 8"),
        (graphs.linear(kind=TensorProto.BFLOAT16).SerializeToString(), errors.CloudAIError, "cannot"),
        (graphs.beside("w.bin").SerializeToString(), errors.IntegrityError, "other files"),
        (_mapping(), errors.SpecError, "cannot be served"),
        (_total(), errors.SpecError, "one row for each row"),
    ],
)
def test_what_is_unfit_is_refused_and_leaves_nothing(home, data, kind, what):
    with pytest.raises(kind, match=what) as caught:
        Model.from_onnx(data, name="lin")
    assert len(str(caught.value).split("\n")) == 2
    assert not (home / "store").exists()


def test_a_newer_format_than_the_runtimes_is_named():
    model = graphs.linear()
    model.ir_version = 99
    with pytest.raises(errors.SpecError, match=r"cannot run this model: .*IR"):
        open_session(model.SerializeToString())


def test_a_missing_file_and_a_large_one(home, tmp_path):
    with pytest.raises(errors.NotFoundError, match="no file"):
        Model.from_onnx(tmp_path / "none.onnx", name="lin")
    huge = tmp_path / "huge.onnx"
    with huge.open("wb") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(errors.SpecError, match=r"3\.0 GiB"):
        Model.from_onnx(huge, name="lin")


def test_made_up_rows_that_do_not_fit_ask_for_an_example(home):
    nodes = [helper.make_node("Gather", ["w", "x"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 3], [1.0, 2.0, 3.0])
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    with pytest.raises(errors.DataError, match="made-up rows") as caught:
        Model.from_onnx(data, name="gather")
    assert "example=" in caught.value.fix
    assert Model.from_onnx(data, name="gather", example=np.zeros(3, "int64")).predict([0]).tolist() == [[1, 2, 3]]
    with pytest.raises(errors.DataError, match="example does not fit"):
        Model.from_onnx(data, name="gather", example=np.zeros((3, 2), "int64"))


def test_a_file_that_was_changed_in_the_store_is_not_run(home):
    model = Model.from_onnx(graphs.linear().SerializeToString(), name="lin")
    path = Path(model.uri) / "model.onnx"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(errors.IntegrityError, match="not what was recorded"):
        cloudai.load_model("lin").predict(X)


def test_texts_and_several_threads(home):
    nodes = [helper.make_node("Identity", ["word"], ["same"])]
    spec = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in ("word", "same")]
    graph = helper.make_graph(nodes, "g", spec[:1], spec[1:])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    model = Model.from_onnx(data, name="echo")
    assert str(model.signature) == "word: str[n] → same: str[n]"
    answers: dict[int, list[str]] = {}

    def ask(number: int) -> None:
        answers[number] = model.predict([f"wört {number}"] * 50).tolist()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [f"wört {number}"] * 50 for number in range(8)}


def test_as_many_threads_as_the_environment_says(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    options = open_session(graphs.linear().SerializeToString()).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
