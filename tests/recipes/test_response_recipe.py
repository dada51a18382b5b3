"""The response recipe: teach, distil, and the comparison of few labels, on images small enough to train in a moment."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from layout import is_channels_last
from states import same, weights
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from kdlab import InputError
from kdlab.data.splits import ImageSplits
from kdlab.distill import Distiller, TeacherCache
from kdlab.models import StudentCNN
from kdlab.recipes import few_labels, response, settings
from kdlab.recipes.few_labels import FewLabels, HiddenLabels
from kdlab.recipes.response import Distillation, distill, teach
from kdlab.recipes.settings import Settings, cached, place
from kdlab.training import Fit, Supervised, load_model

WIDTHS = (4, 4, 4, 4)
QUICK = Settings(epochs=2, lr=1e-2, batch_size=8)
STEPS = 5  # an epoch: 42 images in batches of 8, the last two left out


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """One thread, a cache for each test, and a teacher as small as the images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))

    def densenet121(classes, weights):
        model = StudentCNN(classes, WIDTHS, drop_rate=0.0)
        model.weights_used = f"as asked for: {weights}"
        return model

    monkeypatch.setattr(response, "densenet121", densenet121)
    yield
    torch.set_num_threads(threads)


class Labelled(TensorDataset):
    """Three classes that differ in their colour."""

    def __init__(self, count, seed):
        targets = torch.arange(count) % 3
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 0.3
        images[torch.arange(count), targets] += 1
        super().__init__(images)
        self.targets = targets.tolist()

    def __getitem__(self, index):
        return super().__getitem__(index)[0], self.targets[index]


class Augmented(Dataset):
    """The same images, brighter or darker each time."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.targets = dataset.targets

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, label = self.dataset[index]
        return image + torch.rand(()), label


def splits(**changes):
    fields = {
        "train": Labelled(42, 1), "val": Labelled(12, 2), "test": Labelled(12, 3), "classes": ("red", "green", "blue"),
        "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "size": 32, "name": "colours", "deterministic": True,
    }  # fmt: skip
    return ImageSplits(**fields | changes)


def a_teacher(seed=0):
    torch.manual_seed(seed)
    return StudentCNN(3, WIDTHS)


def distilled(out, *, data=None, teacher=None, distillation=None, settings=QUICK, **options):
    return distill(
        data or splits(), teacher or a_teacher(), distillation or Distillation(), settings, out=out, widths=WIDTHS,
        **options,
    )  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    """How many images each network has seen at each call, by the network's identity."""
    seen = {}
    original = StudentCNN.forward

    def counted(self, images):
        seen.setdefault(id(self), []).append(len(images))
        return original(self, images)

    monkeypatch.setattr(StudentCNN, "forward", counted)
    return lambda model: seen.get(id(model), [])


# --- teach -----------------------------------------------------------------------------------------------------------


def test_teach_leaves_a_teacher_that_can_be_used(tmp_path):
    data = splits()
    done = teach(data, replace(QUICK, epochs=20), out=tmp_path / "teacher")
    assert {path.name for path in (tmp_path / "teacher").glob("[!.]*")} == {
        "best.safetensors", "last.safetensors", "resume.safetensors", "history.csv",
    }  # fmt: skip
    assert len(done.history) == 20
    assert done.best["val_accuracy"] > 0.9  # colours are easy
    model, card = load_model(tmp_path / "teacher")
    assert response.evaluate(model, data.val)["accuracy"] == done.best["val_accuracy"]
    assert (card.classes, card.mean, card.std, card.size) == (data.classes, data.mean, data.std, 32)
    assert card.weights == "as asked for: auto"
    recipe = {"task": "teach", "weights": "auto", "data": "colours", "lr": 1e-2, "batch_size": 8, "augment": False}
    assert recipe.items() <= card.recipe.items()
    assert card.metrics["epoch"] == done.best["epoch"]


def test_the_same_seed_teaches_the_same_teacher(tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        torch.manual_seed(len(name))
        teach(splits(), replace(QUICK, seed=seed), out=tmp_path / name)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_a_teacher_that_was_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """Its weights lie in memory by channel, those of the file do not."""
    settings = replace(QUICK, epochs=4, one_cycle=True)
    teach(splits(), settings, out=tmp_path / "whole")
    evaluate, looks = response.evaluate, []

    def interrupted(*arguments, **options):
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr(response, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        teach(splits(), settings, out=tmp_path / "stopped")
    monkeypatch.setattr(response, "evaluate", evaluate)
    asked = []
    build = response.densenet121
    monkeypatch.setattr(response, "densenet121", lambda classes, how: asked.append(how) or build(classes, how))
    teach(splits(), settings, out=tmp_path / "stopped", resume=True)
    assert asked == ["none"]  # no download for weights that are replaced at once
    for name in ("best", "last"):
        file = f"{name}.safetensors"
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


# --- distill ---------------------------------------------------------------------------------------------------------


def test_distill_leaves_a_student_that_can_be_used(tmp_path):
    done = distilled(tmp_path / "student", settings=replace(QUICK, epochs=6), drop_rate=0.1)
    assert list(done.history.columns) == [
        "epoch", "lr", "task", "kd", "total", "val_accuracy", "val_loss", "val_calibration_error", "seconds",
    ]  # fmt: skip
    model, card = load_model(tmp_path / "student")
    assert model.architecture == {"name": "StudentCNN", "classes": 3, "widths": [4, 4, 4, 4], "drop_rate": 0.1}
    assert card.metrics["accuracy"] == done.best["val_accuracy"]
    recipe = {"task": "distill", "temperature": 2.0, "alpha": 0.7, "widths": [4, 4, 4, 4], "drop_rate": 0.1, "seed": 0}
    assert recipe.items() <= card.recipe.items()


def test_the_same_seed_distils_the_same_student_whatever_was_drawn_before(tmp_path):
    teacher, students = a_teacher(), {}
    for name, seed in {"one": 3, "again": 3, "other": 4}.items():
        torch.manual_seed(len(name))
        distilled(tmp_path / name, teacher=teacher, settings=replace(QUICK, seed=seed))
        students[name] = weights(tmp_path / name)
    assert same(students["one"], students["again"])
    assert not same(students["one"], students["other"])


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_loop_is_given_all_settings(channels_last, tmp_path, monkeypatch):
    given = {}
    nothing = Fit(pd.DataFrame(), {}, "epochs")

    def loop(objective, loader, **options):
        given.update(options, channels_last=is_channels_last(objective.student))
        return nothing

    monkeypatch.setattr(settings, "fit", loop)
    speed = {"precision": "bf16", "compile": True, "accumulate": 2, "channels_last": channels_last}
    asked = replace(QUICK, seed=5, patience=3, **speed)
    distilled(tmp_path / "student", settings=asked)
    for name in ("epochs", "seed", "patience", *speed):
        assert given[name] == getattr(asked, name)


def test_the_defaults_are_the_articles():
    assert (Settings().epochs, Settings().lr, Settings().batch_size) == (500, 1e-4, 4)
    assert Distillation() == Distillation(temperature=2.0, alpha=0.7)


def test_the_reported_total_is_the_articles_loss(tmp_path):
    history = distilled(tmp_path / "student", distillation=Distillation(temperature=3.0, alpha=0.25)).history
    mixed = 0.25 * history["kd"] + 0.75 * history["task"]
    pd.testing.assert_series_equal(history["total"], mixed, check_names=False, rtol=1e-5)


def test_on_the_same_images_the_teacher_runs_once(tmp_path, calls):
    teacher = a_teacher()
    distilled(tmp_path / "one", teacher=teacher, settings=replace(QUICK, epochs=3))
    assert sum(calls(teacher)) == 42  # each training image once, in three epochs
    distilled(tmp_path / "two", teacher=teacher, settings=replace(QUICK, seed=1))
    assert sum(calls(teacher)) == 42  # kept on disk


def test_on_augmented_images_the_teacher_runs_at_every_step(tmp_path, calls):
    teacher = a_teacher()
    data = splits(train=Augmented(Labelled(42, 1)), deterministic=False)
    distilled(tmp_path / "student", data=data, teacher=teacher, settings=replace(QUICK, epochs=3))
    assert calls(teacher) == [8] * STEPS * 3
    assert load_model(tmp_path / "student")[1].recipe["augment"] is True


def test_cached_and_live_outputs_give_the_same_training(tmp_path):
    live = distilled(tmp_path / "live", data=splits(deterministic=False)).history
    kept = distilled(tmp_path / "kept").history
    pd.testing.assert_frame_equal(kept.drop(columns="seconds"), live.drop(columns="seconds"), rtol=1e-3, atol=1e-4)


def test_the_teacher_stays_as_it_was(tmp_path):
    teacher, before = a_teacher(), a_teacher().state_dict()
    distilled(tmp_path / "student", data=splits(deterministic=False), teacher=teacher)
    assert same(teacher.state_dict(), before)


def test_alpha_zero_learns_from_the_labels_alone(tmp_path):
    labels_only = Distillation(alpha=0.0)
    distilled(tmp_path / "one", teacher=a_teacher(1), distillation=labels_only)
    distilled(tmp_path / "two", teacher=a_teacher(2), distillation=labels_only)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_alpha_one_learns_from_the_teacher_alone(tmp_path):
    wrong = splits()
    wrong.train.targets = wrong.train.targets[::-1]
    distilled(tmp_path / "one", distillation=Distillation(alpha=1.0))
    distilled(tmp_path / "two", data=wrong, distillation=Distillation(alpha=1.0))
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_the_one_cycle_spans_the_whole_run(tmp_path):
    settings = replace(QUICK, epochs=4, one_cycle=True)
    rates = distilled(tmp_path / "cycle", settings=settings).history["lr"]
    assert rates.max() == rates[1]  # close to its peak after three tenths
    assert rates[0] == pytest.approx(1e-2 / 25)
    assert distilled(tmp_path / "constant").history["lr"].tolist() == [1e-2] * 2


# --- images without labels -------------------------------------------------------------------------------------------


def test_the_teacher_also_speaks_of_images_without_labels(tmp_path, calls, monkeypatch):
    more = Labelled(100, 4)
    more.targets = [-100] * 100
    data, teacher, loaders = splits(unlabelled=more, files={"unlabelled": "100 files"}), a_teacher(), []
    original = settings.fit
    monkeypatch.setattr(
        settings, "fit", lambda one, loader, **how: loaders.append(loader) or original(one, loader, **how)
    )
    history = distilled(tmp_path / "run", data=data, teacher=teacher).history
    assert sum(calls(teacher)) == 142  # each image once
    labels = [label for _, label, _ in loaders[0].dataset]
    assert (labels.count(-100), len(labels)) == (100, 184)  # the 42 labelled ones twice
    assert (history["kd"] > 0).all()
    with pytest.raises(InputError, match="unlabelled files was '100 files', now not recorded"):
        distilled(tmp_path / "run", teacher=teacher, resume=True)


# --- resuming --------------------------------------------------------------------------------------------------------


def test_the_order_in_memory_changes_the_last_digits_alone_and_a_run_may_go_on_with_another(tmp_path):
    contiguous = replace(QUICK, channels_last=False)
    one = distilled(tmp_path / "one", drop_rate=0.0)  # dropout draws in the order of memory
    distilled(tmp_path / "mixed", settings=contiguous, drop_rate=0.0, after_epoch=lambda row: True)
    mixed = distilled(tmp_path / "mixed", drop_rate=0.0, resume=True)
    totals = [done.history["total"].tolist() for done in (one, mixed)]
    assert totals[1] == pytest.approx(totals[0], rel=1e-3)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_weights_lie_as_asked_for(channels_last):
    assert is_channels_last(place(a_teacher(), torch.device("cpu"), channels_last)) == channels_last


def test_a_stopped_distillation_goes_on_to_the_same_bits(tmp_path):
    settings = replace(QUICK, epochs=4, one_cycle=True)
    whole = distilled(tmp_path / "whole", settings=settings)
    stopped = distilled(tmp_path / "stopped", settings=settings, after_epoch=lambda row: row["epoch"] == 2)
    assert stopped.ended == "stopped"
    resumed = distilled(tmp_path / "stopped", settings=replace(settings, workers=1), resume=True)  # other workers, too
    pd.testing.assert_frame_equal(resumed.history.drop(columns="seconds"), whole.history.drop(columns="seconds"))
    for name in ("best", "last"):
        file = f"{name}.safetensors"
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


OTHER = {
    "temperature": (lambda: {"distillation": Distillation(temperature=4.0)}, "temperature was 2.0, now 4.0"),
    "alpha": (lambda: {"distillation": Distillation(alpha=0.5)}, "alpha was 0.7, now 0.5"),
    "teacher": (lambda: {"teacher": a_teacher(1)}, "teacher was '[0-9a-f]{16}', now '[0-9a-f]{16}'"),
    "drop rate": (lambda: {"drop_rate": 0.5}, "drop_rate was 0.2, now 0.5"),
    "learning rate": (lambda: {"settings": replace(QUICK, lr=1e-3)}, "lr was 0.01, now 0.001"),
    "seed": (lambda: {"settings": replace(QUICK, seed=1)}, "seed was 0, now 1"),
    "batch size": (lambda: {"settings": replace(QUICK, batch_size=4)}, "batch_size was 8, now 4"),
    "epochs": (lambda: {"settings": replace(QUICK, epochs=3)}, "epochs was 2, now 3"),
    "data": (lambda: {"data": splits(name="shapes")}, "data was 'colours', now 'shapes'"),
    "size": (lambda: {"data": splits(size=64)}, "size was 32, now 64"),
    "mean": (lambda: {"data": splits(mean=(0.1, 0.2, 0.4))}, r"mean was \[0.1, 0.2, 0.3\], now \[0.1, 0.2, 0.4\]"),
    "std": (lambda: {"data": splits(std=(1.0, 0.5, 0.5))}, "std was"),
    "augmentation": (
        lambda: {"data": splits(train=Augmented(Labelled(42, 1)), deterministic=False)},
        "augment was False, now True",
    ),
}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A finished run of one epoch less than it was meant to have."""
    return tmp_path_factory.mktemp("earlier") / "student"


@pytest.mark.parametrize(("change", "said"), OTHER.values(), ids=OTHER)
def test_a_run_is_not_resumed_with_other_settings(earlier, change, said):
    if not earlier.exists():
        distilled(earlier, after_epoch=lambda row: True)
    before = {path.name: path.read_bytes() for path in earlier.iterdir()}
    with pytest.raises(InputError, match=said) as refused:
        distilled(earlier, resume=True, **change())
    assert str(refused.value).count(" was ") == 1
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == before


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED = {
    "epochs": (lambda: Settings(epochs=0), "epochs is 0; wanted: a whole number from 1 up"),
    "batch size": (lambda: Settings(batch_size=0), "batch_size is 0; wanted: a whole number from 1 up"),
    "workers": (lambda: Settings(workers=-1), r"workers is -1; wanted: 0 \(load in this process\) to 128"),
    "no learning rate": (lambda: Settings(lr=0.0), "lr is 0.0; wanted: above 0 and at most 10"),
    "a large learning rate": (lambda: Settings(lr=11.0), "lr is 11.0"),
    "a learning rate that is no number": (lambda: Settings(lr=float("nan")), "lr is nan"),
    "patience": (lambda: Settings(patience=0), "patience"),
    "pieces": (lambda: Settings(batch_size=4, accumulate=3), "accumulate is 3; wanted: equal pieces of a batch of 4"),
    "precision": (lambda: Settings(precision="fp16"), "precision is 'fp16'; wanted: 'fp32' or 'bf16'"),
    "no temperature": (lambda: Distillation(temperature=0.0), "temperature is 0.0; it must be a finite number above 0"),
    "a temperature below 0": (lambda: Distillation(temperature=-2.0), "temperature is -2.0"),
    "an infinite temperature": (lambda: Distillation(temperature=float("inf")), "temperature is inf"),
    "alpha above 1": (lambda: Distillation(alpha=1.5), r"alpha is 1.5; wanted: from 0 \(labels only\) to 1"),
    "alpha below 0": (lambda: Distillation(alpha=-0.1), "alpha is -0.1"),
    "an alpha that is no number": (lambda: Distillation(alpha=float("nan")), "alpha is nan"),
}


@pytest.mark.parametrize(("build", "said"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_when_it_is_said(build, said, shapes_unchecked):
    with pytest.raises(InputError, match=said):
        build()


def test_a_teacher_of_other_classes_is_refused(tmp_path, shapes_unchecked):
    with pytest.raises(InputError, match=r"term 'kd' .*\(8, 3\) and the teacher's \(8, 5\).*of the same sizes"):
        distilled(tmp_path / "student", teacher=StudentCNN(5, WIDTHS))
    assert list((tmp_path / "student").glob("[!.]*")) == []


def test_more_images_to_a_batch_than_there_are_is_refused(tmp_path):
    with pytest.raises(InputError, match="fewer samples than one batch"):
        distilled(tmp_path / "student", settings=replace(QUICK, batch_size=64, one_cycle=True))


def test_an_earlier_run_is_not_overwritten(tmp_path):
    distilled(tmp_path / "student")
    before = weights(tmp_path / "student")
    with pytest.raises(InputError, match="holds an earlier run"):
        distilled(tmp_path / "student", settings=replace(QUICK, seed=1))
    assert same(weights(tmp_path / "student"), before)


# --- the teacher of the chapters -------------------------------------------------------------------------------------


def test_the_folder_in_the_cache_depends_on_the_recipe_and_on_torch(tmp_path, monkeypatch):
    one = cached("student", {"lr": 1e-3, "steps": 400})
    assert one.parent == tmp_path / "cache" / "trained"
    assert one.name.startswith("student-")
    assert cached("student", {"steps": 400, "lr": 1e-3}) == one
    others = [cached("student", {"lr": 1e-2, "steps": 400}), cached("student", {"lr": 1e-3}), cached("teacher", {})]
    monkeypatch.setattr(torch, "__version__", "99.0")
    others.append(cached("student", {"lr": 1e-3, "steps": 400}))
    assert len({one, *others}) == 5


def test_the_folder_in_the_cache_depends_on_the_code_that_trains(tmp_path, monkeypatch):
    package = tmp_path / "kdlab"
    files = {name: package / name for name in ("__init__.py", "losses/kd.py", "classroom/show.py", "commands/run.py")}
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one = 1\n")
    monkeypatch.setattr(settings.kdlab, "__file__", str(files["__init__.py"]))

    def folder() -> Path:
        settings._code.cache_clear()
        return cached("student", {"lr": 1e-3})

    before = folder()
    files["classroom/show.py"].write_text("two = 2\n")
    files["commands/run.py"].write_text("two = 2\n")
    assert folder() == before
    files["losses/kd.py"].write_text("two = 2\n")
    assert folder() != before


def test_the_teacher_of_the_digits_is_trained_once(tmp_path, monkeypatch, calls):
    monkeypatch.setattr(response, "TEACHER", QUICK)
    first, card = response.digits_teacher(splits())
    assert card.weights == "as asked for: none"
    assert not first.training
    trained = []
    fit = settings.fit
    monkeypatch.setattr(settings, "fit", lambda *a, **o: trained.append(fit(*a, **o)) or trained[-1])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    second, _ = response.digits_teacher(splits())
    assert same(first.state_dict(), second.state_dict())
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert len(trained[0].history) == QUICK.epochs


# --- few labels ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fits(monkeypatch):
    """What each comparison hands to the training loop."""
    seen = []
    original = few_labels.fit

    def noted(objective, loader, **options):
        initial = {name: value.clone() for name, value in objective.student.state_dict().items()}
        seen.append({"objective": objective, "loader": loader, "initial": initial, **options})
        return original(objective, loader, **options)

    monkeypatch.setattr(few_labels, "fit", noted)
    return seen


def few(method, *, labels=12, seed=0, data=None, teacher=None, keep=False, **options):
    data, teacher = data or splits(), teacher or a_teacher()
    cache = TeacherCache.build(teacher, [response.LOGITS], data.train)
    experiment = FewLabels(method, labels, seed, steps=20, batch_size=8, **options)
    return experiment.run(data, teacher, cache, keep=keep)


def labels_of(dataset):
    """The labels that a training sees, by the image's first number; None for a hidden one."""
    return {image[0, 0, 0].item(): label if label >= 0 else None for image, label, *_ in dataset}


def test_the_methods_differ_in_the_teacher_and_in_the_images_and_in_nothing_else(fits):
    for method in ("alone", "kd", "kd_unlabelled"):
        few(method)
    alone, kd, unlabelled = fits
    assert [type(one["objective"]) for one in fits] == [Supervised, Distiller, Distiller]
    seen = [labels_of(one["loader"].dataset) for one in fits]
    assert seen[0] == seen[1]
    assert {image: label for image, label in seen[2].items() if label is not None} == seen[0]
    assert len(seen[2]) == 42
    for one in fits:
        assert same(one["initial"], alone["initial"])
        assert (one["epochs"], len(one["loader"]), one["loader"].batch_size) == (10, 2, 8)
        assert one["optimizer"].defaults == alone["optimizer"].defaults
        assert one["scheduler"].total_steps == 20
        assert one["seed"] == 0
        assert one["out"] is None  # nothing is saved: the table keeps the numbers
    for one in (kd, unlabelled):
        (term,) = one["objective"].terms
        assert (term.loss.temperature, term.weight) == (4.0, 0.7)
        assert one["objective"].task_weight == pytest.approx(0.3)


@pytest.mark.parametrize("seed", [0, 1])
def test_without_the_teachers_weight_distilling_is_learning_alone(seed):
    alone, _ = few("alone", seed=seed)
    kd, _ = few("kd", seed=seed, alpha=0.0)
    assert same(alone.state_dict(), kd.state_dict())
    taught, _ = few("kd", seed=seed)
    assert not same(alone.state_dict(), taught.state_dict())


def test_the_kept_labels_are_stratified_and_drawn_by_the_seed(fits):
    for seed in (0, 0, 1):
        few("alone", seed=seed)
    first, again, other = ([one["loader"].dataset.indices][0] for one in fits)
    assert sorted(first) == sorted(again)
    assert sorted(first) != sorted(other)
    for kept in (first, other):
        assert Counter(splits().train.targets[index] for index in kept) == {0: 4, 1: 4, 2: 4}


def test_the_student_is_the_last_of_the_run_and_the_seed_makes_it():
    one, done = few("kd_unlabelled", seed=1)
    two, _ = few("kd_unlabelled", seed=1)
    other, _ = few("kd_unlabelled", seed=2)
    assert same(one.state_dict(), two.state_dict())
    assert not same(one.state_dict(), other.state_dict())
    data = splits()
    assert response.evaluate(one, data.val)["loss"] == pytest.approx(done.history["val_loss"].iloc[-1])


def test_a_kept_run_is_loaded_the_second_time(monkeypatch):
    first, done = few("kd", keep=True)
    monkeypatch.setattr(Distiller, "forward", None)  # a second training would fail
    again, loaded = few("kd", keep=True)
    assert same(first.state_dict(), again.state_dict())
    assert loaded.history.equals(done.history)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        few("kd", keep=True, seed=1)


def test_a_kept_run_of_another_teacher_is_another_and_alone_there_is_none(monkeypatch):
    folders, nothing = [], Fit(pd.DataFrame(), {}, "epochs")
    monkeypatch.setattr(few_labels, "fit", lambda *_, **how: folders.append(how["out"]) or nothing)
    for method in ("kd", "alone"):
        for seed in (0, 1):
            few(method, teacher=a_teacher(seed), keep=True)
    taught, otherwise, alone, again = folders
    assert taught != otherwise
    assert alone == again


@pytest.mark.parametrize("other", [{"size": 16}, {"mean": (0.1,) * 3}, {"std": (0.2,) * 3}])
def test_a_kept_run_on_other_images_of_the_same_name_is_another(fits, other):
    few("alone", keep=True)
    few("alone", keep=True, data=replace(splits(), **other))
    assert fits[0]["out"] != fits[1]["out"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"labels": 42}, "labels is 42; wanted: from 3 .* to 41"),
        ({"labels": 2}, "labels is 2; wanted: from 3"),
        ({"steps": 25}, "steps is 25; wanted: a multiple of 10"),
        ({"method": "kd_unlabeled"}, "Did you mean 'kd_unlabelled'"),
    ],
)
def test_impossible_few_labels_are_refused(settings, said, shapes_unchecked):
    data, teacher = splits(), a_teacher()
    with pytest.raises(InputError, match=said):
        FewLabels(**{"method": "kd", "labels": 12, "seed": 0, **settings}).run(data, teacher, TeacherCache({}, ""))


def test_hidden_labels_keeps_the_given_ones_and_all_images():
    data = Labelled(9, 1)
    hidden = HiddenLabels(data, [2, 5])
    assert len(hidden) == 9
    assert [hidden[index][1] for index in range(9)] == [-100, -100, 2, -100, -100, 2, -100, -100, -100]
    assert all(torch.equal(hidden[index][0], data[index][0]) for index in range(9))


def test_an_observation_travels_with_its_hidden_label():
    data = Labelled(6, 1)
    attached = TeacherCache({"classifier": torch.arange(18.0).view(6, 3)}, "").attach(data)
    image, label, observed = HiddenLabels(attached, [])[4]
    assert label == -100
    assert observed["classifier"].tolist() == [12.0, 13.0, 14.0]
    assert torch.equal(image, data[4][0])


def test_the_evaluation_is_of_the_whole_data_set():
    class Red(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, images):
            return torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(images), 1) * self.scale

    metrics = response.evaluate(Red(), Labelled(100, 1), batch_size=7)
    assert metrics["accuracy"] == pytest.approx(0.34)
