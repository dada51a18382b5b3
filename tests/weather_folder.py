"""A small folder of images in bad weather, in the layout that `kdlab --task restoration` reads."""

from pathlib import Path

import numpy as np
from PIL import Image


def drawn(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    """A coloured slope with a square on it."""
    x, y = np.meshgrid(np.linspace(40, 160, width), np.linspace(30, 120, height))
    values = np.stack([x, y, (x + y) / 2], axis=-1)
    top, left = 4 + seed % 7, 4 + 3 * seed % 11
    values[top : top + 12, left : left + 12] = (200, 60 + 10 * seed % 90, 30)
    return Image.fromarray(values.astype(np.uint8))


def hazy(image: Image.Image) -> Image.Image:
    return Image.blend(image, Image.new("RGB", image.size, (215, 215, 215)), 0.5)


def rainy(image: Image.Image) -> Image.Image:
    values = np.array(image)
    values[:, ::5] = values[:, ::5] // 2 + 120
    return Image.fromarray(values)


def snowy(image: Image.Image) -> Image.Image:
    values = np.array(image)
    values[::6, ::7] = 250
    return Image.fromarray(values)


WEATHERS = {"haze": hazy, "rain": rainy, "snow": snowy}


def grow(root: Path, weathers=("haze", "rain"), **counts: int) -> Path:
    for split, count in (counts or {"train": 4, "val": 2, "test": 1}).items():
        for weather in weathers:
            for kind in ("input", "target"):
                (root / split / weather / kind).mkdir(parents=True)
            for index in range(count):
                clean = drawn(index) if split == "train" else drawn(index, 45 - index, 33 + 5 * index)
                WEATHERS[weather](clean).save(root / split / weather / "input" / f"{index}.png")
                clean.save(root / split / weather / "target" / f"{index}.png")
    return root
