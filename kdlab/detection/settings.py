"""How a YOLO detector is trained, pruned or not, and what it is asked to learn from a teacher. Free of ultralytics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
from torch import nn

from kdlab.distill import ConvConnector, Cosine
from kdlab.distill.schedules import check_weight
from kdlab.errors import InputError, unknown
from kdlab.loading import MOST_WORKERS
from kdlab.losses import CWDLoss, MGDLoss

Method = Literal["cwd", "mgd"]
Precision = Literal["fp32", "fp16", "bf16"]
LAYERS = (6, 8, 12, 15, 18, 21)  # of YOLOv8: the last two C2f blocks of the backbone and all of the neck
WEIGHTS: dict[str, float] = {"cwd": 1.0, "mgd": 2e-5}
END = 0.1  # of the distillation's weight is left at the end of the run
MOST_SEED = 2**31 - 1  # processes add to it, and NumPy's has 32 bits
STRIDE = 32  # of a YOLO detector's coarsest map


@dataclass(frozen=True)
class YoloSettings:
    """How long, on what and how a detector is trained.

    Args:
        epochs: rounds over the training images; 50 as published for sparse training and fine-tuning.
        batch: images at a time, however many processes share them.
        imgsz: to which an image's longer side is scaled, in pixels; a multiple of 32.
        lr: AdamW's learning rate, at most 1; None leaves optimiser and rate to ultralytics, which goes by classes and
            steps.
        workers: processes that load images; on a CPU always 0.
        seed: of all random numbers.
        precision: "fp16" and "bf16" compute the forward pass under autocast, on CUDA alone.
        nominal_batch: images whose gradients make a step: smaller batches are added up; None is ultralytics' 64. That
            of ``batch`` takes a step for each, which a training of few images needs.

    Raises:
        InputError: a number out of range, an image size that is no multiple of 32, another precision.
    """

    epochs: int = 50
    batch: int = 16
    imgsz: int = 640
    lr: float | None = None
    workers: int = 0
    seed: int = 0
    precision: Precision = "fp32"
    nominal_batch: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("epochs", self.epochs, 1), ("batch", self.batch, 2), ("nominal_batch", self.nominal_batch, 1),
        ):  # fmt: skip
            if value is not None and value < least:
                raise InputError(f"{name} is {value}; wanted: at least {least}.")
        check_size(self.imgsz)
        if not 0 <= self.workers <= MOST_WORKERS:
            raise InputError(f"workers is {self.workers}; wanted: 0 to {MOST_WORKERS}.")
        if not 0 <= self.seed <= MOST_SEED:
            raise InputError(f"seed is {self.seed}; wanted: 0 to {MOST_SEED}.")
        if self.lr is not None and not 0 < self.lr <= 1:
            raise InputError(f"lr is {self.lr}; wanted: above 0 and at most 1, or None for ultralytics' own choice.")
        if self.precision not in get_args(Precision):
            raise InputError(unknown("precision", self.precision, get_args(Precision)))


@dataclass(frozen=True)
class Distillation:
    """What a student is asked to have in common with its teacher, beside its own loss.

    The distillation loss is the method's own, summed over the layers. Like the detector's loss in ultralytics it is
    multiplied by the batch size, so that its weight means the same for every batch size. The weight goes from
    ``weight`` to a tenth of it along half a cosine, over all steps of the run.

    Args:
        method: "cwd" compares where each channel is active, with a 1x1 convolution on the student's side where the
            numbers of channels differ; "mgd" generates the teacher's features from the student's masked ones.
        layers: of both networks, by their number; the defaults are those of YOLOv8's C2f blocks.
        weight: at the start; None is 1 for cwd, as published for YOLOv8, and 2e-5 for mgd, the official one for
            one-stage detectors, whose sum grows with the image. 0 trains as if there were no teacher.
        temperature: of cwd; the default 1 is the published one for detectors.
        mask_ratio: of mgd, the share of positions that is masked; 0.65 is the official one for one-stage detectors.

    Raises:
        InputError: another method, no layers or one twice, a negative weight.
    """

    method: Method = "cwd"
    layers: Sequence[int] = LAYERS
    weight: float | None = None
    temperature: float = 1.0
    mask_ratio: float = 0.65

    def __post_init__(self) -> None:
        if self.method not in WEIGHTS:
            raise InputError(unknown("method", self.method, WEIGHTS))
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise InputError(f"layers are {list(self.layers)}; wanted: at least one, and each once.")
        object.__setattr__(self, "layers", tuple(self.layers))  # as it compares with what a checkpoint has
        check_weight("weight", self.start)

    @property
    def start(self) -> float:
        """The weight at the start."""
        return WEIGHTS[self.method] if self.weight is None else self.weight

    @property
    def schedule(self) -> Cosine:
        return Cosine(self.start, END * self.start)

    def loss(self, student_channels: int, teacher_channels: int) -> nn.Module:
        if self.method == "mgd":
            return MGDLoss(student_channels, teacher_channels, self.mask_ratio)
        return CWDLoss(self.temperature)

    def connector(self, student_channels: int, teacher_channels: int) -> nn.Module | None:
        """MGD's generator aligns the channels itself."""
        if self.method == "mgd" or student_channels == teacher_channels:
            return None
        return ConvConnector(student_channels, teacher_channels)


@dataclass(frozen=True)
class YoloRun:
    """What a training came to.

    Args:
        best, last: the detector of highest mAP50-95 on the validation images and that of the last epoch, in
            ultralytics' format and half precision: the moving average of the weights, as ultralytics delivers it.
        history: a row an epoch, as ultralytics writes it to results.csv.
    """

    best: Path
    last: Path
    history: pd.DataFrame


@dataclass(frozen=True)
class Exported:
    """An ONNX file, and how near it is to the detector.

    Args:
        path: of the file.
        difference: the largest one between the outputs of onnxruntime and of PyTorch, boxes in parts of the image.
    """

    path: Path
    difference: float


def check_size(imgsz: int, stride: int = STRIDE) -> None:
    """Refuse an image size that the coarsest map does not divide.

    Args:
        stride: of that map.

    Raises:
        InputError: it.
    """
    if imgsz < stride or imgsz % stride:
        raise InputError(f"imgsz is {imgsz}; wanted: a multiple of {stride}.")
