"""Every public restoration set in small, its files called as its own: from the script to what a command loads."""

import sys

import numpy as np
import pytest
from PIL import Image

from kdlab.commands.data_scripts import get_restoration
from kdlab.commands.inputs import load_restoration
from kdlab.data.catalogue import RESTORATION
from kdlab.data.restoration_sets import folder_of, instructions

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
GREYS = {"train": (40, 50, 60), "val": (70, 80), "test": (90, 100)}  # of the clean images, which are of one grey


def save(file, values):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).convert("RGB").save(file, quality=100)


def lay_out(folder, name, greys):
    """The clean images and, with bright upright lines on them, the degraded ones; or both beside each other."""
    for number, grey in enumerate(greys, 1):
        clean = np.full((16, 24), grey, np.uint8)
        degraded = clean.copy()
        degraded[:, ::6] = 255
        if name in HALVES:
            save(folder / HALVES[name].format(n=number), np.hstack([clean, degraded]))
        else:
            for template, values in zip(PAIRS[name], (degraded, clean), strict=True):
                save(folder / template.format(n=number), values)


def listed(name, monkeypatch):
    """The exit status of the script, which lists the set in the working directory's data."""
    monkeypatch.setattr(sys, "argv", ["get_restoration.py", name])
    with pytest.raises(SystemExit) as end:
        get_restoration("get_restoration", None, RESTORATION)
    return end.value.code


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


@pytest.mark.parametrize("name", SETS)
def test_a_set_as_the_instructions_want_it_is_listed_and_loaded_by_its_name(tmp_path, monkeypatch, capsys, name):
    wanted = SETS[name]
    monkeypatch.chdir(tmp_path)
    for split, part in wanted.parts.items():
        lay_out(folder_of(wanted, tmp_path / "data") / part.folder, name, GREYS[split])
    counted = any(part.counts for part in wanted.parts.values())
    assert listed(name, monkeypatch) == counted, "a set of another size is told, and listed all the same"
    assert ("Something is missing, or it is another copy" in capsys.readouterr().err) == counted

    splits = load_restoration(name, 16, only_judged="train" not in wanted.parts)
    assert splits.classes == (wanted.weather,)
    assert splits.skipped == ()
    greys = {split: GREYS[split] for split in wanted.parts}
    if "train" in greys and "val" not in greys:
        greys |= {"train": GREYS["train"][:2], "val": GREYS["train"][2:]}
    for split, known in greys.items():
        pairs = getattr(splits, split)
        assert len(pairs) == len(known)
        for grey, (degraded, (clean, _)) in zip(known, pairs, strict=True):
            assert clean.min() * 255 == pytest.approx(grey, abs=4)
            assert clean.max() * 255 == pytest.approx(grey, abs=4)
            assert degraded.median() * 255 == pytest.approx(grey, abs=4)
            assert degraded.max() > 0.9
