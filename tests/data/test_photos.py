"""The built-in photographs: there without a network, and never in two splits at once."""

import sys
from importlib import util

import numpy as np
import pytest
import torch

import kdlab.data.photos as photos
from kdlab import InputError
from kdlab.data.photos import FILES, SPLITS, TILE, list_tiles, load_depth, load_photograph, load_photographs


@pytest.fixture(scope="module")
def everything():
    return {name: load_photograph(name) for name in FILES}


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


def test_the_photograph_with_a_true_depth_is_kept_for_the_test():
    assert SPLITS["test"] == ("cat", "motorcycle")
    assert (len(SPLITS["train"]), SPLITS["val"]) == (8, ("coffee",))


# --- depth ------------------------------------------------------------------------------------------------------------


def test_the_depth_is_a_number_from_0_to_1_for_every_pixel(no_network):
    depth = load_depth("motorcycle")
    assert depth.shape == (1, *load_photograph("motorcycle").shape[1:])
    assert depth.dtype == torch.float32
    assert torch.isfinite(depth).all()
    assert (depth.min(), depth.max()) == (0, 1)


def test_the_floor_in_front_and_the_motorcycle_are_nearer_than_the_walls():
    depth = load_depth("motorcycle")[0]
    floor, motorcycle, wall = depth[470:490, 100:600], depth[230:260, 200:420], depth[30:70, 100:300]
    assert floor.max() < 0.1
    assert motorcycle.median() < 0.1
    assert wall.median() > 0.4


def test_what_the_second_camera_did_not_see_has_the_depth_of_what_is_to_its_left():
    """The disparity from the file, looked at pixel by pixel in a few rows."""
    depth = load_depth("motorcycle")[0]
    with np.load(photos._folder_of("skimage", "motorcycle") / "skimage/data/motorcycle_disp.npz") as archive:
        known = torch.from_numpy(np.isfinite(archive["arr_0"]))
    for row in range(0, 500, 7):
        seen = known[row].nonzero().flatten().tolist()
        assert (depth[row, : seen[0]] == depth[row, seen[0]]).all()  # nothing is known to the left of the first
        for column in range(seen[0], known.shape[1]):
            if not known[row, column]:
                assert depth[row, column] == depth[row, column - 1]


def test_it_is_depth_and_not_disparity():
    """One over what the file has, so that a haze that follows it is physical: linear to within the scale's ends."""
    depth = load_depth("motorcycle")[0]
    with np.load(photos._folder_of("skimage", "motorcycle") / "skimage/data/motorcycle_disp.npz") as archive:
        disparity = torch.from_numpy(archive["arr_0"])
    known = torch.isfinite(disparity)
    correlation = torch.corrcoef(torch.stack([depth[known], 1 / disparity[known]]))[0, 1]
    assert correlation > 1 - 1e-5


# --- tiles ------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["cat", "motorcyle", ""])
def test_a_photograph_without_depth_is_told_which_has_one(name):
    with pytest.raises(InputError, match=f"photograph '{name}' has no known depth; wanted: 'motorcycle'"):
        load_depth(name)


def test_a_depth_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "_folder_of", lambda module, name: tmp_path)
    with pytest.raises(InputError, match=r"motorcycle_disp.npz is missing. Install scikit-image anew"):
        load_depth("motorcycle")


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
