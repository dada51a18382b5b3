"""Every public restoration set, its files called as its own."""

import pytest

from kdlab.data.catalogue import RESTORATION
from kdlab.data.restoration_sets import instructions

SETS = {one.name: one for one in RESTORATION}
HALVES = {"rain800": "{n}.jpg"}
PAIRS = {  # by hand: the degraded and the clean image of the n-th scene
    "rain1400": ("rainy_image/90{n}_1.jpg", "ground_truth/90{n}.jpg"),
    "rain13k": ("input/{n}.jpg", "target/{n}.jpg"),
    "outdoor-rain": ("input/im_000{n}_s80_a04.png", "gt/im_000{n}.png"),
    "raindrop": ("data/{n}_rain.png", "gt/{n}_clean.png"),
    "allweather": ("input/im_000{n}_s80_a04.png", "gt/im_000{n}_s80_a04.png"),
    "snow100k": ("synthetic/beautiful_smile_0000{n}.jpg", "gt/beautiful_smile_0000{n}.jpg"),
    "csd": ("Snow/{n}.tif", "Gt/{n}.tif"),
    "srrs": ("Snow/{n}.tif", "Gt/{n}.tif"),
    "reside-its": ("hazy/140{n}_1.png", "clear/140{n}.png"),
    "reside-ots": ("hazy/000{n}_0.8_0.1.jpg", "clear/000{n}.jpg"),
    "sots-indoor": ("hazy/140{n}_1.png", "gt/140{n}.png"),
    "sots-outdoor": ("hazy/000{n}_0.8_0.2.jpg", "gt/000{n}.png"),
    "sots-outdoor-492": ("hazy/000{n}_0.8_0.2.jpg", "gt/000{n}.png"),
    "nh-haze": ("0{n}_hazy.png", "0{n}_GT.png"),
    "nh-haze2": ("hazy/0{n}.png", "GT/0{n}.png"),
    "i-haze": ("hazy/0{n}_indoor_hazy.jpg", "GT/0{n}_indoor_GT.jpg"),
    "o-haze": ("hazy/0{n}_outdoor_hazy.jpg", "GT/0{n}_outdoor_GT.jpg"),
    "dense-haze": ("hazy/0{n}_hazy.png", "GT/0{n}_GT.png"),
}


def test_the_files_of_every_set_are_known_here():
    assert {*PAIRS, *HALVES} == {*SETS}


@pytest.mark.parametrize("name", SETS)
def test_the_instructions_name_the_sets_own_files(tmp_path, name):
    said = instructions(SETS[name], tmp_path)
    if name in HALVES:
        assert "two images side by side in each" in said
        return
    degraded, clean = (template.format(n=1) for template in PAIRS[name])
    assert f"with files such as {degraded}, whose clean image is {clean}," in said
