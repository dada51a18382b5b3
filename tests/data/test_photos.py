"""The built-in photographs: there without a network, and never in two splits at once."""

import socket
import sys
from importlib import util

import pytest
import torch

import kdlab.data.photos as photos
from kdlab import InputError
from kdlab.data.photos import FILES, SPLITS, TILE, list_tiles, load_photograph, load_photographs


@pytest.fixture(scope="module")
def everything():
    return {name: load_photograph(name) for name in FILES}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("something went for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", FILES)
def test_a_photograph_is_an_rgb_picture_and_needs_no_network(name, no_network):
    pixels = load_photograph(name)
    assert (pixels.dtype, pixels.shape[0]) == (torch.uint8, 3)
    assert 300 <= pixels.shape[1] <= 512
    assert 451 <= pixels.shape[2] <= 741
    assert pixels.float().std() > 10, "there is nothing to see in it"


def test_scikit_image_is_not_even_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    load_photograph("cat")
    assert "skimage" not in sys.modules


def test_grey_photographs_have_equal_channels_and_the_others_do_not(everything):
    grey = {name for name, pixels in everything.items() if torch.equal(pixels[0], pixels[2])}
    assert grey == {"brick", "camera", "grass", "gravel"}


def test_each_photograph_is_in_one_split(everything):
    assert sorted(name for names in SPLITS.values() for name in names) == sorted(FILES)
    for split, names in SPLITS.items():
        part = load_photographs(split)
        assert tuple(part) == names
        assert all(torch.equal(pixels, everything[name]) for name, pixels in part.items())


def test_the_tiles_of_the_splits_share_no_pixel_and_every_photograph_is_in_all(everything):
    used = {name: torch.zeros(pixels.shape[1:], dtype=torch.int) for name, pixels in everything.items()}
    for split in ("train", "val", "test"):
        tiles = list_tiles(split, everything)
        assert {tile.photograph for tile in tiles} == set(FILES)
        for name, top, left in tiles:
            assert everything[name][:, top : top + TILE, left : left + TILE].shape == (3, TILE, TILE)
            used[name][top : top + TILE, left : left + TILE] += 1
    assert max(counts.max() for counts in used.values()) == 1
    assert min(counts[: TILE * 3, : TILE * 4].min() for counts in used.values()) == 1, "a tile is in no split"


def test_most_tiles_are_for_training(everything):
    train, val, test = (len(list_tiles(split, everything)) for split in ("train", "val", "test"))
    assert train / (train + val + test) == pytest.approx(0.7, abs=0.05)
    assert 10 < val < test


# --- bad input --------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(InputError, match="unknown photograph 'motorcyle'. Did you mean 'motorcycle'"):
        load_photograph("motorcyle")


@pytest.mark.parametrize("load", [load_photographs, lambda split: list_tiles(split, {})])
def test_an_unknown_split_is_told(load):
    with pytest.raises(InputError, match="unknown split 'trian'. Did you mean 'train'"):
        load("trian")


@pytest.mark.parametrize(("name", "package"), [("cat", "scikit-image"), ("china", "scikit-learn")])
def test_a_package_that_is_not_installed_is_named(name, package, monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=f"inside {package}, which is not installed: pip install {package}"):
        load_photograph(name)


@pytest.mark.parametrize(("name", "package"), [("cat", "scikit-image"), ("china", "scikit-learn")])
def test_a_file_that_is_not_there_is_named_with_the_packages_version(name, package, monkeypatch):
    monkeypatch.setitem(photos.FILES, name, FILES[name].replace(".", "-not."))
    with pytest.raises(InputError, match=rf"{package} \d+\.\d.*is installed without it .*-not.*no such file.*anew"):
        load_photograph(name)
