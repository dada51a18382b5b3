"""The labelled images that a command was given, and whether they fit a model."""

from collections.abc import Sequence

from kdlab.data import ImageSplits, load_digits, load_folders
from kdlab.data.images import printable
from kdlab.errors import InputError


def load_data(
    source: str,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: bool = False,
) -> ImageSplits:
    """The splits of DATA: the word "digits", or a folder. What is None is the data's own.

    Raises:
        InputError: whatever :func:`kdlab.data.load_folders` refuses; augmentation of digits.
    """
    if source != "digits":
        return load_folders(source, size=size or 224, mean=mean, std=std, augment=augment)
    if augment:
        raise InputError("--augment was given with digits, of which many mean another one in a mirror. Leave it out.")
    return load_digits(size or 32, mean, std)


def check_classes(who: str, known: Sequence[str], data: ImageSplits) -> None:
    """Refuse data whose classes are not those that a model knows, in their order."""
    if tuple(known) != data.classes:
        raise InputError(
            f"the {who} knows {names(known)}; {data.name} has {names(data.classes)}: wanted the same classes in the "
            f"same order. Make the folders of the data fit, or train a {who} on this data."
        )


def names(classes: Sequence[str]) -> str:
    """The classes in a sentence: all of a few, the first ten of many."""
    return ", ".join(map(printable, classes[:10])) + (f", ... ({len(classes)} classes)" if len(classes) > 10 else "")
