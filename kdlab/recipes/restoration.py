"""Two-stage restoration: three teachers, each of one weather, and one student for all.

In the first stage, knowledge collation, the student learns from the teachers: their restored images, their features in
a common space (CKT), and to leave the degraded image behind (SCR). In the second, knowledge examination, the teachers
are silent and it learns from clean images (L1 and HCR). One distiller, whose weights switch from stage to stage, and
one optimiser go through both.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from kdlab.data.pairs import PairedImages, StratifiedBatches
from kdlab.data.splits import ImageSplits
from kdlab.distill import Distiller, From, Projector, Tap, Teacher, Term, Until, weights_hash
from kdlab.distill.schedules import Schedule, check_weight
from kdlab.errors import InputError, unknown
from kdlab.losses import inputs
from kdlab.losses.restoration import CKTLoss, HCRLoss, Negatives, SCRLoss
from kdlab.models import MSBDN
from kdlab.recipes.restorer import (
    TRUTH,
    PixelLoss,
    RestorerSettings,
    ToClean,
    ToTeacher,
    card_of,
    clean_images,
    fit_restorer,
    pairs,
)
from kdlab.recipes.settings import CPU, AfterEpoch
from kdlab.training import Fit, Supervised

OUTPUT_AND_INPUT = [Tap(""), Tap("", "input")]
Positive = Literal["teacher", "target"]
Weigh = Callable[[float], float | Until]


@dataclass(frozen=True)
class RestorationSettings(RestorerSettings):
    """How long and how fast to train; the defaults are the published ones.

    Args:
        lr: Adam's, for a batch of 16; it grows in proportion to the batch, rises over the first epochs and falls along
            half a cosine (:func:`learning_rate`).
        batch_size: a multiple of the number of weathers; the published 32 is none.
        warm_up: epochs of the rise, the last of which has the whole rate: 1 is none.
        max_norm: as :class:`kdlab.recipes.restorer.RestorerSettings` has it.
    """

    epochs: int = 250
    lr: float = 2e-4
    batch_size: int = 33
    warm_up: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.warm_up < self.epochs:
            raise InputError(f"warm_up is {self.warm_up}; wanted: from 0 to less than the {self.epochs} epochs.")

    def base(self, batch_size: int) -> float:
        return self.lr * batch_size / 16

    def rate(self, epoch: int, base: float) -> float:
        return learning_rate(epoch, self.epochs, base, self.warm_up)


@dataclass(frozen=True)
class TwoStage:
    """What the student learns in its two stages; the defaults are the published ones.

    Args:
        collation: the first stage's share of the epochs; 1 leaves the second stage out, 0 the first one.
        image: the weight of the distance to the teachers' restored images.
        ckt, reconstruction: the weights of the distance in the common space (PFE) and of the way back from it (PFV).
        scr, hcr: the weights of the contrast in the first stage and in the second; 0 leaves it out, as with ckt.
        detach: whether the teachers' projections learn from PFV alone, see :class:`kdlab.losses.CKTLoss`.
        positive: what SCR brings the restored image near to: the "teacher"'s, as the paper draws it, or the clean
            "target", as the released code does.
        negatives: of SCR.
        eps: of SCR and HCR.
        pixel: the distance to the teachers' and to the clean images. "mse" also learns what covers few pixels, and
            would be left standing by "l1": for the sum of absolute errors, to do nothing is then a local best.

    Raises:
        InputError: a weight below 0; an eps not above 0; a share outside 0 to 1; a first stage whose weights are all 0;
            an unknown positive or pixel.
    """

    collation: float = 0.5
    image: float = 1.0
    ckt: float = 1.0
    reconstruction: float = 0.05
    scr: float = 0.1
    hcr: float = 0.2
    detach: bool = False
    positive: Positive = "teacher"
    negatives: Negatives = "paired"
    eps: float = 1e-7
    pixel: PixelLoss = "l1"

    def __post_init__(self) -> None:
        ToClean(self.pixel)
        for name in ("image", "ckt", "reconstruction", "scr", "hcr"):
            check_weight(name, getattr(self, name))
        inputs.positive(eps=self.eps)
        if not 0 <= self.collation <= 1:
            raise InputError(f"collation is {self.collation}; wanted: the first stage's share of the epochs, 0 to 1.")
        if self.collation and not (self.image or self.ckt or self.scr):
            raise InputError(
                "image, ckt and scr are all 0: the first stage would have nothing to learn from. Give one of them a "
                "weight, or leave the stage out with collation=0."
            )
        if self.positive not in get_args(Positive):
            raise InputError(unknown("positive", str(self.positive), get_args(Positive)))

    def switch(self, epochs: int) -> int:
        """The first epoch of the second stage, counted from 0."""
        return round(self.collation * epochs)

    def objective(
        self,
        student: MSBDN,
        teachers: Mapping[str, MSBDN],
        features: nn.Module,
        weathers: Sequence[str],
        epochs: int,
    ) -> Distiller | Supervised:
        """The student and its teachers, joined.

        Args:
            teachers: by the name of their weather; one for each, unless there is no first stage.
            features: what SCR and HCR compare images by, such as :class:`kdlab.models.VGGSlices`; one for both.
            weathers: in the order of their numbers in the labels.

        Raises:
            InputError: a weather without a teacher, or called as the clean images are here, "truth"; teachers of
                different widths.
        """
        taken = {TRUTH, *map(_truth_of, weathers)} & set(weathers)
        if taken:
            raise InputError(
                f"a weather is called {min(taken)!r}, as the clean images are among the teachers; wanted: another "
                "name. Rename its folder."
            )
        missing = [weather for weather in weathers if weather not in teachers]
        switch = self.switch(epochs)
        if switch and missing:
            raise InputError(
                f"there is no teacher for {' and '.join(missing)}; the data has {', '.join(weathers)} and there are "
                f"teachers for {', '.join(teachers) or 'none'}. Train it, or leave that weather out of the data."
            )
        widths = {name: teachers[name].width for name in weathers} if switch else {}
        if len(set(widths.values())) > 1:
            raise InputError(
                f"the teachers' widths are {widths}; wanted: one width, since they meet the student in one space."
            )
        terms: list[Term] = []
        if switch:

            def first(weight: float) -> float | Until:
                return Until(weight, switch) if switch < epochs else weight

            terms += self._collation(student, {name: teachers[name] for name in weathers}, features, first)
        if switch < epochs and self.hcr:
            weight = From(self.hcr, switch) if switch else self.hcr
            terms.append(Term("hcr", HCRLoss(features, eps=self.eps), OUTPUT_AND_INPUT, "", weight, of=TRUTH))
        if not terms:
            return Supervised(student, ToClean(self.pixel))
        sides = {TRUTH: Teacher(nn.Identity(), sees=clean_images)}
        task_weight: float | Schedule = 1.0
        if switch:
            parts = {name: partial(_of_weather, number) for number, name in enumerate(weathers)}
            sides |= {name: Teacher(teachers[name], part=part) for name, part in parts.items()}
            sides |= {_truth_of(name): Teacher(nn.Identity(), clean_images, part) for name, part in parts.items()}
            task_weight = From(1.0, switch) if switch < epochs else 0.0
        return Distiller(student, sides, terms, ToClean(self.pixel), task_weight)

    def _collation(
        self, student: MSBDN, teachers: Mapping[str, MSBDN], features: nn.Module, first: Weigh
    ) -> Iterator[Term]:
        """The first stage's terms. That of one weather is the mean over its part of the batch, hence the division."""
        share = 1 / len(teachers)
        common = [channels // 2 for channels in next(iter(teachers.values())).tap_channels]
        space = [Projector(mine, its) for mine, its in zip(student.tap_channels, common, strict=True)]
        for weather, teacher in teachers.items():
            name = _identifier(weather)
            if self.image:
                yield Term(f"image_{name}", ToTeacher(self.pixel), "", "", first(share * self.image), of=weather)
            for tap, channels, mine in zip(MSBDN.TAPS, teacher.tap_channels, space, strict=True):
                if self.ckt:
                    yield Term(
                        f"ckt_{name}_{tap.replace('.', '_')}", CKTLoss(self.detach), tap, tap, first(share * self.ckt),
                        student_connector=mine, teacher_connector=Projector(channels, channels // 2),
                        reconstruction=Projector(channels // 2, channels),
                        reconstruction_weight=share * self.reconstruction, of=weather,
                    )  # fmt: skip
        if not self.scr:
            return
        # An image's own input is its negative in whatever batch; a weather's inputs are so in its own part alone.
        if self.negatives == "paired":
            whom: dict[str, str | list[str]] = {"scr": list(teachers) if self.positive == "teacher" else TRUTH}
        else:
            whom = {
                f"scr_{_identifier(weather)}": weather if self.positive == "teacher" else _truth_of(weather)
                for weather in teachers
            }
        for name, of in whom.items():
            scr = SCRLoss(features, negatives=self.negatives, eps=self.eps)
            yield Term(name, scr, OUTPUT_AND_INPUT, "", first(self.scr / len(whom)), of=of)


# What the names of the two stages' losses begin and end with.
PARTS = {
    "image": "image_.+", "PFE": "ckt_.+(?<!_reconstruction)", "PFV": "ckt_.+_reconstruction", "SCR": "scr(_.+)?",
    "task": "task", "HCR": "hcr",
}  # fmt: skip


def losses_by_part(losses: Mapping[str, Any]) -> dict[str, float]:
    """A step's losses under :class:`TwoStage`, or an epoch's means of them, by what they are about; unweighted.

    "image", "PFE", "PFV", "SCR", "task" and "HCR", each where there is one: the mean over the weathers, PFE and PFV
    summed over the taps.
    """
    parts = {}
    for part, names in PARTS.items():
        if of_it := [float(value) for name, value in losses.items() if re.fullmatch(names, name)]:
            taps = len(MSBDN.TAPS) if part in ("PFE", "PFV") else 1
            parts[part] = taps * math.fsum(of_it) / len(of_it)
    return parts


def learning_rate(epoch: int, epochs: int, base: float, warm_up: int = 3, end: float = 1e-6) -> float:
    """The rate of an epoch, counted from 1: up to ``base`` in equal steps, then down to ``end`` along half a cosine."""
    if epoch <= warm_up:
        return base * epoch / warm_up
    way = (epoch - warm_up - 1) / (epochs - warm_up)
    return end + (base - end) * (1 + math.cos(math.pi * way)) / 2


def teach(
    data: ImageSplits,
    weathers: Sequence[str],
    settings: RestorationSettings,
    *,
    out: Path,
    pixel: PixelLoss = "l1",
    architecture: dict[str, Any] | None = None,
    resume: bool = False,
    device: torch.device = CPU,
) -> Fit:
    """Train an MSBDN on clean images: a teacher of one weather, or of several the student without teachers.

    Its loss is the ``pixel`` distance, as :class:`TwoStage` has it. Its best checkpoint, by the PSNR on the validation
    images, is in ``out``; the weathers are its card's classes.

    Raises:
        InputError: the data lacks the weather.
    """
    torch.manual_seed(settings.seed)
    train, val = pairs(data.train).only(weathers), pairs(data.val).only(weathers)
    student = MSBDN(**architecture or {})
    return fit_restorer(
        Supervised(student, ToClean(pixel)), StratifiedBatches(train, settings.batch_size), train, val, settings,
        out=out, card=card_of(student, data, settings, weathers, task="teach", pixel=pixel), resume=resume,
        device=device,
    )  # fmt: skip


def distill(
    data: ImageSplits,
    teachers: Mapping[str, MSBDN],
    plan: TwoStage,
    features: nn.Module,
    settings: RestorationSettings,
    *,
    out: Path | None = None,
    architecture: dict[str, Any] | None = None,
    paired: Sequence[int] | None = None,
    resume: bool = False,
    device: torch.device = CPU,
    after_epoch: AfterEpoch | None = None,
) -> tuple[nn.Module, Fit]:
    """Train the student in two stages. It ends with its last weights; the best, by PSNR, are in ``out``.

    Patience counts in the second stage, where there is one, and does not end the run before.

    Args:
        teachers: by weather.
        features: see :meth:`TwoStage.objective`; ``weights_used`` says in words where its weights are from.
        paired: the training images whose clean image may be used, for the second stage; None: all.

    Raises:
        InputError: whatever :meth:`TwoStage.objective` and :class:`kdlab.data.StratifiedBatches` refuse.
    """
    torch.manual_seed(settings.seed)
    student, train = MSBDN(**architecture or {}), pairs(data.train)
    objective = plan.objective(student, teachers, features, data.classes, settings.epochs)
    known = {name: weights_hash(teacher)[:16] for name, teacher in teachers.items() if name in data.classes}
    card = card_of(
        student, data, settings, data.classes, task="distill", teachers=known if plan.collation else {},
        features=getattr(features, "weights_used", type(features).__name__), paired=paired and list(paired),
        **asdict(plan),
    )  # fmt: skip
    switch = plan.switch(settings.epochs)
    batches = StageBatches(train, settings.batch_size, paired, switch)
    done = fit_restorer(
        objective, batches, train, pairs(data.val), settings, out=out, card=card, resume=resume, device=device,
        patience_from=switch if switch < settings.epochs else 0, after_epoch=after_epoch,
    )  # fmt: skip
    return student, done


class StageBatches(Sampler[list[int]]):
    """Stratified batches of all images up to the second stage, then of those alone that have a clean image."""

    def __init__(self, train: PairedImages, batch_size: int, paired: Sequence[int] | None, switch: int) -> None:
        self.first = StratifiedBatches(train, batch_size)
        self.second = StratifiedBatches(train, batch_size, paired, batches=len(self.first))
        self.each = self.first.each
        self.switch = switch
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.now = self.first if epoch < self.switch else self.second

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.now)


def _truth_of(weather: str) -> str:
    return f"{TRUTH} of {weather}"


def _identifier(weather: str) -> str:
    return re.sub(r"\W", "_", weather)  # a folder's name may hold a dot


def _of_weather(number: int, images: Any, labels: Sequence[Tensor]) -> Tensor:
    return labels[1] == number
