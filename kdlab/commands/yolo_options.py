"""What the steps of ``kdlab yolo`` can be told. Nothing here imports PyTorch."""

import argparse
from collections.abc import Callable
from pathlib import Path

from kdlab.commands.options import add_device, add_format, add_image_files, add_loading, add_seed, add_split, whole

METHODS = ("cwd", "mgd")
BATCH = 16
LAYERS = (6, 8, 12, 15, 18, 21)
TRAINED = ("sparse-train", "fine-tune", "distill")  # what --resume goes on with
Add = Callable[..., argparse.ArgumentParser]


def add_yolo_steps(add: Add) -> None:
    for add_step in (
        _add_sparse_train, _add_prune, _add_fine_tune, _add_distill, _add_export, _add_compare, _add_predict,
        _add_evaluate,
    ):  # fmt: skip
        add_step(add)


def _add_sparse_train(add: Add) -> None:
    parser = add(
        "sparse-train",
        "DATA --model M --out R [options]",
        "train with an L1 penalty on BatchNorm's gammas",
        description=(
            """Train a detector so that the channels that matter little show it: their gammas go to zero. `kdlab yolo
            prune` then takes them away. From 1 to 0 AdamW needs learning rates that add up to 1 at least over the
            steps. R/weights/best.pt is the epoch of highest mAP50-95 on the validation images,
            R/weights/last.pt the latest; R/results.csv has a row for each epoch.""",
        ),
        examples=(
            "scenes/ --model yolov8n.yaml --out runs/sparse --epochs 50 --image-size 160 --lr 2e-3 --nominal-batch 16",
        ),
    )
    _add_data(parser)
    _add_model(parser, "weights (.pt), or a YAML of ultralytics such as yolov8n.yaml, which starts at random")
    _add_training(parser, epochs=50)
    parser.add_argument(
        "--strength",
        type=float,
        default=1e-2,
        metavar="X",
        help="of the penalty at the start, from which it falls to a tenth (default: %(default)s)",
    )


def _add_prune(add: Add) -> None:
    parser = add(
        "prune",
        "--model M --out P (--keep X | --parameters N | --gflops X) [options]",
        "take away the channels of smallest gammas",
        description=(
            """Prune over all layers at once and write P, in ultralytics' format: the channels with the smallest gammas
            go, wherever they are. It prints how many channels each layer keeps.""",
        ),
        examples=("--model runs/sparse/weights/best.pt --out runs/pruned.pt --keep 0.5",),
    )
    _add_model(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="P", help="the file to write, P.pt")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--keep", type=float, metavar="X", help="share of the channels that stays, 0 to 1")
    target.add_argument("--parameters", type=whole(1), metavar="N", help="the most parameters that may be left")
    target.add_argument(
        "--gflops", type=float, metavar="X", help="the most that one image may take, in 10^9 operations"
    )
    _add_size(parser, "; GFLOPs are counted for it")
    parser.add_argument(
        "--at-least",
        type=whole(1),
        default=8,
        metavar="N",
        help="channels that stay in every layer (default: %(default)s)",
    )
    add_format(parser)


def _add_fine_tune(add: Add) -> None:
    parser = add(
        "fine-tune",
        "DATA --model M --out R [options]",
        "train a detector, pruned or not, as it is",
        description=(
            """A pruned detector stays pruned. R/weights/best.pt is the epoch of highest mAP50-95 on the validation
            images, R/weights/last.pt the latest; R/results.csv has a row for each epoch.""",
        ),
        examples=("scenes/ --model runs/pruned.pt --out runs/tuned --epochs 50 --image-size 160",),
    )
    _add_data(parser)
    _add_model(parser, "weights (.pt), or a YAML of ultralytics such as yolov8n.yaml, which starts at random")
    _add_training(parser, epochs=50)


def _add_distill(add: Add) -> None:
    parser = add(
        "distill",
        "DATA --model M --teacher T --out R [options]",
        "train a detector on its labels and on a teacher's feature maps",
        description=(
            """Train the student M, pruned or not, on its own loss + weight * the method's loss, summed over the layers.
            The weight falls to a tenth over the run, along half a cosine. cwd compares where each channel is active;
            mgd generates the teacher's features from masked ones. R/weights/best.pt and last.pt are students alone, for
            use without teacher; R/results.csv has the method's loss as train/METHOD_loss.""",
        ),
        examples=(
            "scenes/ --model runs/pruned.pt --teacher runs/sparse/weights/best.pt --out runs/student --method cwd",
            "scenes/ --model yolov8n.yaml --teacher large.pt --out runs/student --method mgd --layers 15 18 21",
            "few/ --model runs/pruned.pt --teacher large.pt --out runs/student --unlabelled photos/",
        ),
    )
    _add_data(parser)
    _add_model(parser, "the student: weights (.pt), or a YAML, which starts at random")
    parser.add_argument("--teacher", type=Path, required=True, metavar="T", help="weights (.pt), of DATA's classes")
    parser.add_argument(
        "--unlabelled",
        type=Path,
        metavar="IMAGES",
        help="a folder of images without labels, or a .txt file that lists some: the teacher alone speaks of them "
        "(default: none)",
    )
    _add_training(parser, epochs=100)
    parser.add_argument("--method", choices=METHODS, default="cwd", help="what is compared (default: %(default)s)")
    parser.add_argument(
        "--layers",
        type=whole(0),
        nargs="+",
        default=list(LAYERS),
        metavar="N",
        help=f"of both networks, by number (default: {' '.join(map(str, LAYERS))}, as published for YOLOv8)",
    )
    parser.add_argument(
        "--weight", type=float, metavar="X", help="at the start; 0 is no distillation (default: cwd 1, mgd 2e-5)"
    )
    parser.add_argument("--temperature", type=float, metavar="X", help="of cwd (default: 1)")
    parser.add_argument(
        "--mask-ratio", type=float, metavar="X", help="of mgd: the share of positions that are masked (default: 0.65)"
    )


def _add_export(add: Add) -> None:
    parser = add(
        "export",
        "--model M --out X [options]",
        "write a detector as an ONNX file",
        description=("""The file is for images of one size, one at a time; onnxruntime has to agree with PyTorch.""",),
        examples=("--model runs/student/weights/best.pt --out student.onnx --image-size 160",),
    )
    _add_model(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="X", help="the file to write, X.onnx")
    _add_size(parser)


def _add_compare(add: Add) -> None:
    parser = add(
        "compare",
        "DATA --models M... [options]",
        "put detectors side by side in one table",
        description=(
            """mAP50-95 and mAP50, parameters, GFLOPs, milliseconds for one image on this device, and the size of the
            file in MB. mAP is that of evaluate.""",
        ),
        examples=("scenes/ --models runs/sparse/weights/best.pt runs/student/weights/best.pt --split test",),
    )
    _add_data(parser)
    parser.add_argument("--models", type=Path, nargs="+", required=True, metavar="M", help="weights (.pt)")
    _add_judging(parser)


def _add_predict(add: Add) -> None:
    parser = add(
        "predict",
        "IMAGES... --model M [options]",
        "find objects in images",
        description=(
            """A row for each object: image, class, confidence and box in pixels. With --out the images are also written
            with these boxes drawn, as NAME_boxes.png; of several images called NAME, the second is NAME_2.""",
        ),
        examples=("photos/ --model runs/student/weights/best.pt --out found/ --format csv",),
    )
    add_image_files(parser)
    _add_model(parser)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for images with boxes (default: none are written)")
    parser.add_argument(
        "--confidence", type=float, default=0.25, metavar="X", help="the least that counts (default: %(default)s)"
    )
    _add_size(parser)
    add_format(parser)
    add_device(parser)


def _add_evaluate(add: Add) -> None:
    parser = add(
        "evaluate",
        "DATA --model M [options]",
        "measure a detector on labelled images",
        description=(
            """mAP50-95, mAP50, precision and recall, for all classes together and for each. The validation images have
            chosen the best epoch and flatter it a little; the test images have chosen nothing. Images are padded to
            squares. ultralytics pads to rectangles with a margin, in its own val and after each epoch of a training, so
            that its mAP is another one, of small images by points.""",
        ),
        examples=("scenes/ --model runs/student/weights/best.pt --split test --format json",),
    )
    _add_data(parser)
    _add_model(parser)
    _add_judging(parser)


# --- options of several steps ----------------------------------------------------------------------------------------


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="a data.yaml in ultralytics' format, or the folder that has one; `python data_scripts/make_scenes.py "
        "FOLDER` writes the built-in scenes so; or the word voc, for the boxes that data_scripts/make_boxes.py has "
        "written into ./data/voc-boxes",
    )


def _add_model(parser: argparse.ArgumentParser, what: str = "weights (.pt)") -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="M", help=what)


def _add_training(parser: argparse.ArgumentParser, epochs: int) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="R", help="folder for the run")
    add("--epochs", type=whole(1), default=epochs, metavar="N", help="rounds over the images (default: %(default)s)")
    add(
        "--lr",
        type=float,
        metavar="X",
        help="AdamW's learning rate, at most 1 (default: ultralytics chooses optimiser and rate by classes and steps)",
    )
    add(
        "--nominal-batch",
        type=whole(1),
        metavar="N",
        help="images whose gradients make a step: smaller batches are added up; a training of few images needs a small "
        "one, such as the batch size (default: ultralytics' 64)",
    )
    add_seed(parser, most=2**31 - 1)  # as YoloSettings has it
    add(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="the lower ones only on CUDA (default: %(default)s)",
    )
    add("--resume", action="store_true", help="go on with the run in --out that was interrupted (default: off)")
    _add_size(parser)
    add_loading(parser, f"(default: {BATCH})", BATCH, "; on a CPU always this one")


def _add_judging(parser: argparse.ArgumentParser) -> None:
    add_split(parser)
    parser.add_argument(
        "--batch-size", type=whole(1), default=BATCH, metavar="N", help="images at a time (default: %(default)s)"
    )
    _add_size(parser)
    add_format(parser)
    add_device(parser)


def _add_size(parser: argparse.ArgumentParser, note: str = "") -> None:
    parser.add_argument(
        "--image-size",
        type=whole(32),
        default=640,
        metavar="N",
        help=f"an image's longer side is scaled to N pixels, a multiple of 32 (default: %(default)s){note}",
    )
