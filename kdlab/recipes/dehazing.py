"""Dehazing: a teacher that learns to draw clean images again, and a student that learns from its map of them.

The teacher is an auto-encoder of clean images. The student sees hazy ones; beside the clean images it learns that its
map at 1/16 of the size be the teacher's map of the clean image (knowledge transfer), of which the teacher runs no more
than the layers up to that map.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kdlab.data.pairs import PairedImages, StratifiedBatches
from kdlab.data.splits import ImageSplits
from kdlab.distill import Distiller, Teacher, Term, weights_hash
from kdlab.distill.schedules import check_weight
from kdlab.errors import InputError
from kdlab.losses import KTLoss, LabLoss, LaplacianLoss
from kdlab.models import KTDN, SRKTDN, DehazingTeacher
from kdlab.models.dehazing import Dehazer
from kdlab.models.weights import Weights
from kdlab.recipes.restorer import TRUTH, RestorerSettings, ToClean, card_of, clean_images, fit_restorer, pairs
from kdlab.recipes.settings import CPU, AfterEpoch
from kdlab.training import Fit, Supervised
from kdlab.training.run_folder import earlier_start

TEACHER = "teacher"
# The networks of the fast profile: 0.4 and 0.6 million parameters.
NARROW: dict[str, Any] = {"widths": (64, 96, 128), "blocks": (1, 1, 1), "channels": 8}
NARROW_TEACHER: dict[str, Any] = {"widths": (16, 32, 64), "blocks": (1, 1, 1), "middle": 128, "channels": 8}
Network = TypeVar("Network", bound=Dehazer)


@dataclass(frozen=True)
class DehazingSettings(RestorerSettings):
    """How long and how fast to train; the defaults are the published ones.

    Args:
        lr: Adam's, in the first epochs.
        steps: of an epoch; None: as many as there are images for.
        decay, every: what the rate is multiplied by, after how many epochs each.
        freeze_from: the first epoch, counted from 0, with frozen statistics of BatchNorm; None freezes them never.
        turned: whether crops come mirrored, upside down and transposed, or mirrored alone.
        max_norm: as :class:`kdlab.recipes.restorer.RestorerSettings` has it.
    """

    epochs: int = 400
    lr: float = 1e-4
    batch_size: int = 15
    steps: int | None = 100
    decay: float = 0.975
    every: int = 4
    freeze_from: int | None = 100
    turned: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay <= 1 or self.every < 1:
            raise InputError(
                f"decay is {self.decay} and every {self.every}; wanted: above 0 and at most 1, and at least 1 epoch."
            )
        if self.freeze_from is not None and self.freeze_from < 0:
            raise InputError(f"freeze_from is {self.freeze_from}; wanted: an epoch, counted from 0, or None.")

    def rate(self, epoch: int, base: float) -> float:
        return base * self.decay ** ((epoch - 1) // self.every)

    def over(self, epochs: int) -> "DehazingSettings":
        """The same schedule drawn out or pressed together: after its last epoch the rate has fallen by as much."""
        every = max(1, min(self.every, round(self.every * epochs / self.epochs)))
        decay = self.decay ** (self.epochs * every / (epochs * self.every))
        freeze_from = self.freeze_from and max(1, round(self.freeze_from / self.epochs * epochs))
        return replace(self, epochs=epochs, decay=decay, every=every, freeze_from=freeze_from)


# The budget of the fast profile: in so few epochs the published rate would hardly begin.
FAST = DehazingSettings(epochs=12, lr=2e-3, batch_size=8, steps=None, decay=0.8, every=1, freeze_from=9)


@dataclass(frozen=True)
class Dehazing:
    """What teacher and student learn; the defaults are the published weights.

    Args:
        l1, laplacian, lab: the weights of the distances to the clean image: the mean absolute one, that of the details
            of each size, and that of the colours.
        transfer: the weight of the distance to the teacher's map.
        clamp: whether the first three see the image clamped to 0 to 1, as in the released code. Where the network's
            tanh is below 0, and at the start that is at half of all pixels, they then have no gradient.

    Raises:
        InputError: a weight below 0; none of the first three.
    """

    l1: float = 1.0
    laplacian: float = 0.3
    lab: float = 0.5
    transfer: float = 1.0
    clamp: bool = False

    def __post_init__(self) -> None:
        for name in ("l1", "laplacian", "lab", "transfer"):
            check_weight(name, getattr(self, name))
        if not (self.l1 or self.laplacian or self.lab):
            raise InputError("l1, laplacian and lab are 0: nothing tells the network what a clean image is.")

    def objective(self, student: Dehazer, teacher: DehazingTeacher | None = None) -> Distiller | Supervised:
        """The network with what it learns from; the labels are the clean images and the weathers' numbers.

        Args:
            teacher: for the knowledge transfer; None leaves it out.

        Raises:
            InputError: a teacher whose map has other channels than the student's.
        """
        task = ClampedToClean() if self.clamp else ToClean()
        seen = nn.Hardtanh(0.0, 1.0) if self.clamp else None
        terms = [
            Term(name, loss, "", "", weight, student_connector=seen, of=TRUTH)
            for name, loss, weight in (("laplacian", LaplacianLoss(), self.laplacian), ("lab", LabLoss(), self.lab))
            if weight
        ]
        sides = {TRUTH: Teacher(nn.Identity(), sees=clean_images)} if terms else {}
        if teacher is not None and self.transfer:
            if teacher.tap_channels != student.tap_channels:
                raise InputError(
                    f"the teacher's map has {teacher.tap_channels} channels and the student's {student.tap_channels}; "
                    "wanted: a teacher whose middle is the last of the student's widths."
                )
            sides[TEACHER] = Teacher(teacher, sees=clean_images)
            terms.append(Term("transfer", KTLoss(), student.TAP, teacher.TAP, self.transfer, of=TEACHER))
        return Distiller(student, sides, terms, task, self.l1) if terms else Supervised(student, task)


class ClampedToClean(ToClean):
    """The mean absolute distance of what is left between 0 and 1."""

    def forward(self, restored: Tensor, labels: Any) -> Tensor:
        return super().forward(restored.clamp(0, 1), labels)


def teach(
    data: ImageSplits,
    settings: DehazingSettings,
    *,
    out: Path,
    plan: Dehazing | None = None,
    architecture: dict[str, Any] | None = None,
    weights: Weights = "auto",
    resume: bool = False,
    device: torch.device = CPU,
) -> Fit:
    """Train a :class:`kdlab.models.DehazingTeacher` to draw the clean images of the data, which it sees, again.

    Its best checkpoint, by the PSNR of the validation images, is in ``out``.

    Args:
        plan: its ``transfer`` is of no use here; None: the published one.
        weights: what the encoder starts from.
    """
    torch.manual_seed(settings.seed)
    plan = plan or Dehazing()
    teacher, used = _network(DehazingTeacher, architecture, weights, out, resume)
    what = {"task": "auto-encode", "weights": weights, **asdict(plan)}
    return _fit(
        plan.objective(teacher), clean_alone(pairs(data.train)), clean_alone(pairs(data.val)), settings, out=out,
        card=card_of(teacher, data, settings, data.classes, used, **what), resume=resume, device=device,
    )  # fmt: skip


def distill(
    data: ImageSplits,
    teacher: DehazingTeacher | None,
    plan: Dehazing,
    settings: DehazingSettings,
    *,
    super_resolution: bool = True,
    out: Path | None = None,
    architecture: dict[str, Any] | None = None,
    weights: Weights = "auto",
    resume: bool = False,
    device: torch.device = CPU,
    after_epoch: AfterEpoch | None = None,
) -> tuple[KTDN, Fit]:
    """Train a student from hazy images to clean ones. It ends with its last weights; the best, by PSNR, are in ``out``.

    Args:
        teacher: for the knowledge transfer; None, or a plan without it, leaves it out.
        super_resolution: whether the student is a :class:`kdlab.models.SRKTDN`, or a :class:`kdlab.models.KTDN`.
        weights: what the encoder starts from.

    Raises:
        InputError: whatever :meth:`Dehazing.objective` and :class:`kdlab.data.StratifiedBatches` refuse.
    """
    torch.manual_seed(settings.seed)
    student, used = _network(SRKTDN if super_resolution else KTDN, architecture, weights, out, resume)
    known = weights_hash(teacher)[:16] if teacher is not None and plan.transfer else None
    what = {"task": "dehaze", "weights": weights, "teacher": known, **asdict(plan)}
    done = _fit(
        plan.objective(student, teacher), pairs(data.train), pairs(data.val), settings, out=out,
        card=card_of(student, data, settings, data.classes, used, **what), resume=resume, device=device,
        after_epoch=after_epoch,
    )  # fmt: skip
    return student, done


def _network(
    kind: Callable[..., Network],
    architecture: dict[str, Any] | None,
    weights: Weights,
    out: Path | None,
    resume: bool,
) -> tuple[Network, str]:
    """The network, and in words what it starts from."""
    earlier = earlier_start(out, resume)
    network = kind(**architecture or {}, weights="none" if earlier else weights)
    return network, earlier or network.weights_used


def _fit(
    objective: Distiller | Supervised,
    train: PairedImages,
    val: PairedImages,
    settings: DehazingSettings,
    **options: Any,
) -> Fit:
    seen = PairedImages(train.pairs, train.weathers, train.crop, settings.turned)
    batches = StratifiedBatches(seen, settings.batch_size, batches=settings.steps)
    return fit_restorer(objective, batches, seen, val, settings, freeze_from=settings.freeze_from, **options)


def clean_alone(images: PairedImages) -> PairedImages:
    """Pairs of a clean image with itself."""
    same = [pair._replace(degraded=pair.clean, margin=False) for pair in images.pairs]
    return PairedImages(same, images.weathers, images.crop)
