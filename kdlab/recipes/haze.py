"""The experiment behind chapter 10: a narrow teacher of clean images, and narrow students on photographs in haze."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from kdlab.data.pairs import PairedImages
from kdlab.data.photos import SPLITS
from kdlab.data.splits import ImageSplits
from kdlab.data.weather_photos import check_photographs, load_haze, photograph_indices
from kdlab.distill import weights_hash
from kdlab.distill.schedules import check_weight
from kdlab.errors import InputError, unknown
from kdlab.models import KTDN, DehazingTeacher
from kdlab.recipes.dehazing import FAST, NARROW, NARROW_TEACHER, Dehazing, DehazingSettings, distill, teach
from kdlab.recipes.restorer import pairs
from kdlab.recipes.settings import CPU, AfterEpoch, cached, recipe_of
from kdlab.recipes.zoo import course_model
from kdlab.training import Fit, ModelCard
from kdlab.training.checkpoints import LAST

TRANSFER = 1.0  # weighs the distance to the teacher's map: as published
METHODS = {"alone": 0.0, "knowledge transfer": TRANSFER, "super-resolution": 0.0, "both": TRANSFER}
WITH_BRANCH = ("super-resolution", "both")
EPOCHS, LR = 24, 4e-3  # of the comparison
TEACHER_EPOCHS = 36  # of the one that teaches all runs


def budget(epochs: int, lr: float = FAST.lr, seed: int = 0) -> DehazingSettings:
    """The fast profile's settings, drawn out or pressed together, as :meth:`DehazingSettings.over` does it."""
    return replace(FAST.over(epochs), lr=lr, seed=seed)


def clean_teacher(device: torch.device = CPU) -> tuple[DehazingTeacher, ModelCard]:
    """The narrow teacher of clean images: the one that comes with the course, else trained here and kept."""

    def train() -> Path:
        data, settings = load_haze(), budget(TEACHER_EPOCHS)
        out = cached("clean-teacher", recipe_of(data, settings, **NARROW_TEACHER))
        teach(data, settings, out=out, architecture=NARROW_TEACHER, weights="none", resume=True, device=device)
        return out

    return course_model("clean_teacher", train, DehazingTeacher, device)


def haze_student(method: str, device: torch.device = CPU) -> tuple[KTDN, ModelCard]:
    """A method's narrow student, seed 0 of the comparison: the one that comes with the course, else trained and kept.

    Args:
        method: a name of :data:`METHODS`.

    Raises:
        InputError: an unknown method.
    """
    run = HazeRun(method, METHODS.get(method, 0.0), seed=0, epochs=EPOCHS)

    def train() -> Path:
        data, (teacher, _) = load_haze(), clean_teacher(device)
        run.run(data, teacher, keep=True)
        return run.folder(data, teacher) / LAST

    return course_model(zoo_name(method), train, KTDN, device)


def zoo_name(method: str) -> str:
    """What a method's student is called among the checkpoints that come with the course."""
    return f"dehazer_{method.replace('-', '_').replace(' ', '_')}"


@dataclass(frozen=True)
class HazeRun:
    """One run of the comparison: a student, one method, and the budget that all methods share.

    Args:
        method: a name of :data:`METHODS`.
        weight: of the distance to the teacher's map.
        seed: of the student's start and of what it sees.
        photographs: how many training photographs have hazy twins; the seed chooses which. The student sees no others,
            in as many steps; the teacher knew all of them, clean.
        epochs, lr: the budget, as :func:`budget` takes it.

    Raises:
        InputError: an unknown method; a negative weight, one for a method without a teacher, or none for one with it;
            photographs out of range.
    """

    method: str
    weight: float
    seed: int
    photographs: int = len(SPLITS["train"])
    epochs: int = EPOCHS
    lr: float = LR

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(unknown("method", self.method, METHODS))
        check_weight("weight", self.weight)
        check_photographs(self.photographs)
        if bool(self.weight) != bool(METHODS[self.method]):
            wanted = "a weight above 0" if METHODS[self.method] else "0: it has no teacher"
            raise InputError(f"the weight of {self.method!r} is {self.weight}; wanted: {wanted}.")

    @property
    def plan(self) -> Dehazing:
        """What the student learns."""
        return Dehazing(transfer=self.weight)

    def run(
        self,
        data: ImageSplits,
        teacher: DehazingTeacher,
        *,
        keep: bool = False,
        after_epoch: AfterEpoch | None = None,
    ) -> tuple[KTDN, Fit]:
        """The student after the last step, on the teacher's device, and how it got there.

        Args:
            data: :func:`load_haze`'s.
            keep: save the run in kdlab's cache, and load it from there where it is already.
        """
        train, settings = pairs(data.train), budget(self.epochs, self.lr, self.seed)
        seen = [train.pairs[index] for index in photograph_indices(train, self.photographs, self.seed)]
        few = replace(data, train=PairedImages(seen, train.weathers, train.crop))
        return distill(
            few, teacher, self.plan, replace(settings, steps=len(train) // settings.batch_size),
            super_resolution=self.method in WITH_BRANCH, out=self.folder(data, teacher) if keep else None,
            architecture=NARROW, weights="none", resume=True, after_epoch=after_epoch,
            device=next(teacher.parameters()).device,
        )  # fmt: skip

    def folder(self, data: ImageSplits, teacher: DehazingTeacher) -> Path:
        """Where a run that is kept is."""
        settings = budget(self.epochs, self.lr, self.seed)
        known = weights_hash(teacher)[:16] if self.weight else None
        return cached("haze", recipe_of(data, settings, **asdict(self), teacher=known, **NARROW))
