"""The comparison behind chapters 04 and 05: a narrow student on scenes of which only a few have their mask."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from kdlab.data.scenes import Scenes
from kdlab.data.splits import ImageSplits
from kdlab.data.unlabelled import half_labelled
from kdlab.distill import TeacherCache
from kdlab.errors import InputError, unknown
from kdlab.losses import PixelCrossEntropy
from kdlab.models import PSPNet, UPerNet
from kdlab.recipes.few_labels import HiddenLabels, StudentRun
from kdlab.recipes.segmentation import (
    NARROW_STUDENT,
    NARROW_TEACHER,
    TEACHER_LAYERS,
    DenseDistillation,
    measure,
    teach,
)
from kdlab.recipes.settings import CPU, Settings, cached, recipe_of
from kdlab.recipes.zoo import course_model
from kdlab.training import ModelCard, Supervised

ZOO_NAME = "scenes_teacher"
TEACHER_TAPS = tuple(TEACHER_LAYERS.values())
TEACHER = Settings(epochs=5, lr=3e-3, one_cycle=True, batch_size=32)
TEACHER_SCENES = 30_000  # the students' 2,000 first, all with their masks: of fewer it learns the scenes by heart

# The weights were chosen on the validation split, see benchmarks/evidence/few_masks_tuning.csv.
METHODS: dict[str, DenseDistillation | None] = {
    "alone": None,
    "hard labels": DenseDistillation("hard", "logits", weight=4.0),
    "pseudo-masks": DenseDistillation("pseudo", "logits", weight=16.0),
    "pixel-wise KD": DenseDistillation("kd", "logits", weight=4.0),
    "AT": DenseDistillation("at", "features", weight=62.5),
    "CWD logits": DenseDistillation("cwd", "logits", weight=3.0),
    "CWD features": DenseDistillation("cwd", "features", weight=400.0),
    "MGD 0": DenseDistillation("mgd", "features", weight=2e-3, mask_ratio=0.0),
    "MGD 0.25": DenseDistillation("mgd", "features", weight=2e-3, mask_ratio=0.25),
    "MGD 0.5": DenseDistillation("mgd", "features", weight=2e-3, mask_ratio=0.5),
    "MGD 0.75": DenseDistillation("mgd", "features", weight=2e-3, mask_ratio=0.75),
}


def scenes_teacher(data: ImageSplits, device: torch.device = CPU) -> tuple[UPerNet, ModelCard]:
    """The narrow UPerNet on the scenes: the one that comes with the course, else trained here and kept, 12 minutes."""

    def train() -> Path:
        more = replace(data, train=Scenes("train", TEACHER_SCENES), name=f"{data.name}-{TEACHER_SCENES}")
        recipe = recipe_of(more, TEACHER, task="teach", weights="none", architecture=NARROW_TEACHER)
        out = cached(ZOO_NAME, recipe)
        teach(more, TEACHER, out=out, architecture=NARROW_TEACHER, weights="none", resume=True, device=device)
        return out

    return course_model(ZOO_NAME, train, UPerNet, device)


@dataclass(frozen=True)
class FewMasks(StudentRun):
    """One run: cross-entropy on the images that have a mask, plus a method's loss on these or on all images.

    "alone" sees images with a mask only. Where a method sees all images, about half of a batch has a mask.

    Args:
        method: a name of :data:`METHODS`.
        weight: of the method's loss; 0 for "alone".
        seed: draws the images that keep their mask, the student's start and the order of the batches.
        masks: how many training images keep their mask.
        unlabelled: whether the method also sees the others.
        steps, batch_size, lr: the budget, the same for every method.

    Raises:
        InputError: an unknown method.
    """

    method: str
    weight: float
    seed: int
    masks: int = 100
    unlabelled: bool = True
    steps: int = 400
    batch_size: int = 16
    lr: float = 1e-2
    name = "few-masks"
    monitor = "miou"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise InputError(unknown("method", self.method, METHODS))

    def student(self, classes: int) -> nn.Module:
        return PSPNet(classes, **NARROW_STUDENT)

    def objective(
        self, student: nn.Module, data: ImageSplits, teacher: nn.Module, cache: TeacherCache
    ) -> tuple[nn.Module, Dataset]:
        kept, distillation = with_mask(data, self.masks, self.seed), METHODS[self.method]
        if distillation is None:
            return Supervised(student, PixelCrossEntropy()), Subset(data.train, kept)
        distiller = replace(distillation, weight=self.weight).distiller(student, teacher, data.size)
        train = cache.only(distiller.teacher_taps).attach(data.train)
        return distiller, half_labelled(HiddenMasks(train, kept), kept) if self.unlabelled else Subset(train, kept)

    def measure(self, model: nn.Module, dataset: Dataset) -> dict[str, float]:
        return measure(model, dataset)


def with_mask(data: ImageSplits, masks: int, seed: int) -> list[int]:
    """Which training images keep their mask: so many, drawn by the seed.

    Raises:
        InputError: more masks than images, or fewer than two.
    """
    images = len(data.train)  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out
    if not 2 <= masks <= images:
        raise InputError(f"masks is {masks}; wanted: from 2 to {images}, the number of training images.")
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed))[:masks].tolist()


class HiddenMasks(HiddenLabels):
    """The same samples, but only those of the given indices with their mask; the others' pixels all carry 255."""

    def hidden(self, label: Any) -> Any:
        return torch.full_like(label, PixelCrossEntropy.IGNORE)
