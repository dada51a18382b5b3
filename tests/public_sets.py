"""Public sets in small, as they lie in ``data/``: those with an address unpacked, the others as a person puts them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets
from weather_folder import WEATHERS, drawn

from kdlab.data import catalogue

THING = (
    "<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
    "<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
)
ANNOTATION = "<annotation><size><width>48</width><height>40</height><depth>3</depth></size>{things}</annotation>"


def save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def write(text: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def imagenette(data: Path) -> None:
    for split, each in (("train", 2), ("val", 1)):
        for number, name in enumerate(datasets.Imagenette._WNID_TO_CLASS):
            for index in range(each):
                image = drawn(3 * number + index + each)
                save(image, data / "imagenette2-160" / split / name / f"{name}_{index}.JPEG")


def pets(data: Path) -> None:
    """The trimap's 1 is the pet, 2 the background and 3 the outline."""
    root = data / "oxford-iiit-pet"
    for split, numbers in {"trainval": range(20), "test": range(20, 22)}.items():
        write("".join(f"Abyssinian_{n} 1 1 1\n" for n in numbers), root / "annotations" / f"{split}.txt")
        for number in numbers:
            trimap = np.full((32, 40), 2, np.uint8)
            trimap[6:24, 8:30] = 3
            trimap[8:22, 10 : 24 + number % 5] = 1
            save(drawn(number), root / "images" / f"Abyssinian_{number}.jpg")
            save(Image.fromarray(trimap), root / "annotations" / "trimaps" / f"Abyssinian_{number}.png")


def voc(data: Path) -> None:
    """A cat on each image, and on every second one a person; with masks, which torchvision wants to count the set."""
    root = data / "VOCdevkit" / "VOC2012"
    for split, numbers in {"train": range(6), "val": range(6, 9)}.items():
        for task in ("Main", "Segmentation"):
            write("".join(f"2008_{n:06}\n" for n in numbers), root / "ImageSets" / task / f"{split}.txt")
        for number in numbers:
            name = f"2008_{number:06}"
            things = THING.format(name="cat", left=3 + number, top=5, right=20 + number, bottom=30)
            if number % 2:
                things += THING.format(name="person", left=25, top=2, right=47, bottom=39)
            write(ANNOTATION.format(things=things), root / "Annotations" / f"{name}.xml")
            save(drawn(number, 48, 40), root / "JPEGImages" / f"{name}.jpg")
            save(Image.new("L", (48, 40), 8), root / "SegmentationClass" / f"{name}.png")


THREE = {  # by hand: where the degraded and the clean image of a scene are, and which scenes there are
    "haze": {
        ("reside-ots/hazy/{n:04}_0.8_0.1.jpg", "reside-ots/clear/{n:04}.jpg"): range(10),
        ("sots/outdoor/hazy/{n:04}_0.8_0.2.jpg", "sots/outdoor/gt/{n:04}.png"): range(10, 12),
    },
    "rain": {
        ("rain1400/train/rainy_image/{n}_1.jpg", "rain1400/train/ground_truth/{n}.jpg"): range(20, 30),
        ("rain1400/test/rainy_image/{n}_1.jpg", "rain1400/test/ground_truth/{n}.jpg"): range(30, 32),
    },
    "snow": {
        ("csd/train/Snow/{n}.tif", "csd/train/Gt/{n}.tif"): range(40, 50),
        ("csd/test/Snow/{n}.tif", "csd/test/Gt/{n}.tif"): range(50, 52),
    },
}
NH_HAZE = {"haze": {("nh-haze/{n:02}_hazy.png", "nh-haze/{n:02}_GT.png"): range(1, 11)}}


def pairs(data: Path, sets: dict[str, dict[tuple[str, str], range]]) -> None:
    """Of 64 by 52 pixels, so that something is left without the margin that RESIDE's images have."""
    for weather, files in sets.items():
        for (degraded, clean), numbers in files.items():
            for number in numbers:
                image = drawn(number, 64, 52)
                image.paste((5 * number, 0, 0), (24, 30, 40, 42))  # no two scenes are one image
                save(WEATHERS[weather](image), data / degraded.format(n=number))
                save(image, data / clean.format(n=number))


def write_all(data: Path) -> None:
    """All sets here; CIFAR-100 is in ``cifar_files.py``."""
    for write_set in (imagenette, pets, voc):
        write_set(data)
    for sets in (THREE, NH_HAZE):
        pairs(data, sets)


COUNTS = {  # the pairs of a restoration set's parts are as many in all of them
    "imagenette-160": {"train": 20, "val": 10}, "cifar100": {"train": 6, "test": 3},
    "pets": {"trainval": 20, "test": 2}, "voc": {"train": 6, "val": 3},
}  # fmt: skip
PAIRS = {"train": ((10, "ours"),), "test": ((2, "ours"),)}


def known_in_small(patch: pytest.MonkeyPatch) -> None:
    """Have the scripts want as many images as there are here."""
    for name in ("CLASSIFICATION", "SEGMENTATION"):
        known = getattr(catalogue, name)
        patch.setattr(catalogue, name, tuple(replace(one, counts=COUNTS.get(one.name, {})) for one in known))
    in_small = [
        replace(one, parts={split: replace(part, counts=PAIRS.get(split, ())) for split, part in one.parts.items()})
        for one in catalogue.RESTORATION
    ]
    patch.setattr(catalogue, "RESTORATION", tuple(in_small))
