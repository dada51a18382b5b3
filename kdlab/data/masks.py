"""Images with a mask each, in folders of one's own or a public set on disk: a class number for every pixel."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from kdlab.data.images import Skipped, attempt, few, files_under, open_image, printable, try_open
from kdlab.data.scenes import MEAN, SIZE, STD, load_scenes
from kdlab.data.splits import ImageSplits, known_by
from kdlab.data.transforms import ImageTransform, central_square, three_numbers
from kdlab.errors import InputError
from kdlab.progress import progress

IGNORE = 255
"""The class number of pixels that count neither as right nor as wrong."""

LAYOUTS = """Wanted one of
  {root:<35}  {root}
    train/  images/ a.jpg ...            images/  train/ a.jpg ...
            masks/  a.png ...                     val/   b.jpg ...
    val/    images/ b.jpg ...            masks/   train/ a.png ...
            masks/  b.png ...                     val/   b.png ...
and test/ in the same way, which may be left out; or images/ and masks/ alone, with the files in them, of which
a fifth becomes val."""

SPLITS = ("train", "val", "test")
NAMED = ("scenes", "pets", "voc")
PETS = ("background", "pet")
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class Pair(NamedTuple):
    """The file of an image and that of its mask."""

    image: Path
    mask: Path


class MaskDataset(Dataset):
    """Item ``i`` is ``(image Float (3, size, size), mask Int64 (size, size))``, the same square of both.

    The image is scaled smoothly, as `ImageTransform` does it; of the mask the nearest pixel is taken, so that no
    third class appears where two meet.

    Attributes:
        pairs: the files.
        paths: those of the images.
    """

    def __init__(self, pairs: Sequence[Pair], transform: ImageTransform, numbers: Mapping[int, int]) -> None:
        self.pairs = pairs
        self.paths = [pair.image for pair in pairs]
        self.transform = transform
        self._numbers = torch.full((256,), IGNORE)
        self._numbers[list(numbers)] = torch.tensor(list(numbers.values()))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 s s"], Int64[Tensor, "s s"]]:
        image, mask = self.pairs[index]
        values = _read_mask(mask)
        if isinstance(values, str):
            raise InputError(f"{printable(mask)}: {values}")
        square = (self.transform.size, self.transform.size)
        values = np.array(ImageOps.fit(Image.fromarray(values.astype(np.uint8)), square, Image.Resampling.NEAREST))
        return self.transform(open_image(image)), self._numbers[torch.from_numpy(values).long()]


class _Found(NamedTuple):
    """What is on disk, before any of it is decoded. ``numbers`` is the class of each value that a mask may have.

    ``root`` is the folder, where it is one's own; ``val_is_drawn`` says that it had no splits.
    """

    name: str
    pairs: dict[str, list[Pair]]
    numbers: dict[int, int]
    classes: tuple[str, ...] | None
    skipped: list[Skipped]
    root: Path | None = None
    val_is_drawn: bool = False


class _Seen(NamedTuple):
    """What one look at a pair has shown: sum and sum of squares of each channel, and the values in the mask."""

    sums: np.ndarray
    values: set[int]


def load_segmentation(
    source: str | Path,
    *,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    data: str | Path = "data",
) -> ImageSplits:
    """Training, validation and test splits whose items are ``(image, mask)``; pixels to ignore are 255 in the mask.

    Every file is decoded once here, so that a bad one is named now and not in the middle of training.

    Args:
        source: "scenes", built in; "pets" or "voc" where torchvision has put them (Oxford-IIIT Pet: pet or background,
            the outline ignored, every tenth image of its trainval is val; Pascal VOC 2012); or a folder with images/
            and masks/, a mask being a PNG in grey or palette colours that is called like its image. Both have train/
            and val/, perhaps test/, in them or around them; where neither is, a fifth of the images is val, chosen by a
            hash of their names: the same at every run, whatever order the files come in.
        size: height and width, in pixels, of the largest central square; 64 for scenes, 224 for others.
        classes: the names of a folder's classes, by number; where not given, the numbers up to the highest found, of
            which a fifth has to be there: grey levels have larger gaps.
        mean, std: red, green, blue, for pixel values in 0 to 1; those of the training images where not given.
        data: the folder in which torchvision has put the public sets.

    Raises:
        InputError: the set is not there, the layout is wrong, a mask is missing, is none, differs from its image in
            size or has a value beyond the classes, or grey levels for numbers, a split has no class at any pixel, or a
            setting is wrong. Images that cannot be decoded are no error: they are in ``skipped``.
    """
    given_mean = None if mean is None else three_numbers("mean", mean)
    given_std = None if std is None else three_numbers("std", std)
    if source in NAMED and classes is not None:
        raise InputError(f"classes={list(classes)} was given, but those of {source!r} are fixed. Leave it out.")
    if source == "scenes":
        return load_scenes(SIZE if size is None else size, mean=given_mean or MEAN, std=given_std or STD)
    size = 224 if size is None else size
    # Wrong settings are refused before any work; the stand-ins are used for nothing else.
    ImageTransform(size, given_mean or (0.0, 0.0, 0.0), given_std or (1.0, 1.0, 1.0))
    found = _find(source, classes, Path(data))
    seen, undecodable = _look(found, size)
    pairs = {split: [pair for pair in listed if pair in seen] for split, listed in found.pairs.items()}
    for split, usable in pairs.items():
        if not usable:
            images = {pair.image for pair in found.pairs[split]}
            reasons = [str(one) for one in undecodable if one.path in images]
            first = "".join(f"; the first: {reason}" for reason in reasons[:1])
            raise InputError(
                f"{split} of {printable(found.name)!r} has no usable image (files skipped: {len(reasons)}{first}). "
                "Put images and their masks there."
            )
    names = found.classes or _names(seen, found)
    for split, usable in pairs.items():
        if all(found.numbers[value] == IGNORE for pair in usable for value in seen[pair].values):
            raise InputError(
                f"the masks of {split} of {printable(found.name)!r} have nothing but {IGNORE}, which means ignore. "
                "Wanted: a class at some pixels at least."
            )
    train_mean, train_std = _statistics([seen[pair].sums for pair in pairs["train"]], pixels=size * size)
    transform = ImageTransform(size, given_mean or train_mean, given_std or train_std)
    train, val = (MaskDataset(pairs[split], transform, found.numbers) for split in ("train", "val"))
    return ImageSplits(
        train=train,
        val=val,
        test=MaskDataset(pairs["test"], transform, found.numbers) if "test" in pairs else val,
        classes=names,
        mean=transform.mean,
        std=transform.std,
        size=size,
        name=found.name,
        deterministic=True,
        skipped=tuple(found.skipped + undecodable),
        test_is_val="test" not in pairs,
        val_is_drawn=found.val_is_drawn,
        files={}
        if found.root is None
        else {split: known_by(found.root, chain(*pairs[split])) for split in ("train", "val")},
    )


def check_layout(source: str | Path) -> None:
    """Refuse, before an image is read, what :func:`load_segmentation` would refuse of where the files are.

    Raises:
        InputError: the set is not there, the layout is wrong, a mask is missing.
    """
    if source != "scenes":
        _find(source, None, Path("data"))


def _find(source: str | Path, classes: Sequence[str] | None, data: Path) -> _Found:
    if source == "pets":
        return _find_pets(data)
    if source == "voc":
        return _find_voc(data)
    return _find_folder(Path(source).expanduser().resolve(), classes)


# --- a folder of one's own -------------------------------------------------------------------------------------------


def _find_folder(root: Path, classes: Sequence[str] | None) -> _Found:
    if classes is not None and (isinstance(classes, str) or len(set(classes)) != len(classes) or len(classes) < 2):
        raise InputError(f"classes is {classes!r}, wanted 2 or more different names, such as ('background', 'road').")
    if classes is not None and len(classes) > IGNORE:
        raise InputError(f"{len(classes)} classes given; at most {IGNORE} fit beside {IGNORE}, which means ignore.")
    if not root.is_dir():
        what = "a file, not a folder" if root.exists() else "no such folder"
        known = ", ".join(map(repr, NAMED))
        raise InputError(f"{printable(root)}: {what}. Give the folder that holds images and masks, or one of {known}.")
    folders = {split: _folders_of(root, split) for split in SPLITS}
    whole = Pair(root / "images", root / "masks")
    val_is_drawn = whole.image.is_dir() and whole.mask.is_dir() and not _any_split(root)
    missing = [] if val_is_drawn else [split for split in ("train", "val") if folders[split] is None]
    if missing:
        inside = ", ".join(f"{printable(path.name)}/" for path in sorted(root.iterdir()) if path.is_dir()) or "none"
        raise InputError(
            f"{printable(root)} has no images and masks for {' and '.join(missing)}; folders found: {inside}.\n"
            + LAYOUTS.format(root=printable(root.name) + "/")
        )
    pairs: dict[str, list[Pair]] = {}
    skipped: list[Skipped] = []
    for split, both in folders.items():
        if both is not None:
            pairs[split], odd = _match(*both)
            skipped += odd
    if val_is_drawn:
        found, skipped = _match(*whole)
        pairs = _drawn(found, root)
    highest = IGNORE - 1 if classes is None else len(classes) - 1
    numbers = {number: number for number in (*range(highest + 1), IGNORE)}
    names = None if classes is None else tuple(classes)
    return _Found(root.name, pairs, numbers, names, skipped, root, val_is_drawn)


def _any_split(root: Path) -> bool:
    """Whether a folder is called like a split, where a layout has it: what is not whole is then a mistake to name."""
    return any((root / above / split).is_dir() for above in ("", "images", "masks") for split in SPLITS)


def _drawn(pairs: Sequence[Pair], root: Path) -> dict[str, list[Pair]]:
    """A fifth of the pairs, at least one, as val: those with the least hashes of their names. New files move few."""

    def place(pair: Pair) -> str:
        return hashlib.sha256(pair.image.relative_to(root).as_posix().encode(errors="surrogateescape")).hexdigest()

    val = set(sorted(pairs, key=place)[: max(1, len(pairs) // 5)])
    return {"train": [pair for pair in pairs if pair not in val], "val": [pair for pair in pairs if pair in val]}


def _folders_of(root: Path, split: str) -> Pair | None:
    """The images folder and the masks folder of a split, in either layout."""
    layouts = [
        Pair(root / split / "images", root / split / "masks"),
        Pair(root / "images" / split, root / "masks" / split),
    ]
    return next((both for both in layouts if both.image.is_dir() and both.mask.is_dir()), None)


def _match(images: Path, masks: Path) -> tuple[list[Pair], list[Skipped]]:
    """Images and masks that are called alike but for the suffix, in the same subfolder."""
    files, skipped = files_under(images)
    mask_files, unreadable = files_under(masks)
    skipped += unreadable
    by_stem: dict[Path, Path] = {}
    for path in mask_files:
        stem = path.relative_to(masks).with_suffix("")
        if stem in by_stem:
            raise InputError(f"two masks for one image: {printable(by_stem[stem])} and {path.name}. Keep one of them.")
        by_stem[stem] = path
    pairs, alone = [], []
    for path in files:
        mask = by_stem.get(path.relative_to(images).with_suffix(""))
        if mask is not None:
            pairs.append(Pair(path, mask))
        elif isinstance(problem := try_open(path), Skipped):
            skipped.append(problem)
        else:
            alone.append(path)
    if alone:
        raise InputError(
            f"{len(alone)} of the images in {printable(images)} have no mask in {printable(masks)}: "
            f"{few([path.name for path in alone])}. Wanted there: a mask called like the image, such as "
            f"{printable(alone[0].stem)}.png."
        )
    return pairs, skipped


def _names(seen: Mapping[Pair, _Seen], found: _Found) -> tuple[str, ...]:
    """Numbers for names, where a folder came without."""
    values = set().union(*(one.values for one in seen.values()))
    numbers = sorted(values - {IGNORE})
    highest = max(numbers, default=0)
    if highest < 1:
        raise InputError(
            f"the masks of {found.name!r} have no class but 0, and {IGNORE} means ignore; values found: "
            f"{sorted(values)}. If white is a class, write 1 instead of 255 into the masks."
        )
    if len(numbers) < (highest + 1) / 5:
        raise InputError(
            f"the masks of {found.name!r} have the values {few(list(map(str, numbers)))}: grey levels instead of class "
            f"numbers? They would be {highest + 1} classes. Write {few(list(map(str, range(len(numbers)))))} into the "
            "masks; or, if classes are only missing here, name them all: --class-names, load_segmentation's `classes`."
        )
    return tuple(map(str, range(highest + 1)))


# --- public sets as torchvision unpacks them -------------------------------------------------------------------------


def _find_pets(data: Path) -> _Found:
    root = data / "oxford-iiit-pet"

    def listed(split: str) -> list[Pair]:
        lines = _read_list(root / "annotations" / f"{split}.txt", "pets", "OxfordIIITPet({!r}, download=True)", data)
        names = [line.split()[0] for line in lines]
        return [Pair(root / "images" / f"{n}.jpg", root / "annotations" / "trimaps" / f"{n}.png") for n in names]

    trainval = listed("trainval")
    train = [pair for index, pair in enumerate(trainval) if index % 10 != 9]
    pairs = {"train": train, "val": trainval[9::10], "test": listed("test")}
    return _Found("pets", pairs, {1: 1, 2: 0, 3: IGNORE}, PETS, [])  # its trimaps: 1 pet, 2 background, 3 outline


def _find_voc(data: Path) -> _Found:
    root = data / "VOCdevkit" / "VOC2012"
    pairs = {}
    for split in ("train", "val"):  # the test set's masks are not public
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        names = _read_list(path, "voc", "VOCSegmentation({!r}, year='2012', download=True)", data)
        pairs[split] = [Pair(root / "JPEGImages" / f"{n}.jpg", root / "SegmentationClass" / f"{n}.png") for n in names]
    return _Found("voc", pairs, {number: number for number in (*range(len(VOC)), IGNORE)}, VOC, [])


def _read_list(path: Path, source: str, call: str, data: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line.strip()]
    except OSError:
        name, folder = call.split("(")[0], data / path.relative_to(data).parts[0]
        raise InputError(
            f"{name} is not there: no file {printable(path)}. Get it by this script, or by torchvision itself:\n"
            f"  python data_scripts/get_segmentation.py {source} --data {printable(data)}\n"
            f'  python -c "from torchvision.datasets import {name}; {call.format(str(data))}"\n'
            f"If you have it, link it to {printable(folder)}, or in Python give the folder that it is in as `data`."
        ) from None


# --- the one look at every file --------------------------------------------------------------------------------------


def _look(found: _Found, size: int) -> tuple[dict[Pair, _Seen], list[Skipped]]:
    """What every usable pair shows, and the images that cannot be decoded. Raises for masks that do not fit."""
    pairs = [pair for listed in found.pairs.values() for pair in listed]
    seen: dict[Pair, _Seen] = {}
    skipped: list[Skipped] = []
    problems: list[str] = []
    # Threads are enough: Pillow lets go of the interpreter while it decodes.
    with ThreadPool() as pool:
        results = zip(pairs, pool.imap(partial(_look_at, size=size, found=found), pairs, chunksize=8), strict=True)
        for pair, result in progress(results, desc="checking masks", total=len(pairs), unit="mask"):
            match result:
                case Skipped():
                    skipped.append(result)
                case str():
                    problems.append(f"{printable(pair.mask)}: {result}")
                case _:
                    seen[pair] = result
    if problems:
        more = f"\n({len(problems)} masks in all cannot be used)" * (len(problems) > 5)
        raise InputError("\n".join(problems[:5]) + more)
    return seen, skipped


def _look_at(pair: Pair, size: int, found: _Found) -> _Seen | Skipped | str:
    image = try_open(pair.image)
    if isinstance(image, Skipped):
        return image
    mask = _read_mask(pair.mask)
    if isinstance(mask, str):
        return mask
    if mask.shape[::-1] != image.size:
        return (
            f"{mask.shape[1]}x{mask.shape[0]} pixels, but its image {printable(pair.image.name)} has "
            f"{image.width}x{image.height}. Make the mask from the image as it is."
        )
    values = set(np.unique(mask).tolist())
    beyond = sorted(values - set(found.numbers))
    if beyond:
        allowed = sorted(set(found.numbers) - {IGNORE})
        return (
            f"value{'s' * (len(beyond) > 1)} {few(list(map(str, beyond)))}, but the classes are "
            f"{allowed[0]} to {allowed[-1]}, and {IGNORE} means ignore. Name all classes, or correct the mask."
        )
    pixels = np.asarray(central_square(image, size), dtype=np.float64).reshape(-1, 3) / 255
    return _Seen(np.stack([pixels.sum(axis=0), (pixels**2).sum(axis=0)]), values)


def _read_mask(path: Path) -> np.ndarray | str:
    """The values as they are in the file, or why they are no class numbers."""
    values = attempt(path, _values)
    return values.reason if isinstance(values, Skipped) else values


def _values(image: Image.Image) -> np.ndarray | str:
    if image.format == "JPEG":
        return "a JPEG file, which does not keep numbers as they were. Save masks as PNG."
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        return f"colours (mode {image.mode}), wanted one class number a pixel: a PNG in grey or palette colours."
    return np.asarray(image).astype(np.int64)


def _statistics(
    sums: Sequence[np.ndarray], pixels: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel over all pixels of all images."""
    mean, squares = np.sum(sums, axis=0) / (len(sums) * pixels)
    spread = np.sqrt(np.maximum(squares - mean**2, 0))
    # A channel with one value everywhere has nothing to scale.
    return three_numbers("mean", mean), three_numbers("std", np.where(spread > 1e-6, spread, 1.0))
