"""What all restorers are trained with: the settings, the loop that follows them, the clean images and the card."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler

from kdlab import processes
from kdlab.data.pairs import PairedImages
from kdlab.data.splits import ImageSplits
from kdlab.distill import Distiller
from kdlab.errors import InputError, unknown
from kdlab.loading import loaded_by
from kdlab.losses.restoration import CKTLoss
from kdlab.models import Restorer
from kdlab.recipes.settings import CPU, AfterEpoch, Settings, place, recipe_of
from kdlab.training import Fit, ModelCard, Supervised, fit
from kdlab.training.restoration import restoration_metrics

TRUTH = "truth"  # the teacher that knows the clean images
COLLAPSED = 0.01  # of the size that the projections had at first
PixelLoss = Literal["l1", "mse"]
PIXEL_LOSSES = {"l1": F.l1_loss, "mse": F.mse_loss}


class ToTeacher(nn.Module):
    """The distance to the teacher's restored images, pixel by pixel: the mean absolute or the mean squared one.

    Raises:
        InputError: another distance.
    """

    def __init__(self, pixel: PixelLoss = "l1") -> None:
        super().__init__()
        if pixel not in PIXEL_LOSSES:
            raise InputError(unknown("pixel", str(pixel), PIXEL_LOSSES))
        self.distance = PIXEL_LOSSES[pixel]

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.distance(student, teacher)


class ToClean(ToTeacher):
    """The distance to the clean images; the labels are these and the weathers' numbers."""

    def forward(self, restored: Tensor, labels: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(restored, labels[0])


@dataclass(frozen=True)
class RestorerSettings(Settings):
    """What the training of every restorer can be told.

    Args:
        max_norm: scale a gradient down to this norm where it is larger; None leaves it as it is.
    """

    max_norm: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_norm is not None and not self.max_norm > 0:
            raise InputError(f"max_norm is {self.max_norm}; wanted: above 0, such as 0.5, or None.")

    def base(self, batch_size: int) -> float:
        """The rate that the schedule starts from."""
        return self.lr

    def rate(self, epoch: int, base: float) -> float:
        """The rate of an epoch, counted from 1."""
        return base


def fit_restorer(
    objective: Distiller | Supervised,
    batches: Sampler[list[int]],
    train: PairedImages,
    val: PairedImages,
    settings: RestorerSettings,
    *,
    out: Path | None,
    card: ModelCard,
    resume: bool = False,
    device: torch.device = CPU,
    freeze_from: int | None = None,
    patience_from: int = 0,
    after_epoch: AfterEpoch | None = None,
) -> Fit:
    """Train as the settings say: Adam and their schedule, an epoch at a time."""
    place(objective, device, settings.channels_last)
    loader = DataLoader(train, batch_sampler=batches, **loaded_by(settings.workers))
    base = settings.base(len(next(iter(batches))))
    adam = torch.optim.Adam(objective.parameters(), base, fused=True)
    steps = len(loader)
    schedule = LambdaLR(adam, lambda step: settings.rate(min(step // steps + 1, settings.epochs), base) / base)

    warned = not processes.is_first()

    def evaluate(student: nn.Module) -> dict[str, float]:
        nonlocal warned
        epoch = schedule.last_epoch // steps - 1  # the one that has just ended, in a resumed run, too
        warned = warned or _warn_of_collapse(objective, epoch, settings.epochs)
        return restoration_metrics(student, val)

    return fit(
        objective, loader, epochs=settings.epochs, optimizer=adam, scheduler=schedule, evaluate=evaluate,
        monitor="psnr", patience=settings.patience, patience_from=patience_from, out=out,
        card=card if out is not None else None, resume=resume, seed=settings.seed, precision=settings.precision,
        max_norm=settings.max_norm, freeze_from=freeze_from, compile=settings.compile, accumulate=settings.accumulate,
        after_epoch=after_epoch,
    )  # fmt: skip


def pairs(dataset: Any) -> PairedImages:
    """The data set, which has to be of pairs.

    Raises:
        InputError: it is another one.
    """
    if not isinstance(dataset, PairedImages):
        raise InputError(f"the data is {type(dataset).__name__}; wanted: pairs of degraded and clean images.")
    return dataset


def card_of(
    student: Restorer,
    data: ImageSplits,
    settings: RestorerSettings,
    weathers: Sequence[str],
    start: str = ModelCard.weights,
    **what: Any,
) -> ModelCard:
    """What is saved with the student.

    Args:
        start: what its weights were before the training, in words.
        what: all that the result depends on beside data and settings, for the recipe.
    """
    recipe = recipe_of(data, settings, weathers=list(weathers), architecture=student.architecture, **what)
    return ModelCard(student.architecture, tuple(weathers), data.mean, data.std, data.size, start, recipe)


def clean_images(images: Any, labels: Sequence[Tensor]) -> Tensor:
    """What a teacher sees that is given the clean images in place of the degraded ones."""
    return labels[0]


def _warn_of_collapse(objective: Distiller | Supervised, epoch: int, epochs: int) -> bool:
    """Say so, and return True, when common spaces in use have become so small that their distances teach nothing."""
    used = [term for term in getattr(objective, "terms", ()) if term.weight_at(epoch, epochs)]
    spaces = {term.name: term.loss for term in used if isinstance(term.loss, CKTLoss)}
    small = {name: space for name, space in spaces.items() if space.shrunk_to < COLLAPSED}
    if not small:
        return False
    name, worst = min(small.items(), key=lambda item: item[1].shrunk_to)
    warnings.warn(
        f"{len(small)} of {len(spaces)} common spaces have collapsed, most of all that of {name}: its projections are "
        f"{worst.shrunk_to:.1%} of what they were, so that CKT teaches nothing there. Try detach=True and a "
        "reconstruction weight of 1 (--detach --reconstruction 1).",
        stacklevel=2,
    )
    return True
