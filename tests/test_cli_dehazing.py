"""The command line for dehazing: a teacher of clean images, and a student that takes the haze away."""

import csv
from argparse import Namespace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from command_line import done, refused
from weather_folder import grow

from kdlab.commands.options import DEFAULTS
from kdlab.commands.runs import check_weights, say_weights
from kdlab.commands.train_dehazer import CROP
from kdlab.data import pair_folders
from kdlab.data.pair_folders import load_pairs
from kdlab.models import KTDN, SRKTDN, DehazingTeacher
from kdlab.recipes import dehazing, restorer
from kdlab.recipes.dehazing import FAST, NARROW, NARROW_TEACHER, Dehazing, DehazingSettings
from kdlab.training import Fit, ModelCard, load_model, save_model
from kdlab.training.restoration import restoration_metrics

TASK = ("--task", "dehazing", "--device", "cpu")
SMALL = (*TASK, "--narrow", "--crop", 32, "--weather", "haze", "--batch-size", 2, "--steps", 2)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def outdoors(tmp_path_factory):
    return grow(tmp_path_factory.mktemp("data") / "outdoors")


@pytest.fixture(scope="module")
def clean(outdoors, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "the clean"
    return SimpleNamespace(out=out, text=done("teach", outdoors, "--out", out, "--epochs", 2, *SMALL))


@pytest.fixture(scope="module")
def student(outdoors, clean, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "student"
    words = ("distill", outdoors, "--teacher", clean.out, "--out", out, "--epochs", 2, *SMALL)
    return SimpleNamespace(out=out, text=done(*words))


@pytest.fixture
def asked(monkeypatch):
    """What a command asks of the recipe, which does nothing."""
    calls = []

    def recipe(*arguments, **options):
        calls.append(SimpleNamespace(arguments=arguments, **options))
        fit = Fit(pd.DataFrame([{}]), {"epoch": 1, "val_psnr": 20.5, "val_ssim": 0.75}, "epochs")
        return fit if len(arguments) == 2 else (None, fit)

    monkeypatch.setattr(dehazing, "teach", recipe)
    monkeypatch.setattr(dehazing, "distill", recipe)
    return calls


# --- training --------------------------------------------------------------------------------------------------------


def test_teach_leaves_a_teacher_of_clean_images_and_says_what_it_is_for(clean, outdoors):
    for said in (
        "data: outdoors, 4 training and 2 validation images (trained on in parts of 32x32 pixels)\n",
        "weathers: haze\n",
        "started from weights: none: a random start",
        f"kdlab distill {outdoors} --task dehazing --narrow --teacher '{clean.out}' --out STUDENT",
    ):
        assert said in clean.text
    teacher, card = load_model(clean.out)
    assert isinstance(teacher, DehazingTeacher)
    assert card.classes == ("haze",)
    assert (
        card.architecture.items() >= {name: value for name, value in NARROW_TEACHER.items() if name == "middle"}.items()
    )
    assert card.recipe.items() >= {"task": "auto-encode", "epochs": 2, "steps": 2, "lr": 1e-4, "turned": True}.items()


def test_distill_learns_from_that_teacher(student, clean, outdoors):
    assert "student: SRKTDN; weights: l1 1, laplacian 0.3, lab 0.5, transfer 1\n" in student.text
    network, card = load_model(student.out / "last.safetensors")
    assert isinstance(network, SRKTDN)
    with (student.out / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["transfer"]) > 0 for row in rows] == [True, True]
    measured = restoration_metrics(network, load_pairs(outdoors).val.only(["haze"]))
    assert {name: card.metrics[name] for name in measured} == pytest.approx(measured, rel=1e-4)
    text = done("evaluate", outdoors, "--model", student.out, "--weather", "haze", "--device", "cpu")
    assert "the model was trained for haze" in text


def test_a_run_goes_on_with_the_same_command_and_resume(outdoors, clean, student, tmp_path):
    words = ("distill", outdoors, "--teacher", clean.out, "--out", tmp_path / "s", "--epochs", 2, *SMALL)
    done(*words)
    again = done(*words, "--resume")
    assert "best epoch" in again
    for name in ("last.safetensors", "best.safetensors"):
        mine, theirs = (load_model(folder / name)[0].state_dict() for folder in (tmp_path / "s", student.out))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert "holds an earlier run" in refused(*words)


def test_without_transfer_there_is_no_teacher_and_without_the_branch_a_ktdn(outdoors, tmp_path):
    out = tmp_path / "s"
    words = ("--transfer", 0, "--no-super-resolution", "--epochs", 1)
    assert "student: KTDN; weights: l1 1, laplacian 0.3, lab 0.5, transfer 0\n" in done(
        "distill", outdoors, "--out", out, *words, *SMALL
    )
    network, card = load_model(out)
    assert type(network) is KTDN  # of which SRKTDN is one, too
    assert card.recipe["teacher"] is None


def test_the_defaults_are_the_published_ones(outdoors, tmp_path, asked):
    for command in ("teach", "distill"):
        own, published = DEFAULTS[command]["dehazing"], vars(DehazingSettings())
        assert {name: own[name] for name in ("epochs", "lr", "batch_size", "patience", "one_cycle")} == {
            name: published[name] for name in ("epochs", "lr", "batch_size", "patience", "one_cycle")
        }
    words = (outdoors, "--out", tmp_path / "s", *TASK, "--weather", "haze", "--weights", "none", "--batch-size", 4)
    done("distill", *words, "--transfer", 0)
    data, teacher, plan, settings = asked[0].arguments
    assert (data.train.crop, teacher, plan) == (CROP, None, Dehazing(transfer=0.0))
    assert settings == DehazingSettings(batch_size=4)
    assert (asked[0].architecture, asked[0].super_resolution) == (None, True)


def test_what_is_no_setting_of_the_recipe_reaches_it_too(outdoors, tmp_path, asked):
    words = (outdoors, *SMALL, "--weights", "none", "--resume", "--out")
    done("teach", *words, tmp_path / "t")
    done("distill", *words, tmp_path / "s", "--transfer", 0, "--no-super-resolution")
    told = [(call.weights, call.resume, call.device) for call in asked]
    assert told == [("none", True, torch.device("cpu"))] * 2
    assert (asked[0].architecture, asked[1].super_resolution) == (NARROW_TEACHER, False)
    assert [call.arguments[-1].steps for call in asked] == [2, 2]
    assert [call.arguments[0].classes for call in asked] == [("haze",)] * 2


@pytest.mark.parametrize("epochs", [12, 24])
def test_the_narrow_networks_have_the_courses_schedule(outdoors, tmp_path, asked, epochs):
    words = ("--narrow", "--epochs", epochs, "--lr", 2e-3, "--batch-size", 2, "--weather", "haze", "--transfer", 0)
    done("distill", outdoors, "--out", tmp_path / "s", *TASK, *words)
    settings = asked[0].arguments[3]
    expected = FAST.over(epochs)
    for name in ("decay", "every", "freeze_from", "steps", "epochs"):
        assert getattr(settings, name) == getattr(expected, name), name
    assert asked[0].architecture == NARROW


def test_the_courses_haze_has_a_name(tmp_path, asked):
    done("teach", "haze", "--narrow", "--out", tmp_path / "t", *TASK, "--batch-size", 2)
    data, _ = asked[0].arguments
    assert data.classes == ("homogeneous", "non-homogeneous")
    assert data.train.crop == 64


# --- refused before any work -----------------------------------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch):
    def reached(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(restorer, "fit", reached)


@pytest.fixture
def no_look(monkeypatch):
    """The files of a folder must not be read: a large one takes minutes."""
    monkeypatch.setattr(pair_folders, "_looks", None)


@pytest.mark.usefixtures("no_work", "no_look")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--transfer", "-1"], "transfer is -1.0"),
        (["--transfer", "0"], "--teacher was given with --transfer 0, which leaves it out"),
        (["--teacher", "t"], "--teacher was given 2 times; wanted: once, what `kdlab teach --task dehazing` made"),
        (["--weather", "fog"], "--weather is fog; outdoors has haze, rain."),
        (["--batch-size", "1"], "--batch-size is 1; wanted: at least 2, since batch normalisation compares images"),
        (["--batch-size", "2", "--accumulate", "2"], "at least 4, since batch normalisation compares images, two or"),
        (["--weights", "imagenet"], "--weights imagenet was given with --narrow, which ImageNet's do not fit."),
        (["--width", "8"], "--width was given, which only restoration has; the task is dehazing."),
        (["--lr", "0"], "lr is 0.0"),
    ],
)
def test_impossible_settings(outdoors, clean, tmp_path, options, message):
    words = ("distill", outdoors, "--teacher", clean.out, "--out", tmp_path / "s", *SMALL)
    assert message in refused(*words, *options)
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("no_work", "no_look")
def test_a_run_is_not_gone_on_with_otherwise_nor_begun_over_another(outdoors, clean, student):
    words = (outdoors, "--epochs", 2, *SMALL)
    teach = ("teach", *words, "--out", clean.out)
    assert "holds an earlier run. Go on with it (--resume)" in refused(*teach)
    assert "weights was 'auto', now 'none'" in refused(*teach, "--resume", "--weights", "none")
    distill = ("distill", *words, "--teacher", clean.out, "--out", student.out, "--resume")
    assert "transfer was 1.0, now 2.0" in refused(*distill, "--transfer", 2)


def test_what_a_run_started_from_is_known_without_building_a_network(clean, capsys):
    args = Namespace(out=clean.out, resume=True, weights="imagenet")

    def built():
        raise AssertionError("a network was built")

    check_weights(args, built)
    assert say_weights(args, built).startswith("none: a random start")
    with pytest.raises(AssertionError):
        check_weights(Namespace(out=clean.out, resume=False, weights="imagenet"), built)


@pytest.mark.usefixtures("no_work")
def test_more_images_in_a_batch_than_there_are(outdoors, clean, tmp_path):
    words = ("distill", outdoors, "--teacher", clean.out, "--out", tmp_path / "s", *SMALL, "--batch-size", 8)
    assert "there are 4 images of haze and each batch of 8 wants 8." in refused(*words)
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("no_work", "no_look")
def test_teachers_that_cannot_teach(outdoors, clean, student, tmp_path):
    wide = DehazingTeacher((32, 64, 128), (1, 1, 1), 256, 2)
    card = ModelCard(wide.architecture, ("haze",), (0.0,) * 3, (1.0,) * 3, 32)
    save_model(tmp_path / "wide.safetensors", wide, card)
    words = ("distill", outdoors, "--out", tmp_path / "s", *SMALL)
    for given, said in (
        ((), "--teacher was given 0 times; wanted: once, what `kdlab teach --task dehazing` made, or never and"),
        (("--teacher", student.out), "is SRKTDN, which is a student; wanted: what `kdlab teach --task dehazing` made."),
        (("--teacher", tmp_path / "wide.safetensors"), "the teacher's map has 256 channels and the student's 128"),
        (("--teacher", "nowhere"), "--teacher nowhere does not exist"),
    ):
        assert said in refused(*words, *given)
    assert "is where the teacher is, which would be written over" in refused(
        "distill", outdoors, "--teacher", clean.out, "--out", clean.out, *SMALL
    )


def test_images_of_another_task(tmp_path):
    for data, said in (
        ("digits", "digits has no clean image for each image, which restoration wants: weather or haze, or a folder"),
        ("scenes", "scenes has no clean image for each image"),
    ):
        assert said in refused("teach", data, "--out", tmp_path / "o", *TASK)
    assert "haze has a clean image for each image and no labels" in refused("teach", "haze", "--out", tmp_path / "o")
    assert "haze has a clean image for each image and no masks" in refused(
        "teach", "haze", "--task", "segmentation", "--out", tmp_path / "o"
    )
