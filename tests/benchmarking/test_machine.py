"""Operations, memory and energy: counted, or left blank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cloudai.benchmarking import machine
from cloudai.benchmarking.energy import RaplMeter, meter_of
from cloudai.benchmarking.modules import build, operations, random_examples, random_rows
from cloudai.benchmarking.workloads import WORKLOADS

CPU = torch.device("cpu")


def test_memory_that_a_step_takes_is_seen():
    kept = []
    grown = machine.growth(lambda: kept.append(np.ones(64 << 20, np.uint8)))
    assert grown > 48 << 20
    assert machine.peak_memory(CPU)[0] > 64 << 20


def test_rows_are_halved_until_they_fit():
    assert machine.fitting_rows(1.0, 32) == 32
    assert machine.fitting_rows(1e18, 32) == 1
    assert machine.fitting_rows(1.0, 32, to_come=1e18) == 1


def small(ref):
    workload = WORKLOADS[ref]
    change = {"length": 64, "features": 32, "batch_size": 4}
    return workload.model_copy(update=change)


@pytest.mark.parametrize("ref", ["bert-tiny-squad@1", "minilm-l6-infer@1"])
def test_operations_are_those_that_torch_counts(ref):
    workload = small(ref)
    module = build(workload).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        module(random_rows(workload, 1))
    forward = operations(workload, module) / (3 if workload.act == "train" else 1)
    assert forward == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_training_takes_three_times_the_operations():
    workload = small("bert-tiny-squad@1")
    module, examples = build(workload), random_examples(workload, CPU)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        examples.loss(module, torch.arange(4)).backward()
    assert 4 * operations(workload, module) == pytest.approx(counter.get_total_flops(), rel=0.02)


def zone(root, name, energy, most=1000):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder / "energy_uj"


def test_energy_is_that_of_all_processors_and_a_counter_may_begin_again(tmp_path):
    first, second = zone(tmp_path, "intel-rapl:0", 100), zone(tmp_path, "intel-rapl:1", 900)
    part = zone(tmp_path, "intel-rapl:0:0", 0)
    meter = RaplMeter.found(tmp_path)
    meter.now = lambda: 0.0
    meter.start()
    first.write_text("350")
    second.write_text("99")
    part.write_text("500")
    assert meter.joules() == pytest.approx((250 + 200) / 1e6)


def test_a_counter_that_begins_again_and_again_is_summed_while_it_is_read_and_else_left_out(tmp_path):
    counter, most, watts = zone(tmp_path, "intel-rapl:0", 0, 10**9), 10**9, 400
    meter, second = RaplMeter.found(tmp_path), [0.0]
    meter.now = lambda: second[0]
    meter.start()
    for second[0] in np.arange(0.0, 60.0, 0.5):  # 1000 J: it begins again each 2.5 s
        counter.write_text(str(int(second[0] * watts * 1e6) % (most + 1)))
        assert meter.joules() == pytest.approx(second[0] * watts)
    second[0] += 1.1  # 1000 W could have turned it round in a second
    assert meter.joules() is None
    assert meter.joules() is None, "what was lost stays lost"
    meter.start()
    assert meter.joules() == 0.0


def test_energy_that_cannot_be_read_is_left_out(tmp_path):
    assert RaplMeter.found(tmp_path) is None
    zone(tmp_path, "intel-rapl:0", 1).write_text("not a number")
    assert RaplMeter.found(tmp_path) is None


def test_a_gpu_that_is_not_there_has_no_meter():
    assert meter_of(torch.device("cuda")) is None or torch.cuda.is_available()
