"""Dense distillation: a large segmenter teaches a small one what it sees at every pixel.

The pair is the article's, UPerNet on ConvNeXt-Tiny and PSPNet on ResNet18. What of one is compared with what of the
other, for images of height and width s:

    layer       student                                teacher, averaged to the student's size
    logits      decode_head.conv_seg  k x s/8 x s/8    decode_head.conv_seg  k x s/4 x s/4
    features    decode_head.pyramid   c x s/8 x s/8    decode_head.fusion    c x s/4 x s/4
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset

from kdlab import processes
from kdlab.data.splits import ImageSplits
from kdlab.data.unlabelled import all_images, half_labelled
from kdlab.distill import (
    ConvConnector,
    Distiller,
    Pixels,
    Resize,
    Taps,
    TeacherCache,
    Term,
    fold_batchnorm,
    weights_hash,
)
from kdlab.distill.schedules import check_weight
from kdlab.errors import InputError, unknown
from kdlab.loading import loaded_by
from kdlab.losses import ATLoss, CWDLoss, KDLoss, MGDLoss, PixelCrossEntropy
from kdlab.models import PSPNet, UPerNet
from kdlab.models.weights import Weights
from kdlab.recipes.settings import CPU, AfterEpoch, Settings, fit_with, place, recipe_of
from kdlab.training import Fit, Supervised, segmentation_metrics
from kdlab.training.run_folder import check_recipe, earlier_start

LOGITS = "decode_head.conv_seg"
STUDENT_LAYERS = {"logits": LOGITS, "features": "decode_head.pyramid"}
TEACHER_LAYERS = {"logits": LOGITS, "features": "decode_head.fusion"}
STRIDE = 8  # of the student's maps

# The networks of the fast profile: 1.25 and 0.47 million parameters.
NARROW_TEACHER: dict[str, Any] = {"widths": (24, 48, 96, 192), "depths": (1, 1, 3, 1), "channels": 64}
NARROW_STUDENT: dict[str, Any] = {"width": 16, "blocks": (1, 1, 1, 1), "channels": 48}

Method = Literal["kd", "hard", "pseudo", "at", "cwd", "mgd"]
Layer = Literal["logits", "features"]
CACHE_BYTES = 2**30  # of a teacher's outputs; where they would take more, it runs at each step


class HardLabels(nn.Module):
    """Cross-entropy with the teacher's decision as the label: what is left of its answer without its doubts."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.cross_entropy(student, teacher.argmax(dim=1))


@dataclass(frozen=True)
class DenseDistillation:
    """What the student learns beside its masks.

    Args:
        method: "kd" compares the logits cell by cell of the student's map, "hard" takes the teacher's decision at each
            cell for a label, "pseudo" its decision at each pixel of the image for a mask, "at" compares attention maps,
            "cwd" where each channel is active, "mgd" generates the teacher's map from a masked one.
        layer: "logits" or "features"; at and mgd want features, kd, hard and pseudo logits.
        weight: of the method's loss; the masks' cross-entropy has 1.
        temperature: of kd and cwd.
        mask_ratio: of mgd, the share of the positions that are masked.

    Raises:
        InputError: an unknown method or layer; a layer that the method cannot use; numbers out of range.
    """

    method: Method
    layer: Layer
    weight: float
    temperature: float = 4.0
    mask_ratio: float = 0.75

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(unknown("method", self.method, get_args(Method)))
        one_layer = dict.fromkeys(("kd", "hard", "pseudo"), ("logits",)) | dict.fromkeys(("at", "mgd"), ("features",))
        wanted = one_layer.get(self.method, get_args(Layer))
        if self.layer not in wanted:
            raise InputError(f"layer is {self.layer!r}; wanted for {self.method}: {' or '.join(map(repr, wanted))}.")
        check_weight("weight", self.weight)
        with torch.device("meta"):  # draws no random numbers
            self._loss(1, 1)  # refuses a temperature or a mask ratio that makes no sense

    def check_teacher(self, teacher: nn.Module) -> None:
        """Refuse a teacher that does not have the layer.

        Raises:
            InputError: with what would do.
        """
        if TEACHER_LAYERS[self.layer] not in dict(teacher.named_modules()):
            raise InputError(
                f"the teacher is a {type(teacher).__name__}, and {self.method} on {self.layer} wants one whose "
                f"{self.layer} are those of UPerNet. Take a UPerNet, or a method on the logits: kd, hard, pseudo, cwd."
            )

    def distiller(self, student: nn.Module, teacher: nn.Module, size: int) -> Distiller:
        """The student and the teacher, joined; ``size`` is the images' height and width.

        The teacher's maps are averaged to the student's size: nothing is learnt on its side, so nothing can be gamed.

        Raises:
            InputError: networks that know different numbers of classes; a teacher without the layer.
        """
        self.check_teacher(teacher)
        mine, its = (network.get_submodule(LOGITS) for network in (student, teacher))
        assert isinstance(mine, nn.Conv2d)
        assert isinstance(its, nn.Conv2d)
        if mine.out_channels != its.out_channels:
            raise InputError(
                f"the student has {mine.out_channels} classes and the teacher {its.out_channels}; wanted: the same "
                "classes in the same order. Build the student for the teacher's, or train another teacher."
            )
        on_student: nn.Module | None = None
        on_teacher: nn.Module = Resize(-(-size // STRIDE), "area")
        if self.method in ("kd", "hard"):
            on_student, on_teacher = Pixels(), nn.Sequential(on_teacher, Pixels())
        elif self.method == "pseudo":
            on_student, on_teacher = Resize(size), Resize(size)  # as both networks enlarge their logits
        elif self.method == "cwd" and self.layer == "features":
            on_student = ConvConnector(mine.in_channels, its.in_channels)
        term = Term(
            self.method, self._loss(mine.in_channels, its.in_channels), STUDENT_LAYERS[self.layer],
            TEACHER_LAYERS[self.layer], self.weight, student_connector=on_student, teacher_connector=on_teacher,
        )  # fmt: skip
        return Distiller(student, teacher, [term], task=PixelCrossEntropy())

    def _loss(self, student_channels: int, teacher_channels: int) -> nn.Module:
        match self.method:
            case "kd":
                return KDLoss(self.temperature)
            case "hard" | "pseudo":
                return HardLabels()
            case "at":
                return ATLoss()
            case "cwd":
                return CWDLoss(self.temperature)
            case "mgd":
                return MGDLoss(student_channels, teacher_channels, self.mask_ratio)


# As published: the weight and temperature of CWD's official code on Cityscapes and of mmrazor's configuration, and
# MGD's for segmentation. MGD's loss is a sum over the map, so that its weight belongs to maps of Cityscapes' size.
PRESETS = {
    "cwd-logits": DenseDistillation("cwd", "logits", weight=3.0, temperature=4.0),
    "cwd-logits-mmrazor": DenseDistillation("cwd", "logits", weight=5.0, temperature=1.0),
    "cwd-features": DenseDistillation("cwd", "features", weight=50.0, temperature=4.0),
    "mgd": DenseDistillation("mgd", "features", weight=2e-5, mask_ratio=0.75),
}
MGD_SIZE = 512  # height and width of the crops that its weight was published for


def teach(
    data: ImageSplits,
    settings: Settings,
    *,
    out: Path,
    architecture: dict[str, Any] | None = None,
    weights: Weights = "auto",
    monitor: str = "miou",
    resume: bool = False,
    device: torch.device = CPU,
) -> Fit:
    """Train the :class:`kdlab.models.UPerNet` teacher; its best checkpoint is in ``out``.

    Args:
        architecture: other arguments of UPerNet than its own, such as :data:`NARROW_TEACHER`; no auxiliary head,
            which the recipe does not train.
        monitor: which epoch is best: the one of highest "miou" or "mdice".

    Raises:
        InputError: an auxiliary head; what the networks, the data or the loop refuse.
    """
    _check_architecture(architecture)
    torch.manual_seed(settings.seed)
    earlier = earlier_start(out, resume)
    teacher = UPerNet(len(data.classes), **architecture or {}, weights="none" if earlier else weights)
    used = earlier or teacher.weights_used
    recipe = recipe_of(
        data, settings, task="teach", weights=weights, monitor=monitor, architecture=teacher.architecture
    )  # fmt: skip
    objective = place(Supervised(teacher, PixelCrossEntropy()), device, settings.channels_last)
    return fit_with(
        settings, objective, data.train, data, out=out, recipe=recipe, resume=resume, weights=used, optimizer=AdamW,
        measure=measure, monitor=monitor,
    )  # fmt: skip


def distill(
    data: ImageSplits,
    teacher: nn.Module,
    distillation: DenseDistillation,
    settings: Settings,
    *,
    out: Path,
    architecture: dict[str, Any] | None = None,
    weights: Weights = "auto",
    monitor: str = "miou",
    resume: bool = False,
    device: torch.device = CPU,
    after_epoch: AfterEpoch | None = None,
) -> Fit:
    """Distil a :class:`kdlab.models.PSPNet` from the teacher; its best checkpoint is in ``out``.

    The teacher runs once over the training images where its outputs fit in memory, else at each step. It also speaks
    of ``data.unlabelled``; about half of a batch has masks then.

    Args:
        architecture: other arguments of PSPNet than its own, such as :data:`NARROW_STUDENT`; no auxiliary head,
            which the recipe does not train.
        weights: of the student's backbone.
        monitor: which epoch is best: the one of highest "miou" or "mdice".

    Raises:
        InputError: an auxiliary head; what the networks, the data or the loop refuse.
    """
    _check_architecture(architecture)
    torch.manual_seed(settings.seed)
    earlier = earlier_start(out, resume)
    student = PSPNet(len(data.classes), **architecture or {}, weights="none" if earlier else weights)
    used = earlier or student.weights_used
    known = weights_hash(teacher)[:16]
    if isinstance(teacher, UPerNet):
        teacher = fold_batchnorm(teacher, torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64))
    objective = place(distillation.distiller(student, teacher, data.size), device, settings.channels_last)
    recipe = recipe_of(
        data, settings, task="distill", teacher=known, **asdict(distillation), weights=weights, monitor=monitor,
        architecture=student.architecture,
    )  # fmt: skip
    if resume:
        check_recipe(out, recipe)  # before the teacher runs over all images
    train = all_images(data)
    if data.deterministic and _bytes(teacher, objective, train) <= CACHE_BYTES:
        train = TeacherCache.build(teacher, objective.teacher_taps, train, workers=settings.workers).attach(train)
    train = half_labelled(train, range(len(data.train)))  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out
    return fit_with(
        settings, objective, train, data, out=out, recipe=recipe, resume=resume, weights=used, after_epoch=after_epoch,
        optimizer=AdamW, measure=measure, monitor=monitor,
    )  # fmt: skip


def measure(model: nn.Module, dataset: Dataset, batch_size: int = 64, workers: int = 0) -> dict[str, float]:
    """mIoU, mDice, pixel accuracy and loss of a segmenter on a data set."""
    loader = DataLoader(processes.own_share(dataset), batch_size, **loaded_by(workers))
    classes = model.get_submodule(LOGITS).out_channels
    return segmentation_metrics(model, loader, int(classes))[0]  # type: ignore[arg-type]


def _check_architecture(architecture: dict[str, Any] | None) -> None:
    if architecture and architecture.get("auxiliary"):
        raise InputError(
            "auxiliary=True was given, but this recipe trains no auxiliary head, which would only cost time. Leave it "
            "out, or train the network with a loop of your own by forward_with_auxiliary."
        )


@torch.no_grad()
def _bytes(teacher: nn.Module, distiller: Distiller, dataset: Dataset) -> int:
    """How much the teacher's outputs for the whole data set take."""
    image = dataset[0][0][None].to(next(teacher.parameters()).device)
    with Taps(teacher, distiller.teacher_taps) as taps:
        teacher(image)
    return sum(taps[tap].nbytes for tap in distiller.teacher_taps) * len(dataset)  # type: ignore[arg-type]
