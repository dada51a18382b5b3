"""The images that a command was given, with their labels or masks, and whether they fit a model."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple
from unicodedata import normalize

from torch import nn

from kdlab.data import ImageSplits, digits, load_digits, load_folders, load_segmentation, scenes
from kdlab.data.catalogue import CLASSIFICATION, RESTORATION
from kdlab.data.folders import list_classes
from kdlab.data.images import printable
from kdlab.data.masks import NAMED, PETS, VOC, check_layout
from kdlab.data.named import locate
from kdlab.data.pair_folders import list_weathers, load_pairs
from kdlab.data.weather import HAZES, WEATHERS
from kdlab.data.weather_photos import load_haze, load_weather
from kdlab.errors import InputError
from kdlab.models import Restorer, VGGReader
from kdlab.models.dehazing import Dehazer
from kdlab.models.segmentation import Segmenter
from kdlab.recipes.restorer import pairs

# As they are written; the others are words.
METRICS = {"miou": "mIoU", "mdice": "mDice", "psnr": "PSNR", "ssim": "SSIM"}
RESTORING = ("restoration", "dehazing")  # the tasks of pairs of images
DRAWN = {"weather": WEATHERS, "haze": HAZES}  # the built-in pairs, and the weathers in them
MASKED = dict(zip(NAMED, (scenes.CLASSES, PETS, VOC), strict=True))  # the sets with masks, and their classes
Split = Literal["train", "val", "test"]


class Listed(NamedTuple):
    """What is known of DATA before an image is read: its name, and its classes or weathers."""

    name: str
    classes: tuple[str, ...]


def list_data(source: str, only: Split | None = None) -> Listed:
    """What :func:`load_data` will give.

    Raises:
        InputError: folders that are not laid out as wanted; a set that has not been got; a set of masks or pairs.
    """
    folder = _labelled(source)
    return Listed(source, digits.CLASSES) if folder is None else Listed(_name(folder), list_classes(folder, only))


def load_data(
    source: str,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: bool = False,
    only: Split | None = None,
) -> ImageSplits:
    """The splits of DATA with labels: the word "digits", a public set's name, or a folder. What is None is its own.

    Args:
        only: the one split that is wanted: a folder need not have the others.

    Raises:
        InputError: whatever :func:`kdlab.data.load_folders` refuses; a set that has not been got; augmentation of
            digits; a set of masks or pairs.
    """
    folder = _labelled(source)
    if folder is not None:
        return load_folders(folder, size=size or 224, mean=mean, std=std, augment=augment, only=only)
    if augment:
        raise InputError("--augment was given with digits, of which many mean another one in a mirror. Leave it out.")
    return load_digits(size or 32, mean, std)


def _labelled(source: str) -> Path | None:
    """The folder with labelled images; None of the digits."""
    if source in DRAWN and not Path(source).exists():
        raise InputError(
            f"{source} has a clean image for each image and no labels, which is for restoration; wanted for "
            "classification: digits, or a folder with train/CLASS/ and val/CLASS/."
        )
    if source in MASKED and not Path(source).exists():
        raise InputError(
            f"{source} has a mask for each image, which is for segmentation; wanted for classification: digits, or a "
            "folder with train/CLASS/ and val/CLASS/."
        )
    return None if source == "digits" else locate(source, CLASSIFICATION)


def _name(folder: Path) -> str:
    return folder.expanduser().resolve().name


def check_masks(source: str, who: str = "", classes: Sequence[str] | None = None) -> None:
    """Refuse, before an image is read, what :func:`load_masks` would refuse of the set and of where its files are.

    Raises:
        InputError: a set that is not there, of another task or with other classes; a wrong layout, a missing mask.
    """
    _check_masked(source, who, classes)
    check_layout(source)


def load_masks(
    source: str,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    who: str = "",
    classes: Sequence[str] | None = None,
) -> ImageSplits:
    """The splits of DATA with masks: a word of `MASKED`, or a folder. What is None is the data's own.

    Args:
        who: "teacher" or "model", whichever knows these ``classes``, or "" where --class-names gives them: a folder's
            masks have numbers and no names.

    Raises:
        InputError: whatever :func:`kdlab.data.load_segmentation` refuses; digits; pairs; other classes than those.
    """
    _check_masked(source, who, classes)
    if source in MASKED or classes is None:
        return load_segmentation(source, size=size, mean=mean, std=std)
    try:
        return load_segmentation(source, size=size, mean=mean, std=std, classes=classes)
    except InputError as error:
        told = f"The {who} knows" if who else "--class-names gives"
        raise InputError(f"{error}\n{told} {len(classes)} classes: {names(classes)}.") from error


def _check_masked(source: str, who: str, classes: Sequence[str] | None) -> None:
    other = {"digits": ("a label", "classification")} | dict.fromkeys(DRAWN, ("a clean image", "restoration"))
    if source in other:
        what, task = other[source]
        raise InputError(
            f"{source} has {what} for each image and no masks, which is for {task}; wanted for segmentation: "
            f"{', '.join(MASKED)}, or a folder with images/ and masks/ (./{source} is a folder of that name)."
        )
    if source not in MASKED or classes is None:
        return
    if not who:
        raise InputError(
            f"--class-names was given, and {source} has names: {names(MASKED[source])}. Leave it out (./{source} is a "
            "folder of that name)."
        )
    check_classes(who, classes, Listed(source, MASKED[source]))


def list_restoration(source: str) -> Listed:
    """What :func:`load_restoration` will give.

    Raises:
        InputError: another layout; a weather that is not in every split; a built-in set of another task.
    """
    folder = _paired(source)
    return Listed(source, DRAWN[source]) if folder is None else Listed(_name(folder), list_weathers(folder))


def load_restoration(source: str, crop: int | None = None, *, only_judged: bool = False) -> ImageSplits:
    """The splits of DATA with clean images: a word of :data:`DRAWN`, a public set's name, or a folder.

    Args:
        crop: of the training images; None: the data's own.
        only_judged: whether only validation and test are wanted, one of which will do: the training images are these,
            or without the variants that take seconds to draw.

    Raises:
        InputError: whatever :func:`load_pairs`, :func:`load_weather` and :func:`load_haze` refuse; a built-in set of
            another task.
    """
    folder = _paired(source)
    size = {} if crop is None else {"crop": crop}
    if folder is not None:
        return load_pairs(folder, **size, only_judged=only_judged)
    draw = load_haze if source == "haze" else load_weather
    return replace(draw(variants=1), name=source) if only_judged else draw(**size)


def _paired(source: str) -> Path | None:
    """The folder with pairs of images; None of those that are drawn."""
    if source == "digits" or source in MASKED:
        raise InputError(
            f"{source} has no clean image for each image, which restoration wants: weather or haze, or a folder with "
            f"train/WEATHER/ and val/WEATHER/ (./{source} is a folder of that name)."
        )
    return None if source in DRAWN else locate(source, RESTORATION)


def of_weathers(data: ImageSplits, weathers: Sequence[str]) -> ImageSplits:
    """The data with these weathers, which it has, alone to train on and to be judged by."""
    train, val = (pairs(split).only(weathers) for split in (data.train, data.val))
    return replace(data, train=train, val=val, classes=tuple(weathers))


def check_classes(who: str, known: Sequence[str], data: Listed) -> None:
    """Refuse data whose classes are not those that a model knows, in their order."""
    if [normalize("NFC", name) for name in known] != [normalize("NFC", name) for name in data.classes]:
        raise InputError(
            f"the {who} knows {names(known)}; {data.name} has {names(data.classes)}: wanted the same classes in the "
            f"same order. Make the folders of the data fit, or train a {who} on this data."
        )


def check_split(args: argparse.Namespace, data: ImageSplits) -> None:
    """Refuse --split test or val where there is none."""
    if args.split == "test" and data.test_is_val:
        raise InputError(f"--split test was given, but {data.name} has no test/. Use --split val, or make a test/.")
    if args.split == "val" and data.val_is_test:
        raise InputError(
            f"--split val was given or left, but {data.name} has no val/. Use --split test, or make a val/."
        )


def task_of(model: nn.Module) -> str:
    """The --task that made a model.

    Raises:
        InputError: none did.
    """
    if isinstance(model, VGGReader):
        raise InputError(
            "a VGGReader was given, which is for SCR and HCR to compare images by; wanted: what teach or distill made."
        )
    if isinstance(model, Restorer):
        return "dehazing" if isinstance(model, Dehazer) else "restoration"
    return "segmentation" if isinstance(model, Segmenter) else "classification"


def names(classes: Sequence[str]) -> str:
    """The classes in a sentence: all of a few, the first ten of many."""
    return ", ".join(map(printable, classes[:10])) + (f", ... ({len(classes)} classes)" if len(classes) > 10 else "")
