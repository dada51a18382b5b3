"""What teach and distill can be told about a classifier. Nothing here imports PyTorch."""

import argparse

from kdlab.commands.options import UNSET, numbers, whole


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


def add_augment(parser: argparse._ActionsContainer) -> None:
    """How the images of both commands vary."""
    parser.add_argument(
        "--augment",
        action="store_true",
        default=UNSET,
        help="train on random crops and mirror images (default: off)",
    )
