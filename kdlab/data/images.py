"""Any picture that a person may have on disk, as 8-bit RGB. A file that is none is named and skipped."""

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kdlab.errors import InputError

T = TypeVar("T")
LEADS_OUT = "a link to a folder around or beside this one, not followed"


@dataclass(frozen=True)
class Skipped:
    """A file that cannot be used, and why, in plain words. ``str()`` of it is the line to show."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


def printable(path: str | Path) -> str:
    """The path as text that every terminal and file takes: bytes of a name that are no valid text become ``?``."""
    return str(path).encode(errors="replace").decode()


def few(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list in a sentence, and how many more there are."""
    more = f" and {len(names) - most} more" * (len(names) > most)
    return ", ".join(map(printable, names[:most])) + more or "none"


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, in alphabetical order, without the hidden ones.

    Raises:
        InputError: it cannot be listed.
    """
    try:
        return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise InputError(f"cannot list {printable(folder)}: {error.strerror}. Check its permissions.") from error


def open_image(path: str | Path) -> Image.Image:
    """The picture in ``path`` as a person would see it, in mode RGB, 8 bits a channel; the file is closed again.

    The camera's EXIF rotation is applied, transparency is laid on white, grey of 16 bits and more is scaled (not
    clipped), and of an animation the first frame is taken.

    Raises:
        InputError: there is no such file, or it is no image, damaged, cut short, or larger than Pillow's limit
            against decompression bombs. The message names the file and the reason.
    """
    image = try_open(path)
    if isinstance(image, Skipped):
        raise InputError(f"cannot use {image}")
    return image


def try_open(path: str | Path) -> Image.Image | Skipped:
    """As `open_image`, for a caller with many files: a file that cannot be used is returned as `Skipped`."""
    return attempt(Path(path), _as_seen)


def find_images(paths: Iterable[str | Path]) -> tuple[list[Path], list[Skipped]]:
    """The image files among ``paths``, each a file or a folder (searched to its depth, in alphabetical order).

    Only the head of each file is read, so that a large folder is listed quickly: a file that is cut short is found
    when it is opened. Hidden files and folders inside a folder are left out without a word.

    Returns:
        The files that start as an image does, and the others with the reason.

    Raises:
        InputError: a path does not exist, or nothing usable was found.
    """
    given = [Path(path) for path in paths]
    for path in given:
        if not os.path.exists(path):
            raise InputError(f"there is no file or folder {printable(path)}. Check the path.")
    files: list[Path] = []
    images: list[Path] = []
    skipped: list[Skipped] = []
    for path in given:
        inside, unreadable = files_under(path) if os.path.isdir(path) else ([path], [])
        files += inside
        skipped += unreadable
    for file in dict.fromkeys(files):  # a folder and a file in it may both be given
        problem = attempt(file, lambda image: None)
        if problem is None:
            images.append(file)
        else:
            skipped.append(problem)
    if not images:
        searched = ", ".join(map(printable, given)) or "an empty list of paths"
        examples = "".join(f"\n  {one}" for one in skipped[:5])
        raise InputError(
            f"no usable image in {searched}; files skipped: {len(skipped)}. "
            f"Give image files, or a folder that holds some.{examples}"
        )
    return images, skipped


def files_under(folder: Path, apart: Iterable[Path] = ()) -> tuple[list[Path], list[Skipped]]:
    """All files below ``folder`` but the hidden ones, sorted; and the folders that cannot be read, or are left out.

    Links are followed, but not to a folder that this one lies in, nor to or into one that is ``apart`` from it, such
    as another class's.
    """
    files: list[Path] = []
    left_out: list[Skipped] = []
    visited: set[str] = set()

    def refuse(error: OSError) -> None:
        left_out.append(Skipped(Path(error.filename), _reason(error)))

    def leads_out(link: Path) -> bool:
        target, own = link.resolve(), folder.resolve()
        others = [path.resolve() for path in apart if path != folder]
        holds = any(place != target and place.is_relative_to(target) for place in (own, *others))
        return holds or any(target.is_relative_to(other) for other in others)

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        visited.add(os.path.realpath(parent))
        shown = sorted(name for name in folders if not name.startswith("."))
        out = [name for name in shown if os.path.islink(os.path.join(parent, name)) and leads_out(Path(parent, name))]
        left_out += [Skipped(Path(parent, name), LEADS_OUT) for name in out]
        # A link may point back up: what was seen is not entered again.
        folders[:] = [
            name for name in shown if name not in out and os.path.realpath(os.path.join(parent, name)) not in visited
        ]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(files), left_out


def attempt(path: Path, use: Callable[[Image.Image], T]) -> T | Skipped:
    """What ``use`` makes of the file's image, which is opened and not yet read; `Skipped` where that fails."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
            return Skipped(path, "a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size == 0:
            return Skipped(path, "an empty file (zero bytes)")
        with Image.open(path) as image:
            return use(image)
    # On a damaged file Pillow's readers raise almost anything: SyntaxError, struct.error, IndexError, zlib.error ...
    except Exception as error:
        return Skipped(path, _reason(error))


def _reason(error: Exception) -> str:
    match error:
        case UnidentifiedImageError():
            return "not an image, or of a kind that Pillow cannot read"
        case FileNotFoundError():
            return "no such file"
        case PermissionError():
            return "no permission to read it"
        case MemoryError() | Image.DecompressionBombError():
            return f"too many pixels ({str(error) or 'they do not fit into memory'})"
        case OSError(strerror=str(words)):  # from the operating system; Pillow's own have no such words
            return f"cannot be read ({words})"
        case _:
            return f"damaged, cut short or unsupported ({str(error) or type(error).__name__})"


def _as_seen(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        # Pixels under full transparency hold arbitrary colours that nobody has seen, often black. White is the page
        # on which drawings and cut-outs are looked at.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, 32 bits or floats, scaled: Pillow's own conversion clips everything above 255 to white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    # "I;16" says its full scale. "I" and "F" are containers, so the smallest customary scale that holds the values is
    # taken, and for values outside all of them their own range.
    scales = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    full = next((scale for scale in scales if low >= 0 and high <= scale), None)
    if full is None:
        values, full = values - low, (high - low) or 1
    return Image.fromarray(np.rint(values * (255 / full)).astype(np.uint8))
