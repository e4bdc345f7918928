"""The operations of a step: counted as on paper, and counting changes nothing."""

from __future__ import annotations

import pytest
import torch

from cloudai.training import randomness
from cloudai.training.flops import of_module, of_transformer
from cloudai.training.meter import NO_FLOPS, Flops


def test_layers_are_counted_as_on_paper():
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 26 * 26, 10)
    )
    forward = 2 * (8 * 9 * 26 * 26 + 8 * 26 * 26 * 10)
    assert of_module(module, [torch.zeros(4, 1, 28, 28)]).per_row == 3 * forward


def test_weights_that_do_not_learn_need_no_gradient():
    module = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False))
    module[0].weight.requires_grad_(False)
    assert of_module(module, [torch.zeros(2, 8)]).per_row == 2.5 * 2 * 128


class Drawing(torch.nn.Module):
    """It draws while it runs, remembers, and is made of parts of which one is shared."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.again = self.layer
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, inputs):
        if torch.rand([]) < 2:
            inputs = torch.nn.functional.dropout(self.layer(inputs), 0.5)
        return self.norm(self.again(inputs))


def test_counting_changes_neither_weights_nor_buffers_nor_what_is_drawn_next():
    module = Drawing()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    states = randomness.snapshot()
    assert of_module(module, [torch.zeros(2, 4)]).per_row == 3 * 2 * 2 * 16
    assert torch.equal(torch.rand(3), expected)
    assert states["python"] == randomness.snapshot()["python"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.device.type == "cpu" for parameter in module.parameters())
    assert module.training


class Looking(torch.nn.Module):
    """What it does depends on the values."""

    def forward(self, inputs):
        return inputs * 2 if inputs.sum() > 0 else inputs


def test_what_cannot_be_counted_is_left_blank():
    assert of_module(Looking(), [torch.zeros(2, 4)]) == NO_FLOPS
    assert of_module(torch.nn.Linear(2, 2), ()) == NO_FLOPS


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_transformer_is_known_from_its_shape(wrapped):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    module = transformers.BertForSequenceClassification(config)
    multiplied = sum(p.numel() for p in module.parameters()) - sum(
        part.weight.numel() for part in module.modules() if isinstance(part, torch.nn.Embedding)
    )
    found = of_transformer(torch.nn.Sequential(module) if wrapped else module)
    assert found == Flops(per_token=6 * multiplied, per_pair=12 * 2 * 32)
    assert found.of(rows=2, tokens=32) == pytest.approx(32 * (6 * multiplied + 12 * 2 * 32 * 16))


def test_attention_grows_with_the_square_of_the_length():
    attention = Flops(per_pair=1.0)
    assert attention.of(1, 20) == 4 * attention.of(1, 10)
    assert attention.of(0, 0) == 0.0
