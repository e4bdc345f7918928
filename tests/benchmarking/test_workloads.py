"""Workloads are frozen: a figure under a name always means the same work."""

from __future__ import annotations

import pytest

from cloudai import errors
from cloudai.benchmarking.workloads import WORKLOADS, find_workload

PINNED = {
    "bert-large-squad@1": "c4f02b1de95c64440960bfec68d84a3de0502f89c3508032822ed30fa102b11f",
    "bert-tiny-squad@1": "ca524760716b370eafc89281e0ec88ab460570070997f8dbc5b8748747992bb8",
    "digits-mlp-train@1": "6729540c02474025dc7dcd16239a0aee8c1ba1deffcb14eee73c364dddc62acd",
    "minilm-l6-infer@1": "72e9e6e032cba64611cab9353dd1aee54a7f3a99fc90d5e5c8969735741187e2",
}
"""A digest that changes is another workload: give it the next version, and leave the old one as it is."""


def test_no_workload_has_changed():
    assert {ref: workload.digest for ref, workload in WORKLOADS.items()} == PINNED


def test_everything_about_a_workload_is_in_its_digest():
    workload = WORKLOADS["bert-large-squad@1"]
    other = {int: 7, float: 0.7, str: "other", dict: {"hidden_size": 8}}
    for name in type(workload).model_fields:
        changed = workload.model_copy(update={name: other[type(getattr(workload, name))]})
        assert changed.digest != workload.digest, name


def test_the_large_one_is_what_was_published_of():
    workload = WORKLOADS["bert-large-squad@1"]
    shape = workload.architecture
    assert (shape["num_hidden_layers"], shape["hidden_size"], shape["num_attention_heads"]) == (24, 1024, 16)
    assert (workload.length, workload.features, workload.epochs) == (384, 88_641, 3)
    tiny = WORKLOADS["bert-tiny-squad@1"]
    differing = {name for name in type(tiny).model_fields if getattr(tiny, name) != getattr(workload, name)}
    assert differing == {"name", "architecture", "batch_size"}


def test_the_loop_is_told_what_the_workload_says():
    workload = WORKLOADS["bert-large-squad@1"]
    loop = workload.loop()
    for name in (
        "optimizer",
        "lr",
        "lr_schedule",
        "warmup",
        "weight_decay",
        "max_grad_norm",
        "epochs",
        "batch_size",
        "precision",
    ):
        assert getattr(loop, name) == getattr(workload, name), name
    assert loop.validation == 0


@pytest.mark.parametrize("name", ["bert-large", "bert-large-squad@9", ""])
def test_an_unknown_workload_is_refused_with_the_nearest(name):
    with pytest.raises(errors.NotFoundError, match="there is no workload") as caught:
        find_workload(name)
    assert "bert-large-squad@1" in caught.value.fix
