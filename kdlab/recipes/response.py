"""Response distillation: teach a teacher, distil a student; and what every recipe trains with."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset

import kdlab
from kdlab.data.splits import ImageSplits
from kdlab.distill import Distiller, TeacherCache, Term, weights_hash
from kdlab.errors import InputError
from kdlab.losses import KDLoss, LabelledCrossEntropy
from kdlab.models import StudentCNN, densenet121
from kdlab.paths import cache_dir
from kdlab.training import Fit, ModelCard, Supervised, classification_metrics, fit, load_model, predict_logits
from kdlab.training.checkpoints import LAST, RESUME

LOGITS = "classifier"  # the tap of the logits, in the teacher and in the student
Objective = TypeVar("Objective", bound=nn.Module)
AfterEpoch = Callable[[dict[str, float]], bool]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train; the defaults are those of the article's tool.

    Args:
        lr: Adam's learning rate: constant, or the peak of one cycle.
        one_cycle: warm up to ``lr`` and anneal to 0 over the whole run.
        patience: epochs without a better validation accuracy before the run ends; None never ends early.
    """

    epochs: int = 500
    lr: float = 1e-4
    one_cycle: bool = False
    batch_size: int = 4
    workers: int = 0
    patience: int | None = None
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; wanted: a whole number from 1 up.")
        if self.workers < 0:
            raise InputError(f"workers is {self.workers}; wanted: 0 (load in this process) or more.")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience is {self.patience}; wanted: epochs, from 1 up, or None to never end early.")
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"precision is {self.precision!r}; wanted: 'fp32' or 'bf16'.")
        if not 0 < self.lr <= 10:
            raise InputError(f"lr is {self.lr}; wanted: above 0 and at most 10, such as 1e-4.")


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
        kd = Term("kd", KDLoss(self.temperature), student=LOGITS, teacher=LOGITS, weight=self.alpha)
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
    earlier = load_model(out / LAST)[1] if resume and (out / RESUME).exists() else None
    teacher = densenet121(len(data.classes), "none" if earlier else weights)
    used = earlier.weights if earlier else str(teacher.weights_used)
    recipe = recipe_of(data, settings, task="teach", weights=weights)
    objective = place(Supervised(teacher, LabelledCrossEntropy()), device)
    return fit_with(
        settings, objective, data.train, data, out=out, recipe=recipe, measure=evaluate, resume=resume, weights=used
    )  # fmt: skip


def distil(
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
    """Distil a :class:`StudentCNN` from the teacher; its best checkpoint is in ``out``.

    The teacher runs once over the training images where the pipeline always gives the same image, else at each step.
    """
    torch.manual_seed(settings.seed)
    student = StudentCNN(len(data.classes), widths, drop_rate)
    objective = place(distillation.distiller(student, teacher), device)
    train = data.train
    if data.deterministic:
        train = TeacherCache.build(teacher, objective.teacher_taps, train, workers=settings.workers).attach(train)
    shape = {"widths": list(widths), "drop_rate": drop_rate}
    known = weights_hash(teacher)[:16]
    recipe = recipe_of(data, settings, task="distil", teacher=known, **asdict(distillation), **shape)
    return fit_with(
        settings, objective, train, data, out=out, recipe=recipe, measure=evaluate, resume=resume,
        after_epoch=after_epoch,
    )  # fmt: skip


def place(objective: Objective, device: torch.device) -> Objective:
    """On the device, with the convolutions' weights in the order that is a third faster on a CPU."""
    objective.to(device)
    return objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it


def recipe_of(data: ImageSplits, settings: Settings, **what: Any) -> dict[str, Any]:
    """All that the result depends on, for the model card, for a resume and for the name in the cache."""
    images = {"data": data.name, "size": data.size, "mean": list(data.mean), "std": list(data.std)}
    recipe = {**what, **images, "augment": not data.deterministic, **asdict(settings)}
    if data.deterministic:
        recipe["workers"] = 0  # who loads the images changes nothing, unless there are random numbers to draw
    return recipe


def evaluate(model: nn.Module, dataset: Dataset, batch_size: int = 64, workers: int = 0) -> dict[str, float]:
    """Accuracy, loss and calibration error of a model on a data set."""
    return classification_metrics(*predict_logits(model, DataLoader(dataset, batch_size, num_workers=workers)))


def fit_with(
    settings: Settings,
    objective: Supervised | Distiller,
    train: Dataset,
    data: ImageSplits,
    *,
    out: Path,
    recipe: dict[str, Any],
    measure: Callable[..., dict[str, float]],
    resume: bool = False,
    weights: str = "none: a random start",
    after_epoch: AfterEpoch | None = None,
    optimizer: type[torch.optim.Adam] = torch.optim.Adam,
    monitor: str = "accuracy",
) -> Fit:
    """Train as the settings say, and keep the best epoch and the last in ``out``, with all that is needed to use them.

    Args:
        train: the samples that the objective takes; ``data`` has the validation split and what the card says.
        recipe: all that the result depends on.
        weights: what the student starts from, in words.
        measure: from the student, a data set and ``workers`` to named metrics.
        monitor: which of these says which epoch is best.
    """
    loader = DataLoader(train, settings.batch_size, shuffle=True, num_workers=settings.workers, drop_last=True)
    adam = optimizer(objective.parameters(), settings.lr, fused=True)
    steps = settings.epochs * len(loader)
    student: Any = objective.student
    card = ModelCard(student.architecture, data.classes, data.mean, data.std, data.size, weights, recipe)
    return fit(
        objective, loader, epochs=settings.epochs, optimizer=adam,
        scheduler=OneCycleLR(adam, settings.lr, total_steps=steps) if settings.one_cycle and steps else None,
        evaluate=lambda model: measure(model, data.val, workers=settings.workers), monitor=monitor,
        patience=settings.patience, out=out, card=card, resume=resume, seed=settings.seed,
        precision=settings.precision, after_epoch=after_epoch,
    )  # fmt: skip


# What the chapters 00 and 01 train, by its own hash in the cache: a second run loads it.

TEACHER = Settings(epochs=6, lr=3e-3, one_cycle=True, batch_size=64)


def digits_teacher(data: ImageSplits, device: torch.device = CPU) -> tuple[nn.Module, ModelCard]:
    """DenseNet121 on the digits: trained here, one to two minutes on two cores, or loaded where that has been done."""
    out = cached("digits-teacher", recipe_of(data, TEACHER, task="teach", weights="none"))
    teach(data, TEACHER, out=out, weights="none", resume=True, device=device)
    teacher, card = load_model(out)
    return teacher.to(device), card


def cached(name: str, recipe: dict[str, Any]) -> Path:
    """The folder in kdlab's cache for what this recipe trains."""
    versions = [kdlab.__version__, torch.__version__]
    digest = hashlib.sha256(json.dumps([versions, recipe], sort_keys=True).encode()).hexdigest()
    return cache_dir() / "trained" / f"{name}-{digest[:16]}"
