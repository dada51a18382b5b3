"""How YOLO data sets say what is in an image: a row for each box, and a ``data.yaml`` for the whole."""

from collections.abc import Iterable, Sequence


def row(number: int, box: Sequence[float], width: int, height: int) -> str:
    """A line of a label file: class, centre x, centre y, width, height, in parts of the image.

    Args:
        number: of the class, from 0.
        box: left, top, right, bottom in pixels.
        width, height: of the image in pixels.
    """
    left, top, right, bottom = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    return f"{number} {(left + right) / 2:.6f} {(top + bottom) / 2:.6f} {right - left:.6f} {bottom - top:.6f}\n"


def description(splits: Iterable[str], names: Sequence[str]) -> str:
    """A ``data.yaml`` without a ``path``: the folders are beside it."""
    folders = [f"{split}: images/{split}" for split in splits]
    return "\n".join([*folders, "names:", *(f"  {number}: {name}" for number, name in enumerate(names)), ""])
