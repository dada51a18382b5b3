"""Taps: layers read by name, hooks that leave."""

import pytest
import torch
from torch import nn

from kdlab import InputError
from kdlab.distill import Taps


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_records_are_the_layers_outputs(model):
    x = torch.randn(5, 4)
    with Taps(model, ["0", "2", ""]) as taps:
        out = model(x)
    assert torch.equal(taps["0"], model[0](x))
    assert taps["2"] is out
    assert taps[""] is out


def test_the_gradient_flows_through_a_record(model):
    with Taps(model, ["0"]) as taps:
        model(torch.randn(5, 4))
    taps["0"].sum().backward()
    assert model[0].weight.grad is not None


def test_the_hooks_leave_also_after_an_error(model):
    with Taps(model, ["0", "2"]):
        assert hooks(model) == 2
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), Taps(model, ["0"]):
        model(torch.randn(5, 99))
    assert hooks(model) == 0


def test_entering_again_forgets_the_last_records(model):
    taps = Taps(model, ["0"])
    with taps:
        model(torch.randn(5, 4))
    with taps, pytest.raises(InputError, match="not reached"):
        taps["0"]


def test_an_unknown_layer_is_an_error_at_once_with_near_names():
    model = nn.Sequential()
    model.add_module("classifier", nn.Linear(2, 2))
    with pytest.raises(InputError, match="unknown layer of Sequential 'clasifier'. Did you mean 'classifier'"):
        Taps(model, ["clasifier"])


def test_reading_what_was_not_tapped_names_what_was(model):
    with Taps(model, ["0"]) as taps:
        model(torch.randn(5, 4))
    with pytest.raises(InputError, match="unknown tap '1'. Known: '0'"):
        taps["1"]
