"""The loss zoo: every method of the field on the same pair of networks, with the same budget.

The pair is DenseNet121 on the digits and the narrow StudentCNN. Their layers meet so (images of 32x32):

    student                      teacher
    features.1      16 x 8 x 8   features.denseblock1       256 x 8 x 8
    features.2      32 x 4 x 4   features.transition1       128 x 4 x 4
                                 features.denseblock2       512 x 4 x 4   where nothing is learnt on top of it
    features.2.1    32 x 8 x 8   features.transition2.norm  512 x 4 x 4   before the ReLU
    features.3      64 x 1 x 1   features.norm5            1024 x 1 x 1
    classifier's input       64  classifier's input        1024
    classifier               10  classifier                  10
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from kdlab.data.splits import ImageSplits
from kdlab.distill import (
    ConvConnector,
    Distiller,
    Each,
    Indexed,
    MutualDistiller,
    Paraphraser,
    Resize,
    ReviewFusion,
    SelfDistiller,
    Tap,
    TeacherCache,
    Term,
    Translator,
    Until,
)
from kdlab.distill.online import Exit
from kdlab.errors import InputError, unknown
from kdlab.losses import (
    ABLoss,
    ATLoss,
    CRDLoss,
    CWDLoss,
    DISTLoss,
    DKDLoss,
    FSPLoss,
    FTLoss,
    HintLoss,
    KDLoss,
    LabelledCrossEntropy,
    MGDLoss,
    OFDLoss,
    PKTLoss,
    ReviewKDLoss,
    RKDLoss,
    SPLoss,
    VIDLoss,
    ofd_margin,
)
from kdlab.models import StudentCNN
from kdlab.recipes.few_labels import NARROW, HiddenLabels, StudentRun, labelled
from kdlab.recipes.response import LOGITS
from kdlab.training import Supervised

EARLY, MIDDLE, LAST = "features.1", "features.2", "features.3"
BLOCK1, TRANSITION1, BLOCK2 = "features.denseblock1", "features.transition1", "features.denseblock2"
NORM5 = "features.norm5"
BEFORE_RELU, TEACHER_BEFORE_RELU = "features.2.1", "features.transition2.norm"
EMBEDDING = Tap("classifier", "input")
TEACHER_TAPS: tuple[str | Tap, ...] = (LOGITS, EMBEDDING, BLOCK1, TRANSITION1, BLOCK2, NORM5, TEACHER_BEFORE_RELU)
INIT_EPOCHS = 3  # of the 10: how long a method that starts with its loss alone does so


class ByDecision(nn.Module):
    """A loss that wants a target, on images without labels: the teacher's decision stands in."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.loss(student, teacher, teacher.argmax(dim=1))


@dataclass(frozen=True)
class Entry:
    """A method of the leaderboard.

    Args:
        family: what the student copies: "response", "feature", "relation", or "none" without a trained teacher.
        weight: the one that the grid of weights is spread around: the published one where there is one.
        terms: from (teacher, training samples, weight) to the terms.
        starts_alone: the loss alone first, then the labels alone: AB's and FSP's initialisation.
    """

    family: str
    weight: float
    terms: Callable[[nn.Module, int, float], list[Term]] | None = None
    starts_alone: bool = False


def _logits(loss: nn.Module) -> Callable[[nn.Module, int, float], list[Term]]:
    return lambda teacher, samples, weight: [Term("kd", loss, LOGITS, LOGITS, weight)]


def _embeddings(loss: nn.Module) -> Callable[[nn.Module, int, float], list[Term]]:
    return lambda teacher, samples, weight: [Term("relation", loss, EMBEDDING, EMBEDDING, weight)]


def _hint(teacher: nn.Module, samples: int, weight: float) -> list[Term]:
    connector = ConvConnector(NARROW[2], 128, norm=True)
    return [Term("hint", HintLoss(), MIDDLE, TRANSITION1, weight, student_connector=connector)]


def _at(teacher: nn.Module, samples: int, weight: float) -> list[Term]:
    layers = [(EARLY, BLOCK1), (MIDDLE, BLOCK2)]
    return [Term(f"at{i}", ATLoss(), mine, its, weight) for i, (mine, its) in enumerate(layers)]


def _before_relu() -> nn.Module:
    return nn.Sequential(Resize(4, "area"), ConvConnector(NARROW[2], 512, norm=True))


def _ab(teacher: nn.Module, samples: int, weight: float) -> list[Term]:
    layers = (BEFORE_RELU, TEACHER_BEFORE_RELU)
    return [Term("ab", ABLoss(), *layers, Until(weight, INIT_EPOCHS), student_connector=_before_relu())]


def _ofd(teacher: nn.Module, samples: int, weight: float) -> list[Term]:
    norm = teacher.get_submodule(TEACHER_BEFORE_RELU)
    assert isinstance(norm, nn.BatchNorm2d)
    layers = (BEFORE_RELU, TEACHER_BEFORE_RELU)
    return [Term("ofd", OFDLoss(ofd_margin(norm).cpu()), *layers, weight, student_connector=_before_relu())]


def _ft(teacher: nn.Module, samples: int, weight: float) -> list[Term]:
    paraphraser = Paraphraser(128).requires_grad_(False)
    translator = Translator(NARROW[2], paraphraser.factors)
    layers = (MIDDLE, TRANSITION1)
    return [Term("ft", FTLoss(), *layers, weight, student_connector=translator, teacher_connector=paraphraser)]


def _vid(teacher: nn.Module, samples: int, weight: float) -> list[Term]:
    return [Term("vid", VIDLoss(NARROW[2], 128), MIDDLE, TRANSITION1, weight)]


def _cwd(teacher: nn.Module, samples: int, weight: float) -> list[Term]:
    connector = ConvConnector(NARROW[2], 128)
    return [Term("cwd", CWDLoss(temperature=4.0), MIDDLE, TRANSITION1, weight, student_connector=connector)]


def _mgd(teacher: nn.Module, samples: int, weight: float) -> list[Term]:
    loss = MGDLoss(NARROW[2], 128, mask_ratio=0.15, mask="channel")
    return [Term("mgd", loss, MIDDLE, TRANSITION1, weight)]


def _review(teacher: nn.Module, samples: int, weight: float) -> list[Term]:
    fusion = ReviewFusion(NARROW[1:], [256, 128, 1024], mid=16)
    mine, its = [EARLY, MIDDLE, LAST], [BLOCK1, TRANSITION1, NORM5]
    return [Term("review", ReviewKDLoss(), mine, its, weight, student_connector=fusion)]


def _fsp(teacher: nn.Module, samples: int, weight: float) -> list[Term]:
    connector = Each(ConvConnector(NARROW[1], 256, norm=True), ConvConnector(NARROW[2], 512, norm=True))
    schedule = Until(weight, INIT_EPOCHS)
    return [Term("fsp", FSPLoss(), [EARLY, MIDDLE], [BLOCK1, BLOCK2], schedule, student_connector=connector)]


def _crd(teacher: nn.Module, samples: int, weight: float) -> list[Term]:
    loss = CRDLoss(NARROW[3], 1024, samples, negatives=512)
    return [Term("crd", loss, EMBEDDING, EMBEDDING, weight)]


METHODS: dict[str, Entry] = {
    "alone": Entry("none", 0.0),
    "KD": Entry("response", 1.0, _logits(KDLoss(4.0))),
    "DKD": Entry("response", 1.0, _logits(ByDecision(DKDLoss()))),
    "DIST": Entry("response", 1.0, _logits(DISTLoss())),
    "FitNets": Entry("feature", 100.0, _hint),
    "AT": Entry("feature", 1000.0, _at),
    "AB": Entry("feature", 1.0, _ab, starts_alone=True),
    "OFD": Entry("feature", 1.0, _ofd),
    "FT": Entry("feature", 200.0, _ft),
    "VID": Entry("feature", 1.0, _vid),
    "CWD": Entry("feature", 50.0, _cwd),
    "MGD": Entry("feature", 7e-5, _mgd),
    "ReviewKD": Entry("feature", 5.0, _review),
    "FSP": Entry("relation", 50.0, _fsp, starts_alone=True),
    "RKD": Entry("relation", 1.0, _embeddings(RKDLoss())),
    "SP": Entry("relation", 3000.0, _embeddings(SPLoss())),
    "PKT": Entry("relation", 30000.0, _embeddings(PKTLoss())),
    "CRD": Entry("relation", 0.8, _crd),
    "DML": Entry("none", 1.0),
    "BYOT": Entry("none", 0.1),
}


@dataclass(frozen=True)
class ZooRun(StudentRun):
    """One run of the leaderboard: cross-entropy on the labelled images, plus a method's loss on all of them.

    Args:
        method: a name of :data:`METHODS`.
        weight: of the method's loss; for BYOT its alpha.
        seed: draws the labelled images, the student's start and the order of the batches.
        labels, steps, batch_size, lr: the budget, the same for every method.

    Raises:
        InputError: an unknown method.
    """

    method: str
    weight: float
    seed: int
    labels: int = 100
    steps: int = 400
    batch_size: int = 64
    lr: float = 3e-3
    name = "loss-zoo"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise InputError(unknown("method", self.method, METHODS))

    def student(self, classes: int) -> nn.Module:
        return StudentCNN(classes, NARROW)

    def objective(
        self, student: nn.Module, data: ImageSplits, teacher: nn.Module, cache: TeacherCache
    ) -> tuple[nn.Module, Dataset]:
        kept = labelled(data, self.labels, self.seed)
        task, entry = LabelledCrossEntropy(), METHODS[self.method]
        unlabelled = HiddenLabels(data.train, kept)
        if self.method == "alone":
            return Supervised(student, task), Subset(data.train, kept)
        if self.method == "DML":
            peer = StudentCNN(len(data.classes), NARROW)
            return MutualDistiller({"student": student, "peer": peer}, task, weight=self.weight), unlabelled
        if self.method == "BYOT":
            exits = {EARLY: Exit(NARROW[1], NARROW[3], 10), MIDDLE: Exit(NARROW[2], NARROW[3], 10)}
            return SelfDistiller(student, exits, LAST, task, alpha=self.weight), unlabelled
        assert entry.terms is not None
        terms = entry.terms(teacher, len(unlabelled), self.weight)
        if self.method == "FT":
            train_paraphraser(terms[0].teacher_connector, cache.outputs[TRANSITION1], seed=self.seed)
        task_weight = _labels_later if entry.starts_alone else 1.0
        distiller = Distiller(student, teacher, terms, task=task, task_weight=task_weight)
        train: Dataset = HiddenLabels(cache.only(distiller.teacher_taps).attach(data.train), kept)
        return distiller, Indexed(train) if any("index" in term.asks_for for term in terms) else train


def _labels_later(epoch: float, epochs: int) -> float:
    return float(epoch >= INIT_EPOCHS)


def train_paraphraser(paraphraser: nn.Module | None, maps: Tensor, *, steps: int = 1000, seed: int = 0) -> None:
    """Factor transfer's first phase: teach the paraphraser to give back the teacher's maps, then freeze it.

    Args:
        paraphraser: trained in place, on the device that it is on.
        maps: (n, c, h, w), the teacher's for the training images.

    Raises:
        InputError: something else than a :class:`kdlab.distill.Paraphraser`.
    """
    if not isinstance(paraphraser, Paraphraser):
        raise InputError(f"wanted: a Paraphraser to train, given: {type(paraphraser).__name__}.")
    device = next(paraphraser.parameters()).device
    draw = torch.Generator().manual_seed(seed)
    paraphraser.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(paraphraser.parameters(), 1e-2, fused=True)
    for _ in range(steps):
        batch = maps[torch.randint(len(maps), (64,), generator=draw)].to(device)
        error = F.mse_loss(paraphraser.reconstruct(batch), batch)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    paraphraser.requires_grad_(False).eval()
