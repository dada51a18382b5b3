"""What each command can be told. Nothing here imports PyTorch, so that --help answers at once."""

import argparse
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kdlab import __version__
from kdlab.commands.classification_options import add_augment, add_plain_weights, add_student
from kdlab.commands.options import (
    UNSET,
    add_data,
    add_device,
    add_format,
    add_image_files,
    add_images,
    add_loading,
    add_model,
    add_speed,
    add_split,
    add_task,
    add_training,
    add_weights,
    add_workers,
    whole,
)
from kdlab.commands.restoration_options import add_pairs, add_restorer, add_steps, add_transfer, add_two_stages
from kdlab.commands.segmentation_options import add_class_names, add_method, add_monitor
from kdlab.commands.yolo_options import add_yolo_steps
from kdlab.errors import GET_YOLO, unknown

TILE = 512  # of an image of more than a megapixel
Add = Callable[..., argparse.ArgumentParser]


class _Parser(argparse.ArgumentParser):
    """Of an option that it does not know, each command names the nearest of its own; those of its steps do so, too."""

    def parse_known_args(self, *words: Any, **options: Any) -> Any:
        args, rest = super().parse_known_args(*words, **options)
        for word in rest:
            if word.startswith("-"):
                self.error(unknown("option", word.partition("=")[0], self._option_string_actions))
        return args, rest


def build_parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="kdlab",
        description="Knowledge distillation: train a large network, and a small one that learns from it.",
        epilog=_examples(
            "teach digits --out runs/teacher --weights none",
            "distill digits --teacher runs/teacher --out runs/student --epochs 20",
            "predict photos/ --model runs/student",
        )
        + "\n\n`kdlab COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kdlab {__version__}")
    add = partial(_add_command, parser.add_subparsers(dest="command", metavar="COMMAND", required=True))
    for add_command in (
        _add_teach, _add_distill, _add_evaluate, _add_predict, _add_restore, _add_reproduce, _add_yolo, _add_doctor,
    ):  # fmt: skip
        add_command(add)
    return parser


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    arguments: str,
    summary: str,
    *,
    description: tuple[str, ...],
    examples: tuple[str, ...],
    within: str = "",
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        usage=f"kdlab {within}{name} {arguments}",
        help=summary,
        description="\n\n".join(textwrap.fill(" ".join(paragraph.split()), 100) for paragraph in description),
        epilog=_examples(*(f"{within}{name} {example}".strip() for example in examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _examples(*lines: str) -> str:
    return "\n".join([f"example{'s' * (len(lines) > 1)}:", *(f"  kdlab {line}" for line in lines)])


def _add_teach(add: Add) -> None:
    parser = add(
        "teach",
        "DATA --out T [options]",
        "train or fine-tune the teacher",
        description=(
            """Train or fine-tune the teacher: DenseNet121 (7 million parameters), for segmentation UPerNet on
            ConvNeXt-Tiny (59 million), for restoration MSBDN (29 million), for dehazing an auto-encoder of the clean
            images on ResNet18 (26 million). After each epoch it is judged on the validation images:
            T/best.safetensors is the epoch of highest accuracy, mIoU or PSNR (of equal ones that of lower loss),
            T/last.safetensors the latest. Both carry classes, image size, mean and std, so that no later command has
            to be told.""",
        ),
        examples=(
            "pets/ --out runs/teacher --epochs 10 --batch-size 16 --augment",
            "roads/ --task segmentation --out runs/segmenter --batch-size 8 --class-names ground road car",
            "scenes --task segmentation --narrow --out runs/narrow --lr 3e-3 --batch-size 32",
            "outdoors/ --task restoration --weather haze --out runs/haze --batch-size 32",
            "weather --task restoration --weather haze --narrow --out runs/haze --epochs 40 --lr 4e-3 --batch-size 4",
            "nh-haze --task dehazing --out runs/clean --workers 8",
        ),
    )
    add_data(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="T", help="folder for the teacher")
    add_task(parser)
    add_weights(parser, "; not for restoration")
    _add_narrow(parser, "for segmentation 1.2 million parameters, for restoration 1.8, for dehazing 0.6")
    rate = (
        "highest learning rate; Adam (for segmentation AdamW) warms up to it and then down to 0. For restoration it is "
        "that of a batch of 16 and grows in proportion to the batch; for dehazing Adam's first one, which falls to a "
        "twelfth"
    )
    add_training(parser, "teach", rate)
    add_images(parser, size="224, or 32 for digits and 64 for scenes", moment="the training images'")
    add_augment(parser.add_argument_group("for --task classification"))
    of_segmentation = parser.add_argument_group("for --task segmentation")
    add_class_names(of_segmentation)
    add_monitor(of_segmentation)
    add_pairs(
        parser.add_argument_group("for --task restoration and dehazing"),
        "train a teacher of this weather alone (default: one network for all that DATA has)",
    )
    add_restorer(parser.add_argument_group("for --task restoration"))
    add_steps(parser.add_argument_group("for --task dehazing"))


def _add_distill(add: Add) -> None:
    parser = add(
        "distill",
        "DATA --teacher T --out S [options]",
        "train the student on what the teacher says",
        description=(
            """Train a student of four convolution blocks on alpha * T^2 * KL(teacher || student), both softened by the
            temperature T, + (1 - alpha) * cross-entropy. S/best.safetensors is the epoch of highest validation accuracy
            (of equal ones that of lower loss), S/last.safetensors the latest. The teacher runs once over the training
            images; with --augment, where no image comes twice, it runs at each step.""",
            """For segmentation the student is PSPNet on ResNet18 (13 million parameters). It learns its masks'
            cross-entropy + weight * the method's loss: cwd compares where each channel is active, mgd generates the
            teacher's features from masked ones, kd compares the logits cell by cell of its map, at attention maps;
            hard takes the teacher's decision at each cell for a label, pseudo at each pixel of the image. Best is the
            epoch of highest mIoU.""",
            """For restoration there is a teacher for each weather, and teachers and student are MSBDN (29 million
            parameters). In the first stage the student learns from the teachers: their restored images, their features
            in a common space (CKT), and to leave the degraded image behind (SCR). In the second it learns from the
            clean images (L1 and HCR). Best is the epoch of highest PSNR.""",
            """For dehazing the student is SRKTDN on Res2Net101 (49 million parameters). It learns the clean images
            (their pixels, details and colours), and that its map of a hazy image at 1/16 of the size be the teacher's
            of the clean one. Best is the epoch of highest PSNR.""",
        ),
        examples=(
            "pets/ --teacher runs/teacher --out runs/student --temperature 4 --epochs 50 --batch-size 32",
            "roads/ --task segmentation --teacher runs/segmenter --out runs/small --preset cwd-logits",
            "roads/ --task segmentation --teacher runs/segmenter --out runs/small --unlabelled drives/",
            "scenes --task segmentation --narrow --teacher runs/narrow --out runs/tiny --method mgd --weight 2e-3",
            "outdoors/ --task restoration --teacher haze=runs/haze --teacher rain=runs/rain --out runs/all --width 8",
            "nh-haze --task dehazing --teacher runs/clean --out runs/dehazer --workers 8",
        ),
    )
    add_data(parser)
    parser.add_argument(
        "--teacher",
        action="append",
        metavar="T",
        help="what `kdlab teach` made (the folder, or a file in it); for classification also a plain state_dict of "
        "DenseNet121 (.pt, .pth, .safetensors), from which no code is run: give the --image-size, --mean and --std "
        "that it was trained with. For restoration WEATHER=T, such as haze=runs/haze, once for each weather of DATA; "
        "only without a first stage (--collation 0) none is wanted. For dehazing none with --transfer 0",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="S", help="folder for the student")
    add_task(parser)
    add_weights(parser, "; only for segmentation and dehazing")
    _add_narrow(parser, "for segmentation 0.5 million parameters, for restoration 1.8, for dehazing 0.4")
    parser.add_argument(
        "--temperature",
        type=float,
        default=UNSET,
        metavar="X",
        help="above 0; 2 to 4 is usual (default: 2.0, for segmentation the preset's); only of kd and cwd",
    )
    rate = (
        "Adam's learning rate; for segmentation AdamW's highest one, in one cycle; for restoration Adam's highest one, "
        "of a batch of 16, from which it grows in proportion to the batch; for dehazing Adam's first one, which falls "
        "to a twelfth"
    )
    add_training(parser, "distill", rate)
    parser.add_argument(
        "--unlabelled",
        type=Path,
        default=UNSET,
        metavar="FOLDER",
        help="more images, without labels or masks, of which the teacher alone speaks; about half of a batch then has "
        "labels. Only for classification and segmentation (default: none)",
    )
    otherwise = "for a plain state_dict"
    add_images(
        parser,
        size=f"the teacher's; {otherwise} 224, or 32 for digits",
        moment=f"the teacher's; {otherwise} the training images'",
    )

    add_student(parser.add_argument_group("for --task classification"))
    add_method(parser.add_argument_group("for --task segmentation"))
    add_pairs(
        parser.add_argument_group("for --task restoration and dehazing"),
        "only for dehazing: of this weather alone (default: all that DATA has)",
    )
    restorer = parser.add_argument_group(
        "for --task restoration", "Defaults are the published ones, and with --narrow those of the course."
    )
    add_restorer(restorer)
    add_two_stages(restorer)
    dehazer = parser.add_argument_group("for --task dehazing")
    add_steps(dehazer)
    add_transfer(dehazer)


def _add_evaluate(add: Add) -> None:
    parser = add(
        "evaluate",
        "DATA --model M [options]",
        "measure a model on labelled images",
        description=(
            """Of a classifier: accuracy, cross-entropy (in nats) and expected calibration error, the accuracy on each
            class, and which classes it takes for which. Of a segmenter: mIoU, mDice, pixel accuracy and cross-entropy,
            and the IoU of each class. The validation images have chosen the best epoch and flatter it a little; the
            test images have chosen nothing.""",
            """Of a restorer: PSNR (in dB) and SSIM, in colour (RGB) and on brightness (Y), which gives higher numbers,
            for each weather that DATA has, and the mean of these. Images are whole and of their own size.""",
        ),
        examples=(
            "digits --model runs/student --split test --format json",
            "roads/ --model runs/small --format csv",
            "weather --model runs/all --split test --per-image quality.csv",
        ),
    )
    add_data(parser)
    add_plain_weights(parser, " (default: the classes of DATA)")
    add_format(parser)
    add_split(parser)
    add_loading(parser, "(default: 32); a restorer takes one", batch_size=None, note="; not for a restorer")
    parser.set_defaults(workers=None)  # a restorer's is refused, if it was given
    restorer = parser.add_argument_group("for a restorer")
    restorer.add_argument("--weather", metavar="W", help="only the images in this weather (default: all)")
    restorer.add_argument("--per-image", type=Path, metavar="FILE", help="write a CSV file with a row for each image")
    _add_self_ensemble(restorer)


def _add_predict(add: Add) -> None:
    parser = add(
        "predict",
        "IMAGES... --model M [options]",
        "name the classes of images, or of their pixels",
        description=(
            """Images may be of any size and kind. A classifier names the most probable classes of each. Whatever cannot
            be used is named on stderr and left out; the exit status is 0 if any image could be used, else 2.""",
            """A segmenter looks at the whole image, its shorter side scaled to the size that the model was trained on,
            and writes two files of the image's own size into the folder --out: NAME_mask.png, a palette PNG whose
            values are the class numbers, and NAME_overlay.png, the image with the mask over it. It prints which share
            of each image each class has. Of several images called NAME, the second is NAME_2.""",
        ),
        examples=(
            "photos/ more/rex.jpg --model runs/student --top-k 3 --out classes.csv",
            "photos/ --model runs/small --out masks/",
            "photos/ --model student.pth --labels classes.txt --image-size 224 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5",
        ),
    )
    add_image_files(parser)
    add_plain_weights(parser, "")
    add_format(parser, None, "csv or json, where the file for it ends in that, else table")
    parser.add_argument(
        "--top-k", type=whole(1), metavar="K", help="classes to name for each image (default: 1); only of a classifier"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="O",
        help="of a classifier, the file for the result (default: to the terminal); of a segmenter, the folder for the "
        "masks, which has to be given",
    )
    add_loading(parser, "(default: 32); only of a classifier, a segmenter takes one", batch_size=None)


def _add_restore(add: Add) -> None:
    parser = add(
        "restore",
        "IMAGES... --model M --out FOLDER [options]",
        "take rain, haze and snow out of images",
        description=(
            """Images may be of any size and kind. For each, NAME_restored.png is written into the folder --out, of the
            image's own size; of several images called NAME, the second is NAME_2. Whatever cannot be used is named on
            stderr and left out; the exit status is 0 if any image could be used, else 2.""",
        ),
        examples=("photos/ more/rex.jpg --model runs/all --out restored/ --side-by-side",),
    )
    add_image_files(parser)
    add_model(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the restored images")
    parser.add_argument(
        "--side-by-side",
        action="store_true",
        help="also write NAME_compared.png, the image on the left and what it became on the right (default: off)",
    )
    parser.add_argument(
        "--tile",
        type=whole(0),
        metavar="N",
        help="restore in overlapping squares of N x N pixels, so that a large image does not fill the memory; 0: "
        f"always the whole image (default: {TILE} for images of more than a megapixel, else the whole)",
    )
    parser.add_argument(
        "--overlap",
        type=whole(0),
        default=32,
        metavar="N",
        help="pixels that neighbouring tiles share, at most half of a tile (default: %(default)s)",
    )
    _add_self_ensemble(parser)
    add_device(parser)


def _add_reproduce(add: Add) -> None:
    parser = add(
        "reproduce",
        "cifar100 --method M [M ...] --pair TEACHER-STUDENT [options]",
        "run a published comparison, and show its rows beside ours",
        description=(
            """The CIFAR-100 comparison: 240 epochs of SGD (momentum 0.9, weight decay 5e-4, batches of 64) with a
            learning rate of 0.05 that falls to a tenth after the epochs 150, 180 and 210, on random crops and mirror
            images, each method with its published weight. The teacher is trained in the same way, once, and kept in
            the cache. This wants a GPU. After an interruption the same command goes on; what is done stays done.""",
            """Three methods have a first phase of 30 epochs before these, at a constant rate of 0.05: ab and fsp train
            the student on their loss alone, and then on the labels alone; ft trains its paraphraser, at 0.01 where the
            student is no VGG.""",
            """The table has the test accuracy of the last epoch and of the best one, means over the seeds with their
            95% interval, beside the published row. The test images have chosen the best epoch, which is therefore no
            clean number; but some published rows are of it.""",
        ),
        examples=(
            "cifar100 --method alone kd dkd --pair resnet32x4-resnet8x4",
            "cifar100 --method crd --pair wrn-40-2-wrn-16-2 --seeds 1 --epochs 24 --out runs/trial",
        ),
    )
    add_option = parser.add_argument
    add_option("comparison", choices=("cifar100",), metavar="cifar100", help="the only one so far")
    add_option(
        "--method",
        nargs="+",
        required=True,
        metavar="M",
        help="one or more of alone (no teacher), kd, dkd, dist, fitnet, at, ab, ft, vid, fsp, sp, pkt, rkd, crd",
    )
    add_option(
        "--pair",
        required=True,
        metavar="TEACHER-STUDENT",
        help="resnet32x4-resnet8x4, wrn-40-2-wrn-16-2, resnet56-resnet20 or vgg13-vgg8",
    )
    add_option(
        "--data",
        type=Path,
        default=Path("data"),
        metavar="FOLDER",
        help="where `python data_scripts/get_classification.py cifar100` has put it (default: %(default)s)",
    )
    add_option("--seeds", type=whole(1), default=5, metavar="N", help="runs of each method (default: %(default)s)")
    add_option(
        "--epochs",
        type=whole(1),
        default=240,
        metavar="N",
        help="fewer for a trial; the schedule and a first phase shrink in proportion (default: %(default)s)",
    )
    add_option(
        "--out",
        type=Path,
        default=Path("runs/cifar100"),
        metavar="FOLDER",
        help="for the table and a folder for each run (default: %(default)s)",
    )
    add_option(
        "--teacher",
        type=Path,
        metavar="T",
        help="a checkpoint of the teacher, or the folder of its run, of which the last epoch is taken (default: the "
        "one in the cache, trained if it is not there)",
    )
    add_speed(parser)
    add_workers(parser)
    add_device(parser)


def _add_yolo(add: Add) -> None:
    parser = add(
        "yolo",
        "STEP ...",
        "train, prune, distil and export YOLO detectors of ultralytics",
        description=(
            f"""The steps from a detector to a smaller one: train it sparse, prune it, fine-tune what is left or distil
            it from the detector that it was, compare, export. They take ultralytics, which is under the AGPL-3.0 and
            an extra; {GET_YOLO}. `kdlab yolo STEP --help` explains a step.""",
        ),
        examples=(
            "sparse-train scenes/ --model yolov8n.yaml --out runs/sparse",
            "prune --model runs/sparse/weights/best.pt --out runs/pruned.pt --keep 0.5",
            "distill scenes/ --model runs/pruned.pt --teacher runs/sparse/weights/best.pt --out runs/student",
        ),
    )
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    add_yolo_steps(partial(_add_command, steps, within="yolo "))


def _add_doctor(add: Add) -> None:
    add(
        "doctor",
        "",
        "look at this machine and say how to mend what is wrong",
        description=(
            """Look at versions, device, cache, data, widgets and browser, and say how to mend what is wrong. The exit
            status is 1 if anything is.""",
        ),
        examples=("",),
    )


# --- options of two commands -----------------------------------------------------------------------------------------


def _add_self_ensemble(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        default=None,  # evaluate sees whether it was given
        help="restore each image in its eight positions, mirrored, upside down and transposed, and take their mean: a "
        "little better, in eight times the time (default: off)",
    )


def _add_narrow(parser: argparse._ActionsContainer, size: str) -> None:
    parser.add_argument(
        "--narrow",
        action="store_true",
        default=UNSET,
        help=f"train the small network of the course instead ({size}), which a CPU bears; it starts at random "
        "(default: off); not for classification",
    )
