"""A small folder of images in two classes, in the layout that `kdlab` reads for classification."""

from pathlib import Path

from PIL import Image, ImageDraw


def picture(name: str, seed: int) -> Image.Image:
    """A red circle or a green square on a dark ground, somewhere else for every seed."""
    image = Image.new("RGB", (32, 32), (seed % 5 * 12, 30, 40))
    left, top = seed % 7, seed * 3 % 8
    draw = ImageDraw.Draw(image)
    box = (left, top, left + 22, top + 22)
    draw.ellipse(box, (220, 40, 30)) if name == "circle" else draw.rectangle(box, (40, 200, 60))
    return image


def grow(root: Path, classes=("circle", "square"), **counts: int) -> Path:
    for split, count in (counts or {"train": 6, "val": 3, "test": 3}).items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                picture(name, index + 10 * len(split)).save(folder / f"{index}.png")
    return root
