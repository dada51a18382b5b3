"""What is computed on a GPU is what is computed on the CPU, within the accuracy of the number format.

The reference is the CPU in float64. `make test-gpu` runs this on a CUDA GPU. Without one it tests float32 on the CPU,
and on a device that only keeps its tensors apart from the CPU's: what is not moved along is found there, too.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from second_device import NAME, second_device
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, TensorDataset

import kdlab.losses as losses
from kdlab.distill import Distiller, Term
from kdlab.losses import CRDLoss, KDLoss
from kdlab.models import KTDN, MSBDN, SRKTDN, DehazingTeacher, PSPNet, StudentCNN, UPerNet, cifar_network
from kdlab.training import ModelCard, classification_metrics, fit, predict_logits

# A GPU's convolutions round their inputs to 10 bits (TF32) unless they are told not to.
TOLERANCE = {"cpu": 1e-4, NAME: 1e-4, "cuda": 1e-2}
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
ON_SECOND = os.environ.get("KDLAB_TEST_DEVICE") == NAME


@pytest.fixture(params=[NAME] if ON_SECOND else ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def device(request):
    with second_device() if ON_SECOND else nullcontext():
        yield torch.device(request.param)


def agree(mine: torch.Tensor, reference: torch.Tensor, device: torch.device) -> None:
    """As a whole: single small entries may differ by more."""
    error = (mine.detach().cpu().double() - reference.detach()).norm()
    assert error <= TOLERANCE[device.type] * reference.detach().norm() + 1e-9


@pytest.mark.skipif(ON_SECOND or torch.cuda.is_available(), reason="is this very run, or a GPU shows it")
def test_all_of_this_holds_where_nothing_may_stay_on_the_cpu():
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=own | {"KDLAB_TEST_DEVICE": NAME}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]


@pytest.mark.skipif(not ON_SECOND, reason="in a process of its own: see the test above")
def test_the_second_device_keeps_its_tensors_apart():
    with second_device() as second:
        there, here = torch.ones(3, device=second), torch.ones(3)
        assert (there.device.type, there.cpu().tolist()) == (NAME, [1.0, 1.0, 1.0])
        assert (there * 2 + torch.tensor(1.0)).device == second  # a single number may come from anywhere
        assert there[torch.tensor([0, 2])].device == second  # and so may an index
        draw = torch.Generator()
        for compute in (lambda: there + here, lambda: here[there.long()], lambda: there.normal_(generator=draw)):
            with pytest.raises(RuntimeError, match=r"Expected .* device"):
                compute()
        with pytest.raises(RuntimeError):
            there.numpy()


# --- losses ----------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Two maps of an image."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images.relu(), images[..., ::2, ::2].square()]


@dataclass
class Case:
    make: Callable[[], nn.Module]
    student: Any
    teacher: Any
    classes: tuple[int, ...] | None = None


LOGITS, MAP, WIDE, IMAGE = (6, 5), (6, 4, 8, 8), (6, 7, 8, 8), (6, 3, 16, 16)
CASES = {
    "KDLoss": Case(lambda: KDLoss(4.0), LOGITS, LOGITS),
    "DMLLoss": Case(lambda: losses.DMLLoss(2.0), LOGITS, LOGITS),
    "DKDLoss": Case(lambda: losses.DKDLoss(1.0, 8.0, 4.0), LOGITS, LOGITS, (6,)),
    "DISTLoss": Case(lambda: losses.DISTLoss(1.0, 1.0, 1.0), LOGITS, LOGITS),
    "LabelledCrossEntropy": Case(losses.LabelledCrossEntropy, LOGITS, None, (6,)),
    "PixelCrossEntropy": Case(losses.PixelCrossEntropy, (2, 5, 8, 8), None, (2, 8, 8)),
    "HintLoss": Case(losses.HintLoss, MAP, MAP),
    "ATLoss": Case(lambda: losses.ATLoss(2), MAP, WIDE),
    "ABLoss": Case(lambda: losses.ABLoss(1.0), MAP, MAP),
    "OFDLoss": Case(lambda: losses.OFDLoss(torch.full((4,), -0.5)), MAP, MAP),
    "FTLoss": Case(lambda: losses.FTLoss(1), MAP, MAP),
    "VIDLoss": Case(lambda: losses.VIDLoss(4, 7), MAP, WIDE),
    "CWDLoss": Case(lambda: losses.CWDLoss(4.0), MAP, MAP),
    "MGDLoss": Case(lambda: losses.MGDLoss(4, 7, 0.0), MAP, WIDE),  # nothing masked: the masks are each device's own
    "ReviewKDLoss": Case(losses.ReviewKDLoss, [MAP, WIDE], [MAP, WIDE]),
    "FSPLoss": Case(losses.FSPLoss, [MAP, WIDE], [MAP, WIDE]),
    "RKDLoss": Case(lambda: losses.RKDLoss(25.0, 50.0), (6, 5), (6, 9)),
    "SPLoss": Case(losses.SPLoss, MAP, WIDE),
    "PKTLoss": Case(losses.PKTLoss, (6, 5), (6, 9)),
    "CKTLoss": Case(losses.CKTLoss, MAP, MAP),
    "SCRLoss": Case(lambda: losses.SCRLoss(Reader(), (1.0, 0.5)), [IMAGE, IMAGE], IMAGE),
    "HCRLoss": Case(lambda: losses.HCRLoss(Reader(), (1.0, 0.5)), [IMAGE, IMAGE], IMAGE),
    "KTLoss": Case(losses.KTLoss, MAP, MAP),
    "LaplacianLoss": Case(losses.LaplacianLoss, IMAGE, IMAGE),
    "LabLoss": Case(losses.LabLoss, IMAGE, IMAGE),
}


def drawn(shapes: Any) -> Any:
    """Tensors of these shapes, in float64; a shape is a tuple, several are a list."""
    if isinstance(shapes, list):
        return [drawn(shape) for shape in shapes]
    return torch.rand(shapes, dtype=torch.float64) if shapes[1] == 3 else torch.randn(shapes, dtype=torch.float64)


def measured(loss: nn.Module, sides: list[Any], classes: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its gradient to the student's first tensor."""
    first = tree_leaves(sides[0])[0].requires_grad_()
    value = loss(*sides, *classes)
    value.backward()
    return value, first.grad


def test_every_loss_is_here_but_the_one_that_draws_its_negatives():
    assert {*CASES, "CRDLoss"} == {name for name in losses.__all__ if name.endswith(("Loss", "CrossEntropy"))}


@pytest.mark.parametrize("name", CASES)
def test_a_loss_and_its_gradient_are_the_cpus(name, device):
    case = CASES[name]
    sides = [drawn(shapes) for shapes in (case.student, case.teacher) if shapes is not None]
    classes = [] if case.classes is None else [torch.randint(5, case.classes)]
    torch.manual_seed(1)
    loss = case.make().double()
    there = tree_map(lambda tensor: tensor.detach().float().to(device), sides)
    reference = measured(loss, sides, classes)
    mine = measured(loss.float().to(device), there, [one.to(device) for one in classes])
    for its, one in zip(reference, mine, strict=True):
        assert one.device.type == device.type
        agree(one, its, device)


def test_a_loss_with_a_memory_stays_on_its_device(device):
    loss = CRDLoss(5, 9, samples=12, dim=4, negatives=6).to(device)
    first, second = torch.randn(6, 5, device=device, requires_grad=True), torch.randn(6, 9, device=device)
    for _ in range(2):
        loss(first, second, torch.arange(6, device=device)).backward()
    assert first.grad.isfinite().all()
    assert loss.teacher_bank.device.type == device.type


# --- networks --------------------------------------------------------------------------------------------------------

NARROW_DEHAZING = {"widths": (16, 48, 64), "blocks": (1, 1, 1), "channels": 2}
NETWORKS = {
    "StudentCNN": lambda: StudentCNN(3, (4, 8, 8, 8)),
    "resnet8x4": lambda: cifar_network("resnet8x4", 10),
    "UPerNet": lambda: UPerNet(3, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), channels=8, weights="none"),
    "PSPNet": lambda: PSPNet(3, width=8, blocks=(1, 1, 1, 1), channels=8, weights="none"),
    "MSBDN": lambda: MSBDN(2, residual=True),
    "KTDN": lambda: KTDN(**NARROW_DEHAZING, weights="none"),
    "SRKTDN": lambda: SRKTDN(**NARROW_DEHAZING, weights="none"),
    "DehazingTeacher": lambda: DehazingTeacher((16, 32, 64), (1, 1, 1), 128, 2, weights="none"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_answers_as_on_the_cpu(name, device):
    network = NETWORKS[name]().eval().double()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        reference = network(images)
        mine = network.float().to(device)(images.float().to(device))
    agree(mine, reference, device)


# --- training --------------------------------------------------------------------------------------------------------


def train(device: torch.device, **options: Any) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(0)
    images, labels = torch.randn(24, 3, 8, 8), torch.arange(24) % 3
    student, teacher = StudentCNN(3, (4, 4, 4, 4), drop_rate=0.0), StudentCNN(3, (4, 4, 4, 4))
    kd = Term("kd", KDLoss(2.0), "classifier", "classifier", 0.5)
    objective = Distiller(student, teacher, [kd], task=nn.CrossEntropyLoss()).to(device)
    optimizer = torch.optim.SGD(objective.parameters(), 1e-3, momentum=0.9)
    loader = DataLoader(TensorDataset(images, labels), 8, shuffle=True)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return classification_metrics(*predict_logits(model, loader))

    card = ModelCard(student.architecture, ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3, size=8)
    done = fit(objective, loader, epochs=3, optimizer=optimizer, evaluate=evaluate, card=card, **options)
    return student, done.history["total"].tolist()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-2), ("bf16", 0.05)])
def test_a_training_goes_as_on_the_cpu(precision, tolerance, device):
    _, reference = train(torch.device("cpu"))
    _, mine = train(device, precision=precision)
    assert mine == pytest.approx(reference, rel=tolerance)


def test_a_run_goes_on_where_it_was_interrupted(device, tmp_path):
    _, whole = train(device)
    train(device, out=tmp_path, after_epoch=lambda row: row["epoch"] == 2)
    student, resumed = train(device, out=tmp_path, resume=True)
    assert resumed == pytest.approx(whole, rel=1e-3)
    assert next(student.parameters()).device.type == device.type
