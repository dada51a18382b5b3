"""Getting the public sets that torchvision reads, and checking what is on disk."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from torchvision import datasets

from kdlab.data.archives import unpack
from kdlab.data.catalogue import DirectSet
from kdlab.data.class_folders import write_class_folders
from kdlab.data.download import download
from kdlab.data.images import printable
from kdlab.data.manifest import MANIFEST, differences, record
from kdlab.errors import InputError

CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


def get(wanted: DirectSet, data: Path, base: str = "") -> Path:
    """Download, unpack and record a set, or what is still missing of that, and return the folder to use.

    The archives go to ``data/archives``, must have the MD5 that torchvision knows, and are deleted when they are
    unpacked. The set's folder appears whole; the hashes of its files are then recorded in a manifest in it. CIFAR is
    written as class folders, too: ``data/cifar10/train/CLASS/`` and so on, every tenth training image of a class in
    ``val``.

    Args:
        base: an address that has the same files; "" for the official one.

    Raises:
        InputError: what :func:`download` and :func:`unpack` refuse; the set has other files or another number of them.
    """
    folder = data / wanted.folder
    files = {data / "archives" / archive.url.rsplit("/", 1)[1]: archive for archive in wanted.archives}
    if not folder.exists():
        for file, archive in files.items():
            download(f"{base.rstrip('/')}/{file.name}" if base else archive.url, file, f"md5:{archive.md5}")
        unpack(list(files), folder, wanted.inside)
    for file in files:
        file.unlink(missing_ok=True)
    record(folder)
    _check_counts(wanted, data)
    written = class_folders(wanted, data)
    if not written.exists():
        write_class_folders(written, {split: list(_cifar(wanted, data, split)) for split in ("train", "val", "test")})
    return written


def class_folders(wanted: DirectSet, data: Path) -> Path:
    """The folder to use: where the set is unpacked, or where CIFAR is written as class folders."""
    return data / (wanted.name if wanted.name in CIFAR else wanted.folder)


def check(wanted: DirectSet, data: Path) -> str:
    """Compare a set's files with their manifest, and what torchvision finds with what is known; returns one sentence.

    Raises:
        InputError: the set is not there, a file is missing or has other bytes, or there are more or fewer images.
    """
    for folder in dict.fromkeys((data / wanted.folder, class_folders(wanted, data))):
        if not (folder / MANIFEST).exists():
            raise InputError(f"{wanted.title} is not in {printable(data)}, or not wholly: get it first.")
        found = differences(folder)
        if any(found):
            raise InputError(f"{wanted.title} in {printable(folder)}: {found}. Delete that folder and get it again.")
    _check_counts(wanted, data)
    return f"{wanted.title}: {', '.join(f'{count:,} {split}' for split, count in wanted.counts.items())}, as they were"


def _check_counts(wanted: DirectSet, data: Path) -> None:
    for split, count in wanted.counts.items():
        try:
            found = len(_open(wanted, data, split))
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"torchvision cannot read {wanted.title} in {printable(data / wanted.folder)} ({error}). Delete that "
                "folder and get it again."
            ) from error
        if found != count:
            raise InputError(
                f"{wanted.title} has {found:,} images in {split}; wanted: {count:,}. Delete "
                f"{printable(data / wanted.folder)} and get it again."
            )


def _open(wanted: DirectSet, data: Path, split: str) -> datasets.VisionDataset:
    match wanted.name:
        case "cifar10" | "cifar100":
            return CIFAR[wanted.name](data, train=split == "train")
        case "imagenette-160" | "imagenette-320":
            return datasets.Imagenette(data, split=split, size=f"{wanted.name.rsplit('-', 1)[1]}px")
        case "pets":
            return datasets.OxfordIIITPet(data, split=split, target_types="segmentation")
        case _:
            return datasets.VOCSegmentation(data, image_set=split)


def _cifar(wanted: DirectSet, data: Path, split: str) -> Iterator[tuple[Image.Image, str]]:
    """The images of a split with their classes' names; of each class in CIFAR's training every tenth image is val's."""
    images = CIFAR[wanted.name](data, train=split != "test")
    seen = [0] * len(images.classes)
    for image, label in images:
        seen[label] += 1
        if split == "test" or (seen[label] % 10 == 0) == (split == "val"):
            yield image, images.classes[label]
