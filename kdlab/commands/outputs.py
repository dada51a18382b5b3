"""What a command puts out: where it may write, the names of images there, and JSON."""

import io
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kdlab.data import Skipped
from kdlab.errors import InputError
from kdlab.files import check_writable
from kdlab.training.checkpoints import BEST, LAST, RESUME
from kdlab.training.run_folder import HISTORY

OF_A_RUN = (BEST, LAST, RESUME, HISTORY)
SHOWN = 20  # of the files that cannot be used; hundreds would push the result off the screen
LONGEST_NAME = 200  # bytes: file systems take 255, and a name has an ending, and another one while it is written


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


def check_out_file(out: Path, option: str, given: Iterable[Path], model: Path) -> None:
    """Refuse a file to write that cannot be written, or that was given to be read.

    Args:
        given: files that the command reads.
        model: the file, or the folder of the run that it is in, of which nothing is to be overwritten either.

    Raises:
        InputError: as said.
    """
    if out.is_dir():
        raise InputError(f"{option} {out} is a folder; wanted: a file to write.")
    run = model if model.is_dir() else model.parent
    read = {model.resolve(), *(one.resolve() for one in given), *((run / name).resolve() for name in OF_A_RUN)}
    if out.resolve() in read and out.exists():
        raise InputError(f"{option} {out} is a file that is read here, or one of a training. Name another file.")
    check_writable(out.parent, f"the folder of {option},")


def say_skipped(skipped: Iterable[Skipped]) -> None:
    """Name the files that could not be used, the first of many, where they do not mix with the result."""
    said = [f"kdlab: skipped {one}" for one in skipped]
    if len(said) > SHOWN:
        said[SHOWN:] = [f"kdlab: skipped {len(said) - SHOWN} more"]
    for line in said:
        print(line, file=sys.stderr)


def distinct_names(paths: list[Path]) -> dict[Path, str]:
    """A name for each file: its own without the suffix, the start of a long one; where it is taken with a number."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        encoded = os.fsencode(path.stem)
        start = path.stem if len(encoded) <= LONGEST_NAME else encoded[:LONGEST_NAME].decode(errors="replace")
        name, number = start, 1
        while name.casefold() in taken:  # some file systems know no capitals
            number += 1
            name = f"{start}_{number}"
        taken.add(name.casefold())
        names[path] = name
    return names


def as_json(result: Any) -> str:
    """As text, with null for a number that is none, such as the mean IoU over no pixels: JSON has no NaN and no inf."""

    def finite(value: Any) -> Any:
        match value:
            case dict():
                return {name: finite(one) for name, one in value.items()}
            case list():
                return [finite(one) for one in value]
            case float() if not math.isfinite(value):
                return None
        return value

    return json.dumps(finite(result), indent=2)


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()
