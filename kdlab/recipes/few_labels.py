"""A narrow student on the digits of which only a few have their label, and what all such comparisons share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from sklearn.model_selection import train_test_split
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset

from kdlab.data.splits import ImageSplits
from kdlab.distill import TeacherCache
from kdlab.errors import InputError, unknown
from kdlab.losses import LabelledCrossEntropy
from kdlab.models import StudentCNN
from kdlab.recipes.response import Distillation, evaluate
from kdlab.recipes.settings import AfterEpoch, cached, images_of, place
from kdlab.training import Fit, ModelCard, Supervised, fit

NARROW = (8, 16, 32, 64)  # the student's widths in the fast profile
EPOCHS = 10  # looks at the validation split during a run


class StudentRun(ABC):
    """One run of a comparison: one student, one method, and the budget that all methods share.

    A comparison is a frozen dataclass of this kind, whose fields are all that a run depends on.

    Raises:
        InputError: steps that are no multiple of :data:`EPOCHS`.
    """

    name: ClassVar[str]  # under which its runs are kept in kdlab's cache
    monitor: ClassVar[str] = "accuracy"
    seed: int
    steps: int
    batch_size: int
    lr: float

    def __post_init__(self) -> None:
        if self.steps < EPOCHS or self.steps % EPOCHS:
            raise InputError(f"steps is {self.steps}; wanted: a multiple of {EPOCHS}, such as 400.")

    @abstractmethod
    def student(self, classes: int) -> nn.Module:
        """The untrained student."""

    @abstractmethod
    def objective(
        self, student: nn.Module, data: ImageSplits, teacher: nn.Module, cache: TeacherCache
    ) -> tuple[nn.Module, Dataset]:
        """What the student is trained on: an objective, and the samples that it takes."""

    def measure(self, model: nn.Module, dataset: Dataset) -> dict[str, float]:
        """What a student is judged by."""
        return evaluate(model, dataset)

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
            cache: the teacher's outputs for the training images, at the layers that the method reads at least.
            keep: save the run in kdlab's cache, and load it from there where it is already.
        """
        torch.manual_seed(self.seed)
        student = self.student(len(data.classes))
        objective, train = self.objective(student, data, teacher, cache)
        place(objective, next(teacher.parameters()).device)
        settings: Any = self
        recipe = {**asdict(settings), **images_of(data)}
        if not isinstance(objective, Supervised):
            recipe["teacher"] = cache.fingerprint[:16]
        done = fit_few(
            objective, train, data, steps=self.steps, batch_size=self.batch_size, lr=self.lr, seed=self.seed,
            recipe=recipe, keep=self.name if keep else None, after_epoch=after_epoch, measure=self.measure,
            monitor=self.monitor,
        )  # fmt: skip
        return student, done


Method = Literal["alone", "kd", "kd_unlabelled"]


@dataclass(frozen=True)
class FewLabels(StudentRun):
    """One run of the comparison: a narrow student on the digits, of which only ``labels`` have their label.

    Args:
        method: "alone": cross-entropy on the labelled images. "kd": the same images, with the teacher. "kd_unlabelled":
            the teacher on all 1,200 training images, the labels of the few.
        labels: how many training images keep their label, stratified by class and drawn by the seed.
        steps: optimiser steps; the same for each method.
    """

    method: Method
    labels: int
    seed: int
    temperature: float = 4.0
    alpha: float = 0.7
    steps: int = 400
    batch_size: int = 64
    lr: float = 3e-3

    name = "few-labels"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in get_args(Method):
            raise InputError(unknown("method", self.method, get_args(Method)))

    def student(self, classes: int) -> nn.Module:
        return StudentCNN(classes, NARROW)

    def objective(
        self, student: nn.Module, data: ImageSplits, teacher: nn.Module, cache: TeacherCache
    ) -> tuple[nn.Module, Dataset]:
        kept = labelled(data, self.labels, self.seed)
        if self.method == "alone":
            return Supervised(student, LabelledCrossEntropy()), Subset(data.train, kept)
        train = cache.attach(data.train)
        distiller = Distillation(self.temperature, self.alpha).distiller(student, teacher)
        return distiller, Subset(train, kept) if self.method == "kd" else HiddenLabels(train, kept)


def labelled(data: ImageSplits, labels: int, seed: int) -> list[int]:
    """Which training images keep their label: so many, stratified by class and drawn by the seed.

    Raises:
        InputError: more labels than images, or fewer than classes.
    """
    targets = data.train.targets  # type: ignore[attr-defined]  # as ImageSplits says
    if not len(data.classes) <= labels < len(targets):
        raise InputError(
            f"labels is {labels}; wanted: from {len(data.classes)} (one a class) to {len(targets) - 1}, "
            f"fewer than the {len(targets)} training images."
        )
    kept, _ = train_test_split(range(len(targets)), train_size=labels, stratify=targets, random_state=seed)
    return kept


def fit_few(
    objective: nn.Module,
    train: Dataset,
    data: ImageSplits,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    recipe: dict[str, Any],
    keep: str | None = None,
    after_epoch: AfterEpoch | None = None,
    measure: Callable[[nn.Module, Dataset], dict[str, float]] = evaluate,
    monitor: str = "accuracy",
) -> Fit:
    """The budget that all methods of a comparison share: AdamW, one cycle, so many steps on images drawn at random.

    Args:
        recipe: all that the run depends on.
        keep: a name under which the run is saved in kdlab's cache, and loaded where it is there already.
        measure: what a student is judged by on the validation split.
        monitor: which of these says which epoch is best.
    """
    student: Any = objective.student
    samples = RandomSampler(train, num_samples=steps // EPOCHS * batch_size)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(objective.parameters(), lr, fused=True)
    return fit(
        objective, DataLoader(train, batch_size, sampler=samples), epochs=EPOCHS, optimizer=optimizer,
        scheduler=OneCycleLR(optimizer, lr, total_steps=steps), seed=seed,
        evaluate=lambda model: measure(model, data.val), monitor=monitor, after_epoch=after_epoch,
        out=cached(keep, recipe) if keep else None, resume=keep is not None,
        card=ModelCard(student.architecture, data.classes, data.mean, data.std, data.size, recipe=recipe),
    )  # fmt: skip


class HiddenLabels(Dataset):
    """The same samples, but only those of the given indices with their label; the others carry -100."""

    def __init__(self, dataset: Dataset, kept: Iterable[int]) -> None:
        self.dataset = dataset
        self.kept = frozenset(kept)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, label, *rest = self.dataset[index]
        return image, label if index in self.kept else self.hidden(label), *rest

    def hidden(self, label: Any) -> Any:
        """What stands in for a label that is not to be seen."""
        return LabelledCrossEntropy.UNLABELLED
