"""The scenes of :mod:`kdlab.data.scenes` as files: a YOLO data set, with a mask and a VOC annotation for each image."""

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import torch

from kdlab.data.manifest import record
from kdlab.data.new_folder import new_folder, write_png
from kdlab.data.scenes import CLASSES, SAMPLES, SIZE, Scenes
from kdlab.data.yolo_layout import description, row
from kdlab.errors import InputError, unknown

NAMES = CLASSES[1:]  # what has a box: everything but the background


def write_yolo_scenes(
    folder: str | Path, samples: Mapping[str, int] = SAMPLES, size: int = SIZE, seed: int = 0
) -> Path:
    """Write scenes in the layout of YOLO data sets, and return the path of their ``data.yaml``.

    An image is ``images/SPLIT/00000.png``, and ``labels/SPLIT/00000.txt`` has a line for each shape that can be seen:
    class, centre x, centre y, width, height, in parts of the image. Beside them ``masks/SPLIT/00000.png`` has the class
    number of each pixel, as :func:`kdlab.data.load_segmentation` reads it, and ``annotations/SPLIT/00000.xml`` the same
    boxes as Pascal VOC writes them: in pixels from 1, the last one included. The folder may be moved: ``data.yaml``
    names nothing outside it. It appears when all is written, with a manifest of hashes, or not at all.

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
    with new_folder(folder) as unfinished:
        for split, count in samples.items():
            _write_split(unfinished, split, Scenes(split, count, size, seed))
        (unfinished / "data.yaml").write_text(description(samples, NAMES))
        record(unfinished)
    return folder / "data.yaml"


def _write_split(folder: Path, split: str, scenes: Scenes) -> None:
    images, labels, masks, annotations = (
        folder / kind / split for kind in ("images", "labels", "masks", "annotations")
    )
    for place in (images, labels, masks, annotations):
        place.mkdir(parents=True)
    for index, image in enumerate(scenes.images):
        name = f"{index:05}"
        write_png(image, images / f"{name}.png")
        mask = scenes.labels[index][scenes.shapes[index].long()]
        write_png(mask[None].to(torch.uint8), masks / f"{name}.png")
        boxes, classes = scenes.boxes(index)
        side = image.shape[-1]
        rows = [row(label - 1, box, side, side) for box, label in zip(boxes.tolist(), classes.tolist(), strict=True)]
        (labels / f"{name}.txt").write_text("".join(rows))
        shown = zip(boxes.int().tolist(), classes.tolist(), strict=True)
        (annotations / f"{name}.xml").write_text(_annotation(f"{name}.png", side, list(shown)))


def _annotation(filename: str, size: int, shown: list[tuple[list[int], int]]) -> str:
    """Pascal VOC's description of an image."""
    root = ElementTree.Element("annotation")
    _add(root, filename=filename, segmented=1)
    _add(ElementTree.SubElement(root, "size"), width=size, height=size, depth=3)
    for (left, top, right, bottom), label in shown:
        thing = ElementTree.SubElement(root, "object")
        _add(thing, name=CLASSES[label], difficult=0)
        _add(ElementTree.SubElement(thing, "bndbox"), xmin=left + 1, ymin=top + 1, xmax=right, ymax=bottom)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(element: ElementTree.Element, **texts: str | int) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(element, tag).text = str(text)
