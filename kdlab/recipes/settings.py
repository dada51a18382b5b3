"""What every recipe trains with: the settings, the loop that follows them, and a place for the result."""

import functools
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
from kdlab.distill import Distiller
from kdlab.errors import InputError
from kdlab.loading import MOST_WORKERS, loaded_by
from kdlab.paths import cache_dir
from kdlab.training import Fit, ModelCard, Supervised, fit

Objective = TypeVar("Objective", bound=nn.Module)
AfterEpoch = Callable[[dict[str, float]], bool]
CPU = torch.device("cpu")
HOW = ("channels_last", "compile", "accumulate")  # the settings that say how it is computed, and not what is learnt


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train; the defaults are those of the article's tool.

    Args:
        lr: Adam's learning rate: constant, or the peak of one cycle.
        one_cycle: warm up to ``lr`` and anneal to 0 over the whole run.
        batch_size: what one step of the optimiser learns from, however many processes share it.
        patience: epochs without a better value of the monitored metric before the run ends; None never ends early.
        precision: "bf16" computes the forward pass under autocast.
        channels_last: whether the weights of convolutions lie in memory channel by channel at each place, which is
            mostly faster, on a CPU too.
        compile: the student, with ``torch.compile``.
        accumulate: compute a batch in so many pieces, one after the other, which takes less memory.
    """

    epochs: int = 500
    lr: float = 1e-4
    one_cycle: bool = False
    batch_size: int = 4
    workers: int = 0
    patience: int | None = None
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; wanted: a whole number from 1 up.")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise InputError(f"accumulate is {self.accumulate}; wanted: equal pieces of a batch of {self.batch_size}.")
        if not 0 <= self.workers <= MOST_WORKERS:
            raise InputError(f"workers is {self.workers}; wanted: 0 (load in this process) to {MOST_WORKERS}.")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience is {self.patience}; wanted: epochs, from 1 up, or None to never end early.")
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"precision is {self.precision!r}; wanted: 'fp32' or 'bf16'.")
        if not 0 < self.lr <= 10:
            raise InputError(f"lr is {self.lr}; wanted: above 0 and at most 10, such as 1e-4.")


def place(objective: Objective, device: torch.device, channels_last: bool = True) -> Objective:
    """On the device, with the weights of convolutions in the order that was asked for."""
    objective.to(device)
    order = torch.channels_last if channels_last else torch.contiguous_format
    return objective.to(memory_format=order)  # type: ignore[call-overload]  # the stubs lack it


def images_of(data: ImageSplits) -> dict[str, Any]:
    """What a recipe says of the images: all that two data sets of one name can differ in."""
    images: dict[str, Any] = {"data": data.name, "size": data.size, "mean": list(data.mean), "std": list(data.std)}
    if data.files:  # another folder may have the same name
        images |= {"classes": list(data.classes)} | {f"{split} files": said for split, said in data.files.items()}
    return images


def learnt(settings: Settings) -> dict[str, Any]:
    """The settings that the result depends on."""
    return {name: value for name, value in asdict(settings).items() if name not in HOW}


def recipe_of(data: ImageSplits, settings: Settings, **what: Any) -> dict[str, Any]:
    """All that the result depends on, for the model card, for a resume and for the name in the cache.

    How it is computed may change when a run is gone on with. ``channels_last`` and ``compile`` change no more than its
    last digits; ``accumulate`` also what BatchNorm, and a loss over a whole batch, see at a time.
    """
    recipe = {**what, **images_of(data), "augment": not data.deterministic, **learnt(settings)}
    if data.deterministic:
        recipe["workers"] = 0  # who loads the images changes nothing, unless there are random numbers to draw
    return recipe


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
    loader = DataLoader(train, settings.batch_size, shuffle=True, drop_last=True, **loaded_by(settings.workers))
    adam = optimizer(objective.parameters(), settings.lr, fused=True)
    steps = settings.epochs * len(loader)
    student: Any = objective.student
    card = ModelCard(student.architecture, data.classes, data.mean, data.std, data.size, weights, recipe)
    return fit(
        objective, loader, epochs=settings.epochs, optimizer=adam,
        scheduler=OneCycleLR(adam, settings.lr, total_steps=steps) if settings.one_cycle and steps else None,
        evaluate=lambda model: measure(model, data.val, workers=settings.workers), monitor=monitor,
        patience=settings.patience, out=out, card=card, resume=resume, seed=settings.seed,
        precision=settings.precision, compile=settings.compile, accumulate=settings.accumulate,
        after_epoch=after_epoch,
    )  # fmt: skip


def cached(name: str, recipe: dict[str, Any]) -> Path:
    """The folder in kdlab's cache for what this recipe trains, with this code and this PyTorch."""
    what = [_code(Path(kdlab.__file__).parent), torch.__version__, recipe]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "trained" / f"{name}-{digest[:16]}"


@functools.cache
def _code(package: Path) -> str:
    """A hash of what can change a training: after an update, nothing that older code has made is taken for its own."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in ("classroom", "commands"):
            digest.update(f"{name.as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
