"""The segmentation recipe: teach and distil on masks small enough to train on in a moment."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from states import same, weights
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from kdlab import InputError
from kdlab.data.splits import ImageSplits
from kdlab.distill import Taps
from kdlab.losses import ATLoss, CWDLoss, KDLoss
from kdlab.models import PSPNet, UPerNet
from kdlab.recipes import segmentation, settings
from kdlab.recipes.segmentation import (
    LOGITS,
    PRESETS,
    STUDENT_LAYERS,
    TEACHER_LAYERS,
    DenseDistillation,
    HardLabels,
    distill,
    measure,
    teach,
)
from kdlab.recipes.settings import Settings
from kdlab.training import Fit, load_model

TEACHER = {"widths": (4, 8, 8, 8), "depths": (1, 1, 1, 1), "channels": 8}
STUDENT = {"width": 8, "blocks": (1, 1, 1, 1), "channels": 6}
QUICK = Settings(epochs=2, lr=1e-2, batch_size=4)
STEPS = 3  # an epoch: 13 images in batches of 4, the last left out
METHODS = {
    "kd": DenseDistillation("kd", "logits", weight=1.0),
    "hard": DenseDistillation("hard", "logits", weight=1.0),
    "pseudo": DenseDistillation("pseudo", "logits", weight=1.0),
    "at": DenseDistillation("at", "features", weight=10.0),
    "cwd logits": DenseDistillation("cwd", "logits", weight=3.0),
    "cwd features": DenseDistillation("cwd", "features", weight=50.0),
    "mgd": DenseDistillation("mgd", "features", weight=1e-3),
}


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch, one_thread):
    """A cache for each test."""
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))


class Bars(TensorDataset):
    """Three classes in upright bars, each in its channel; the last row has no class."""

    def __init__(self, count, seed, size=32):
        random = torch.Generator().manual_seed(seed)
        turns = torch.randint(size, (count, 1), generator=random)
        masks = ((torch.arange(size) + turns) * 3 // size % 3)[:, None].expand(count, size, size).clone()
        images = F.one_hot(masks, 3).permute(0, 3, 1, 2) + torch.randn(count, 3, size, size, generator=random) * 0.2
        masks[:, -1] = 255
        super().__init__(images, masks)


class Brighter(Dataset):
    """The same, brighter or darker each time."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, mask = self.dataset[index]
        return image + torch.rand(()), mask


def splits(size=32, **changes):
    fields = {
        "train": Bars(13, 1, size), "val": Bars(5, 2, size), "test": Bars(5, 3, size), "classes": ("a", "b", "c"),
        "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "size": size, "name": "bars", "deterministic": True,
    }  # fmt: skip
    return ImageSplits(**fields | changes)


def a_teacher(seed=0, classes=3):
    torch.manual_seed(seed)
    return UPerNet(classes, **TEACHER).eval()


def distilled(out, *, data=None, teacher=None, distillation=METHODS["cwd logits"], settings=QUICK, **options):
    return distill(
        data or splits(), teacher or a_teacher(), distillation, settings, out=out, architecture=STUDENT, **options
    )


@pytest.fixture
def calls(monkeypatch):
    """How many images a teacher has seen at each call."""
    seen = []
    original = UPerNet._maps
    monkeypatch.setattr(UPerNet, "_maps", lambda self, images: seen.append(len(images)) or original(self, images))
    return seen


# --- teach -----------------------------------------------------------------------------------------------------------


def test_teach_leaves_a_teacher_that_can_be_used(tmp_path):
    data = splits()
    settings = replace(QUICK, epochs=15, one_cycle=True)
    done = teach(data, settings, out=tmp_path / "teacher", architecture=TEACHER, weights="none")
    assert done.best["val_miou"] > 0.4  # one class everywhere would have 0.11
    model, card = load_model(tmp_path / "teacher")
    assert measure(model, data.val)["miou"] == done.best["val_miou"] == card.metrics["miou"]
    assert (card.classes, card.mean, card.std, card.size) == (data.classes, data.mean, data.std, 32)
    assert card.weights == "none: a random start"
    recipe = {"task": "teach", "weights": "none", "data": "bars", "one_cycle": True, "architecture": model.architecture}
    assert recipe.items() <= card.recipe.items()


def test_the_same_seed_teaches_the_same_teacher(tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        torch.manual_seed(len(name))
        teach(splits(), replace(QUICK, seed=seed), out=tmp_path / name, architecture=TEACHER)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_a_teacher_that_was_stopped_goes_on_to_the_same_bits_without_a_download(tmp_path, monkeypatch):
    settings = replace(QUICK, epochs=3, one_cycle=True)
    teach(splits(), settings, out=tmp_path / "whole", architecture=TEACHER)
    looks = iter([measure, measure])

    def interrupted(*arguments, **options):
        look = next(looks, None)
        if look is None:
            raise KeyboardInterrupt
        return look(*arguments, **options)

    monkeypatch.setattr(segmentation, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        teach(splits(), settings, out=tmp_path / "stopped", architecture=TEACHER)
    monkeypatch.setattr(segmentation, "measure", measure)
    asked = []
    monkeypatch.setattr(
        segmentation, "UPerNet", lambda classes, weights, **shape: asked.append(weights) or UPerNet(classes, **shape)
    )
    teach(splits(), settings, out=tmp_path / "stopped", architecture=TEACHER, resume=True)
    assert asked == ["none"]
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_best_epoch_is_that_of_the_metric_asked_for(tmp_path, monkeypatch):
    looks = [{"miou": 0.3, "mdice": 0.6, "loss": 1.0}, {"miou": 0.4, "mdice": 0.5, "loss": 1.0}] * 4
    monkeypatch.setattr(segmentation, "measure", lambda *_, **__: looks.pop(0))
    for monitor, best in (("miou", 2), ("mdice", 1)):
        taught = teach(splits(), QUICK, out=tmp_path / f"teacher {monitor}", architecture=TEACHER, monitor=monitor)
        assert taught.best["epoch"] == best
        assert distilled(tmp_path / f"student {monitor}", monitor=monitor).best["epoch"] == best


# --- distill ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distillation", METHODS.values(), ids=METHODS)
def test_each_method_trains_a_student_that_carries_nothing_else(tmp_path, distillation):
    teacher, before = a_teacher(), a_teacher().state_dict()
    done = distilled(tmp_path / "student", teacher=teacher, distillation=distillation)
    measured = {"val_miou", "val_mdice", "val_pixel_accuracy", "val_loss"}
    assert {*done.history} == {"epoch", "lr", "task", distillation.method, "total", "seconds"} | measured
    mixed = done.history["task"] + distillation.weight * done.history[distillation.method]
    pd.testing.assert_series_equal(done.history["total"], mixed, check_names=False, rtol=1e-4)
    model, card = load_model(tmp_path / "student")
    assert model.state_dict().keys() == PSPNet(3, **STUDENT).state_dict().keys()
    said = {
        "task": "distill",
        "method": distillation.method,
        "layer": distillation.layer,
        "weight": distillation.weight,
    }
    assert said.items() <= card.recipe.items()
    assert same(teacher.state_dict(), before)


def test_teacher_and_student_are_trained_by_adamw(tmp_path, monkeypatch):
    optimisers, nothing = [], Fit(pd.DataFrame(), {}, "epochs")
    monkeypatch.setattr(settings, "fit", lambda *_, optimizer, **__: optimisers.append(type(optimizer)) or nothing)
    teach(splits(), QUICK, out=tmp_path / "teacher", architecture=TEACHER, weights="none")
    distilled(tmp_path / "student")
    assert optimisers == [torch.optim.AdamW] * 2


def test_a_student_learns_more_from_the_teacher_than_the_masks_say(tmp_path):
    """Without a single mask, the teacher's word is enough."""
    data = splits()
    settings = replace(QUICK, epochs=15, one_cycle=True)
    teach(data, settings, out=tmp_path / "teacher", architecture=TEACHER)
    teacher, _ = load_model(tmp_path / "teacher")
    images, masks = data.train.tensors
    blind = replace(data, train=TensorDataset(images, torch.full_like(masks, 255)))
    done = distilled(tmp_path / "student", data=blind, teacher=teacher, distillation=METHODS["kd"], settings=settings)
    assert done.history["task"].max() == 0
    assert done.best["val_miou"] > 0.4


FOLDING = 3  # passes of one image that fold_batchnorm takes


def test_the_teacher_runs_once_where_its_outputs_fit_in_memory(tmp_path, calls, monkeypatch):
    distilled(tmp_path / "one", settings=replace(QUICK, epochs=3))
    assert sum(calls) == 13 + FOLDING + 1  # the one shows how large an output is
    calls.clear()
    monkeypatch.setattr(segmentation, "CACHE_BYTES", 13 * 3 * 8 * 8 * 4 - 1)
    distilled(tmp_path / "two", settings=replace(QUICK, epochs=3))
    assert calls == [1] * (FOLDING + 1) + [4] * STEPS * 3


def test_on_images_that_change_the_teacher_runs_at_every_step(tmp_path, calls):
    distilled(tmp_path / "student", data=splits(train=Brighter(Bars(13, 1)), deterministic=False))
    assert calls == [1] * FOLDING + [4] * STEPS * 2


def test_cached_and_live_outputs_give_the_same_training(tmp_path, monkeypatch):
    kept = distilled(tmp_path / "kept", distillation=METHODS["cwd features"]).history
    monkeypatch.setattr(segmentation, "CACHE_BYTES", 0)
    live = distilled(tmp_path / "live", distillation=METHODS["cwd features"]).history
    pd.testing.assert_frame_equal(kept.drop(columns="seconds"), live.drop(columns="seconds"), rtol=1e-3, atol=1e-4)


def test_the_one_cycle_spans_the_whole_run(tmp_path):
    rates = distilled(tmp_path / "cycle", settings=replace(QUICK, epochs=4, one_cycle=True)).history["lr"]
    assert rates.max() == rates[1]  # close to its peak after three tenths
    assert rates[0] == pytest.approx(1e-2 / 25)
    assert distilled(tmp_path / "constant").history["lr"].tolist() == [1e-2] * 2


@pytest.mark.parametrize("method", ["cwd features", "mgd"])  # a connector and a generator learn too
def test_a_stopped_distillation_goes_on_to_the_same_bits(tmp_path, method):
    options = {"settings": replace(QUICK, epochs=3, one_cycle=True), "distillation": METHODS[method]}
    distilled(tmp_path / "whole", **options)
    stopped = distilled(tmp_path / "stopped", after_epoch=lambda row: row["epoch"] == 2, **options)
    assert stopped.ended == "stopped"
    distilled(tmp_path / "stopped", resume=True, **options)
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


OTHER = {
    "temperature": ({"distillation": DenseDistillation("cwd", "logits", 3.0, 2.0)}, "temperature was 4.0, now 2.0"),
    "weight": ({"distillation": DenseDistillation("cwd", "logits", 5.0)}, "weight was 3.0, now 5.0"),
    "layer": ({"distillation": DenseDistillation("cwd", "features", 3.0)}, "layer was 'logits', now 'features'"),
    "start": ({"weights": "none"}, "weights was 'auto', now 'none'"),
    "learning rate": ({"settings": replace(QUICK, lr=1e-3)}, "lr was 0.01, now 0.001"),
    "best epoch": ({"monitor": "mdice"}, "monitor was 'miou', now 'mdice'"),
}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A finished run of one epoch less than it was meant to have."""
    return tmp_path_factory.mktemp("earlier") / "student"


@pytest.mark.parametrize(("change", "said"), OTHER.values(), ids=OTHER)
def test_a_run_is_not_resumed_with_other_settings_nor_does_the_teacher_run(earlier, change, said, monkeypatch):
    if not earlier.exists():
        distilled(earlier, after_epoch=lambda row: True)
    monkeypatch.setattr(segmentation, "_bytes", None)
    with pytest.raises(InputError, match=said) as refused:
        distilled(earlier, resume=True, **change)
    assert str(refused.value).count(" was ") == 1


# --- what is compared ------------------------------------------------------------------------------------------------


def compared(distillation, size=32, seed=0):
    """A distiller, one batch, its losses, and what the two networks had at the method's layers."""
    torch.manual_seed(seed)
    student, teacher = PSPNet(3, **STUDENT), a_teacher(seed)
    for dropout in [module for module in student.modules() if isinstance(module, nn.Dropout2d)]:
        dropout.p = 0.0
    data = Bars(4, seed, size)
    distiller = distillation.distiller(student, teacher, size).train()
    losses = distiller(*data.tensors)
    layer = distillation.layer
    with Taps(student, [STUDENT_LAYERS[layer]]) as mine, Taps(teacher, [TEACHER_LAYERS[layer]]) as its:
        student(data.tensors[0]), teacher(data.tensors[0])
    maps = SimpleNamespace(student=mine[STUDENT_LAYERS[layer]], teacher=its[TEACHER_LAYERS[layer]])
    return distiller, losses, maps


@pytest.mark.parametrize(("size", "mine", "its"), [(32, 4, 8), (45, 6, 11)])
def test_the_teachers_maps_are_averaged_to_the_students_size(size, mine, its):
    for method, by_hand in (
        ("cwd logits", lambda s, t: CWDLoss(4.0)(s, t)),
        ("kd", lambda s, t: KDLoss(4.0)(s.permute(0, 2, 3, 1).reshape(-1, 3), t.permute(0, 2, 3, 1).reshape(-1, 3))),
        ("hard", lambda s, t: F.cross_entropy(s, t.argmax(dim=1))),
        ("at", lambda s, t: ATLoss()(s, t)),
    ):
        _, losses, maps = compared(METHODS[method], size)
        assert (maps.student.shape[2:], maps.teacher.shape[2:]) == ((mine, mine), (its, its))
        expected = by_hand(maps.student, F.adaptive_avg_pool2d(maps.teacher, mine))
        torch.testing.assert_close(losses[METHODS[method].method], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [32, 45])
def test_pseudo_masks_are_the_teachers_decisions_at_each_pixel_of_the_image(size):
    distiller, losses, _ = compared(METHODS["pseudo"], size)
    images = Bars(4, seed=0, size=size).tensors[0]
    decided = distiller.teacher(images).argmax(dim=1)
    assert decided.shape == (4, size, size)
    torch.testing.assert_close(losses["pseudo"], F.cross_entropy(distiller.student(images), decided))


@pytest.mark.parametrize("size", [33, 36, 45, 63])
@pytest.mark.parametrize("method", METHODS)
def test_sizes_that_no_stride_divides(method, size):
    distiller, losses, _ = compared(METHODS[method], size)
    losses["total"].backward()
    assert losses["total"].isfinite()
    assert all(p.grad is None for p in distiller.teacher.parameters())


def test_hard_labels_are_the_teachers_decisions():
    student, teacher = torch.randn(5, 3, 2, 2, requires_grad=True), torch.randn(5, 3, 2, 2, requires_grad=True)
    loss = HardLabels()(student, teacher)
    loss.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    torch.testing.assert_close(loss, HardLabels()(student, 100 * teacher))  # how sure it is does not matter
    picked = student.log_softmax(dim=1).gather(1, teacher.argmax(dim=1, keepdim=True))
    torch.testing.assert_close(loss, -picked.mean())


def test_the_presets_are_the_published_numbers():
    numbers = {name: (p.method, p.layer, p.weight, p.temperature) for name, p in PRESETS.items() if p.method == "cwd"}
    assert numbers == {
        "cwd-logits": ("cwd", "logits", 3.0, 4.0),
        "cwd-logits-mmrazor": ("cwd", "logits", 5.0, 1.0),
        "cwd-features": ("cwd", "features", 50.0, 4.0),
    }
    assert (PRESETS["mgd"].weight, PRESETS["mgd"].mask_ratio) == (2e-5, 0.75)


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED = {
    "method": (lambda: DenseDistillation("cwdd", "logits", 1.0), "unknown method 'cwdd'. Did you mean 'cwd'?"),
    "layer": (lambda: DenseDistillation("cwd", "backbone", 1.0), "layer is 'backbone'; wanted for cwd: 'logits' or"),
    "kd of features": (lambda: DenseDistillation("kd", "features", 1.0), "wanted for kd: 'logits'"),
    "hard of features": (lambda: DenseDistillation("hard", "features", 1.0), "wanted for hard: 'logits'"),
    "at of logits": (lambda: DenseDistillation("at", "logits", 1.0), "wanted for at: 'features'"),
    "mgd of logits": (lambda: DenseDistillation("mgd", "logits", 1.0), "wanted for mgd: 'features'"),
    "weight": (lambda: DenseDistillation("cwd", "logits", -1.0), "weight is -1.0"),
    "no weight": (lambda: DenseDistillation("cwd", "logits", float("nan")), "weight is nan"),
    "temperature": (lambda: DenseDistillation("cwd", "logits", 1.0, temperature=0.0), "temperature is 0.0"),
    "kd's temperature": (lambda: DenseDistillation("kd", "logits", 1.0, temperature=-1.0), "temperature is -1.0"),
    "mask ratio": (lambda: DenseDistillation("mgd", "features", 1.0, mask_ratio=1.5), "mask_ratio is 1.5"),
}


@pytest.mark.parametrize(("build", "said"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_when_it_is_said(build, said, shapes_unchecked):
    with pytest.raises(InputError, match=said):
        build()


def test_to_say_what_is_learnt_draws_no_random_numbers():
    before = torch.get_rng_state()
    DenseDistillation("mgd", "features", 1.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_of_other_classes_is_refused(tmp_path, method):
    with pytest.raises(InputError, match="the student has 3 classes and the teacher 5; wanted: the same classes"):
        distilled(tmp_path / "student", teacher=a_teacher(classes=5), distillation=METHODS[method])
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("train", [teach, partial(distill, teacher=nn.Identity(), distillation=METHODS["kd"])])
def test_an_auxiliary_head_that_nothing_would_train_is_refused(train, tmp_path):
    with pytest.raises(InputError, match="auxiliary=True was given, but this recipe trains no auxiliary head"):
        train(splits(), settings=QUICK, out=tmp_path / "run", architecture={"auxiliary": True})


def test_the_published_backbone_is_not_put_into_a_narrow_one(tmp_path):
    with pytest.raises(InputError, match="no ImageNet weights for ResNet18 in other sizes than its own"):
        distilled(tmp_path / "student", weights="imagenet")


def test_a_student_knows_its_layer():
    """What the tables of layers name is there, in both networks."""
    student, teacher = PSPNet(3, **STUDENT), UPerNet(3, **TEACHER)
    for network, layers in ((student, STUDENT_LAYERS), (teacher, TEACHER_LAYERS)):
        assert layers["logits"] == LOGITS
        for layer in layers.values():
            network.get_submodule(layer)
