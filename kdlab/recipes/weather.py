"""The experiment behind chapters 07 to 09: narrow teachers and a narrow student on photographs in bad weather."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdlab.data.photos import SPLITS
from kdlab.data.splits import ImageSplits
from kdlab.data.weather import WEATHERS
from kdlab.data.weather_photos import check_photographs, load_weather, photograph_indices
from kdlab.distill import weights_hash
from kdlab.errors import InputError, unknown
from kdlab.models import MSBDN
from kdlab.recipes.perceptual import FeatureWeights, feature_slices
from kdlab.recipes.restoration import RestorationSettings, TwoStage, distill, teach
from kdlab.recipes.restorer import PixelLoss, pairs
from kdlab.recipes.settings import CPU, AfterEpoch, cached, recipe_of
from kdlab.recipes.zoo import course_model
from kdlab.training import Fit, ModelCard
from kdlab.training.checkpoints import LAST

# The network of the fast profile: 1.8 million parameters. One so narrow needs the images added to its output.
NARROW: dict[str, Any] = {"width": 4, "residual": True}
TEACHER = RestorationSettings(epochs=30, lr=4e-3, batch_size=4, warm_up=2)  # 1e-3 for a batch of 4
TEACHER_CROP = 96
# Flakes cover few pixels: for absolute errors, to leave them standing is a local best.
TEACHER_PIXEL: dict[str, PixelLoss] = {"haze": "l1", "rain": "l1", "snow": "mse"}
WARM_UP = 2  # of the students' few epochs
LONG = 72  # epochs of the students that come with the course

# A common space that is learnt from the way back alone: with the published settings it collapses at these rates.
# A mild eps: a network that starts near the identity has hardly a distance to its input.
TWO_STAGE = TwoStage(detach=True, reconstruction=1.0, eps=1e-2)
METHODS = {
    "from scratch": TwoStage(collation=0.0, hcr=0.0),
    "from scratch, longer": TwoStage(collation=0.0, hcr=0.0),  # for runs of as many seconds as two stages take
    "from scratch, half the rate": TwoStage(collation=0.0, hcr=0.0),  # the rate was chosen for short runs
    "from scratch, squared error": TwoStage(collation=0.0, hcr=0.0, pixel="mse"),  # as the teacher of snow had it
    "from scratch + HCR": replace(TWO_STAGE, collation=0.0),
    "one stage": replace(TWO_STAGE, collation=1.0),
    "two stages": TWO_STAGE,
    "without CKT": replace(TWO_STAGE, ckt=0.0),
    "without SCR": replace(TWO_STAGE, scr=0.0),
    "without HCR": replace(TWO_STAGE, hcr=0.0),
    "without HCR, half the rate": replace(TWO_STAGE, hcr=0.0),
}


def weather_teacher(weather: str, device: torch.device = CPU) -> tuple[MSBDN, ModelCard]:
    """The narrow teacher of one weather: the one that comes with the course, else trained here and kept, 7 minutes."""

    def train() -> Path:
        data, pixel = load_weather(TEACHER_CROP), TEACHER_PIXEL[weather]
        what = NARROW | {"task": "teach", "weather": weather, "pixel": pixel}
        out = cached(f"{weather}-teacher", recipe_of(data, TEACHER, **what))
        teach(data, [weather], TEACHER, out=out, pixel=pixel, architecture=NARROW, resume=True, device=device)
        return out

    return course_model(f"{weather}_teacher", train, MSBDN, device)


def weather_student(method: str, device: torch.device = CPU) -> tuple[MSBDN, ModelCard]:
    """The narrow student after a long run: the one that comes with the course, else trained here and kept, an hour.

    Args:
        method: "two stages" or "from scratch".
    """

    def train() -> Path:
        run = WeatherRun(method, seed=0, epochs=LONG)
        data, teachers = load_weather(), weather_teachers(device)
        run.run(data, teachers, feature_slices(run.features).to(device), keep=True)
        return run.folder(data, teachers) / LAST

    return course_model(f"weather_{method.replace(' ', '_')}", train, MSBDN, device)


def weather_teachers(device: torch.device = CPU) -> dict[str, MSBDN]:
    """All three, by weather."""
    return {weather: weather_teacher(weather, device)[0] for weather in WEATHERS}


@dataclass(frozen=True)
class WeatherRun:
    """One run of the comparison: a student of all three weathers, one method, and the budget that all methods share.

    Args:
        method: a name of :data:`METHODS`.
        seed: of the student's start and of what it sees.
        photographs: how many training photographs have clean images, in the order of the seed; the student sees the
            others in the first stage alone. The teachers knew all of them.
        width: of the student; the teachers have 4.
        epochs, batch_size, lr: the budget; lr is for a batch of 16.
        max_norm: of the gradient. A network without normalisation meets one now and then that is a hundred times
            larger than usual, and at these rates does not recover from it.
        features: what SCR and HCR compare images by, as :func:`feature_slices` takes it.

    Raises:
        InputError: an unknown method; photographs out of range.
    """

    method: str
    seed: int
    photographs: int = 8
    width: int = 4
    epochs: int = 8
    batch_size: int = 6
    lr: float = 5.34e-3
    max_norm: float = 0.5
    features: FeatureWeights = "scenes"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(unknown("method", self.method, METHODS))
        check_photographs(self.photographs)

    @property
    def plan(self) -> TwoStage:
        """What the student learns."""
        return METHODS[self.method]

    def run(
        self,
        data: ImageSplits,
        teachers: Mapping[str, MSBDN],
        features: nn.Module,
        *,
        keep: bool = False,
        after_epoch: AfterEpoch | None = None,
    ) -> tuple[nn.Module, Fit]:
        """The student after the last step, on the teachers' device, and how it got there.

        Args:
            data: :func:`load_weather`'s.
            features: those of the name.
            keep: save the run in kdlab's cache, and load it from there where it is already.
        """
        settings = RestorationSettings(
            epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, seed=self.seed, max_norm=self.max_norm,
            warm_up=min(WARM_UP, self.epochs - 1),
        )  # fmt: skip
        student, done = distill(
            data, teachers, self.plan, features, settings, resume=True,
            out=self.folder(data, teachers) if keep else None,
            architecture=NARROW | {"width": self.width}, paired=self._paired(data), after_epoch=after_epoch,
            device=next(next(iter(teachers.values())).parameters()).device,
        )  # fmt: skip
        return student, done

    def folder(self, data: ImageSplits, teachers: Mapping[str, MSBDN]) -> Path:
        """Where a run that is kept is."""
        known = {name: weights_hash(teacher)[:16] for name, teacher in teachers.items()}
        taught = known if self.plan.collation else {}
        what = asdict(self) | asdict(self.plan)
        return cached("weather", what | {"data": data.name, "crop": data.size, "teachers": taught})

    def _paired(self, data: ImageSplits) -> list[int] | None:
        """The pairs of the photographs that have clean images."""
        if self.photographs == len(SPLITS["train"]):
            return None
        return photograph_indices(pairs(data.train), self.photographs, self.seed)
