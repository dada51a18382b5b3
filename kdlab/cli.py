"""The command line: ``kdlab teach``, ``distill``, ``evaluate``, ``predict`` and ``doctor``."""

import argparse
import io
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from kdlab import InputError, NonFiniteLossError, __version__

WRONG, INTERRUPTED, CLOSED_PIPE = 2, 130, 141  # the last two as shells report SIGINT and SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; what cannot be used is one message on stderr and status 2."""
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter of a file's name
    try:
        status = _run(args)
        sys.stdout.flush()  # a reader that has gone away is noticed here, and not while Python shuts down
        return status
    except (InputError, NonFiniteLossError) as error:
        return _fail(error, WRONG)
    except KeyboardInterrupt:
        trained = args.command in ("teach", "distill")
        hint = ". The same command with --resume goes on after the last whole epoch." if trained else "."
        return _fail(f"interrupted{hint}", INTERRUPTED)
    except BrokenPipeError:
        # What is still buffered has to go somewhere, or Python complains about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE


def _fail(message: object, status: int) -> int:
    print(f"kdlab: {message}", file=sys.stderr)
    return status


def _run(args: argparse.Namespace) -> int:
    # Imported only now: PyTorch takes seconds to load, and --help shall answer at once.
    match args.command:
        case "teach":
            from kdlab.commands.train import teach as command
        case "distill":
            from kdlab.commands.train import distill as command
        case "evaluate":
            from kdlab.commands.evaluate import evaluate as command
        case "predict":
            from kdlab.commands.predict import predict as command
        case _:
            from kdlab.doctor import report

            return report()
    return command(args)


# --- the options -----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdlab",
        description="Knowledge distillation: train a large network, and a small one that learns from it.",
        epilog="example:\n  kdlab teach digits --out runs/teacher --weights none\n"
        "  kdlab distill digits --teacher runs/teacher --out runs/student --epochs 20\n"
        "  kdlab predict photos/ --model runs/student\n\n`kdlab COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kdlab {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, arguments: str, summary: str, description: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            usage=f"kdlab {name} {arguments}",
            help=summary,
            description=textwrap.fill(" ".join(description.split()), 100),
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    teach = add(
        "teach",
        "DATA --out T [options]",
        "train or fine-tune the teacher, a DenseNet121",
        """Train or fine-tune DenseNet121 (7 million parameters), the teacher. After each epoch it is judged on the
        validation images: T/best.safetensors is the epoch of highest accuracy (of equal ones that of lower loss),
        T/last.safetensors the latest. Both carry classes, image size, mean and std, so that no later command has to be
        told.""",
        "kdlab teach pets/ --out runs/teacher --epochs 10 --batch-size 16 --augment",
    )
    teach.set_defaults(one_cycle=True)
    _add_data(teach)
    teach.add_argument("--out", type=Path, required=True, metavar="T", help="folder for the teacher")
    teach.add_argument(
        "--weights",
        choices=("auto", "imagenet", "none"),
        default="auto",
        help="start from ImageNet's weights (downloaded once), from random ones (none), or auto: from ImageNet's where "
        "they can be had (default: %(default)s)",
    )
    rate = (
        "highest learning rate; Adam warms up to it and then down to 0. A random start bears 3e-3, ImageNet's weights "
        "rather want 1e-4"
    )
    _add_training(teach, epochs=20, batch_size=32, lr=1e-3, rate=rate, patience=None)
    _add_images(teach, size="224, or 32 for digits", moment="the training images'")

    distill = add(
        "distill",
        "DATA --teacher T --out S [options]",
        "train the student on what the teacher says",
        """Train a student of four convolution blocks on alpha * T^2 * KL(teacher || student), both softened by the
        temperature T, + (1 - alpha) * cross-entropy. S/best.safetensors is the epoch of highest validation accuracy (of
        equal ones that of lower loss), S/last.safetensors the latest. The teacher runs once over the training images;
        with --augment, where no image comes twice, it runs at each step.""",
        "kdlab distill pets/ --teacher runs/teacher --out runs/student --temperature 4 --epochs 50 --batch-size 32",
    )
    distill.set_defaults(one_cycle=False)
    _add_data(distill)
    distill.add_argument(
        "--teacher",
        type=Path,
        required=True,
        metavar="T",
        help="what `kdlab teach` made (the folder, or a file in it), or a plain state_dict of DenseNet121 (.pt, .pth, "
        ".safetensors), from which no code is run; give the --image-size, --mean and --std that it was trained with",
    )
    distill.add_argument(
        "--classes", type=_whole(2), metavar="N", help="classes of a plain state_dict (default: as many as DATA has)"
    )
    distill.add_argument("--out", type=Path, required=True, metavar="S", help="folder for the student")
    distill.add_argument(
        "--temperature", type=float, default=2.0, metavar="X", help="above 0; 2 to 4 is usual (default: %(default)s)"
    )
    distill.add_argument(
        "--alpha",
        type=float,
        default=0.7,
        metavar="X",
        help="weight of the teacher, from 0 (labels only) to 1 (teacher only) (default: %(default)s)",
    )
    distill.add_argument(
        "--drop-rate", type=float, default=0.2, metavar="X", help="dropout in the student (default: %(default)s)"
    )
    distill.add_argument(
        "--widths",
        type=_numbers(int),
        nargs="+",
        default=[[32, 64, 128, 256]],
        metavar="N,N,N,N",
        help="channels of the student's four blocks (default: 32,64,128,256)",
    )
    _add_training(distill, epochs=500, batch_size=4, lr=1e-4, rate="Adam's learning rate", patience=30)
    otherwise = "for a plain state_dict"
    _add_images(
        distill,
        size=f"the teacher's; {otherwise} 224, or 32 for digits",
        moment=f"the teacher's; {otherwise} the training images'",
    )

    evaluate = add(
        "evaluate",
        "DATA --model M [options]",
        "measure a model on labelled images",
        """Accuracy, cross-entropy (in nats) and expected calibration error of a model on labelled images, the accuracy
        on each class, and which classes it takes for which. The validation images have chosen the best epoch and
        flatter it a little; the test images have chosen nothing.""",
        "kdlab evaluate digits --model runs/student --split test --format json",
    )
    _add_data(evaluate)
    _add_model(evaluate)
    evaluate.add_argument(
        "--split", choices=("val", "test", "train"), default="val", help="which images (default: %(default)s)"
    )
    _add_loading(evaluate, batch_size=32)

    predict = add(
        "predict",
        "IMAGES... --model M [options]",
        "name the classes of images",
        """The most probable classes of images of any size and kind. Whatever cannot be used is named on stderr and left
        out; the exit status is 0 if any image could be used, else 2.""",
        "kdlab predict photos/ more/rex.jpg --model runs/student --top-k 3 --format csv --out classes.csv",
    )
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help="image files, or folders to search")
    _add_model(predict)
    predict.add_argument(
        "--top-k", type=_whole(1), default=1, metavar="K", help="classes to name for each image (default: %(default)s)"
    )
    predict.add_argument("--out", type=Path, metavar="FILE", help="write there (default: to the terminal)")
    _add_loading(predict, batch_size=32)

    add(
        "doctor",
        "",
        "look at this machine and say how to mend what is wrong",
        """Look at versions, device, cache, data, widgets and browser, and say how to mend what is wrong. The exit
        status is 1 if anything is.""",
        "kdlab doctor",
    )
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        metavar="DATA",
        help="folder with train/CLASS/ and val/CLASS/, perhaps test/CLASS/, full of images; or the word digits: 1,797 "
        "built-in ones (./digits is a folder of that name)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, required=True, metavar="M", help="what teach or distill made: the folder, or a file in it"
    )
    parser.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="of the result (default: %(default)s)"
    )


def _add_training(
    parser: argparse.ArgumentParser, *, epochs: int, batch_size: int, lr: float, rate: str, patience: int | None
) -> None:
    add = parser.add_argument
    add("--epochs", type=_whole(1), default=epochs, metavar="N", help="rounds over the images (default: %(default)s)")
    add("--lr", type=float, default=lr, metavar="X", help=f"{rate} (default: %(default)s)")
    add(
        "--patience",
        type=_whole(1),
        default=patience,
        metavar="N",
        help=f"end after N epochs without a better one (default: {patience or 'never'})",
    )
    add(
        "--seed",
        type=_whole(0),
        default=0,
        metavar="N",
        help="of all random numbers; on the CPU the same seed gives the same weights (default: %(default)s)",
    )
    add(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="bf16 is faster on a recent GPU (default: %(default)s)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --out that was interrupted; all else must be as it was (default: off)",
    )
    _add_loading(parser, batch_size)


def _add_images(parser: argparse.ArgumentParser, *, size: str, moment: str) -> None:
    add = parser.add_argument
    add(
        "--image-size",
        type=_whole(32),
        metavar="N",
        help=f"pixels; the largest central square of an image is scaled to N x N, N at least 32 (default: {size})",
    )
    for name in ("--mean", "--std"):
        add(
            name,
            type=_numbers(float),
            nargs="+",
            metavar="R,G,B",
            help=f"of red, green and blue, for pixels in 0 to 1, such as 0.5,0.5,0.5 (default: {moment})",
        )
    add("--augment", action="store_true", help="train on random crops and mirror images (default: off)")


def _add_loading(parser: argparse.ArgumentParser, batch_size: int) -> None:
    add = parser.add_argument
    add("--batch-size", type=_whole(1), default=batch_size, metavar="N", help="images at a time (default: %(default)s)")
    add(
        "--workers",
        type=_whole(0),
        default=0,
        metavar="N",
        help="processes that load images; 0 loads them in this one (default: %(default)s)",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="auto takes a GPU where there is one (default: %(default)s)",
    )


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
        return int(text)

    return parse


def _numbers(kind: type[int] | type[float]) -> Callable[[str], list[float]]:
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
