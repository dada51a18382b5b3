"""The boxes of Pascal VOC as a YOLO data set."""

import os
import shutil
from pathlib import Path
from xml.etree import ElementTree

from torchvision.datasets import VOCDetection

from kdlab.data.images import printable
from kdlab.data.manifest import record
from kdlab.data.masks import VOC
from kdlab.data.new_folder import new_folder
from kdlab.data.yolo_layout import description, row
from kdlab.errors import InputError
from kdlab.progress import progress

NAMES = VOC[1:]  # what has a box: everything but the background
SPLITS = ("train", "val")


def write_voc_boxes(folder: Path, data: Path) -> None:
    """Write the boxes of Pascal VOC 2012 and its images to ``folder`` in the layout of YOLO data sets.

    5,717 images in train and 5,823 in val; the boxes of the test are not public. Objects that are marked as difficult,
    which VOC's own measure leaves out, are left out here, too. VOC's pixels count from 1, the last one included. The
    images are hard links where the file system has them, and take no room then. The folder appears when all is written,
    with a manifest of hashes, or not at all.

    Args:
        folder: that does not exist yet.
        data: has ``VOCdevkit/VOC2012``, as torchvision unpacks it.

    Raises:
        InputError: VOC is not there; an annotation cannot be read; the folder exists or cannot be written.

    Source: Everingham et al.: The Pascal Visual Object Classes Challenge: A Retrospective, IJCV 2015.
    """
    with new_folder(folder) as unfinished:
        for split in SPLITS:
            _write_split(unfinished, split, _open(data, split))
        (unfinished / "data.yaml").write_text(description(SPLITS, NAMES))
        record(unfinished)


def _open(data: Path, split: str) -> VOCDetection:
    try:
        return VOCDetection(data, image_set=split)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"Pascal VOC 2012 is not in {printable(data / 'VOCdevkit')} ({error}). Get it with: "
            "python data_scripts/get_segmentation.py voc"
        ) from error


def _write_split(folder: Path, split: str, voc: VOCDetection) -> None:
    images, labels = folder / "images" / split, folder / "labels" / split
    for place in (images, labels):
        place.mkdir(parents=True)
    files = list(zip(map(Path, voc.images), map(Path, voc.annotations), strict=True))
    for image, annotation in progress(files, desc=f"writing {split}", unit="image"):
        (labels / f"{image.stem}.txt").write_text("".join(_rows(annotation)))
        _link(image, images / image.name)


def _rows(annotation: Path) -> list[str]:
    try:
        root = ElementTree.parse(annotation).getroot()
        width, height = (int(_text(root, f"size/{side}")) for side in ("width", "height"))
        rows = []
        for thing in root.iter("object"):
            if thing.findtext("difficult", "0").strip() == "1":
                continue
            left, top, right, bottom = (
                float(_text(thing, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            rows.append(row(_number(_text(thing, "name")), (left - 1, top - 1, right, bottom), width, height))
        return rows
    except (OSError, ElementTree.ParseError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"{printable(annotation)} is no annotation of Pascal VOC ({error}). Get the set again."
        ) from error


def _number(name: str) -> int:
    if name not in NAMES:
        raise ValueError(f"{name!r} is none of its classes")
    return NAMES.index(name)


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"it has no {path}")
    return text.strip()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
