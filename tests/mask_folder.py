"""A small folder of images and masks, in the layout that `kdlab --task segmentation` reads."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((90, 90, 90), (220, 40, 30), (40, 200, 60))  # of the three classes, so that they are easy to tell apart


def drawn(seed: int, width: int = 48, height: int = 40) -> tuple[Image.Image, Image.Image]:
    """An upright bar and below it a lying one, each in the colour of its class, and their mask."""
    values = np.zeros((height, width), np.uint8)
    left = width // 4 + seed % 5
    values[: height // 2, left : left + width // 3] = 1
    values[height * 2 // 3 :, width // 8 : width - 3 * (seed % 3)] = 2
    noise = np.random.default_rng(seed).integers(-20, 21, (height, width, 3))
    image = (np.array(COLOURS)[values] + noise).clip(0, 255).astype(np.uint8)
    return Image.fromarray(image), Image.fromarray(values)


def grow(root: Path, change=lambda mask: mask, **counts: int) -> Path:
    seed = 0
    for split, count in (counts or {"train": 8, "val": 3, "test": 4}).items():
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            image, mask = drawn(seed)
            image.save(root / split / "images" / f"{index}.png")
            Image.fromarray(change(np.array(mask))).save(root / split / "masks" / f"{index}.png")
            seed += 1
    return root
