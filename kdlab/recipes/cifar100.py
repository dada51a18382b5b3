"""The published CIFAR-100 comparison: every method on the same pairs of networks, by the same schedule.

Both networks train on all 50,000 images for 240 epochs: SGD with momentum 0.9, weight decay 5e-4, batches of 64, a
learning rate of 0.05 that falls to a tenth after the epochs 150, 180 and 210. The published tables differ in one thing:
some report the test accuracy of the last epoch, others that of the best epoch, which the test images have chosen. Here
it is both, side by side.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from kdlab.data.splits import ImageSplits
from kdlab.distill import ConvConnector, Distiller, Indexed, Term, WarmUp, weights_hash
from kdlab.errors import InputError, unknown
from kdlab.loading import loaded_by
from kdlab.losses import (
    ATLoss,
    CRDLoss,
    DISTLoss,
    DKDLoss,
    HintLoss,
    KDLoss,
    LabelledCrossEntropy,
    PKTLoss,
    RKDLoss,
    SPLoss,
    VIDLoss,
)
from kdlab.models import cifar_network
from kdlab.models.cifar import CIFARClassifier
from kdlab.recipes.cifar100_table import PAIRS, Published
from kdlab.recipes.loss_zoo import EMBEDDING
from kdlab.recipes.response import LOGITS, evaluate
from kdlab.recipes.settings import CPU, Settings, cached, place, recipe_of
from kdlab.training import Fit, ModelCard, Supervised, fit, half_interval, load_model
from kdlab.training.checkpoints import LAST

EPOCHS, BATCH_SIZE, LR, MOMENTUM, WEIGHT_DECAY = 240, 64, 0.05, 0.9, 5e-4
DROPS = (150, 180, 210)  # the epochs after which the learning rate falls to a tenth
WARM_UP = 20  # epochs
METHODS = ("alone", "kd", "dkd", "dist", "fitnet", "at", "vid", "sp", "pkt", "rkd", "crd")
OF_A_BATCH = ("dist", "sp", "pkt", "rkd")  # these compare the images of a batch with one another
NO_ROW = "no published row of these pairs is known here"
NOT_HERE = {  # losses of the library
    "ab": "it trains on its loss alone first, on the maps before the ReLU, which is another schedule than this one",
    "byot": "it has no trained teacher",
    "cwd": NO_ROW,
    "dml": "it has no trained teacher",
    "fsp": "it trains on its loss alone first, which is another schedule than this one",
    "ft": "its paraphraser is trained first, and the published row may be another loss's",
    "mgd": NO_ROW,
    "ofd": f"it compares the maps before the ReLU, and {NO_ROW}",
    "reviewkd": NO_ROW,
}


def check_names(pair: str, methods: Iterable[str]) -> None:
    """Refuse what this comparison does not have.

    Raises:
        InputError: an unknown pair or method, with near names; a loss of the library that is left out, and why.
    """
    if pair not in PAIRS:
        raise InputError(unknown("pair", pair, PAIRS))
    for method in methods:
        if method in NOT_HERE:
            raise InputError(f"{method} is not reproduced: {NOT_HERE[method]}. Wanted: {', '.join(METHODS)}.")
        if method not in METHODS:
            raise InputError(unknown("method", method, METHODS))


def protocol(epochs: int = EPOCHS, seed: int = 0, workers: int = 0) -> Settings:
    """The published settings; with other epochs than 240 the schedule shrinks or grows, and the run is a trial."""
    return Settings(epochs, LR, batch_size=BATCH_SIZE, workers=workers, seed=seed)


def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def schedule(optimizer: torch.optim.Optimizer, epochs: int, steps: int) -> LambdaLR:
    """The learning rate at each of the ``steps`` of an epoch."""
    return LambdaLR(optimizer, lambda step: 0.1 ** sum(step * EPOCHS >= drop * epochs * steps for drop in DROPS))


def terms(
    method: str, beta: float, student: CIFARClassifier, teacher: CIFARClassifier, samples: int, epochs: int = EPOCHS
) -> list[Term]:
    """What is compared, with the published weights.

    FitNets compares the second stage, AT and VID all stages, SP the last; PKT, RKD and CRD the pooled embedding. DKD
    warms up, step by step, over 20 of 240 epochs.

    Args:
        beta: DKD's.
        samples: training images, each of which CRD remembers.

    Raises:
        InputError: an unknown method, or "alone".
    """
    stages = [(f"stages.{index}", f"stages.{index}") for index in range(len(student.channels))]
    channels = list(zip(student.channels, teacher.channels, strict=True))
    match method:
        case "kd":
            return [Term("kd", KDLoss(4.0), LOGITS, LOGITS, 0.9)]
        case "dkd":
            weight = WarmUp(1.0, WARM_UP * epochs / EPOCHS)
            return [Term("dkd", DKDLoss(alpha=1.0, beta=beta, temperature=4.0), LOGITS, LOGITS, weight)]
        case "dist":
            return [Term("dist", DISTLoss(temperature=4.0), LOGITS, LOGITS)]
        case "fitnet":
            connector = ConvConnector(*channels[1], norm=True, activation=nn.ReLU())
            return [Term("hint", HintLoss(), *stages[1], 100.0, student_connector=connector)]
        case "at":
            return [Term(f"at{index}", ATLoss(), *both, 1000.0) for index, both in enumerate(stages)]
        case "vid":
            return [Term(f"vid{index}", VIDLoss(*channels[index]), *both) for index, both in enumerate(stages)]
        case "sp":
            return [Term("sp", SPLoss(), *stages[-1], 3000.0)]
        case "pkt":
            return [Term("pkt", PKTLoss(), EMBEDDING, EMBEDDING, 30000.0)]
        case "rkd":
            return [Term("rkd", RKDLoss(25.0, 50.0), EMBEDDING, EMBEDDING)]
        case "crd":
            return [Term("crd", CRDLoss(*channels[-1], samples), EMBEDDING, EMBEDDING, 0.8)]
        case _:
            raise InputError(unknown("method", method, METHODS[1:]))


def train_teacher(data: ImageSplits, name: str, settings: Settings, device: torch.device = CPU) -> nn.Module:
    """The teacher after its last epoch, trained as the students are, once: it is kept in kdlab's cache."""
    torch.manual_seed(settings.seed)
    objective = Supervised(cifar_network(name, len(data.classes)), LabelledCrossEntropy())
    recipe = _recipe(data, settings, network=name)
    out = cached(f"cifar100-{name}", recipe)
    _fit(objective, data, settings, out, recipe, device)
    return load_teacher(out, name, data)


def load_teacher(path: Path, name: str, data: ImageSplits) -> nn.Module:
    """A trained teacher; of a folder the last epoch, which no test image has chosen.

    Raises:
        InputError: no checkpoint of kdlab's, another network, other classes, other mean or std.
    """
    teacher, card = load_model(path / LAST if path.is_dir() else path)
    wanted = cifar_network(name, len(data.classes)).architecture
    if (card.architecture, card.classes) != (wanted, data.classes) or (card.mean, card.std) != (data.mean, data.std):
        raise InputError(
            f"the teacher in {path} is {card.architecture}, trained with mean {card.mean} and std {card.std}; wanted: "
            f"{name}, which is {wanted}, trained on CIFAR-100's classes with mean {data.mean} and std {data.std}. Name "
            "another checkpoint, or none, and the teacher is trained."
        )
    return teacher


def run(
    data: ImageSplits, pair: str, method: str, settings: Settings, teacher: nn.Module | None, *, out: Path,
    device: torch.device = CPU,
) -> Fit:  # fmt: skip
    """One student, trained, gone on with, or loaded where it is done in ``out``; "alone" takes no teacher.

    Raises:
        InputError: what :func:`check_names` refuses; a method without the teacher that it wants.
    """
    check_names(pair, [method])
    torch.manual_seed(settings.seed)
    student = cifar_network(PAIRS[pair].student, len(data.classes))
    what = {"network": PAIRS[pair].student, "method": method}
    objective: nn.Module = Supervised(student, LabelledCrossEntropy())
    if method != "alone":
        if not isinstance(teacher, CIFARClassifier):
            raise InputError(f"the method is {method} and the teacher {teacher}; wanted: a {PAIRS[pair].teacher}.")
        samples = len(data.train)  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out
        compared = terms(method, PAIRS[pair].beta, student, teacher, samples, settings.epochs)
        task_weight = 0.1 if method == "kd" else 1.0
        objective = Distiller(student, teacher, compared, task=LabelledCrossEntropy(), task_weight=task_weight)
        what["teacher"] = weights_hash(teacher)[:16]
    return _fit(objective, data, settings, out, _recipe(data, settings, **what), device)


def _recipe(data: ImageSplits, settings: Settings, **what: Any) -> dict[str, Any]:
    sgd = {"optimizer": "SGD", "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "drops": list(DROPS)}
    # However its images were loaded: a table that took days shall not be made again for that.
    return recipe_of(data, settings, task="cifar100", **sgd, **what) | {"workers": 0}


def _fit(
    objective: Any, data: ImageSplits, settings: Settings, out: Path, recipe: dict[str, Any], device: torch.device
) -> Fit:
    place(objective, device, settings.channels_last)
    indexed = any("index" in term.asks_for for term in getattr(objective, "terms", ()))
    train = Indexed(data.train) if indexed else data.train
    loader = DataLoader(train, settings.batch_size, shuffle=True, **loaded_by(settings.workers))
    sgd = optimizer(objective.parameters())
    architecture = objective.student.architecture
    return fit(
        objective, loader, epochs=settings.epochs, optimizer=sgd, scheduler=schedule(sgd, settings.epochs, len(loader)),
        evaluate=lambda model: evaluate(model, data.test, workers=settings.workers), seed=settings.seed,
        precision=settings.precision, compile=settings.compile, accumulate=settings.accumulate,
        out=out, card=ModelCard(architecture, data.classes, data.mean, data.std, data.size, recipe=recipe), resume=True,
    )  # fmt: skip


def row(pair: str, name: str, last: Sequence[float], best: Sequence[float]) -> dict[str, Any]:
    """A row of the table, of accuracies of 0 to 1 by seed: their mean in percent, half of its 95% interval, and theirs.

    Args:
        name: the method, or "teacher".
        last, best: of each run's last epoch; of its best one, which the test images have chosen.
    """
    ours: dict[str, float] = {}
    for epoch, accuracies in (("last", last), ("best", best)):
        percent = 100 * np.array(accuracies)
        ours |= {epoch: percent.mean(), f"{epoch}_interval": half_interval(percent)}
    theirs = PAIRS[pair].published.get(name, Published(float("nan"), "", ""))
    published = {"published": theirs.accuracy, "published_epoch": theirs.epoch, "source": theirs.source}
    return {"method": name, "seeds": len(last), **ours, **published}
