"""Labelled images in folders of one's own: root/train/<class>/ and root/val/<class>/, perhaps root/test/<class>/."""

import hashlib
import json
import math
import os
import unicodedata
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from kdlab.data.images import Skipped, attempt, few, files_under, folders_in, open_image, printable, try_open
from kdlab.data.splits import ImageSplits, known_by
from kdlab.data.transforms import ImageTransform, central_square, three_numbers
from kdlab.errors import InputError
from kdlab.files import write_whole
from kdlab.paths import cache_dir
from kdlab.progress import progress

Moments = tuple[int, ...]
"""Sum of the pixels (red, green, blue), then sum of their squares: whole numbers, so that any order adds up alike."""


class FolderDataset(Dataset):
    """Images on disk with their labels; item ``i`` is ``(transform(image i), targets[i])``.

    Attributes:
        paths: the files, of labelled images class by class, sorted within each.
        targets: the label of each, its class's place in the alphabetical order; of an unlabelled image what stands in.
    """

    def __init__(self, paths: list[Path], targets: list[Any], transform: ImageTransform) -> None:
        self.paths = paths
        self.targets = targets
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.transform(open_image(self.paths[index])), self.targets[index]


def load_folders(
    root: str | Path,
    *,
    size: int = 224,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: bool = False,
    only: Literal["train", "val", "test"] | None = None,
) -> ImageSplits:
    """The images under ``root`` as training, validation and test splits of (3, size, size) tensors.

    Every file is decoded once here, so that a bad one is named now and not in the middle of training; the result is
    remembered in `kdlab.paths.cache_dir`, and only new and changed files are decoded at the next start.

    Args:
        mean, std: red, green, blue, for pixel values in 0 to 1; those of the training images where not given.
        augment: random crops and mirroring in the training split.
        only: the one split that must be there and is read; it takes the place of the others, also for mean and std.

    Raises:
        InputError: the folders are not laid out as wanted, the classes of the splits differ, a class has no usable
            image, or a setting is wrong. Files that cannot be used are no error: they are in ``skipped``.
    """
    given_mean = None if mean is None else three_numbers("mean", mean)
    given_std = None if std is None else three_numbers("std", std)
    # Wrong settings are refused before any work; the stand-ins are used for nothing else.
    ImageTransform(size, given_mean or (0.0, 0.0, 0.0), given_std or (1.0, 1.0, 1.0))
    root = Path(root).expanduser().resolve()
    files, skipped = _list_files(root, only)
    moments, undecodable = scan(root, [path for group in files.values() for path in group], size)
    skipped += undecodable
    usable = {place: [path for path in group if path in moments] for place, group in files.items()}
    for (split, name), group in usable.items():
        if not group:
            reasons = [one for one in skipped if one.path.is_relative_to(root / split / name)]
            raise InputError(
                f"class {printable(name)!r} has no usable image in {split}/ (files skipped: {len(reasons)}; the first: "
                f"{reasons[0]}). Put images there, or remove the class from every split."
            )

    classes = sorted({name for _, name in usable})
    train_moments = [moments[path] for name in classes for path in usable[only or "train", name]]
    train_mean, train_std = _statistics(train_moments, pixels=size * size)
    still = ImageTransform(size, given_mean or train_mean, given_std or train_std)
    moving = ImageTransform(size, still.mean, still.std, augment=augment)

    def dataset(split: str, transform: ImageTransform) -> FolderDataset:
        labelled = [(path, label) for label, name in enumerate(classes) for path in usable[split, name]]
        return FolderDataset([path for path, _ in labelled], [label for _, label in labelled], transform)

    train, val = dataset(only or "train", moving), dataset(only or "val", still)
    has_test = ("test", classes[0]) in usable
    return ImageSplits(
        train=train,
        val=val,
        test=dataset("test", still) if has_test else val,
        classes=tuple(classes),
        mean=still.mean,
        std=still.std,
        size=size,
        name=root.name,
        deterministic=not augment,
        skipped=tuple(sorted(skipped, key=lambda one: one.path)),
        test_is_val=not has_test,
        val_is_test=only == "test",
        files={split: known_by(root, one.paths) for split, one in (("train", train), ("val", val))},
    )


def list_classes(root: str | Path, only: Literal["train", "val", "test"] | None = None) -> tuple[str, ...]:
    """The classes that :func:`load_folders` will give, from the names of the folders alone.

    Raises:
        InputError: the folders are not laid out as wanted, or the classes of the splits differ.
    """
    return tuple(next(iter(_classes(Path(root).expanduser().resolve(), only).values())))


# --- the layout ------------------------------------------------------------------------------------------------------


def _list_files(root: Path, only: str | None) -> tuple[dict[tuple[str, str], list[Path]], list[Skipped]]:
    """The files of every (split, class), after the layout has been found right."""
    classes = _classes(root, only)
    files: dict[tuple[str, str], list[Path]] = {}
    skipped: list[Skipped] = []
    empty: list[str] = []
    folders = [root / split / name for split, names in classes.items() for name in names]
    for split, names in classes.items():
        loose = sorted(path for path in (root / split).iterdir() if path.is_file() and not path.name.startswith("."))
        images = [path for path in loose if attempt(path, lambda image: None) is None]
        skipped += [Skipped(path, "an image in no class's folder") for path in images]
        for name in names:
            found, left_out = files_under(root / split / name, folders)
            files[split, name] = found
            skipped += left_out
            if not found and not left_out:
                empty.append(f"{split}/{name}")
    if empty:
        raise InputError(
            f"no file in these class folders of {printable(root)}: {few(empty, 10)}. "
            "Put images there, or remove the class from every split."
        )
    return files, skipped


def _classes(root: Path, only: str | None) -> dict[str, list[str]]:
    """The class names in each split that there is, or in this one."""
    if not os.path.isdir(root):
        what = "a file, not a folder" if os.path.exists(root) else "no such folder"
        raise InputError(f"{printable(root)}: {what}. Give the folder that holds train/ and val/.")
    found = folders_in(root)
    if only is not None and only not in found:
        raise InputError(
            f"{printable(root)} has no {only}/ in it; folders found: {few([f'{name}/' for name in found], 10)}. Name a "
            f"split that is there, or make a {only}/ with a folder for each class."
        )
    splits = ("train", "val", "test") if only is None else (only,)
    missing = [f"{split}/" for split in splits if split not in found and split != "test"]
    if missing:
        raise InputError(_wrong_layout(root, found, missing))
    classes: dict[str, list[str]] = {split: folders_in(root / split) for split in splits if split in found}
    if len(classes[splits[0]]) < 2:
        raise InputError(
            f"class folders found in {printable(root / splits[0])}: {few(classes[splits[0]], 10)}; wanted at least 2, "
            "because a classifier tells classes apart. Make one folder for each class."
        )
    together = sorted(set().union(*classes.values()))
    if len({unicodedata.normalize("NFC", name) for name in together}) < len(together):
        alike = [name for name in together if unicodedata.normalize("NFC", name) != name]
        raise InputError(
            f"class folders of {printable(root)} look alike, but their letters are stored in two ways (Unicode NFC and "
            f"NFD): {few(alike, 10)}. Give them the same name in every split, typed on one machine."
        )
    uneven = []
    for name in together:
        having = [f"{split}/" for split, names in classes.items() if name in names]
        lacking = [f"{split}/" for split, names in classes.items() if name not in names]
        if lacking:
            uneven.append(f"{printable(name)!r} is in {' and '.join(having)} but not in {' and '.join(lacking)}")
    if uneven:
        raise InputError(
            f"the splits of {printable(root)} have different classes: {few(uneven, 10)}. "
            "Every split needs the same class folders: add or rename those that differ."
        )
    return classes


def _wrong_layout(root: Path, found: list[str], missing: list[str]) -> str:
    unsplit = [name for name in found if name not in ("train", "val", "test") and _holds_images(root / name)]
    hint = (
        f"Images lie directly in {few([f'{name}/' for name in unsplit], 10)}: share them out between train/ and val/.\n"
        if unsplit
        else ""
    )
    return (
        f"{printable(root)} has no {' and no '.join(missing)} in it; folders found: "
        f"{few([f'{n}/' for n in found], 10)}.\n"
        f"{hint}Wanted:\n"
        f"  {printable(root.name)}/\n"
        "    train/  cat/ a.jpg b.jpg ...  dog/ c.jpg ...\n"
        "    val/    cat/ d.jpg ...        dog/ e.jpg ...\n"
        "    test/   (may be left out; the same classes)"
    )


def _holds_images(folder: Path) -> bool:
    return any(not isinstance(try_open(path), Skipped) for path in islice(folder.glob("*.*"), 5))


# --- the one look at every file --------------------------------------------------------------------------------------


def scan(root: Path, files: list[Path], size: int) -> tuple[dict[Path, Moments], list[Skipped]]:
    """The moments of every file that can be decoded, and the others with the reason.

    What could be decoded is remembered under its path, length and time of change. What could not be is tried again at
    every start: it may have been a permission, and there are few.
    """
    key = hashlib.sha256(os.fsencode(f"{root}|{size}")).hexdigest()[:24]
    memory = cache_dir() / "scans" / f"{key}.json"
    known = _recall(memory)
    stamps = {path: _stamp(path) for path in files}
    names = {path: path.relative_to(root).as_posix() for path in files}
    moments = {path: tuple(known[names[path]][2:]) for path in files if known.get(names[path], [])[:2] == stamps[path]}
    new = [path for path in files if path not in moments]
    skipped: list[Skipped] = []
    if not new:
        return moments, skipped
    # Threads are enough: Pillow lets go of the interpreter while it decodes.
    with ThreadPool() as pool:
        results = zip(new, pool.imap(partial(_moments, size=size), new, chunksize=8), strict=True)
        try:
            for path, result in progress(results, desc="checking images", total=len(new), unit="image"):
                if isinstance(result, Skipped):
                    skipped.append(result)
                else:
                    moments[path] = result
        finally:  # an interrupted look at a large folder goes on where it was
            looked_at = {name.split("/")[0] for name in names.values()}
            others = {name: row for name, row in known.items() if name.split("/")[0] not in looked_at}
            _remember(memory, others | {names[path]: [*stamps[path], *sums] for path, sums in moments.items()})
    return moments, skipped


def _moments(path: Path, size: int) -> Moments | Skipped:
    image = try_open(path)
    if isinstance(image, Skipped):
        return image
    counts = np.array(central_square(image, size).histogram()).reshape(3, 256)
    levels = np.arange(256)
    return tuple((counts @ levels).tolist() + (counts @ levels**2).tolist())


def _statistics(moments: list[Moments], pixels: int) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel over all pixels of all images, for pixel values in 0 to 1."""
    count = len(moments) * pixels
    totals = [sum(column) for column in zip(*moments, strict=True)]
    mean, std = [], []
    for total, squares in zip(totals[:3], totals[3:], strict=True):
        spread = math.sqrt(count * squares - total**2) / count
        mean.append(total / count / 255)
        # A channel with one value everywhere (say, no blue in any image) has nothing to scale.
        std.append(spread / 255 or 1.0)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:  # a link that leads nowhere: decoding will say so
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


def _recall(memory: Path) -> dict[str, list[int]]:
    """What an earlier start has found; nothing if that cannot be read, since it can be found again."""
    try:
        known = json.loads(memory.read_bytes())
        return {name: row for name, row in known.items() if len(row) == 8 and all(isinstance(n, int) for n in row)}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(memory: Path, known: dict[str, list[int]]) -> None:
    try:
        write_whole(memory, json.dumps(known).encode())
    except InputError as error:  # nothing is lost but time
        warnings.warn(
            f"the check of the images is not remembered and will be made again: {error} The environment variable "
            "KDLAB_CACHE names the place.",
            stacklevel=4,
        )
