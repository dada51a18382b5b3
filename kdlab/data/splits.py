"""What every source of labelled images gives to training: three splits and what is known about them."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.data import Dataset

from kdlab.data.images import Skipped


@dataclass(frozen=True)
class ImageSplits:
    """Training, validation and test images of one source; an item is ``(image Float (3, size, size), label int)``.

    For segmentation the label is a mask of class numbers, long (size, size). For restoration the image is a degraded
    one, the label is (the clean image, the number of the weather), and the weathers are the classes.

    Attributes:
        test: the validation split where there is no test split of its own; `test_is_val` says so.
        val: the test split where that is all there is, which only an evaluation takes; `val_is_test` says so.
        val_is_drawn: whether a folder without splits was split into training and validation images when it was read.
        classes: their names, in the order of the labels.
        mean, std: what the images were normalised with, red, green, blue, for pixel values in 0 to 1.
        size: height and width of every image, in pixels.
        name: the folder's, or that of a named set with what makes it another one, such as "digits" or "weather-24-0".
        deterministic: whether ``train`` yields the same tensor for the same index every time.
        skipped: the files that could not be used, with the reason.
        unlabelled: more training images, whose label no loss counts, for a teacher to speak of; None without.
        files: of a folder, by split: how many files it has, and a hash of their names and sizes; empty for a named set.
    """

    train: Dataset
    val: Dataset
    test: Dataset
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    name: str
    deterministic: bool
    skipped: tuple[Skipped, ...] = ()
    unlabelled: Dataset | None = None
    test_is_val: bool = False
    val_is_test: bool = False
    val_is_drawn: bool = False
    files: Mapping[str, str] = field(default_factory=dict)


def known_by(root: Path, paths: Iterable[Path]) -> str:
    """The number of the files, and a hash of their names, from ``root``, and sizes."""
    listed = sorted((os.fsencode(os.path.relpath(path, root)), path.stat().st_size) for path in paths)
    return f"{len(listed)} files, {hashlib.sha256(repr(listed).encode()).hexdigest()[:8]}"
