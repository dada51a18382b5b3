"""Labelled images written as :func:`kdlab.data.load_folders` reads them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from kdlab.data.digits import CLASSES, digit_images
from kdlab.data.manifest import record
from kdlab.data.new_folder import new_folder
from kdlab.progress import progress


def write_class_folders(folder: Path, splits: Mapping[str, Iterable[tuple[Image.Image, str]]]) -> None:
    """Write ``folder/SPLIT/CLASS/00000.png`` for each image and its class, numbered through the split, and a manifest.

    Raises:
        InputError: the folder exists or cannot be written. Nothing is left of it then.
    """
    with new_folder(folder) as unfinished:
        for split, images in splits.items():
            for index, (image, name) in enumerate(progress(images, desc=f"writing {split}", unit="image")):
                place = unfinished / split / name
                place.mkdir(parents=True, exist_ok=True)
                image.save(place / f"{index:05}.png")
        record(unfinished)


def write_digits(folder: Path) -> None:
    """The built-in digits in the splits of :func:`kdlab.data.load_digits`, 8x8 and grey. Raises as the above does."""
    write_class_folders(
        folder,
        {split: [(image, CLASSES[label]) for image, label in images] for split, images in digit_images().items()},
    )
