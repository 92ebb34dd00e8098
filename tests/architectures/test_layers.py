"""The matrix product and the checks every network stands on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from course_utils.architectures import layers


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.zeros(2, 3), TypeError, "float32"),
        (torch.zeros(2, 3, dtype=torch.bool), TypeError, "bool"),
        (torch.zeros(3, dtype=torch.long), ValueError, r"\(3,\)"),
        (torch.zeros(2, 0, dtype=torch.long), ValueError, "at least one step"),
        (torch.tensor([[0, 10]]), ValueError, "go from 0 to 10; the vocabulary is 0 … 9"),
        (torch.tensor([[-1, 3]]), ValueError, "go from -1 to 3"),
    ],
)
def test_ids_that_are_wrong(ids, error, message):
    with pytest.raises(error, match=message):
        layers.check_ids(ids, 10)


def test_ids_that_are_right():
    layers.check_ids(torch.tensor([[0, 9]]), 10)
    layers.check_ids(torch.tensor([[0, 9]], dtype=torch.int32), 10)


def test_copy_weights():
    model = nn.Linear(2, 3)
    source = {"w": torch.arange(6.0).view(3, 2), "b": torch.ones(3)}
    layers.copy_weights(model, source, {"weight": "w", "bias": "b"}, "a test")
    assert torch.equal(model.weight, source["w"])
    assert torch.equal(model.bias, source["b"])
    assert model.weight.data_ptr() != source["w"].data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": None}, "no w for weight"),
        ({"extra": torch.zeros(1)}, "no place for extra"),
        ({"w": torch.zeros(2, 3)}, r"w is \(2, 3\), our weight is \(3, 2\)"),
    ],
)
def test_weights_that_do_not_fit(change, message):
    model = nn.Linear(2, 3)
    before = model.weight.detach().clone()
    source = {"w": torch.zeros(3, 2), "b": torch.zeros(3)} | change
    source = {name: value for name, value in source.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        layers.copy_weights(model, source, {"weight": "w", "bias": "b"}, "a test")
    assert torch.equal(model.weight, before)  # nothing half copied


def test_a_parameter_nobody_names():
    with pytest.raises(ValueError, match="has nothing for our bias"):
        layers.copy_weights(nn.Linear(2, 3), {"w": torch.zeros(3, 2)}, {"weight": "w"}, "a test")


def test_sizes_below_one():
    with pytest.raises(ValueError, match="n_layers is 0"):
        layers.check_positive(d_model=4, n_layers=0)
