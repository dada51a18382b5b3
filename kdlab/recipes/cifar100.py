"""The published CIFAR-100 comparison: every method on the same pairs of networks, by the same schedule.

Both networks train on all 50,000 images for 240 epochs: SGD with momentum 0.9, weight decay 5e-4, batches of 64, a
learning rate of 0.05 that falls to a tenth after the epochs 150, 180 and 210. Three methods have a first phase of 30
epochs before that: AB and FSP initialise the student's stages by their loss alone, and the labels alone are then what
it learns from; FT trains its paraphraser. The published tables differ in one thing: some report the test accuracy of
the last epoch, others that of the best epoch, which the test images have chosen. Here it is both, side by side.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from kdlab import processes
from kdlab.data.splits import ImageSplits
from kdlab.distill import (
    ConvConnector,
    Distiller,
    Indexed,
    Paraphraser,
    Tap,
    Term,
    Translator,
    WarmUp,
    weights_hash,
)
from kdlab.errors import InputError, unknown
from kdlab.loading import loaded_by
from kdlab.losses import (
    ABLoss,
    ATLoss,
    CRDLoss,
    DISTLoss,
    DKDLoss,
    FSPLoss,
    FTLoss,
    HintLoss,
    KDLoss,
    LabelledCrossEntropy,
    PKTLoss,
    RKDLoss,
    SPLoss,
    VIDLoss,
)
from kdlab.models import CIFARVGG, CIFARResNet, WideResNet, cifar_network
from kdlab.models.cifar import CIFARClassifier
from kdlab.modes import evaluating
from kdlab.recipes.cifar100_table import PAIRS, Published
from kdlab.recipes.loss_zoo import EMBEDDING
from kdlab.recipes.response import LOGITS, evaluate
from kdlab.recipes.settings import CPU, Settings, cached, place, recipe_of
from kdlab.training import Fit, ModelCard, Supervised, fit, half_interval, load_model
from kdlab.training.checkpoints import LAST
from kdlab.training.device import to_device

EPOCHS, BATCH_SIZE, LR, MOMENTUM, WEIGHT_DECAY = 240, 64, 0.05, 0.9, 5e-4
DROPS = (150, 180, 210)  # the epochs after which the learning rate falls to a tenth
WARM_UP = 20  # epochs
INIT_EPOCHS, INIT_LR, FT_INIT_LR = 30, 0.05, 0.01  # of a first phase; FT's rate where the student is no VGG
METHODS = ("alone", "kd", "dkd", "dist", "fitnet", "at", "ab", "ft", "vid", "fsp", "sp", "pkt", "rkd", "crd")
INITIALISED = ("ab", "fsp")  # by the loss alone, before the labels alone
OF_A_BATCH = ("dist", "sp", "pkt", "rkd")  # these compare the images of a batch with one another
NO_ROW = "no published row of these pairs is known here"
NOT_HERE = {  # losses of the library
    "byot": "it has no trained teacher",
    "cwd": NO_ROW,
    "dml": "it has no trained teacher",
    "mgd": NO_ROW,
    "ofd": NO_ROW,
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


def first_phase(method: str, student: CIFARClassifier, settings: Settings) -> Settings:
    """What AB, FSP and FT begin with, at a constant learning rate: 30 epochs before 240, others in proportion."""
    epochs = max(1, round(INIT_EPOCHS * settings.epochs / EPOCHS))
    slower = method == "ft" and not isinstance(student, CIFARVGG)
    return replace(settings, epochs=epochs, lr=FT_INIT_LR if slower else INIT_LR)


def optimizer(parameters: Iterable[nn.Parameter], lr: float = LR) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def schedule(optimizer: torch.optim.Optimizer, epochs: int, steps: int) -> LambdaLR:
    """The learning rate at each of the ``steps`` of an epoch."""
    return LambdaLR(optimizer, lambda step: 0.1 ** sum(step * EPOCHS >= drop * epochs * steps for drop in DROPS))


def terms(
    method: str, beta: float, student: CIFARClassifier, teacher: CIFARClassifier, samples: int, epochs: int = EPOCHS
) -> list[Term]:
    """What is compared, with the published weights.

    FitNets compares the second stage, AT and VID all stages, AB all before the ReLU, SP and FT the last; FSP the stem
    and all stages, each with the next; PKT, RKD and CRD the pooled embedding. DKD warms up, step by step, over 20 of
    240 epochs. The terms of AB and FSP are those of their first phase; FT's paraphraser is yet to be trained in its.

    Args:
        beta: DKD's.
        samples: training images, each of which CRD remembers.

    Raises:
        InputError: an unknown method, or "alone"; FSP between networks of other channels.
    """
    stages = list(zip(stage_maps(student), stage_maps(teacher), strict=True))
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
        case "ab":
            both = zip(channels, before_relu(student), before_relu(teacher), strict=True)
            return [
                # As published: where the maps meet, nothing is learnt on top.
                Term(
                    f"ab{index}", ABLoss(), mine, its, 2.0 ** (index + 1 - len(stages)),
                    student_connector=None if own == theirs else ConvConnector(own, theirs, norm=True),
                )
                for index, ((own, theirs), mine, its) in enumerate(both)
            ]  # fmt: skip
        case "ft":
            # As published: without BatchNorm, which the translator has.
            paraphraser = Paraphraser(teacher.channels[-1], norm=False).requires_grad_(False)
            translator = Translator(student.channels[-1], paraphraser.factors)
            both_sides: dict[str, Any] = {"student_connector": translator, "teacher_connector": paraphraser}
            return [Term("ft", FTLoss(), *stages[-1], 200.0, **both_sides)]
        case "fsp":
            if (own := _all_channels(student)) != (theirs := _all_channels(teacher)):
                raise InputError(
                    f"fsp compares channel with channel, and the stem and stages of the student have {own}, those of "
                    f"the teacher {theirs}; wanted: the same. Take another pair, or another method."
                )
            pairs = pairwise([("stem", "stem"), *stages])
            return [
                Term(f"fsp{index}", FSPLoss(), (first[0], second[0]), (first[1], second[1]))
                for index, (first, second) in enumerate(pairs)
            ]
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


def stage_maps(network: CIFARClassifier) -> list[str]:
    """Where each stage's map is read, as published: of a wide ResNet all are sums, the last before its BatchNorm."""
    names = [f"stages.{index}" for index in range(len(network.stages))]
    if isinstance(network, WideResNet):
        names[-1] += f".{len(network.stages[-1]) - 3}"  # type: ignore[arg-type]  # it is a Sequential
    return names


def before_relu(network: CIFARClassifier) -> list[Tap]:
    """Where each stage's map is read before the ReLU that makes it what later layers see."""
    last = len(network.stages) - 1
    match network:
        case CIFARResNet():
            blocks = [len(stage) for stage in network.stages]  # type: ignore[arg-type]  # each is a Sequential
            return [Tap(f"stages.{index}.{count - 1}.relu", "input", call=1) for index, count in enumerate(blocks)]
        case WideResNet():  # a stage ends with a sum, which the next one normalises and activates
            return [*(Tap(f"stages.{index}.0.norm1") for index in range(1, last + 1)), _second_last(network, last)]
        case _:
            return [_second_last(network, index) for index in range(last + 1)]


def _second_last(network: CIFARClassifier, stage: int) -> Tap:
    """A stage's layer before the ReLU that it ends with."""
    return Tap(f"stages.{stage}.{len(network.stages[stage]) - 2}")  # type: ignore[arg-type]  # it is a Sequential


def _all_channels(network: CIFARClassifier) -> tuple[int, ...]:
    """Of the stem's map, and of the stages'."""
    stem = next(layer for layer in network.stem.modules() if isinstance(layer, nn.Conv2d))
    return (stem.out_channels, *network.channels)


class Paraphrasing(nn.Module):
    """FT's first phase, in the form that the loop takes: its paraphraser learns to give back the teacher's maps.

    Args:
        distiller: of FT's term, on the device; its paraphraser learns from here on, until it is frozen again.
    """

    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        (paraphraser,) = distiller.teacher_connectors.requires_grad_(True).values()
        assert isinstance(paraphraser, Paraphraser)
        self.student = nn.Sequential(paraphraser.encoder, paraphraser.decoder)
        self.loss = HintLoss()
        self._observe = distiller.observe_teacher

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        (maps,) = self._observe(images).values()
        loss = self.loss(self.student(maps), maps)
        return {"reconstruction": loss, "total": loss}


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
    device: torch.device = CPU, tell: Callable[[str], object] = lambda phase: None,
) -> Fit:  # fmt: skip
    """One student, trained, gone on with, or loaded where it is done in ``out``; "alone" takes no teacher.

    A first phase is kept in ``out / "first-phase"``, in the same way. The run is that of the phase after it.

    Args:
        tell: is told in words which of two phases begins.

    Raises:
        InputError: what :func:`check_names` refuses; a method without the teacher that it wants.
    """
    check_names(pair, [method])
    torch.manual_seed(settings.seed)
    student = cifar_network(PAIRS[pair].student, len(data.classes))
    what: dict[str, Any] = {"network": PAIRS[pair].student, "method": method}
    objective: nn.Module = Supervised(student, LabelledCrossEntropy())
    if method != "alone":
        if not isinstance(teacher, CIFARClassifier):
            raise InputError(f"the method is {method} and the teacher {teacher}; wanted: a {PAIRS[pair].teacher}.")
        samples = len(data.train)  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out
        compared = terms(method, PAIRS[pair].beta, student, teacher, samples, settings.epochs)
        task_weight = 0.1 if method == "kd" else 0.0 if method in INITIALISED else 1.0
        distiller = Distiller(student, teacher, compared, task=LabelledCrossEntropy(), task_weight=task_weight)
        what["teacher"] = weights_hash(teacher)[:16]
        if method in (*INITIALISED, "ft"):
            first = first_phase(method, student, settings)
            tell(f"first phase, {first.epochs} epochs")
            place(distiller, device, settings.channels_last)
            initial = distiller if method in INITIALISED else Paraphrasing(distiller)
            recipe = _recipe(data, first, **what, phase="first", drops=[])
            _fit(initial, data, first, out / "first-phase", recipe, device, is_first=True)
            distiller.teacher_connectors.requires_grad_(False)  # FT's paraphraser
            what["first_phase"] = {"epochs": first.epochs, "lr": first.lr}
            tell(f"second phase, {settings.epochs} epochs")
        if method not in INITIALISED:
            objective = distiller
    return _fit(objective, data, settings, out, _recipe(data, settings, **what), device)


def _recipe(data: ImageSplits, settings: Settings, **what: Any) -> dict[str, Any]:
    sgd = {"optimizer": "SGD", "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "drops": list(DROPS)}
    # However its images were loaded: a table that took days shall not be made again for that.
    return recipe_of(data, settings, task="cifar100", **sgd | what) | {"workers": 0}


def _fit(
    objective: Any, data: ImageSplits, settings: Settings, out: Path, recipe: dict[str, Any], device: torch.device,
    is_first: bool = False,
) -> Fit:  # fmt: skip
    place(objective, device, settings.channels_last)
    indexed = any("index" in term.asks_for for term in getattr(objective, "terms", ()))
    train = Indexed(data.train) if indexed else data.train
    loader = DataLoader(train, settings.batch_size, shuffle=True, **loaded_by(settings.workers))
    sgd = optimizer(objective.parameters(), settings.lr)
    how: dict[str, Any]
    if is_first:  # at a constant rate, and no classifier learns
        how = {"evaluate": lambda _: _own_loss(objective, data.test, settings), "monitor": "loss"}
    else:
        how = {
            "evaluate": lambda model: evaluate(model, data.test, workers=settings.workers),
            "scheduler": schedule(sgd, settings.epochs, len(loader)),
        }
    student = objective.student
    architecture = getattr(student, "architecture", {"name": type(student).__name__})  # a paraphraser has none
    return fit(
        objective, loader, epochs=settings.epochs, optimizer=sgd, seed=settings.seed, **how,
        precision=settings.precision, compile=settings.compile, accumulate=settings.accumulate,
        out=out, card=ModelCard(architecture, data.classes, data.mean, data.std, data.size, recipe=recipe), resume=True,
    )  # fmt: skip


def _own_loss(objective: nn.Module, images: Dataset, settings: Settings) -> dict[str, float]:
    """The mean of what the objective learns by, over the batches of other images."""
    loader = DataLoader(processes.own_share(images), settings.batch_size, **loaded_by(settings.workers))
    with evaluating(objective) as device:
        losses = [objective(*to_device(batch, device))["total"] for batch in loader]
    return {"loss": processes.mean(torch.stack(losses).mean()).item()}


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
