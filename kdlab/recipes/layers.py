"""Which layer to distil: the same hint loss at one pair of layers after another, with the budget of the loss zoo.

The student's four blocks and its logits stand beside layers of DenseNet121 that have maps of the same size (images of
32x32), so that nothing but channels has to be connected.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from kdlab.data.splits import ImageSplits
from kdlab.distill import ConvConnector, Distiller, TeacherCache, Term
from kdlab.errors import InputError, unknown
from kdlab.losses import HintLoss, LabelledCrossEntropy
from kdlab.models import StudentCNN
from kdlab.recipes.response import LOGITS, NARROW, AfterEpoch, HiddenLabels, fit_few, labelled, place
from kdlab.training import Fit, Supervised

# Each pair by the name of the teacher's layer: student, teacher.
PAIRS = {
    "relu0": ("features.0", "features.relu0"),
    "denseblock1": ("features.1", "features.denseblock1"),
    "transition1": ("features.2", "features.transition1"),
    "denseblock2": ("features.2", "features.denseblock2"),
    "norm5": ("features.3", "features.norm5"),
    "logits": (LOGITS, LOGITS),
}
LAYER_TAPS = tuple(teacher for _, teacher in PAIRS.values())
WEIGHT = 10.0  # what the grid of weights is spread around


@dataclass(frozen=True)
class LayerRun:
    """One run: cross-entropy on the labelled images, plus the hint loss at one pair of layers on all of them.

    Args:
        method: a name of :data:`PAIRS`, or "alone".
        weight: of the hint loss in units of the variance of the teacher's layer, so that it means the same at each:
            1 where the student's map explains nothing that varies.
        seed: draws the labelled images, the student's start and the order of the batches.
        labels, steps, batch_size, lr: the budget, the same for every pair.

    Raises:
        InputError: an unknown pair.
    """

    method: str
    weight: float
    seed: int
    labels: int = 100
    steps: int = 400
    batch_size: int = 64
    lr: float = 3e-3

    def __post_init__(self) -> None:
        if self.method not in ("alone", *PAIRS):
            raise InputError(unknown("pair of layers", self.method, ("alone", *PAIRS)))

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
            cache: the teacher's outputs for the training images, at the layer of this pair at least.
            keep: save the run in kdlab's cache, and load it from there where it is already.
        """
        kept = labelled(data, self.labels, self.seed)
        torch.manual_seed(self.seed)
        student, task = StudentCNN(len(data.classes), NARROW), LabelledCrossEntropy()
        objective: Supervised | Distiller
        train: Dataset
        if self.method == "alone":
            objective, train = Supervised(student, task), Subset(data.train, kept)
        else:
            layer = PAIRS[self.method][1]
            maps = cache.outputs[layer]
            objective = Distiller(student, teacher, [self._term(maps)], task=task)
            train = HiddenLabels(TeacherCache({layer: maps}, cache.fingerprint).attach(data.train), kept)
        place(objective, next(teacher.parameters()).device)
        recipe = {**asdict(self), "data": data.name, "teacher": cache.fingerprint[:16]}
        done = fit_few(
            objective, train, data, steps=self.steps, batch_size=self.batch_size, lr=self.lr, seed=self.seed,
            recipe=recipe, keep="layers" if keep else None, after_epoch=after_epoch,
        )  # fmt: skip
        return student, done

    def _term(self, maps: Tensor) -> Term:
        layers = PAIRS[self.method]
        connector = None
        if maps.ndim == 4:
            width = NARROW[int(layers[0].removeprefix("features."))]
            connector = ConvConnector(width, maps.shape[1], norm=True)
        return Term("hint", HintLoss(), *layers, self.weight / spread(maps), student_connector=connector)


def spread(maps: Tensor) -> float:
    """The mean variance of a channel: the hint loss of the best guess that does not look at the image."""
    return maps.transpose(0, 1).flatten(1).var(dim=1).mean().item()
