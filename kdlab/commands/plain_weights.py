"""The model that evaluate and predict were given, which may be a classifier's weights without kdlab's card."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdlab.commands.options import option
from kdlab.data import ImageTransform
from kdlab.data.transforms import three_numbers
from kdlab.errors import InputError, first_line
from kdlab.files import header_of
from kdlab.models import build_model
from kdlab.training import ModelCard, load_model
from kdlab.training.checkpoints import fill, own_names, read_weights

TOLD = ("labels", "image_size", "mean", "std")  # the options for what a plain state_dict does not say
KNOWN = "StudentCNN or densenet121"
NUMBERED = re.compile(r"(\d+)[\s,:.)]+(.+)")
SMALLEST = 32  # pixels, for DenseNet121


def is_plain(path: Path) -> bool:
    """Whether it is a file of another's. A .safetensors that cannot be read is not: load_model says what it has."""
    if not path.is_file():
        return False
    header = header_of(path)
    return path.suffix != ".safetensors" if header is None else "kdlab" not in header


def model_of(args: argparse.Namespace, known: Callable[[], Sequence[str]] | None = None) -> tuple[nn.Module, ModelCard]:
    """--model, in eval mode, and its card: the one that is with it, or one made of what the other options say.

    Args:
        known: gives the class names where --labels is not given; None: it has to be.

    Raises:
        InputError: whatever load_model refuses; an option that the file answers itself, or one that it lacks; weights
            of a network that is not known, or of another number of classes.
    """
    given = [name for name in TOLD if getattr(args, name) is not None]
    if is_plain(args.model):
        return _plain(args, given, known)
    model, card = load_model(args.model)
    if given:
        raise InputError(
            f"{_options(given)} was given, which {args.model} says itself. Leave it out: it is for a plain state_dict."
        )
    return model, card


def _plain(
    args: argparse.Namespace, given: Sequence[str], known: Callable[[], Sequence[str]] | None
) -> tuple[nn.Module, ModelCard]:
    weights = own_names(read_weights(args.model, KNOWN))
    architecture = _architecture(weights, args.model)
    lacking = [name for name in TOLD if name not in given and not (name == "labels" and known)]
    if lacking:
        raise InputError(
            f"{args.model} is a plain state_dict, which does not say what its images and classes are; wanted too: "
            f"{_options(lacking)}, as it was trained."
        )
    mean, std = (three_numbers(name, list(chain.from_iterable(getattr(args, name)))) for name in ("mean", "std"))
    ImageTransform(args.image_size, mean, std)  # refuses a std of 0, and what is for pixels in 0 to 255
    if architecture["name"] == "densenet121" and args.image_size < SMALLEST:
        raise InputError(f"--image-size is {args.image_size}; wanted for DenseNet121: {SMALLEST} at least.")
    classes = tuple(known()) if known and args.labels is None else read_labels(args.labels)
    if architecture["classes"] != len(classes):
        raise InputError(
            f"the model in {args.model} knows {architecture['classes']} classes, and {args.labels or args.data} names "
            f"{len(classes)}. Wanted: as many, in the order of its logits."
        )
    model = build_model(architecture)
    fill(model, weights, args.model)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{name} in {args.model} has numbers that are not finite: the training that made it has failed. Take "
                "an earlier copy."
            )
    return model.eval(), ModelCard(architecture, classes, mean, std, args.image_size)


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, one a line; or with their numbers from 0 before them, in any order. Empty lines are nothing.

    Raises:
        InputError: no such file; no text; a name that stands there twice; other numbers than from 0 up, each once.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--labels {path} cannot be read ({first_line(error)}). Wanted: a text file, a class on each line."
        ) from error
    numbered = [match for line in lines if (match := NUMBERED.fullmatch(line))]
    if len(numbered) == len(lines) > 0:
        by_number = {int(match[1]): match[2] for match in numbered}
        if sorted(by_number) != list(range(len(lines))):
            raise InputError(
                f"--labels {path} numbers its {len(lines)} lines {', '.join(match[1] for match in numbered[:10])}; "
                f"wanted: 0 to {len(lines) - 1}, each once, as the logits are counted, or names without numbers."
            )
        lines = [by_number[number] for number in range(len(lines))]
    twice = sorted({name for name in lines if lines.count(name) > 1})
    if twice or not lines:
        what = f"names {twice[0]} more than once" if twice else "is empty"
        raise InputError(
            f"--labels {path} {what}. Wanted: each class on a line of its own, in the order of the logits."
        )
    return tuple(lines)


def _architecture(weights: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """What network has such weights."""
    try:
        if "features.denseblock1.denselayer1.conv1.weight" in weights:
            return {"name": "densenet121", "classes": len(weights["classifier.weight"])}
        widths = [len(weights[f"features.{block}.0.weight"]) for block in range(4)]
        return {"name": "StudentCNN", "classes": len(weights["classifier.3.weight"]), "widths": widths}
    except (KeyError, TypeError) as error:  # one is not there, or has no dimensions
        raise InputError(
            f"the weights in {path} are of a network that is not known (no {error}). Wanted: {KNOWN}. Those of a "
            "network of your own are read with load_weights(model, path)."
        ) from error


def _options(names: Sequence[str]) -> str:
    return ", ".join(map(option, names))
