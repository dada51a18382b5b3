"""The images that a data.yaml names, in folders and in lists, as ultralytics finds them. Free of ultralytics."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlab.data.unlabelled import check_apart
from kdlab.errors import InputError

FORMATS = frozenset(
    ["avif", "bmp", "dng", "heic", "heif", "jp2", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp"]
)  # fmt: skip


def split_images(described_by: Path, split: str, places: str | list[str] | None) -> list[str]:
    """The images of a split.

    Args:
        described_by: the data.yaml, for messages.
        places: folders and lists, as the file has them, their paths made absolute.

    Raises:
        InputError: no place, one that is not there, or not one image in them.
    """
    if not places:
        raise InputError(f"{described_by} names no images for {split!r}. Add a line such as {split}: images/{split}")
    images: list[str] = []
    for place in [places] if isinstance(places, str) else places:
        if not Path(place).exists():
            raise InputError(
                f"{described_by}: there is no {place}, where the {split} images should be. Correct the path."
            )
        images += _images_in(described_by, Path(place))
    if not images:
        raise InputError(f"{described_by}: there is not one image in {places}, for {split!r}. Correct the path.")
    return images


def check_unlabelled(place: str | Path, described: Mapping[str, Any]) -> list[str]:
    """The images of a folder or a list that only a teacher speaks of.

    Args:
        described: the data.yaml, as ultralytics reads it.

    Raises:
        InputError: nothing there, not one image in it, or one of validation or test.
    """
    path = Path(place).resolve()
    if not path.exists():
        raise InputError(f"unlabelled is {place}, which is not there; wanted: a folder of images, or a list of them.")
    images = _images_in(path, path)
    if not images:
        raise InputError(f"there is not one image in {place}; wanted: a folder of images, or a list, one path a line.")
    check_apart(place, list(map(Path, images)), _judging(described))
    return images


def summary(images: Sequence[str], labels: Sequence[str] = ()) -> str:
    """What a resumed run knows its images by, wherever they lie: how many, and a hash of their names and labels.

    Of labels the contents, since a box that is corrected leaves the size of a file as it is.
    """
    known = hashlib.sha256()
    for image in sorted(images):
        known.update(f"{Path(image).name}\n".encode(errors="surrogateescape"))
    for label in sorted(labels):
        known.update(Path(label).read_bytes() if Path(label).is_file() else b"-")
    return f"{len(images)} images, {known.hexdigest()[:16]}"


def _judging(described: Mapping[str, Any]) -> Iterator[Path]:
    """The images of validation and test, where there are some."""
    for places in (described.get("val"), described.get("test")):
        for place in filter(Path.exists, map(Path, [places] if isinstance(places, str) else places or [])):
            yield from map(Path, _images_in(place, place))


def _images_in(named_by: Path, place: Path) -> list[str]:
    """The images under a folder, or of a list; ``named_by`` is what names the place, for messages."""
    if place.is_file():
        return _listed(named_by, place)
    return [str(file) for file in place.rglob("*") if _is_image(str(file))]


def _listed(named_by: Path, file: Path) -> list[str]:
    """The images of a list, one a line; what starts with ./ is in the list's own folder, as ultralytics has it."""
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    paths = [line.replace("./", f"{file.parent}/", 1) if line.startswith("./") else line for line in lines]
    images = [path for path in paths if _is_image(path)]
    if images and not any(Path(image).is_file() for image in images):
        raise InputError(
            f"{named_by}: not one of the {len(images)} images that {file} lists is there, such as {images[0]}. Wanted: "
            "whole paths, or paths from the list's folder that start with ./"
        )
    return images


def _is_image(path: str) -> bool:
    return path.rpartition(".")[-1].lower() in FORMATS
