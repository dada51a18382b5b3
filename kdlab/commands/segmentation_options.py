"""What teach and distill can be told about a segmenter. Nothing here imports PyTorch."""

import argparse

from kdlab.commands.options import UNSET

PRESETS = ("cwd-logits", "cwd-logits-mmrazor", "cwd-features", "mgd")
METHODS = ("cwd", "mgd", "kd", "at", "hard", "pseudo")


def add_method(parser: argparse._ActionsContainer) -> None:
    """What distill compares, and the student."""
    add = parser.add_argument
    add(
        "--preset",
        choices=PRESETS,
        default=UNSET,
        help="a method with its published numbers, any of which --weight, --temperature and --mask-ratio change "
        "(default: cwd-logits: weight 3, temperature 4)",
    )
    add("--method", choices=METHODS, default=UNSET, help="instead of a preset (default: cwd)")
    add(
        "--layer",
        choices=("logits", "features"),
        default=UNSET,
        help="what --method compares (default: features for mgd and at, else logits)",
    )
    add(
        "--weight",
        type=float,
        default=UNSET,
        metavar="X",
        help="of the method's loss; the masks' cross-entropy has 1 (default, as published: cwd 3, or 50 on features, "
        "mgd 2e-5, which is for Cityscapes' large images; as it did best on the scenes of 64x64: kd 4, "
        "hard 4, pseudo 16, at 62.5; there mgd did best with 2e-3)",
    )
    add(
        "--mask-ratio",
        type=float,
        default=UNSET,
        metavar="X",
        help="only of mgd: the share of positions that are masked (default: 0.75)",
    )
    add_monitor(parser)


def add_class_names(parser: argparse._ActionsContainer) -> None:
    """What teach can be told of a folder, whose masks have numbers and no names."""
    parser.add_argument(
        "--class-names",
        nargs="+",
        default=UNSET,
        metavar="NAME",
        help="of a folder's classes, in the order of their numbers in the masks, all of them (default: the numbers, up "
        "to the highest that is found)",
    )


def add_monitor(parser: argparse._ActionsContainer) -> None:
    """The best epoch of both commands."""
    parser.add_argument(
        "--monitor",
        choices=("miou", "mdice"),
        default=UNSET,
        help="the best epoch is that of highest mIoU, or mDice (default: miou)",
    )
