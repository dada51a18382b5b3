"""A distillation with connectors, schedules and a memory bank, stopped and resumed: the same bits as one left alone."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlab.distill import ConvConnector, Cosine, Distiller, Indexed, Tap, TeacherCache, Term, Until, WarmUp
from kdlab.losses import CRDLoss, CWDLoss, MGDLoss, VIDLoss
from kdlab.models import StudentCNN
from kdlab.training import ModelCard, fit

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3
EMBEDDING = Tap("classifier", "input")


def distiller():
    torch.manual_seed(3)
    student, teacher = StudentCNN(3, (4, 4, 4, 6)), StudentCNN(3, (6, 6, 6, 8)).eval()
    connector = ConvConnector(4, 6, norm=True)
    terms = [
        Term("crd", CRDLoss(6, 8, samples=24, dim=5, negatives=7), EMBEDDING, EMBEDDING, WarmUp(0.8, epochs=2)),
        Term("cwd", CWDLoss(), "features.0", "features.0", Cosine(1.0), student_connector=connector),
        Term("mgd", MGDLoss(4, 6), "features.1", "features.1", 2e-3),
        Term("vid", VIDLoss(4, 6), "features.1", "features.1", Until(0.1, epoch=3)),
    ]
    return Distiller(student, teacher, terms, task=nn.CrossEntropyLoss())


def train(epochs, out, cached, resume=False):
    objective = distiller()
    data = TensorDataset(IMAGES, LABELS)
    train = TeacherCache.build(objective.teacher, objective.teacher_taps, data).attach(data) if cached else data
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-2, fused=True)
    card = ModelCard(objective.student.architecture, ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3, size=16)
    fit(
        objective, DataLoader(Indexed(train), 8, shuffle=True), epochs=epochs, optimizer=optimizer, out=out, card=card,
        evaluate=lambda student: {"accuracy": 0.0}, resume=resume,
        after_epoch=lambda row: resume is False and row["epoch"] == 2 and out.name == "stopped",
    )  # fmt: skip
    return objective.state_dict()


@pytest.mark.parametrize("cached", [False, True])
def test_a_stopped_distillation_resumes_to_the_same_bits(tmp_path, cached, monkeypatch):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    whole = train(4, tmp_path / "whole", cached)
    train(4, tmp_path / "stopped", cached)
    resumed = train(4, tmp_path / "stopped", cached, resume=True)
    assert whole.keys() == resumed.keys()
    assert [name for name, value in whole.items() if not torch.equal(value, resumed[name])] == []
    assert {"losses.crd.student_bank", "losses.crd.log_z", "student_connectors.cwd.0.weight"} <= whole.keys()
    assert not torch.equal(whole["losses.crd.student_bank"], distiller().state_dict()["losses.crd.student_bank"])
