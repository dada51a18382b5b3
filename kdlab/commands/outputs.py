"""The folder that a command writes images to, and their names in it."""

import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from kdlab.data import Skipped
from kdlab.errors import InputError
from kdlab.files import check_writable


def make_folder(out: Path, given: Sequence[Path], what: str) -> None:
    """Make the folder for ``what``.

    Args:
        given: the files and folders that the images come from.

    Raises:
        InputError: it is a file, cannot be made or written to, or is where the images are.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; wanted: a folder for the {what}.")
    place = out.resolve()
    if any(place.is_relative_to(path.resolve()) if path.is_dir() else place == path.resolve().parent for path in given):
        raise InputError(f"--out {out} is where the images are, and {what} are images too. Name another folder.")
    check_writable(out, "--out")
    out.mkdir(parents=True, exist_ok=True)


def say_skipped(skipped: Iterable[Skipped]) -> None:
    """Name the files that could not be used, where they do not mix with the result."""
    for one in skipped:
        print(f"kdlab: skipped {one}", file=sys.stderr)


def distinct_names(paths: list[Path]) -> dict[Path, str]:
    """A name for each file: its own without the suffix, and where that is taken, a number behind it."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        name, number = path.stem, 1
        while name.casefold() in taken:  # some file systems know no capitals
            number += 1
            name = f"{path.stem}_{number}"
        taken.add(name.casefold())
        names[path] = name
    return names


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()
