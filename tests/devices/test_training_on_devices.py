"""A training on another device, and a teacher's outputs that were computed there once."""

from typing import Any

import pytest
import torch
from on_devices import TOLERANCE, agree
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlab.distill import Distiller, TeacherCache, Term
from kdlab.losses import KDLoss
from kdlab.models import StudentCNN
from kdlab.training import ModelCard, classification_metrics, fit, predict_logits
from kdlab.training.device import to_device


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


def test_what_is_predicted_of_a_data_set_on_the_device_is_on_the_cpu(device):
    images, labels = torch.randn(3, 3, 8, 8, device=device), torch.arange(3, device=device)
    model = StudentCNN(3, (4, 4, 4, 4)).to(device)
    predicted = predict_logits(model, [(images, labels)])
    assert [tensor.device.type for tensor in predicted] == ["cpu", "cpu"]
    assert predicted[1].tolist() == [0, 1, 2]


def test_a_run_goes_on_where_it_was_interrupted(device, tmp_path):
    _, whole = train(device)
    train(device, out=tmp_path, after_epoch=lambda row: row["epoch"] == 2)
    student, resumed = train(device, out=tmp_path, resume=True)
    assert resumed == pytest.approx(whole, rel=1e-3)
    assert next(student.parameters()).device.type == device.type


def test_a_teachers_outputs_are_kept_on_the_cpu_and_teach_on_the_device(device, tmp_path):
    student, teacher = StudentCNN(3, (4, 4, 4, 4), drop_rate=0.0), StudentCNN(3, (4, 4, 4, 4)).eval()
    dataset = TensorDataset(torch.randn(12, 3, 8, 8), torch.arange(12) % 3)
    with torch.no_grad():
        reference = teacher.double()(dataset.tensors[0].double())
    kd = Term("kd", KDLoss(2.0), "classifier", "classifier", 0.5)
    objective = Distiller(student, teacher.float(), [kd], task=nn.CrossEntropyLoss()).to(device)
    cache, again = (
        TeacherCache.build(teacher, objective.teacher_taps, dataset, path=tmp_path / "outputs", batch_size=5)
        for _ in range(2)
    )
    assert again.outputs["classifier"].equal(cache.outputs["classifier"])
    assert cache.outputs["classifier"].device.type == "cpu"
    agree(cache.outputs["classifier"], reference, device)
    images, labels, observed = to_device(next(iter(DataLoader(cache.attach(dataset), 12))), device)
    live, known = objective(images, labels)["kd"], objective(images, labels, observed)["kd"]
    assert known.item() == pytest.approx(live.item(), rel=TOLERANCE[device.type])
