"""The comparison behind chapters 04 and 05: a narrow student on scenes of which only a few have their mask."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from kdlab.data.scenes import Scenes
from kdlab.data.splits import ImageSplits
from kdlab.distill import Distiller, TeacherCache
from kdlab.errors import InputError, unknown
from kdlab.losses import PixelCrossEntropy
from kdlab.models import PSPNet
from kdlab.recipes.response import CPU, EPOCHS, AfterEpoch, Settings, cached, fit_few, place, recipe_of
from kdlab.recipes.segmentation import (
    NARROW_STUDENT,
    NARROW_TEACHER,
    TEACHER_LAYERS,
    DenseDistillation,
    measure,
    teach,
)
from kdlab.recipes.zoo import load_from_zoo
from kdlab.training import Fit, ModelCard, Supervised, load_model

ZOO_NAME = "scenes_teacher"
TEACHER_TAPS = tuple(TEACHER_LAYERS.values())
TEACHER = Settings(epochs=5, lr=3e-3, one_cycle=True, batch_size=32)
TEACHER_SCENES = 30_000  # the students' 2,000 first, all with their masks: of fewer it learns the scenes by heart

# The weights were chosen on the validation split, see benchmarks/evidence/few_masks_tuning.csv.
METHODS: dict[str, DenseDistillation | None] = {
    "alone": None,
    "hard labels": DenseDistillation("hard", "logits", weight=1.0),
    "pixel-wise KD": DenseDistillation("kd", "logits", weight=1.0),
    "AT": DenseDistillation("at", "features", weight=1000.0),
    "CWD logits": DenseDistillation("cwd", "logits", weight=3.0),
    "CWD features": DenseDistillation("cwd", "features", weight=50.0),
    "MGD 0": DenseDistillation("mgd", "features", weight=5e-4, mask_ratio=0.0),
    "MGD 0.25": DenseDistillation("mgd", "features", weight=5e-4, mask_ratio=0.25),
    "MGD 0.5": DenseDistillation("mgd", "features", weight=5e-4, mask_ratio=0.5),
    "MGD 0.75": DenseDistillation("mgd", "features", weight=5e-4, mask_ratio=0.75),
}


def scenes_teacher(data: ImageSplits, device: torch.device = CPU) -> tuple[nn.Module, ModelCard]:
    """The narrow UPerNet on the scenes: the one that comes with the course, else trained here and kept, 12 minutes."""
    found = load_from_zoo(ZOO_NAME)
    if found is None:
        more = replace(data, train=Scenes("train", TEACHER_SCENES), name=f"{data.name}-{TEACHER_SCENES}")
        recipe = recipe_of(more, TEACHER, task="teach", weights="none", architecture=NARROW_TEACHER)
        out = cached(ZOO_NAME, recipe)
        teach(more, TEACHER, out=out, architecture=NARROW_TEACHER, weights="none", resume=True, device=device)
        found = load_model(out)
    teacher, card = found
    return teacher.to(device), card


@dataclass(frozen=True)
class FewMasks:
    """One run: cross-entropy on the images that have a mask, plus a method's loss on these or on all images.

    Args:
        method: a name of :data:`METHODS`.
        weight: of the method's loss; 0 for "alone".
        seed: draws the images that keep their mask, the student's start and the order of the batches.
        masks: how many training images keep their mask.
        unlabelled: whether the method also sees the others.
        steps, batch_size, lr: the budget, the same for every method.

    Raises:
        InputError: an unknown method; steps that are no multiple of the looks at the validation split.
    """

    method: str
    weight: float
    seed: int
    masks: int = 100
    unlabelled: bool = True
    steps: int = 400
    batch_size: int = 32
    lr: float = 3e-3

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(unknown("method", self.method, METHODS))
        if self.steps < EPOCHS or self.steps % EPOCHS:
            raise InputError(f"steps is {self.steps}; wanted: a multiple of {EPOCHS}, such as 400.")

    def run(
        self,
        data: ImageSplits,
        teacher: nn.Module,
        cache: TeacherCache,
        *,
        after_epoch: AfterEpoch | None = None,
        keep: bool = False,
    ) -> tuple[nn.Module, Fit]:
        """The student after the last step, on the teacher's device, and how it got there.

        Args:
            cache: the teacher's outputs for the training images at :data:`TEACHER_TAPS`, or at those of this method.
            keep: save the run in kdlab's cache, and load it from there where it is already.
        """
        kept = with_mask(data, self.masks, self.seed)
        torch.manual_seed(self.seed)
        student = PSPNet(len(data.classes), **NARROW_STUDENT)
        distillation = METHODS[self.method]
        objective: Supervised | Distiller
        train: Dataset
        if distillation is None:
            objective, train = Supervised(student, PixelCrossEntropy()), Subset(data.train, kept)
        else:
            objective = replace(distillation, weight=self.weight).distiller(student, teacher, data.size)
            train = cache.only(objective.teacher_taps).attach(data.train)
            train = HiddenMasks(train, kept) if self.unlabelled else Subset(train, kept)
        place(objective, next(teacher.parameters()).device)
        recipe = {**asdict(self), "data": data.name, "teacher": cache.fingerprint[:16]}
        done = fit_few(
            objective, train, data, steps=self.steps, batch_size=self.batch_size, lr=self.lr, seed=self.seed,
            recipe=recipe, keep="few-masks" if keep else None, after_epoch=after_epoch, measure=measure,
            monitor="miou",
        )  # fmt: skip
        return student, done


def with_mask(data: ImageSplits, masks: int, seed: int) -> list[int]:
    """Which training images keep their mask: so many, drawn by the seed.

    Raises:
        InputError: more masks than images, or fewer than two.
    """
    images = len(data.train)  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out
    if not 2 <= masks <= images:
        raise InputError(f"masks is {masks}; wanted: from 2 to {images}, the number of training images.")
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed))[:masks].tolist()


class HiddenMasks(Dataset):
    """The same samples, but only those of the given indices with their mask; the others' pixels all carry 255."""

    def __init__(self, dataset: Dataset, kept: Iterable[int]) -> None:
        self.dataset = dataset
        self.kept = frozenset(kept)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, mask, *rest = self.dataset[index]
        return image, mask if index in self.kept else torch.full_like(mask, PixelCrossEntropy.IGNORE), *rest
