"""Every loss and its gradient on another device, against the CPU in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from on_devices import agree
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import kdlab.losses as losses
from kdlab.losses import CRDLoss, KDLoss


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
