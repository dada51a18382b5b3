"""The scenes of :mod:`kdlab.data.scenes` as files that a YOLO detector trains on."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torchvision.io import write_png

from kdlab.data.scenes import CLASSES, SAMPLES, SIZE, Scenes
from kdlab.errors import InputError, unknown

NAMES = CLASSES[1:]  # what has a box: everything but the background


def write_yolo_scenes(
    folder: str | Path, samples: Mapping[str, int] = SAMPLES, size: int = SIZE, seed: int = 0
) -> Path:
    """Write scenes in the layout of YOLO data sets, and return the path of their ``data.yaml``.

    An image is ``images/SPLIT/00000.png``, and ``labels/SPLIT/00000.txt`` has a line for each shape that can be seen:
    class, centre x, centre y, width, height, in parts of the image. The folder may be moved: ``data.yaml`` names
    nothing outside it. It appears when all is written, or not at all.

    Args:
        folder: that does not exist yet.
        samples: how many images in "train", "val" and "test"; by default 2,000, 200 and 500.
        size: height and width of the images in pixels.
        seed: another one gives other scenes; the same one, the same files.

    Raises:
        InputError: the folder exists or cannot be written; a split is unknown, or "train" or "val" is missing; what
            :class:`Scenes` refuses.
    """
    folder = Path(folder)
    for split in samples:
        if split not in SAMPLES:
            raise InputError(unknown("split", split, SAMPLES))
    missing = [split for split in ("train", "val") if split not in samples]
    if missing:
        raise InputError(f"samples lacks {' and '.join(missing)}; wanted: a number for train and for val.")
    if folder.exists():
        raise InputError(f"{folder} exists already. Delete it, or name another folder for the scenes.")
    scenes = {split: Scenes(split, count, size, seed) for split, count in samples.items()}
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        for split, drawn in scenes.items():
            _write_split(partial, split, drawn)
        (partial / "data.yaml").write_text(_description(samples))
        os.replace(partial, folder)
    except OSError as error:
        raise InputError(f"{folder} could not be written: {error.strerror}. Choose another place.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / "data.yaml"


def _write_split(folder: Path, split: str, scenes: Scenes) -> None:
    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index, image in enumerate(scenes.images):
        write_png(image, str(images / f"{index:05}.png"))
        boxes, classes = scenes.boxes(index)
        rows = [
            f"{label - 1} {(left + right) / 2:.6f} {(top + bottom) / 2:.6f} {right - left:.6f} {bottom - top:.6f}\n"
            for (left, top, right, bottom), label in zip(
                (boxes / image.shape[-1]).tolist(), classes.tolist(), strict=True
            )
        ]
        (labels / f"{index:05}.txt").write_text("".join(rows))


def _description(samples: Mapping[str, int]) -> str:
    """``data.yaml``: without a ``path``, the folders are beside it."""
    folders = [f"{split}: images/{split}" for split in samples]
    return "\n".join([*folders, "names:", *(f"  {number}: {name}" for number, name in enumerate(NAMES)), ""])
