"""Students that teach each other, and a network that teaches itself."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlab import InputError
from kdlab.distill import MutualDistiller, SelfDistiller
from kdlab.distill.online import Exit
from kdlab.models import StudentCNN
from kdlab.training import ModelCard, fit

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def student():
    return StudentCNN(3, (4, 6, 8, 10))


def kl(teacher, mine):
    return F.kl_div(mine.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)


def test_each_student_hears_the_mean_of_its_peers():
    d = MutualDistiller({"a": student(), "b": student(), "c": student()}, nn.CrossEntropyLoss(), weight=2.0).eval()
    losses = d(IMAGES, LABELS)
    a, b, c = (one(IMAGES) for one in d.students.values())
    torch.testing.assert_close(losses["mutual_a"], (kl(b, a) + kl(c, a)) / 2)
    tasks, mutual = (sum(losses[f"{part}_{n}"] for n in "abc") for part in ("task", "mutual"))
    torch.testing.assert_close(losses["total"], tasks + 2 * mutual)
    assert d.student is d.students["a"]


def test_peers_may_be_heard_with_a_temperature():
    d = MutualDistiller({"a": student(), "b": student()}, nn.CrossEntropyLoss(), temperature=2.0).eval()
    a, b = (one(IMAGES) for one in d.students.values())
    torch.testing.assert_close(d(IMAGES, LABELS)["mutual_a"], 4 * kl(b / 2, a / 2))


def test_students_may_take_what_is_no_tensor():
    class OfDict(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = student()

        def forward(self, batch):
            return self.net(batch["images"])

    d = MutualDistiller({"a": OfDict(), "b": OfDict()}, nn.CrossEntropyLoss())
    assert d({"images": IMAGES}, LABELS)["total"] > 0


def test_a_peer_is_not_pulled_by_what_it_teaches():
    d = MutualDistiller({"a": student(), "b": student()}, nn.CrossEntropyLoss())
    d(IMAGES, LABELS)["mutual_a"].backward()
    assert all(p.grad is None for p in d.students["b"].parameters())
    assert any(p.grad is not None for p in d.students["a"].parameters())


def test_mutual_learning_brings_the_students_together():
    def gap(weight):
        torch.manual_seed(0)
        d = MutualDistiller({"a": student(), "b": student()}, nn.CrossEntropyLoss(), weight=weight)
        optimizer = torch.optim.Adam(d.parameters(), 1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            d(IMAGES, LABELS)["total"].backward()
            optimizer.step()
        return d.eval()(IMAGES, LABELS)["mutual_a"].item()

    assert gap(weight=5.0) < 0.3 * gap(weight=0.0)


def byot(**options):
    exits = {"features.1": Exit(6, 10, 3), "features.2": Exit(8, 10, 3)}
    return SelfDistiller(student(), exits, "features.3", nn.CrossEntropyLoss(), **options)


def test_the_exits_learn_from_the_labels_and_from_the_end():
    d = byot(alpha=0.3, temperature=2.0, feature_weight=0.01).eval()
    losses = d(IMAGES, LABELS)
    maps = [d.student.features[:stage](IMAGES) for stage in (2, 3)]
    (f1, z1), (f2, z2) = (classify(m) for classify, m in zip(d.exits, maps, strict=True))
    end, z = d.student.features(IMAGES).flatten(1), d.student(IMAGES)
    torch.testing.assert_close(losses["task"], sum(F.cross_entropy(x, LABELS) for x in (z, z1, z2)))
    torch.testing.assert_close(losses["kd"], 4 * (kl(z / 2, z1 / 2) + kl(z / 2, z2 / 2)))
    masked = sum(((f - end) ** 2)[(f > 0) | (end > 0)].sum() for f in (f1, f2))
    torch.testing.assert_close(losses["feature"], masked)
    torch.testing.assert_close(losses["total"], 0.7 * losses["task"] + 0.3 * losses["kd"] + 0.01 * losses["feature"])


def test_the_end_is_not_pulled_by_what_it_teaches():
    d = byot()
    losses = d(IMAGES, LABELS)
    (losses["kd"] + losses["feature"]).backward()
    assert all(p.grad is None for p in [*d.student.features[3].parameters(), *d.student.classifier.parameters()])
    assert all(p.grad is not None for p in d.exits.parameters())


@pytest.mark.parametrize(("alpha", "only"), [(0, "task"), (1, "kd")])
def test_the_labels_or_the_end_may_teach_alone(alpha, only):
    losses = byot(alpha=alpha, feature_weight=0)(IMAGES, LABELS)
    torch.testing.assert_close(losses["total"], losses[only])


def test_the_public_settings_are_the_defaults():
    d = byot()
    assert (d.alpha, d.kd.temperature, d.feature_weight) == (0.1, 3.0, 1e-6)


def pair_of_one():
    students = {name: nn.Sequential(nn.Flatten(), nn.Linear(768, 3), nn.BatchNorm1d(3)) for name in "ab"}
    MutualDistiller(students, nn.CrossEntropyLoss())(IMAGES[:1], LABELS[:1])


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: MutualDistiller({"a": student()}, nn.CrossEntropyLoss()), "1 students.*at least two"),
        (lambda: MutualDistiller(dict.fromkeys("ab", student()), nn.CrossEntropyLoss()), "a network of its own"),
        (lambda: MutualDistiller(dict.fromkeys("ab", student()) | {"c": student()}, nn.CrossEntropyLoss()),
         "3 students.*a network of its own"),
        (lambda: MutualDistiller({0: student(), 1: student()}, nn.CrossEntropyLoss()), "called 0, 1; wanted: texts"),
        (lambda: MutualDistiller({"a": student(), "b": student()}, nn.CrossEntropyLoss(), weight=-1), "weight is -1"),
        (lambda: MutualDistiller({"keys": student(), "b": student()}, nn.CrossEntropyLoss()), "called 'keys', 'b'"),
        (lambda: MutualDistiller({"a.1": student(), "b": student()}, nn.CrossEntropyLoss()), "without a dot"),
        (lambda: pair_of_one(), "BatchNorm cannot train on a batch of one sample.*drop_last"),
        (lambda: SelfDistiller(student(), {}, "features.3", nn.CrossEntropyLoss()), "without exits"),
        (lambda: byot(alpha=1.5), "alpha is 1.5"),
        (lambda: byot(alpha=-0.5), "alpha is -0.5"),
        (lambda: byot(feature_weight=-1.0), "feature_weight is -1.0"),
        (lambda: byot()(IMAGES[:1, :, :4, :4], LABELS[:1]), "BatchNorm cannot train on a batch of one sample"),
        (lambda: SelfDistiller(student(), {"featurs.1": Exit(6, 10, 3)}, "features.3", nn.CrossEntropyLoss()),
         "Did you mean 'features.1'"),
        (lambda: SelfDistiller(student(), {"features.1": Exit(6, 9, 3)}, "features.3", nn.CrossEntropyLoss())(
            IMAGES, LABELS), "give the exit a width of 10"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(build, said, shapes_unchecked):
    with pytest.raises(InputError, match=said):
        build()


def mutual():
    return MutualDistiller({"a": student(), "b": student()}, nn.CrossEntropyLoss())


@pytest.mark.parametrize("build", [mutual, byot])
def test_a_deep_copy_is_whole_and_independent(build):
    d = build()
    copy = deepcopy(d)
    before = {name: value.clone() for name, value in d.state_dict().items()}
    torch.testing.assert_close(copy.eval()(IMAGES, LABELS), d.eval()(IMAGES, LABELS))
    optimizer = torch.optim.SGD(copy.train().parameters(), 0.1)
    copy(IMAGES, LABELS)["total"].backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in d.state_dict().items())
    assert all(p.grad is None for p in d.parameters())
    assert not any(module._forward_hooks for module in d.modules())


def train(build, out, epochs, resume=False):
    torch.manual_seed(3)
    objective = build()
    card = ModelCard(objective.student.architecture, ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3, size=16)
    images, labels = torch.cat([IMAGES, IMAGES.flip(3)]), LABELS.repeat(2)
    fit(
        objective, DataLoader(TensorDataset(images, labels), 4, shuffle=True), epochs=epochs, card=card, resume=resume,
        optimizer=torch.optim.AdamW(objective.parameters(), 1e-2), out=out, evaluate=lambda student: {"accuracy": 0.0},
        after_epoch=lambda row: resume is False and row["epoch"] == 2 and out.name == "stopped",
    )  # fmt: skip
    return objective.state_dict()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("build", [mutual, byot])
def test_a_stopped_run_resumes_to_the_same_bits(build, tmp_path):
    whole = train(build, tmp_path / "whole", 4)
    stopped = train(build, tmp_path / "stopped", 4)
    resumed = train(build, tmp_path / "stopped", 4, resume=True)
    assert [name for name, value in whole.items() if not torch.equal(value, resumed[name])] == []
    assert any(not torch.equal(value, stopped[name]) for name, value in whole.items())  # it had stopped indeed
