"""Images that nobody has labelled, beside those that somebody has: only a teacher can say what is in them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, Subset

from kdlab.data.folders import FolderDataset, scan
from kdlab.data.images import find_images, printable
from kdlab.data.splits import ImageSplits, known_by
from kdlab.data.transforms import ImageTransform
from kdlab.errors import InputError


def add_unlabelled(data: ImageSplits, folder: str | Path, target: Any) -> ImageSplits:
    """The same splits, with the images under a folder as ``unlabelled``, cut and normalised as the others are.

    Every file is decoded once here, as :func:`kdlab.data.load_folders` does it.

    Args:
        folder: searched to its depth.
        target: of each image, one that no loss counts: -100 for a label, a mask full of 255.

    Raises:
        InputError: no such folder, no usable image in it, or images of validation or test. Files that cannot be used
            are in ``skipped``.
    """
    root = check_folder(folder)
    paths, skipped = find_images([root])
    check_apart(folder, paths, (path for split in (data.val, data.test) for path in getattr(split, "paths", ())))
    usable, undecodable = scan(root, paths, data.size)
    if not usable:
        raise InputError(
            f"no usable image in {printable(folder)}; files skipped: {len(skipped + undecodable)}, such as "
            f"{(skipped + undecodable)[0]}. Put images there that nobody has labelled."
        )
    paths = [path for path in paths if path in usable]
    transform = ImageTransform(data.size, data.mean, data.std, augment=not data.deterministic)
    return replace(
        data,
        unlabelled=FolderDataset(paths, [target] * len(paths), transform),
        skipped=(*data.skipped, *sorted(skipped + undecodable, key=lambda one: one.path)),
        files={**data.files, "unlabelled": known_by(root, paths)},
    )


def check_folder(folder: str | Path) -> Path:
    """Its whole path.

    Raises:
        InputError: no such folder.
    """
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise InputError(f"{printable(folder)} is no folder; wanted: one that holds images without labels.")
    return root


def check_apart(folder: str | Path, paths: Sequence[Path], judging: Iterable[Path]) -> None:
    """Refuse images of a folder by which the student will be judged.

    Raises:
        InputError: with one of them.
    """
    judges = {path.resolve() for path in judging}
    shown = [path for path in paths if path.resolve() in judges]
    if shown:
        raise InputError(
            f"{len(shown)} of the {len(paths)} images in {printable(folder)} are those that the student is judged by, "
            f"such as {printable(shown[0])}. Name a folder without the validation and test images."
        )


def all_images(data: ImageSplits) -> Dataset:
    """What a teacher can speak of: the training images with labels, then those without."""
    return data.train if data.unlabelled is None else _Together([data.train, data.unlabelled])


class _Together(ConcatDataset):
    """With the files of all parts, where all have some: by these a teacher's cache knows them."""

    def __init__(self, parts: Sequence[Any]) -> None:
        super().__init__(parts)
        with_files = all(hasattr(part, "paths") for part in parts)
        self.paths = [path for part in parts for path in part.paths] if with_files else []


def half_labelled(samples: Dataset, labelled: Iterable[int]) -> Dataset:
    """The same samples, the labelled ones so often that about half of what is drawn has a label.

    Of 100 masks among 2,000 images a batch of 16 would show less than one, and what the masks teach would be lost.
    """
    kept, count = sorted(labelled), len(samples)  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out
    return Subset(samples, [*range(count), *kept * ((count - len(kept)) // len(kept) - 1)])
