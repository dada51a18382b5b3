"""VGG19's slices: their shapes, their weights, and that nothing about them moves."""

import pytest
import torch
from torch import nn
from torchvision.models import VGG19_Weights, vgg19

from kdlab import InputError
from kdlab.models.vgg import ENDS, VGGSlices

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def slices():
    torch.manual_seed(0)
    return VGGSlices("none")


def test_five_maps_of_frozen_layers(slices):
    assert sum(p.numel() for p in slices.parameters()) == 12_944_960
    assert not any(p.requires_grad for p in slices.parameters())
    shapes = [tuple(one.shape) for one in slices(torch.rand(2, 3, 48, 36))]
    assert shapes == [(2, 64, 48, 36), (2, 128, 24, 18), (2, 256, 12, 9), (2, 512, 6, 4), (2, 512, 3, 2)]
    assert "random start" in slices.weights_used


def test_the_maps_are_those_of_torchvisions_network(monkeypatch):
    torch.manual_seed(1)
    whole = vgg19(weights=None).eval()
    asked = {}
    published = VGG19_Weights.IMAGENET1K_V1
    monkeypatch.setattr(published, "get_state_dict", lambda **options: asked.update(options) or whole.state_dict())
    slices = VGGSlices("imagenet", normalise=False)
    assert asked["check_hash"]
    assert slices.weights_used == "imagenet"
    x = images = torch.rand(1, 3, 32, 32)
    for maps, end, start in zip(slices(images), ENDS, (0, *ENDS), strict=False):
        for layer in whole.features[start:end]:
            x = layer(x)
        torch.testing.assert_close(maps, x)


def test_a_quarter_of_the_width_is_a_sixteenth_of_the_network():
    narrow = VGGSlices("auto", width=16)
    assert sum(p.numel() for p in narrow.parameters()) < 12_944_960 / 15
    assert [one.shape[1] for one in narrow(torch.rand(1, 3, 16, 16))] == [16, 32, 64, 128, 128]
    assert "random start" in narrow.weights_used


def test_nothing_fades_on_the_way_through_a_random_start(slices):
    sizes = [one.abs().mean() for one in slices(torch.rand(1, 3, 64, 64))]
    assert min(sizes) > max(sizes) / 100


@pytest.mark.parametrize(("weights", "width"), [("none", 0), ("imagenet", 16)])
def test_an_impossible_width_is_refused(weights, width):
    with pytest.raises(InputError, match=f"width is {width}"):
        VGGSlices(weights, width=width)


def test_normalising_is_imagenets(slices):
    image = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    raw = VGGSlices("none", normalise=False)
    raw.load_state_dict(slices.state_dict())
    torch.testing.assert_close(slices(image)[0], raw(torch.zeros_like(image))[0], atol=1e-5, rtol=0)


def test_it_stays_in_eval_mode_and_lets_the_gradient_through(slices):
    nn.ModuleList([slices]).train()
    assert not any(module.training for module in slices.modules())
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    slices(image)[-1].sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(p.grad is None for p in slices.parameters())


def test_an_image_too_small_is_refused(slices):
    with pytest.raises(InputError, match="images are 15 high and 40 wide"):
        slices(torch.rand(1, 3, 15, 40))
