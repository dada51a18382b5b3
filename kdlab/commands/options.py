"""The options that several commands have, and those that depend on the task."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kdlab.errors import InputError
from kdlab.loading import MOST_WORKERS

UNSET = argparse.SUPPRESS  # of what depends on the task: settle_task sees what was given
LARGEST_SIZE = 2**13  # pixels a side, beyond which a slip of the finger would fill the memory

# All options whose default depends on the task, or that one task alone has, by command and task. None is settled later.
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "teach": {
        "classification": {
            "epochs": 20, "lr": None, "one_cycle": True, "batch_size": 32, "patience": None, "image_size": None,
            "mean": None, "std": None, "weights": "auto", "augment": False,
        },
        "segmentation": {
            "epochs": 60, "lr": None, "one_cycle": True, "batch_size": 16, "patience": None, "image_size": None,
            "mean": None, "std": None, "weights": "auto", "narrow": False, "monitor": "miou",
            "class_names": None,
        },
        "restoration": {
            "epochs": 250, "lr": 2e-4, "one_cycle": False, "batch_size": 33, "patience": None, "narrow": False,
            "width": None, "crop": None, "warm_up": None, "max_norm": None, "pixel": "l1",
            "weather": None,
        },
        "dehazing": {
            "epochs": 400, "lr": 1e-4, "one_cycle": False, "batch_size": 15, "patience": None, "narrow": False,
            "weights": "auto", "crop": None, "max_norm": None, "weather": None, "steps": None,
        },
    },
    "distill": {
        "classification": {
            "epochs": 500, "lr": 1e-4, "one_cycle": False, "batch_size": 4, "patience": 30, "image_size": None,
            "mean": None, "std": None, "augment": False, "temperature": 2.0, "alpha": 0.7, "drop_rate": 0.2,
            "widths": [[32, 64, 128, 256]], "classes": None, "unlabelled": None,
        },
        "segmentation": {
            "epochs": 60, "lr": 1e-3, "one_cycle": True, "batch_size": 16, "patience": None, "image_size": None,
            "mean": None, "std": None, "narrow": False, "monitor": "miou", "weights": "auto", "preset": None,
            "method": None, "layer": None, "weight": None, "temperature": None, "mask_ratio": None,
            "unlabelled": None,
        },
        "restoration": {
            "epochs": 250, "lr": 2e-4, "one_cycle": False, "batch_size": 33, "patience": None, "narrow": False,
            "width": None, "crop": None, "warm_up": None, "max_norm": None, "pixel": None, "collation": None,
            "ckt": None, "reconstruction": None, "scr": None, "hcr": None, "eps": None, "detach": None,
            "positive": None, "negatives": None, "features": "auto",
        },
        "dehazing": {
            "epochs": 400, "lr": 1e-4, "one_cycle": False, "batch_size": 15, "patience": None, "narrow": False,
            "weights": "auto", "crop": None, "max_norm": None, "weather": None, "steps": None, "transfer": 1.0,
            "super_resolution": True,
        },
    },
}  # fmt: skip


# The teacher's highest learning rate where none is given, by what it starts from.
FROM_IMAGENET, FROM_RANDOM = 1e-4, 1e-3
SETTLED_LATER = {"patience": "never", "lr": f"{FROM_IMAGENET} from ImageNet's weights, {FROM_RANDOM} from random ones"}


def settle_task(args: argparse.Namespace) -> None:
    """Fill in the task's defaults.

    Raises:
        InputError: an option that only other tasks have.
    """
    by_task = DEFAULTS.get(args.command, {})
    for defaults in by_task.values():
        foreign = sorted(vars(args).keys() & defaults.keys() - by_task[args.task].keys())
        if foreign:
            owners = [task for task, own in by_task.items() if own.keys() >= set(foreign)]
            raise InputError(
                f"{', '.join(map(option, foreign))} was given, which only {_listed(owners, 'and')} "
                f"{'have' if len(owners) > 1 else 'has'}; the task is {args.task}. "
                f"Leave it out, or say --task {_listed(owners, 'or')}."
            )
    if by_task:
        vars(args).update(by_task[args.task] | vars(args))


def _listed(words: Sequence[str], last: str) -> str:
    """Words in a row, such as "one, two and three"."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def option(name: str) -> str:
    """An option as it is written."""
    return f"--{name.replace('_', '-')}"


def check_used(args: argparse.Namespace, method: str, used_by: Mapping[str, Sequence[str]]) -> None:
    """Refuse a number that the method has no use for.

    Args:
        used_by: the numbers, each with the methods that take it.

    Raises:
        InputError: one was given, and the method is none of those.
    """
    for name, methods in used_by.items():
        if getattr(args, name) is not None and method not in methods:
            raise InputError(
                f"{option(name)} was given, which {method} has no use for, only {' and '.join(methods)}. Leave it out."
            )


# --- options of several commands -------------------------------------------------------------------------------------


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        metavar="DATA",
        help="for classification a folder with train/CLASS/ and val/CLASS/, perhaps test/CLASS/, full of images; or "
        "the word digits: 1,797 built-in ones (./digits is a folder of that name); or cifar10, cifar100, "
        "imagenette-160 or imagenette-320, where data_scripts/get_classification.py has put them into ./data. "
        "For segmentation a folder with images/ and masks/ in train/ and val/, perhaps test/, or without these, where "
        "a fifth of the images becomes val (a mask is a PNG of class numbers, called like its image; 255 means "
        "ignore); or scenes, built in; or pets or voc, where "
        "data_scripts/get_segmentation.py has put them into ./data. For restoration and dehazing a folder with "
        "train/WEATHER/ and val/WEATHER/, perhaps test/WEATHER/, each with degraded images and clean ones as a public "
        "set has them (such as input/ and target/), or with lists of pairs in meta/train/WEATHER.json and "
        "meta/valid/WEATHER.json; or weather or haze, built in; or a public set's name, such as nh-haze, where "
        "data_scripts/get_restoration.py has listed it in ./data",
    )


def add_image_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help="image files, or folders to search")


def add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split", choices=("val", "test", "train"), default="val", help="which images (default: %(default)s)"
    )


def add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        choices=("classification", "segmentation", "restoration", "dehazing"),
        default="classification",
        help="one class for an image, one for each pixel, an image without its weather, or without dense haze "
        "(default: %(default)s)",
    )


def add_model(parser: argparse.ArgumentParser, also: str = "") -> None:
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="M",
        help=f"what teach or distill made: the folder, or a file in it{also}",
    )


def add_format(parser: argparse.ArgumentParser, default: str | None = "table", said: str = "table") -> None:
    """Of None, the command finds the format itself; ``said`` is how."""
    parser.add_argument(
        "--format", choices=("table", "csv", "json"), default=default, help=f"of the result (default: {said})"
    )


def add_speed(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="bf16 is faster on a recent GPU (default: %(default)s)",
    )
    add(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the order of convolutions' weights in memory: mostly faster, on a CPU too (default: on)",
    )
    add(
        "--compile",
        action="store_true",
        help="the student, with torch.compile: a minute or more at the start, faster steps after it; wants a C++ "
        "compiler (default: off)",
    )


def add_training(parser: argparse.ArgumentParser, command: str, rate: str) -> None:
    add = parser.add_argument
    epochs, lr, patience, batch_size = (
        default_of(command, name) for name in ("epochs", "lr", "patience", "batch_size")
    )
    add("--epochs", type=whole(1), default=UNSET, metavar="N", help=f"rounds over the images {epochs}")
    add("--lr", type=float, default=UNSET, metavar="X", help=f"{rate} {lr}")
    add(
        "--patience",
        type=whole(1),
        default=UNSET,
        metavar="N",
        help=f"end after N epochs without a better one {patience}",
    )
    add_seed(parser)
    add_speed(parser)
    add(
        "--accumulate",
        type=whole(1),
        default=1,
        metavar="N",
        help="compute each batch in N pieces, for less memory; N must divide --batch-size (default: %(default)s)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --out that was interrupted, or ended early and now has more --patience; all "
        "else that is learnt from must be as it was (default: off)",
    )
    add_loading(parser, batch_size, UNSET)


def add_images(parser: argparse.ArgumentParser, *, size: str, moment: str) -> None:
    add = parser.add_argument
    add(
        "--image-size",
        type=whole(32, LARGEST_SIZE),
        default=UNSET,
        metavar="N",
        help=f"pixels; the largest central square of an image is scaled to N x N, N at least 32 (default: {size}); "
        "not for restoration and dehazing",
    )
    for name in ("--mean", "--std"):
        add(
            name,
            type=numbers(float),
            nargs="+",
            default=UNSET,
            metavar="R,G,B",
            help=f"of red, green and blue, for pixels in 0 to 1, such as 0.5,0.5,0.5 (default: {moment}); "
            "not for restoration and dehazing",
        )


def add_weights(parser: argparse._ActionsContainer, note: str = "") -> None:
    parser.add_argument(
        "--weights",
        choices=("auto", "imagenet", "none"),
        default=UNSET,
        help="start from ImageNet's weights (downloaded once), from random ones (none), or auto: from ImageNet's where "
        f"they can be had (default: auto){note}",
    )


def add_seed(parser: argparse.ArgumentParser, most: int = 2**63 - 1) -> None:
    parser.add_argument(
        "--seed",
        type=whole(0, most),
        default=0,
        metavar="N",
        help="of all random numbers; on the CPU the same seed gives the same weights (default: %(default)s)",
    )


def add_loading(parser: argparse.ArgumentParser, default: str, batch_size: object, note: str = "") -> None:
    parser.add_argument(
        "--batch-size", type=whole(1), default=batch_size, metavar="N", help=f"images at a time {default}"
    )
    add_workers(parser, note)
    add_device(parser)


def add_workers(parser: argparse.ArgumentParser, note: str = "") -> None:
    parser.add_argument(
        "--workers",
        type=whole(0, MOST_WORKERS),
        default=0,
        metavar="N",
        help=f"processes that load images; 0 loads them in this one{note} (default: 0)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="auto takes a GPU where there is one (default: %(default)s)",
    )


def default_of(command: str, name: str) -> str:
    """What --help says of a default."""
    first, *others = DEFAULTS[command]
    values = {task: SETTLED_LATER[name] if own[name] is None else own[name] for task, own in DEFAULTS[command].items()}
    other_values = [f"for {task} {values[task]}" for task in others if values[task] != values[first]]
    return f"(default: {', '.join([str(values[first]), *other_values])})"


# --- values of options -----------------------------------------------------------------------------------------------


@cache  # of all that makes a parser, a function is slowest to make where shapes are checked, as in the tests
def whole(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
        if int(text) > most:
            raise argparse.ArgumentTypeError(f"{text} is too large; wanted: at most {most}")
        return int(text)

    return parse


def numbers(kind: type[int] | type[float]) -> Callable[[str], list[float]]:
    """Numbers between commas, spaces or both, in brackets or not. The option's value is a list of such lists."""

    def parse(text: str) -> list[float]:
        words = text.strip("()[] ").replace(",", " ").split()
        try:
            return [kind(word) for word in words or [text]]
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not made of numbers between commas (and DATA stands before the options)"
            ) from None

    return parse
