"""The images that a command was given, with their labels or masks, and whether they fit a model."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from kdlab.data import ImageSplits, load_digits, load_folders, load_segmentation
from kdlab.data.images import printable
from kdlab.data.masks import NAMED
from kdlab.errors import InputError
from kdlab.models.segmentation import Segmenter

METRICS = {"miou": "mIoU", "mdice": "mDice"}  # as they are written; the others are words


def load_data(
    source: str,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: bool = False,
) -> ImageSplits:
    """The splits of DATA with labels: the word "digits", or a folder. What is None is the data's own.

    Raises:
        InputError: whatever :func:`kdlab.data.load_folders` refuses; augmentation of digits; a set of masks.
    """
    if source in NAMED and not Path(source).exists():
        raise InputError(
            f"{source} has a mask for each image, which is for segmentation; wanted for classification: digits, or a "
            "folder with train/CLASS/ and val/CLASS/."
        )
    if source != "digits":
        return load_folders(source, size=size or 224, mean=mean, std=std, augment=augment)
    if augment:
        raise InputError("--augment was given with digits, of which many mean another one in a mirror. Leave it out.")
    return load_digits(size or 32, mean, std)


def load_masks(
    source: str,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    who: str = "",
    classes: Sequence[str] | None = None,
) -> ImageSplits:
    """The splits of DATA with masks: a word of `NAMED`, or a folder. What is None is the data's own.

    Args:
        who: "teacher" or "model", whichever knows these ``classes``: a folder's masks have numbers and no names.

    Raises:
        InputError: whatever :func:`kdlab.data.load_segmentation` refuses; digits; other classes than those.
    """
    if source == "digits":
        raise InputError(
            "digits has a label for each image and no masks, which is for classification; wanted for segmentation: "
            f"{', '.join(NAMED)}, or a folder with images/ and masks/ (./digits is a folder of that name)."
        )
    if source in NAMED or classes is None:
        data = load_segmentation(source, size=size, mean=mean, std=std)
        if classes is not None:
            check_classes(who, classes, data)
        return data
    try:
        return load_segmentation(source, size=size, mean=mean, std=std, classes=classes)
    except InputError as error:
        raise InputError(f"{error}\nThe {who} knows {len(classes)} classes: {names(classes)}.") from error


def check_classes(who: str, known: Sequence[str], data: ImageSplits) -> None:
    """Refuse data whose classes are not those that a model knows, in their order."""
    if tuple(known) != data.classes:
        raise InputError(
            f"the {who} knows {names(known)}; {data.name} has {names(data.classes)}: wanted the same classes in the "
            f"same order. Make the folders of the data fit, or train a {who} on this data."
        )


def task_of(model: nn.Module) -> str:
    """The --task that made a model."""
    return "segmentation" if isinstance(model, Segmenter) else "classification"


def names(classes: Sequence[str]) -> str:
    """The classes in a sentence: all of a few, the first ten of many."""
    return ", ".join(map(printable, classes[:10])) + (f", ... ({len(classes)} classes)" if len(classes) > 10 else "")
