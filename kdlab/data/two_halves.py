"""Images that show a clean and a rainy picture side by side: which is which, measured, and both written apart."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kdlab.data.images import files_under, open_image, printable
from kdlab.data.new_folder import new_folder
from kdlab.errors import InputError
from kdlab.progress import progress

AGREE = 0.8  # of the images that must say the same of the halves


def split_halves(source: Path, folder: Path) -> None:
    """Write the halves of all images in ``source`` to ``folder/input`` (rainy) and ``folder/target`` (clean), as PNG.

    Which half is rainy is decided for all images together: a streak of rain is a narrow bright line, nearly upright, so
    the rainy half is the one whose grey values change more from column to column.

    Raises:
        InputError: no images, or two of one name; a file that is none, or of an odd width; fewer than four in five
            images say the same; ``folder`` exists or cannot be written.
    """
    paths = [path for path in files_under(source)[0] if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    if not paths:
        raise InputError(f"there is no image in {printable(source)}; wanted: images with two halves side by side.")
    stems = Counter(path.stem for path in paths)
    if twice := [path for path in paths if stems[path.stem] > 1]:
        raise InputError(
            f"{printable(twice[0])} is called as another image in {printable(source)} is; wanted: names of their own, "
            "as the halves of all go into one folder."
        )
    rainy = rainy_side(paths)
    if rainy is None:
        raise InputError(
            f"the images in {printable(source)} do not agree on which half is rainy. Write the rainy halves to "
            f"{printable(folder / 'input')} and the clean ones to {printable(folder / 'target')} yourself."
        )
    with new_folder(folder) as unfinished:
        for kind in ("input", "target"):
            (unfinished / kind).mkdir()
        for path in progress(paths, desc="splitting", unit="image"):
            left, right = _halves(path)
            degraded, clean = (left, right) if rainy == "left" else (right, left)
            degraded.save(unfinished / "input" / f"{path.stem}.png")
            clean.save(unfinished / "target" / f"{path.stem}.png")


def rainy_side(paths: Sequence[Path]) -> str | None:
    """The half, "left" or "right", with more change from column to column in four of five images; None: neither.

    An image whose halves have equally much counts for neither.

    Raises:
        InputError: a file is no image, or of an odd width.
    """
    halves = (_halves(path) for path in progress(paths, desc="which half is rainy", unit="image"))
    more = [_roughness(left) - _roughness(right) for left, right in halves]
    enough = AGREE * len(paths)
    return "left" if sum(x > 0 for x in more) >= enough else "right" if sum(x < 0 for x in more) >= enough else None


def _halves(path: Path) -> tuple[Image.Image, Image.Image]:
    image = open_image(path)
    if image.width % 2:
        raise InputError(f"{printable(path)} is {image.width} pixels wide; wanted: an even number, for two halves.")
    middle = image.width // 2
    return image.crop((0, 0, middle, image.height)), image.crop((middle, 0, image.width, image.height))


def _roughness(image: Image.Image) -> float:
    return float(np.abs(np.diff(np.asarray(image.convert("L"), dtype=np.float32), axis=1)).mean())
