"""What a machine can do: published peaks by name, a rate that is measured, and what is in use."""

from __future__ import annotations

import psutil
import pytest
import torch

from cloudai.training import hardware


@pytest.mark.parametrize(
    ("name", "dtype", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100-PCIE-40GB", "float32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H100 NVL", "bfloat16", 835),
        ("NVIDIA H200", "float16", 989.4),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 362),
        ("Tesla T4", "float16", 65),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("Tesla V100-PCIE-16GB", "float16", 112),
        ("NVIDIA A10", "bfloat16", 125),
        ("Tesla T4", "bfloat16", 0),  # it has none
        ("NVIDIA A10G", "bfloat16", 0),  # another chip than A10
        ("NVIDIA A1000", "bfloat16", 0),
        ("something new", "bfloat16", 0),
    ],
)
def test_peaks_are_found_by_whole_words_of_the_name(name, dtype, teraflops):
    assert hardware.peak_of(name, dtype) == teraflops * 1e12


def test_float32_is_quicker_where_torch_may_round():
    assert hardware.peak_of("NVIDIA A100-SXM4-80GB", "float32", tf32=True) == 156e12
    assert hardware.peak_of("NVIDIA A100-SXM4-80GB", "bfloat16", tf32=True) == 312e12


def test_the_rate_of_a_processor_is_one_that_its_own_work_does_not_pass():
    rate = hardware.matmul_rate()
    assert 1e8 < rate < 1e14
    left = torch.zeros(512, 512)
    assert torch.mm(left, left).shape == (512, 512)


def test_use_is_of_this_process_and_within_the_machine():
    seen = hardware.use()
    assert 0 < psutil.Process().memory_info().rss * 0.5 < seen.memory < seen.memory_limit <= psutil.virtual_memory().total
    if not torch.cuda.is_available():
        assert (seen.gpu, seen.gpu_memory, seen.gpu_busy) == ("", 0, None)
