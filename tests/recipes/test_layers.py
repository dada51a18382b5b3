"""The recipe of the layer table: at every pair the maps meet, the hint is learnt, and its weight has one unit."""

import pytest
import torch
from torch.utils.data import TensorDataset

from kdlab import InputError
from kdlab.data.splits import ImageSplits
from kdlab.distill import TeacherCache
from kdlab.models import densenet121
from kdlab.recipes import few_labels
from kdlab.recipes.layers import LAYER_TAPS, PAIRS, LayerRun, spread

pytestmark = pytest.mark.usefixtures("one_thread")


class Bright(TensorDataset):
    """Ten classes that differ in how bright they are."""

    def __init__(self, count, seed):
        targets = torch.arange(count) % 10
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 0.3
        super().__init__(images + targets[:, None, None, None] / 3)
        self.targets = targets.tolist()

    def __getitem__(self, index):
        return super().__getitem__(index)[0], self.targets[index]


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    torch.manual_seed(0)
    data = ImageSplits(
        Bright(40, 1), Bright(10, 2), Bright(10, 3), tuple("0123456789"), (0.0,) * 3, (1.0,) * 3, 32, "bright", True
    )
    teacher = densenet121(10).eval()
    path = tmp_path_factory.mktemp("teacher") / "outputs.safetensors"
    return data, teacher, TeacherCache.build(teacher, LAYER_TAPS, data.train, path=path)


def run(method, course, weight=1.0, **options):
    return LayerRun(method, weight, seed=0, labels=20, steps=10, batch_size=8).run(*course, **options)


@pytest.mark.parametrize("method", ["alone", *PAIRS])
def test_every_pair_trains_a_student_of_the_same_size(method, course):
    student, done = run(method, course)
    assert sum(p.numel() for p in student.parameters()) == 27_178
    assert len(done.history) == 10
    assert done.history.total.notna().all()
    assert ("hint" in done.history) == (method != "alone")


def test_the_weight_is_in_units_of_the_variance_of_the_teachers_layer(course, monkeypatch):
    seen = []
    original = few_labels.fit_few
    monkeypatch.setattr(
        few_labels, "fit_few", lambda objective, *a, **o: seen.append(objective) or original(objective, *a, **o)
    )
    run("transition1", course, weight=10.0)
    maps = course[2].outputs["features.transition1"]
    best_guess = maps.mean(dim=(0, 2, 3), keepdim=True)
    loss = (maps - best_guess).square().mean().item()
    assert seen[0].terms[0].weight * loss == pytest.approx(10.0, rel=1e-2)


def test_the_spread_does_not_see_what_a_channel_is_on_average():
    maps = torch.randn(200, 4, 3, 3)
    assert spread(maps + torch.tensor([0.0, 5.0, -9.0, 100.0])[:, None, None]) == pytest.approx(spread(maps), rel=1e-3)
    assert spread(3 * maps[:, :, 0, 0]) == pytest.approx(9 * spread(maps[:, :, 0, 0]), rel=1e-4)


def test_a_run_that_was_kept_is_loaded(course, tmp_path, monkeypatch):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    (first, _), (second, _) = (run("norm5", course, keep=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_an_unknown_pair_is_refused_with_a_near_name():
    with pytest.raises(InputError, match="denseblock1"):
        LayerRun("denseblok1", 1.0, seed=0)
