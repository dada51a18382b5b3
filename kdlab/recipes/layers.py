"""Which layer to distil: the same hint loss at one pair of layers after another, with the budget of the loss zoo.

The student's four blocks and its logits stand beside layers of DenseNet121 that have maps of the same size (images of
32x32), so that nothing but channels has to be connected.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from kdlab.data.splits import ImageSplits
from kdlab.distill import ConvConnector, Distiller, TeacherCache, Term
from kdlab.errors import InputError, unknown
from kdlab.losses import HintLoss, LabelledCrossEntropy
from kdlab.models import StudentCNN
from kdlab.recipes.few_labels import NARROW, HiddenLabels, StudentRun, labelled
from kdlab.recipes.response import LOGITS
from kdlab.training import Supervised

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
class LayerRun(StudentRun):
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
    name = "layers"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("alone", *PAIRS):
            raise InputError(unknown("pair of layers", self.method, ("alone", *PAIRS)))

    def student(self, classes: int) -> nn.Module:
        return StudentCNN(classes, NARROW)

    def objective(
        self, student: nn.Module, data: ImageSplits, teacher: nn.Module, cache: TeacherCache
    ) -> tuple[nn.Module, Dataset]:
        kept, task = labelled(data, self.labels, self.seed), LabelledCrossEntropy()
        if self.method == "alone":
            return Supervised(student, task), Subset(data.train, kept)
        layer = PAIRS[self.method][1]
        distiller = Distiller(student, teacher, [self._term(cache.outputs[layer])], task=task)
        return distiller, HiddenLabels(cache.only([layer]).attach(data.train), kept)

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
