"""A small training, as torchrun starts it: parallel_training.py OUT EPOCHS [EPOCH PLACE: who dies in it]."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlab.distill import Distiller, Indexed, TeacherCache, Term
from kdlab.losses import CRDLoss, KDLoss
from kdlab.models import StudentCNN
from kdlab.processes import joined_by_torchrun, own_place
from kdlab.recipes.response import evaluate
from kdlab.training import Fit, ModelCard, fit

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3
BATCH = 8


class Net(nn.Module):
    """Without BatchNorm: each process would have statistics of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3)
        self.classifier = nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images).relu().mean(dim=(2, 3)))


class OwnNet(Net):
    """With statistics and random numbers of its own in each process."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(self.features, nn.BatchNorm2d(4))
        self.drawn: list[float] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.drawn.append(torch.rand(()).item())
        return super().forward(images)


def train(
    epochs: int,
    out: Path | None = None,
    dies: tuple[int, ...] = (),
    terms: tuple[Term, ...] = (),
    net: type[Net] = Net,
    **options: Any,
) -> tuple[Distiller, Fit]:
    """The objective after the last epoch, and its history; ``dies``: in which epoch, and who, by its place."""
    torch.manual_seed(0)
    student, teacher = net(), Net()
    kd = Term("kd", KDLoss(2.0), "classifier", "classifier")
    objective = Distiller(student, teacher, [kd, *terms], task=nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(objective.parameters(), 0.1, momentum=0.9)
    train, val = TensorDataset(IMAGES, LABELS), TensorDataset(IMAGES[:9], LABELS[:9])

    def die(row: dict[str, float]) -> bool:
        if (row["epoch"], own_place()) == dies:
            if os.environ["LOCAL_WORLD_SIZE"] == "1":  # alone on its machine, which is gone with its launcher
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    done = fit(
        objective, DataLoader(Indexed(train), BATCH, shuffle=True), epochs=epochs, optimizer=optimizer,
        evaluate=lambda model: evaluate(model, val), out=out, after_epoch=die, resume=True,
        card=ModelCard(StudentCNN(3).architecture, ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3, size=8), **options,
    )  # fmt: skip
    return objective, done


def contrast() -> Term:
    """A term with a memory that all processes have to keep alike."""
    torch.manual_seed(1)
    return Term("crd", CRDLoss(3, 3, len(IMAGES), dim=4, negatives=len(IMAGES)), "classifier", "classifier")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined_by_torchrun():
        out, epochs, dies = Path(sys.argv[1]), int(sys.argv[2]), tuple(map(int, sys.argv[3:]))
        print("only the first one says this")
        objective, done = train(epochs, out, dies)
        remembers, _ = train(1, terms=(contrast(),))
        data = TensorDataset(IMAGES[:23], LABELS[:23])
        cache = TeacherCache.build(objective.teacher, ["classifier"], data, path=out / "teacher.safetensors")
        own, _ = train(1, net=OwnNet)
        state = {"student": objective.student.state_dict(), "history": done.history.to_dict("list")}
        state |= {"statistics": dict(own.student.named_buffers()), "drawn": own.student.drawn}
        state |= {"memory": remembers.losses["crd"].state_dict(), "observed": cache.outputs["classifier"]}
        torch.save(state, out / f"{own_place()}.pt")
