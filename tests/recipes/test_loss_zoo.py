"""The recipe of the leaderboard: every method trains, with the teacher it says, on the labels it says."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdlab import InputError
from kdlab.data.splits import ImageSplits
from kdlab.distill import Distiller, MutualDistiller, Paraphraser, SelfDistiller, TeacherCache
from kdlab.models import densenet121
from kdlab.recipes import few_labels, loss_zoo
from kdlab.recipes.loss_zoo import METHODS, TEACHER_TAPS, ZooRun, train_paraphraser
from kdlab.training import Supervised

pytestmark = pytest.mark.usefixtures("one_thread")


class Coloured(TensorDataset):
    """Ten classes that differ in how bright their three colours are."""

    def __init__(self, count, seed):
        targets = torch.arange(count) % 10
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 0.3
        super().__init__(images + torch.stack([targets % 2, targets % 3, targets % 5], dim=1)[:, :, None, None])
        self.targets = targets.tolist()

    def __getitem__(self, index):
        return super().__getitem__(index)[0], self.targets[index]


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    torch.manual_seed(0)
    data = ImageSplits(
        Coloured(40, 1), Coloured(10, 2), Coloured(10, 3), tuple("0123456789"), (0.0,) * 3, (1.0,) * 3, 32, "colours",
        True,
    )  # fmt: skip
    teacher = densenet121(10).eval()
    path = tmp_path_factory.mktemp("teacher") / "outputs.safetensors"
    return data, teacher, TeacherCache.build(teacher, TEACHER_TAPS, data.train, path=path)


@pytest.fixture
def objectives(monkeypatch):
    """What each run hands to the training."""
    seen, original = [], few_labels.fit_few

    def noted(objective, *arguments, **options):
        seen.append(objective)
        return original(objective, *arguments, **options)

    monkeypatch.setattr(few_labels, "fit_few", noted)
    return seen


def run(method, course, weight=None, **options):
    weight = METHODS[method].weight if weight is None else weight
    return ZooRun(method, weight, seed=0, labels=20, steps=10, batch_size=8).run(*course, **options)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_student_of_the_same_size(method, course, objectives, monkeypatch):
    monkeypatch.setattr(loss_zoo, "train_paraphraser", lambda paraphraser, maps, seed: paraphraser.eval())
    student, done = run(method, course)
    assert sum(p.numel() for p in student.parameters()) == 27_178
    assert len(done.history) == 10
    assert done.history.total.notna().all()
    (objective,) = objectives
    kinds = {"alone": Supervised, "DML": MutualDistiller, "BYOT": SelfDistiller}
    assert type(objective) is kinds.get(method, Distiller)
    if isinstance(objective, Distiller):
        assert objective.teacher is course[1]
        terms = [column for column in done.history if column in objective.losses]
        assert (done.history[terms].iloc[0] != 0).all(axis=None)


@pytest.mark.parametrize("method", ["AB", "FSP"])
def test_a_method_that_initialises_has_its_loss_alone_and_then_the_labels_alone(method, course):
    _, done = run(method, course)
    name = method.lower()
    first, then = done.history.iloc[:3], done.history.iloc[3:]
    assert (first[name] > 0).all()
    assert (then[name] == 0).all()
    assert (then.total == then.task).all()
    assert first.total.tolist() == pytest.approx((METHODS[method].weight * first[name]).tolist(), rel=1e-5)


def test_the_weight_is_that_of_the_methods_loss(course):
    _, done = run("SP", course, weight=7.0)
    torch.testing.assert_close(
        torch.tensor(done.history.total), torch.tensor(done.history.task + 7.0 * done.history.relation)
    )


def test_without_a_trained_teacher_it_is_that_of_what_peers_and_the_networks_end_say(course, objectives):
    for method in ("DML", "BYOT"):
        run(method, course, weight=0.25)
    mutual, of_itself = objectives
    assert (mutual.weight, of_itself.alpha) == (0.25, 0.25)


def test_a_kept_run_is_loaded_the_second_time(course, monkeypatch):
    first, _ = run("KD", course, keep=True)
    monkeypatch.setattr(Distiller, "forward", None)  # a second training would fail
    again, _ = run("KD", course, keep=True)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_paraphraser_learns_and_is_frozen():
    torch.manual_seed(0)
    paraphraser, maps = Paraphraser(6), torch.randn(30, 6, 4, 4).relu()

    def error():
        return (paraphraser.eval().reconstruct(maps) - maps).square().mean().item()

    train_paraphraser(paraphraser, maps, steps=1)
    before = error()
    train_paraphraser(paraphraser, maps, steps=200)
    assert error() < 0.7 * before
    assert not any(p.requires_grad for p in paraphraser.parameters())
    assert not paraphraser.training
    with pytest.raises(InputError, match="wanted: a Paraphraser to train, given: Identity"):
        train_paraphraser(nn.Identity(), maps)


def test_an_unknown_method_is_refused_with_near_names():
    with pytest.raises(InputError, match="unknown method 'FitNet'. Did you mean 'FitNets'"):
        ZooRun("FitNet", 1.0, seed=0)
