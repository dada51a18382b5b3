"""Response distillation: teach a teacher, distil a student."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from kdlab import processes
from kdlab.data.splits import ImageSplits
from kdlab.data.unlabelled import all_images, half_labelled
from kdlab.distill import Distiller, TeacherCache, Term, weights_hash
from kdlab.errors import InputError
from kdlab.loading import loaded_by
from kdlab.losses import KDLoss, LabelledCrossEntropy
from kdlab.models import StudentCNN, densenet121
from kdlab.recipes.settings import CPU, AfterEpoch, Settings, cached, fit_with, place, recipe_of
from kdlab.training import Fit, ModelCard, Supervised, classification_metrics, load_model, predict_logits
from kdlab.training.run_folder import check_recipe, earlier_start

LOGITS = "classifier"  # the tap of the logits, in the teacher and in the student


@dataclass(frozen=True)
class Distillation:
    """What the student learns from: ``alpha`` times KD at ``temperature``, plus 1 - alpha times cross-entropy.

    Raises:
        InputError: temperature not above 0; alpha outside 0 to 1.
    """

    temperature: float = 2.0
    alpha: float = 0.7

    def __post_init__(self) -> None:
        KDLoss(self.temperature)  # refuses a temperature that makes no sense
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha is {self.alpha}; wanted: from 0 (labels only) to 1 (teacher only).")

    def distiller(self, student: nn.Module, teacher: nn.Module) -> Distiller:
        """The student and the teacher, joined."""
        kd = Term("kd", KDLoss(self.temperature), student="", teacher=LOGITS, weight=self.alpha)
        return Distiller(student, teacher, [kd], task=LabelledCrossEntropy(), task_weight=1 - self.alpha)


def teach(
    data: ImageSplits,
    settings: Settings,
    *,
    out: Path,
    weights: Literal["auto", "imagenet", "none"] = "auto",
    resume: bool = False,
    device: torch.device = CPU,
) -> Fit:
    """Train or fine-tune the DenseNet121 teacher; its best checkpoint is in ``out``."""
    torch.manual_seed(settings.seed)
    earlier = earlier_start(out, resume)
    teacher = densenet121(len(data.classes), "none" if earlier else weights)
    used = earlier or str(teacher.weights_used)
    recipe = recipe_of(data, settings, task="teach", weights=weights)
    objective = place(Supervised(teacher, LabelledCrossEntropy()), device, settings.channels_last)
    return fit_with(
        settings, objective, data.train, data, out=out, recipe=recipe, measure=evaluate, resume=resume, weights=used
    )  # fmt: skip


def distill(
    data: ImageSplits,
    teacher: nn.Module,
    distillation: Distillation,
    settings: Settings,
    *,
    out: Path,
    widths: tuple[int, ...] = (32, 64, 128, 256),
    drop_rate: float = 0.2,
    resume: bool = False,
    device: torch.device = CPU,
    after_epoch: AfterEpoch | None = None,
) -> Fit:
    """Distil a :class:`kdlab.models.StudentCNN` from the teacher; its best checkpoint is in ``out``.

    The teacher runs once over the training images where the pipeline always gives the same image, else at each step.
    It also speaks of ``data.unlabelled``; about half of a batch has labels then.
    """
    torch.manual_seed(settings.seed)
    student = StudentCNN(len(data.classes), widths, drop_rate)
    objective = place(distillation.distiller(student, teacher), device, settings.channels_last)
    shape = {"widths": list(widths), "drop_rate": drop_rate}
    known = weights_hash(teacher)[:16]
    recipe = recipe_of(data, settings, task="distill", teacher=known, **asdict(distillation), **shape)
    if resume:
        check_recipe(out, recipe)  # before the teacher runs over all images
    train = all_images(data)
    if data.deterministic:
        train = TeacherCache.build(teacher, objective.teacher_taps, train, workers=settings.workers).attach(train)
    train = half_labelled(train, range(len(data.train)))  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out
    return fit_with(
        settings, objective, train, data, out=out, recipe=recipe, measure=evaluate, resume=resume,
        after_epoch=after_epoch,
    )  # fmt: skip


def evaluate(model: nn.Module, dataset: Dataset, batch_size: int = 64, workers: int = 0) -> dict[str, float]:
    """Accuracy, loss and calibration error of a model on a data set."""
    loader = DataLoader(processes.own_share(dataset), batch_size, **loaded_by(workers))
    logits, labels = predict_logits(model, loader)
    return classification_metrics(processes.of_all(logits), processes.of_all(labels))


# What the chapters 00 and 01 train, by its own hash in the cache: a second run loads it.

TEACHER = Settings(epochs=6, lr=3e-3, one_cycle=True, batch_size=64)


def digits_teacher(data: ImageSplits, device: torch.device = CPU) -> tuple[nn.Module, ModelCard]:
    """DenseNet121 on the digits: trained here, one to two minutes on two cores, or loaded where that has been done."""
    out = cached("digits-teacher", recipe_of(data, TEACHER, task="teach", weights="none"))
    teach(data, TEACHER, out=out, weights="none", resume=True, device=device)
    teacher, card = load_model(out)
    return teacher.to(device), card
