"""Restoring in eight positions: the mean of all of them, turned back."""

from itertools import product

import pytest
import torch
from torch import nn

from kdlab.models import MSBDN
from kdlab.training import SelfEnsemble
from kdlab.training.tiles import restore

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = [(12, 12), (10, 17)]


class OneSided(nn.Module):
    """Looks to the right and down, and not up or left; counts its calls."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape))
        return images + 0.5 * images.roll(1, dims=3) + images.roll(2, dims=2).square()


def turned(images, flips, transposed):
    images = images.flip(flips)
    return images.transpose(2, 3) if transposed else images


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_mean_of_eight_calls_turned_back(size):
    model, images = OneSided(), torch.rand(2, 3, *size)
    expected = torch.zeros_like(images)
    for flips, transposed in product(((), (2,), (3,), (2, 3)), (False, True)):
        made = model(turned(images, flips, transposed))
        expected += (made.transpose(2, 3) if transposed else made).flip(flips) / 8
    model.sizes.clear()
    torch.testing.assert_close(SelfEnsemble(model)(images), expected)
    square = size[0] == size[1]
    assert model.sizes == ([(16, 3, *size)] if square else [(8, 3, *size), (8, 3, *reversed(size))])


@pytest.mark.parametrize("size", SIZES)
def test_a_turned_image_is_restored_to_the_turned_result(size):
    ensemble, images = SelfEnsemble(OneSided()), torch.rand(1, 3, *size)
    for flips, transposed in product(((), (2,), (3,), (2, 3)), (False, True)):
        torch.testing.assert_close(
            ensemble(turned(images, flips, transposed)), turned(ensemble(images), flips, transposed)
        )
        if flips:
            assert not torch.allclose(OneSided()(images.flip(flips)), OneSided()(images).flip(flips))


def test_a_model_that_knows_no_direction_stays_as_it_is():
    images = torch.rand(1, 3, 9, 9)
    torch.testing.assert_close(SelfEnsemble(nn.Sigmoid())(images), images.sigmoid())


@torch.no_grad()
def test_it_restores_as_a_model_does_in_one_piece_and_in_tiles():
    model = MSBDN(2, residual=True)
    image = torch.rand(3, 70, 40)
    restored = restore(SelfEnsemble(model), image)
    torch.testing.assert_close(restored, SelfEnsemble(model.eval())(image[None])[0].clamp(0, 1))
    assert restore(SelfEnsemble(model), image, tile=32, overlap=8).shape == image.shape
