"""What teach and distill can be told about a classifier. Nothing here imports PyTorch."""

import argparse
from pathlib import Path

from kdlab.commands.options import LARGEST_SIZE, UNSET, add_model, numbers, whole


def add_student(parser: argparse._ActionsContainer) -> None:
    """The student of distill, and how it learns."""
    add = parser.add_argument
    add(
        "--alpha",
        type=float,
        default=UNSET,
        metavar="X",
        help="weight of the teacher, from 0 (labels only) to 1 (teacher only) (default: 0.7)",
    )
    add("--drop-rate", type=float, default=UNSET, metavar="X", help="dropout in the student (default: 0.2)")
    add(
        "--widths",
        type=numbers(int),
        nargs="+",
        default=UNSET,
        metavar="N,N,N,N",
        help="channels of the student's four blocks (default: 32,64,128,256)",
    )
    add(
        "--classes",
        type=whole(2),
        default=UNSET,
        metavar="N",
        help="classes of a plain state_dict (default: as many as DATA has)",
    )
    add_augment(parser)


def add_plain_weights(parser: argparse.ArgumentParser, labels: str) -> None:
    """The model of evaluate and predict, which may be a classifier's weights without kdlab's card: what that has."""
    add_model(parser, "; or a classifier's plain state_dict (.pt, .pth, .safetensors), see below")
    plain = parser.add_argument_group(
        "for a plain state_dict",
        "Of StudentCNN or DenseNet121; no code is run from the file. kdlab's own files carry all this.",
    )
    size = whole(8, LARGEST_SIZE)
    plain.add_argument("--image-size", type=size, metavar="N", help="pixels that it was trained at, at least 8")
    for name in ("--mean", "--std"):
        plain.add_argument(
            name, type=numbers(float), nargs="+", metavar="R,G,B", help="that it was trained with, for pixels in 0 to 1"
        )
    plain.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help=f"text file with the class names in the order of the logits, one a line, with or without their number "
        f"before them{labels}",
    )


def add_augment(parser: argparse._ActionsContainer) -> None:
    """How the images of both commands vary."""
    parser.add_argument(
        "--augment",
        action="store_true",
        default=UNSET,
        help="train on random crops and mirror images (default: off)",
    )
