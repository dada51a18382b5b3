"""Eval mode for a while: afterwards every module is in the mode that it was in."""

import pytest
import torch
from torch import nn

from kdlab.data.pairs import Pair, PairedImages
from kdlab.modes import evaluating
from kdlab.training import measure_each, predict_logits, segmentation_metrics


@pytest.fixture
def model():
    """In training mode, but for a frozen BatchNorm."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    model[1].eval()
    return model


def modes(model):
    return [module.training for module in model.modules()]


def test_eval_mode_and_the_device_inside_and_all_as_it_was_after(model):
    before = modes(model)
    with evaluating(model) as device:
        assert not any(modes(model))
        assert device == torch.device("cpu")
    assert modes(model) == before


def test_a_model_without_parameters_is_on_the_cpu():
    with evaluating(nn.Identity()) as device:
        assert device == torch.device("cpu")


IMAGES = torch.rand(2, 3, 16, 16)


def measure_images(model):
    predict_logits(nn.Sequential(model, nn.Flatten()), [(IMAGES, torch.zeros(2, dtype=torch.long))])


def measure_masks(model):
    segmentation_metrics(model, [(IMAGES, torch.zeros(2, 16, 16, dtype=torch.long))], classes=3)


def measure_pairs(model):
    picture = torch.zeros(3, 16, 16, dtype=torch.uint8)
    measure_each(model, PairedImages([Pair(picture, picture, "haze", "one")], ("haze",)))


@pytest.mark.parametrize("measure", [measure_images, measure_masks, measure_pairs])
def test_what_measures_a_model_leaves_its_modes_alone(model, measure):
    before = modes(model)
    measure(model)
    assert modes(model) == before
    model.append(nn.Conv2d(4, 3, 1))
    before = modes(model)
    with pytest.raises(RuntimeError):
        measure(model)
    assert modes(model) == before
