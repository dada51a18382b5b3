"""The comparison of chapters 04 and 05: every method trains, and what it is not to see stays hidden."""

import pandas as pd
import pytest
import torch

from kdlab import InputError
from kdlab.data import Scenes
from kdlab.data.splits import ImageSplits
from kdlab.distill import TeacherCache
from kdlab.models import PSPNet, UPerNet
from kdlab.recipes import few_labels
from kdlab.recipes.few_masks import METHODS, TEACHER_TAPS, FewMasks, HiddenMasks, with_mask
from kdlab.recipes.segmentation import NARROW_STUDENT, NARROW_TEACHER, measure
from kdlab.training import Fit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    torch.manual_seed(0)
    train, val, test = (Scenes(split, samples=n, size=32) for split, n in (("train", 24), ("val", 4), ("test", 4)))
    data = ImageSplits(train, val, test, train.classes, train.mean, train.std, 32, "small scenes", deterministic=True)
    teacher = UPerNet(len(data.classes), **NARROW_TEACHER).eval()
    path = tmp_path_factory.mktemp("teacher") / "outputs.safetensors"
    return data, teacher, TeacherCache.build(teacher, TEACHER_TAPS, data.train, path=path)


def run(method, course, weight=1e-3, **options):
    return FewMasks(method, weight, seed=0, masks=8, steps=10, batch_size=4, **options).run(*course)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_student_of_the_same_size(method, course):
    student, done = run(method, course)
    assert sum(p.numel() for p in student.parameters()) == 473_095
    assert len(done.history) == 10
    assert done.history.total.notna().all()
    expected = METHODS[method]
    assert expected is None or expected.method in done.history
    assert set(measure(student, course[0].val)) == {"miou", "mdice", "pixel_accuracy", "loss"}


def test_the_cached_teacher_says_what_the_running_one_says(course):
    data, teacher, cache = course
    distiller = METHODS["CWD features"].distiller(PSPNet(7, **NARROW_STUDENT), teacher, data.size)
    images = torch.stack([data.train[i][0] for i in range(4)])
    live = distiller.observe_teacher(images)
    for tap, value in live.items():
        torch.testing.assert_close(cache.outputs[tap][:4], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unlabelled", [True, False])
def test_only_the_kept_masks_are_seen(course, unlabelled, monkeypatch):
    seen = []
    original = few_labels.fit_few
    monkeypatch.setattr(few_labels, "fit_few", lambda objective, train, *a, **o: seen.append(train) or original(
        objective, train, *a, **o))  # fmt: skip
    run("CWD logits", course, unlabelled=unlabelled)
    kept = set(with_mask(course[0], 8, seed=0))
    assert len(kept) == 8
    masks = [seen[0][i][1] for i in range(len(seen[0]))]
    shown = [mask for mask in masks if (mask != 255).any()]
    assert len(masks) == (32 if unlabelled else 8)  # with 16 hidden ones the kept ones come twice
    assert len(shown) == (16 if unlabelled else 8)
    truths = [course[0].train[i][1] for i in kept]
    assert all(any(torch.equal(mask, truth) for truth in truths) for mask in shown)


def test_weight_seed_and_best_epoch_are_what_the_run_says(course, monkeypatch):
    seen, nothing = [], Fit(pd.DataFrame(), {}, "epochs")

    def fit_few(objective, *_, **how):
        seen.append((objective.terms[0].weight, how["monitor"]))
        return nothing

    monkeypatch.setattr(few_labels, "fit_few", fit_few)
    run("CWD logits", course, weight=0.25)
    assert seen == [(0.25, "miou")]
    masks = [set(with_mask(course[0], 8, seed)) for seed in (0, 0, 1)]
    assert masks[0] == masks[1] != masks[2]


def test_a_hidden_mask_has_no_class_at_all(course):
    image, mask = HiddenMasks(course[0].train, [3])[0]
    assert (mask == 255).all()
    assert torch.equal(image, course[0].train[0][0])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "CWD logit"}, "Did you mean 'CWD logits'"),
        ({"steps": 25}, "steps is 25; wanted: a multiple of 10"),
        ({"masks": 1}, "masks is 1; wanted: from 2 to 24"),
        ({"masks": 25}, "masks is 25"),
    ],
)
def test_impossible_settings_are_named(options, sentence, course):
    with pytest.raises(InputError, match=sentence):
        FewMasks(**{"method": "CWD logits", "weight": 1.0, "seed": 0} | options).run(*course)
