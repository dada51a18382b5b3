"""What teach and distill can be told about a restorer. Nothing here imports PyTorch."""

import argparse

from kdlab.commands.options import UNSET, whole

FEATURES = ("auto", "imagenet", "scenes", "none")
POSITIVES = ("teacher", "target")
NEGATIVES = ("paired", "same_weather")
PIXEL = ("l1", "mse")


def add_pairs(parser: argparse._ActionsContainer, weather: str) -> None:
    """What every training on pairs of images has, whichever the task; ``weather`` is that option's help."""
    add = parser.add_argument
    add("--weather", default=UNSET, metavar="W", help=weather)
    add(
        "--crop",
        type=whole(16),
        default=UNSET,
        metavar="N",
        help="train on random parts of N x N pixels, mirrored half of the time, for dehazing also upside down and "
        "transposed (default: 224, for dehazing 256, for weather and haze 64)",
    )
    add(
        "--max-norm",
        type=float,
        default=UNSET,
        metavar="X",
        help="scale a gradient down to this norm where it is larger, such as 0.5 for a high learning rate (default: "
        "leave it as it is)",
    )


def add_restorer(parser: argparse._ActionsContainer) -> None:
    """The network and the schedule of both commands."""
    add = parser.add_argument
    add(
        "--width",
        type=whole(2),
        default=UNSET,
        metavar="N",
        help="channels of the network at the full size, an even number (default: 16, with --narrow 4)",
    )
    add(
        "--warm-up",
        type=whole(0),
        default=UNSET,
        metavar="N",
        help="epochs in which the learning rate rises (default: 3, and always less than --epochs)",
    )
    add(
        "--pixel",
        choices=PIXEL,
        default=UNSET,
        help="the distance between images: mean absolute or mean squared; mse also learns what covers few pixels, such "
        "as flakes (default: l1)",
    )


def add_steps(parser: argparse._ActionsContainer) -> None:
    """The schedule of dehazing in both commands."""
    parser.add_argument(
        "--steps",
        type=whole(1),
        default=UNSET,
        metavar="N",
        help="batches of an epoch (default: 100, with --narrow as many as there are images for)",
    )


def add_transfer(parser: argparse._ActionsContainer) -> None:
    """What distill compares, and the student."""
    add = parser.add_argument
    add(
        "--transfer",
        type=float,
        default=UNSET,
        metavar="X",
        help="weight of the distance to the teacher's map of the clean image; with 0 there is no teacher (default: 1)",
    )
    add(
        "--super-resolution",
        action=argparse.BooleanOptionalAction,
        default=UNSET,
        help="whether the student has the branch that sees the image at its full size (default: yes)",
    )


def add_two_stages(parser: argparse._ActionsContainer) -> None:
    """The plan of distill."""
    add = parser.add_argument
    for name, default, what in (
        (
            "collation",
            "0.5",
            "the first stage's share of the epochs, from 0 (none) to 1 (no second stage); --patience counts in the "
            "second one",
        ),
        ("ckt", "1", "weight of the distance to the teachers in the common space"),
        ("reconstruction", "0.05, with --narrow 1", "weight of the way back from the common space, beside CKT"),
        ("scr", "0.1", "weight of the contrast in the first stage"),
        ("hcr", "0.2", "weight of the contrast in the second stage"),
        (
            "eps",
            "1e-7, with --narrow 0.01",
            "added to the distance that SCR and HCR divide by; the larger, the milder while restored and degraded "
            "images are alike",
        ),
    ):
        add(f"--{name}", type=float, default=UNSET, metavar="X", help=f"{what} (default: {default})")
    add(
        "--detach",
        action=argparse.BooleanOptionalAction,
        default=UNSET,
        help="let the teachers' projections learn from the way back alone, so that the common space cannot collapse "
        "(default: no, with --narrow yes)",
    )
    add(
        "--positive",
        choices=POSITIVES,
        default=UNSET,
        help="what SCR brings a restored image near to: the teacher's, or the clean one (default: teacher)",
    )
    add(
        "--negatives",
        choices=NEGATIVES,
        default=UNSET,
        help="what SCR keeps it away from: its own degraded image, or all of its weather in the batch (default: "
        "paired)",
    )
    add(
        "--features",
        choices=FEATURES,
        default=UNSET,
        help="what SCR and HCR compare images by: VGG19 with ImageNet's weights (downloaded once), a quarter of it "
        "trained on the scenes, or at random (none); auto takes ImageNet's where they can be had, else the scenes' "
        "(default: auto)",
    )
