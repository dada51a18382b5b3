"""Restoring in tiles: the same image, with no seam, whatever its size."""

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.models import MSBDN
from kdlab.training.tiles import restore


class Recorder(nn.Module):
    """Hands on to a module, and remembers what it was given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.sizes, self.modes = inner, [], []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[2:]))
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.inner(images)


class FarFromTheEdge(nn.Module):
    """How far each pixel is from the nearest edge, in hundredths: what a tile cannot know of the whole."""

    def forward(self, images):
        places = [torch.arange(length, dtype=torch.float32) for length in images.shape[2:]]
        down, across = (torch.minimum(place, place.flip(0)) for place in places)
        return torch.minimum(down[:, None], across).expand_as(images) / 100


def convolutions(reach: int) -> nn.Module:
    """A network that sees ``reach`` pixels in every direction, and pads with zeros."""
    return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(reach)))


@pytest.mark.parametrize("size", [(64, 64), (65, 130), (100, 33), (200, 47), (97, 161), (31, 20)])
@pytest.mark.parametrize(("tile", "overlap"), [(32, 16), (48, 16), (64, 32), (50, 20)])
def test_a_local_model_restores_in_tiles_what_it_restores_whole(size, tile, overlap):
    model, image = convolutions(overlap // 4), torch.rand(3, *size)
    whole = restore(model, image)
    assert torch.allclose(whole, model(image[None])[0].clamp(0, 1), atol=1e-6)
    assert torch.allclose(restore(model, image, tile, overlap), whole, atol=1e-6)


@pytest.mark.parametrize("overlap", [0, 1, 2, 7, 16])
@pytest.mark.parametrize("size", [(33, 64), (64, 95), (111, 32)])
def test_the_weights_of_all_tiles_add_up_to_one(size, overlap):
    image = torch.rand(3, *size)
    assert torch.allclose(restore(nn.Identity(), image, 32, overlap), image, atol=1e-6)


def test_the_blend_is_gradual():
    image = torch.zeros(3, 40, 200)
    seams = restore(FarFromTheEdge(), image, 64, 0).diff(dim=2).abs().max()
    assert seams >= 0.01
    blended = restore(FarFromTheEdge(), image, 64, 32)[:, 20]
    assert blended.diff(dim=1).abs().max() < 0.02
    assert blended[:, 100].min() > 0  # no pixel is left to the edge of a tile


def test_the_weight_goes_over_half_of_the_overlap_evenly_from_one_tile_to_the_next():
    class First(nn.Module):
        """White where the image is black: in the first tile."""

        def forward(self, images):
            return torch.full_like(images, float(images[0, 0, 0, 0] == 0))

    image = torch.arange(96).expand(3, 64, 96) / 96
    falls = restore(First(), image, 64, 32)[0, 0]  # tiles at 0 and 32
    assert (falls[:40].unique().tolist(), falls[56:].unique().tolist()) == ([1], [0])
    torch.testing.assert_close(falls[40:56], 1 - (torch.arange(16) + 0.5) / 16)


def test_a_tile_that_covers_all_is_the_whole_image():
    model, image = MSBDN(2).eval(), torch.rand(3, 45, 37)
    with torch.no_grad():
        expected = model(image[None])[0].clamp(0, 1)
    for tile in (None, 64, 512):
        assert torch.equal(restore(model, image, tile), expected)


def test_the_restoration_network_is_close_to_the_whole_and_never_sees_more_than_a_tile():
    image = torch.rand(3, 149, 131)
    model = Recorder(MSBDN(2))
    whole = restore(model, image)
    assert model.sizes == [(149, 131)]
    tiled = restore(model, image, 64, 32)
    assert all(max(size) <= 64 for size in model.sizes[1:])
    own = (whole - whole.mean()).abs().mean()  # what there is to see
    assert (tiled - whole).abs().mean() < 0.2 * own


def test_tiles_start_where_the_networks_coarse_maps_do():
    places = torch.arange(203).expand(3, 150, 203) / 1000
    starts = []

    def first_column(module, inputs):
        starts.append(round(inputs[0][0, 0, 0, 0].item() * 1000))

    model = nn.Identity()
    model.register_forward_pre_hook(first_column)
    assert torch.allclose(restore(model, places, 70, 30), places, atol=1e-6)
    assert len(set(starts)) > 3
    assert all(start % 16 == 0 for start in starts)


def test_model_and_modes_are_as_they_were_and_the_image_too():
    model = Recorder(nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3)))
    model.inner[1].eval()
    image = torch.rand(3, 40, 40)
    before = image.clone()
    result = restore(model, image)
    assert model.modes == [(False, False)]
    assert (model.training, model.inner[0].training, model.inner[1].training) == (True, True, False)
    assert torch.equal(image, before)
    assert not result.requires_grad
    with pytest.raises(InputError, match="at least 2x2 pixels"):
        restore(MSBDN(2), torch.rand(3, 1, 40))
    failing = Recorder(nn.Conv2d(4, 3, 1)).train()
    with pytest.raises(RuntimeError, match="to have 4 channels"):
        restore(failing, image)
    assert failing.training
    assert failing.inner.training


def test_the_result_is_an_image():
    class Wild(nn.Module):
        def forward(self, images):
            return 3 * images - 1

    restored = restore(Wild(), torch.rand(3, 20, 20))
    assert (restored.min(), restored.max()) == (0, 1)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (64, -1, "overlap is -1; wanted: 0 or more pixels"),
        (64, 33, "tile is 64 and overlap 33; wanted: a tile of at least 32 pixels and of at least twice the overlap"),
        (31, 0, "tile is 31 and overlap 0; wanted: a tile of at least 32 pixels"),
        (0, 0, "tile is 0"),
    ],
)
def test_tiles_that_make_no_sense(tile, overlap, message):
    with pytest.raises(InputError, match=message):
        restore(nn.Identity(), torch.rand(3, 20, 20), tile, overlap)
