"""The command line for restoration: from a folder of pairs to a student that takes the weather out of new images."""

import csv
import io
import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import done, refused, run
from PIL import Image
from states import same, weights
from torchvision.transforms.v2 import functional as transforms
from weather_folder import drawn, grow, hazy, rainy

from kdlab.commands import inputs, parsers, restoration_options, restore, train_restorer
from kdlab.commands.options import DEFAULTS
from kdlab.data import pair_folders
from kdlab.data.pair_folders import load_pairs
from kdlab.data.weather_photos import load_weather
from kdlab.errors import InputError
from kdlab.losses.restoration import Negatives
from kdlab.models import KTDN, MSBDN, SRKTDN, DehazingTeacher, PSPNet, StudentCNN
from kdlab.recipes import restoration, restorer
from kdlab.recipes.perceptual import FeatureWeights
from kdlab.recipes.restoration import Positive, RestorationSettings, TwoStage
from kdlab.recipes.restorer import PixelLoss
from kdlab.recipes.weather import NARROW, TWO_STAGE
from kdlab.training import Fit, ModelCard, SelfEnsemble, load_model, save_model
from kdlab.training.restoration import QUALITY, measure_each, restoration_metrics
from kdlab.training.tiles import restore as restore_in_tiles

TASK = ("--task", "restoration", "--device", "cpu")
TINY = (*TASK, "--width", 2, "--crop", 32, "--lr", 3e-3)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def outdoors(tmp_path_factory):
    return grow(tmp_path_factory.mktemp("data") / "outdoors")


@pytest.fixture(scope="module")
def haze(outdoors, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "the haze"
    text = done("teach", outdoors, "--weather", "haze", "--out", out, "--epochs", 1, "--batch-size", 2, *TINY)
    return SimpleNamespace(out=out, text=text)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Files of models that no training has made, by name."""
    folder = tmp_path_factory.mktemp("models")

    def saved(name, model, classes):
        card = ModelCard(model.architecture, classes, (0.0,) * 3, (1.0,) * 3, 32)
        save_model(folder / f"{name}.safetensors", model, card)

    saved("rain", MSBDN(2), ("rain",))
    saved("snow", MSBDN(2), ("snow",))
    saved("all", MSBDN(2, residual=True), ("haze", "rain", "snow"))
    saved("wide", MSBDN(4), ("rain",))
    dehazer = {"widths": (16, 48, 64), "blocks": (1, 1, 1), "channels": 2}
    saved("srktdn", SRKTDN(**dehazer), ("haze",))
    saved("ktdn", KTDN(**dehazer, normalise=True), ("haze",))
    saved("dehazing_teacher", DehazingTeacher((16, 32, 64), (1, 1, 1), 128, 2), ("haze",))
    saved("classifier", StudentCNN(3, (4, 4, 4, 4)), ("0", "1", "2"))
    saved("segmenter", PSPNet(3, width=8, blocks=(1, 1, 1, 1), channels=4), ("0", "1", "2"))
    return lambda name: folder / f"{name}.safetensors"


@pytest.fixture(scope="module")
def two(haze, models):
    """A teacher for each weather of the data."""
    return ("--teacher", f"haze={haze.out}", "--teacher", f"rain={models('rain')}")


@pytest.fixture(scope="module")
def student(outdoors, two, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "student"
    words = ("--batch-size", 2, "--epochs", 2, "--features", "none", *TINY)
    text = done("distill", outdoors, *two, "--out", out, *words)
    return SimpleNamespace(out=out, text=text)


@pytest.fixture
def no_work(monkeypatch):
    def reached(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(restorer, "fit", reached)


@pytest.fixture
def asked(monkeypatch):
    """What a command asks of the recipe, which does nothing; the built-in data has one variant of each photograph."""
    calls = []

    def recipe(*arguments, out, **options):
        calls.append(SimpleNamespace(arguments=arguments, **options))
        fit = Fit(pd.DataFrame([{}]), {"epoch": 1, "val_psnr": 20.5, "val_ssim": 0.75}, "epochs")
        return fit if len(arguments) == 3 else (MSBDN(2), fit)

    monkeypatch.setattr(restoration, "teach", recipe)
    monkeypatch.setattr(restoration, "distill", recipe)
    monkeypatch.setattr(inputs, "load_weather", partial(load_weather, variants=1))
    return calls


# --- training --------------------------------------------------------------------------------------------------------


def test_teach_says_what_it_did_and_leaves_a_restorer_with_a_card(haze):
    for said in (
        "data: outdoors, 4 training and 2 validation images (trained on in parts of 32x32 pixels)\n",
        "weathers: haze\n",
        "network: MSBDN, width 2\n",
        "device: cpu\n",
        "best epoch: 1 of 1, with validation PSNR ",
        f"restore IMAGES --model '{haze.out}' --out RESTORED",
    ):
        assert said in haze.text
    model, card = load_model(haze.out)
    assert card.architecture == {"name": "MSBDN", "width": 2, "residual": False}
    assert (card.classes, card.size) == (("haze",), 32)
    assert card.metrics["psnr"] == card.metrics["psnr_haze"] > 0
    assert card.recipe.items() >= {"weathers": ["haze"], "lr": 3e-3, "batch_size": 2, "warm_up": 0}.items()
    assert model(torch.zeros(1, 3, 33, 20)).shape == (1, 3, 33, 20)


def test_distill_goes_through_both_stages(student, haze, models):
    for said in (
        "data: outdoors, 8 training and 4 validation images",
        "weathers: haze, rain\n",
        "first stage: epochs 1 to 1, from the teachers' images and features\n",
        "second stage: epochs 2 to 2, from the clean images\n",
        f"teacher of haze: {haze.out}, width 2\n",
        f"teacher of rain: {models('rain')}, width 2\n",
        "weights: image 1, ckt 1, reconstruction 0.05, scr 0.1, hcr 0.2\n",
        "features of SCR and HCR: none: a random start\n",
        "of 2, with validation PSNR ",
    ):
        assert said in student.text
    card = load_model(student.out)[1]
    assert card.classes == ("haze", "rain")
    assert card.recipe["features"] == "none: a random start"
    assert set(card.recipe["teachers"]) == {"haze", "rain"}
    first, second = csv.DictReader((student.out / "history.csv").open())
    assert float(first["image_haze"]) > 0
    assert float(second["hcr"]) > 0
    assert {"psnr_haze", "psnr_rain", "psnr_y"} <= {name.removeprefix("val_") for name in second}


def test_an_interrupted_run_resumed_ends_as_if_left_alone(outdoors, two, tmp_path, monkeypatch):
    """The interruption comes after the switch of the stages, and the epoch before it is made again."""
    words = ("distill", outdoors, *two, "--epochs", 2, "--batch-size", 2, "--features", "none", *TINY, "--out")
    done(*words, tmp_path / "alone")
    with monkeypatch.context() as patch:
        calls = []

        def interrupted(*arguments):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return restoration_metrics(*arguments)

        patch.setattr(restorer, "restoration_metrics", interrupted)
        result = run(*words, tmp_path / "resumed")
    assert (result.status, "--resume goes on" in result.err) == (130, True)
    assert "holds an earlier run. Go on with it (--resume)" in refused(*words, tmp_path / "resumed")
    assert not same(weights(tmp_path / "alone"), weights(tmp_path / "resumed"))
    done(*words, tmp_path / "resumed", "--resume")
    assert same(weights(tmp_path / "alone"), weights(tmp_path / "resumed"))
    other = run(*words, tmp_path / "resumed", "--resume", "--scr", 0.2)
    assert "scr was 0.1, now 0.2" in " ".join(other.err.split())


def test_the_defaults_are_the_published_ones_or_those_of_the_course(models, tmp_path, asked):
    teachers = [word for name in ("haze", "rain", "snow") for word in ("--teacher", f"{name}={models('all')}")]
    small = ("--batch-size", 3, "--features", "none")
    done("teach", "weather", *TASK, "--out", tmp_path / "a", "--batch-size", 3)
    done("teach", "weather", *TASK, "--out", tmp_path / "b", "--narrow", "--weather", "rain", "--batch-size", 4)
    done("distill", "weather", *TASK, *teachers, "--out", tmp_path / "c", *small)
    done("distill", "weather", *TASK, *teachers, "--out", tmp_path / "d", *small, "--narrow", "--width", 8)
    all_of_them, of_rain, full, narrow = asked
    published = RestorationSettings()
    assert all_of_them.arguments[1:] == (("haze", "rain", "snow"), replace(published, batch_size=3))
    assert of_rain.arguments[1:] == (("rain",), replace(published, batch_size=4))
    assert (all_of_them.architecture, of_rain.architecture) == ({}, NARROW)
    assert (full.arguments[2], full.arguments[4]) == (TwoStage(), replace(published, batch_size=3))
    assert (narrow.arguments[2], narrow.architecture) == (TWO_STAGE, NARROW | {"width": 8})
    assert all_of_them.arguments[0].size == 64


def test_every_number_of_the_plan_can_be_changed(outdoors, two, tmp_path, asked):
    words = ("distill", outdoors, *two, *TASK, "--batch-size", 2, "--features", "none", "--epochs", 4, "--narrow")
    numbers = ("--collation", 0.25, "--ckt", 2, "--reconstruction", 0.5, "--scr", 0, "--hcr", 3, "--eps", 1e-3)
    rates = ("--warm-up", 2, "--max-norm", 0.5)
    choices = ("--no-detach", "--positive", "target", "--negatives", "same_weather", "--pixel", "l1")
    choices += ("--crop", 48)
    text = done(*words, "--out", tmp_path / "s", *numbers, *rates, *choices)
    (call,) = asked
    assert call.arguments[2] == TwoStage(
        collation=0.25, ckt=2.0, reconstruction=0.5, scr=0.0, hcr=3.0, detach=False, positive="target",
        negatives="same_weather", eps=1e-3,
    )  # fmt: skip
    assert (call.arguments[4].warm_up, call.arguments[4].max_norm) == (2, 0.5)
    assert call.arguments[0].size == 48
    assert "first stage: epochs 1 to 1," in text
    assert "second stage: epochs 2 to 4," in text


def test_what_is_no_setting_of_the_recipe_reaches_it_too(outdoors, tmp_path, asked):
    words = (outdoors, *TINY, "--batch-size", 2, "--resume", "--out")
    done("teach", *words, tmp_path / "t", "--pixel", "mse", "--weather", "rain")
    done("distill", *words, tmp_path / "s", "--collation", 0, "--hcr", 0)
    assert asked[0].pixel == "mse"
    assert [(call.resume, call.device) for call in asked] == [(True, torch.device("cpu"))] * 2


def test_without_a_first_stage_no_teacher_is_wanted(outdoors, tmp_path, asked):
    words = (*TASK, "--batch-size", 2, "--features", "none", "--collation", 0)
    text = done("distill", outdoors, "--out", tmp_path / "s", *words)
    assert asked[0].arguments[1] == {}
    assert "first stage: none," in text
    assert "warning" not in text


def test_a_first_stage_of_no_epoch_is_warned_of(outdoors, two, tmp_path, asked):
    words = (*TASK, "--batch-size", 2, "--features", "none", "--epochs")
    text = done("distill", outdoors, *two, "--out", tmp_path / "s", *words, 1)
    assert "warning: the teachers teach nothing: of --epochs 1 the first stage, whose share is 0.5, gets none." in text
    assert "warning" not in done("distill", outdoors, *two, "--out", tmp_path / "t", *words, 2)


@pytest.mark.parametrize("weights", [("--collation", 0, "--hcr", 0), ("--collation", 1, "--scr", 0)])
def test_features_that_nothing_compares_are_not_built(outdoors, two, tmp_path, asked, monkeypatch, weights):
    monkeypatch.setattr(train_restorer, "feature_slices", None)
    text = done("distill", outdoors, *two, "--out", tmp_path / "s", *TASK, "--batch-size", 2, *weights)
    assert len(asked) == 1
    assert "features of SCR and HCR: none, they have no weight\n" in text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--accumulate", 2), "SCR, HCR: "),
        (("--accumulate", 2, "--scr", 0), "HCR: "),
        (("--accumulate", 2, "--collation", 1), "SCR: "),
        (("--accumulate", 2, "--scr", 0, "--hcr", 0), None),
        ((), None),
    ],
)
def test_contrasts_of_a_batch_in_pieces_are_said_to_be_other_losses(outdoors, two, tmp_path, asked, options, named):
    words = ("distill", outdoors, *two, "--out", tmp_path / "s", *TASK, "--batch-size", 4, "--features", "none")
    text = done(*words, *options)
    assert len(asked) == 1
    said = "a ratio of means over the images of a batch, and each of the 2 parts that are computed apart has 2 of 4."
    assert text.count("That is another loss than the whole batch's") == (named is not None)
    assert named is None or f"\n{named}{said}" in text


def test_the_choices_and_defaults_of_the_command_line_are_those_of_the_recipe():
    assert set(restoration_options.FEATURES) == set(get_args(FeatureWeights))
    assert set(restoration_options.POSITIVES) == set(get_args(Positive))
    assert set(restoration_options.NEGATIVES) == set(get_args(Negatives))
    assert set(restoration_options.PIXEL) == set(get_args(PixelLoss))
    published = vars(RestorationSettings()) | {"warm_up": None}
    for command in ("teach", "distill"):
        own = DEFAULTS[command]["restoration"]
        assert {name: own[name] for name in own.keys() & published.keys()} == {
            name: published[name] for name in own.keys() & published.keys()
        }
    assert RestorationSettings().warm_up == train_restorer.WARM_UP
    text = " ".join(done("distill", "--help").split())
    plan = TwoStage()
    for name in ("collation", "ckt", "reconstruction", "scr", "hcr", "eps"):
        said = text.split(f" --{name} X ")[1].split("(default: ")[1]
        assert float(said.split(")")[0].split(",")[0]) == getattr(plan, name)
    assert f"with --narrow {TWO_STAGE.reconstruction:g})" in text
    assert f"with --narrow {TWO_STAGE.eps:g})" in text
    assert TwoStage(detach=True, reconstruction=TWO_STAGE.reconstruction, eps=TWO_STAGE.eps) == TWO_STAGE


# --- refused before any work -----------------------------------------------------------------------------------------


@pytest.fixture
def no_look(monkeypatch):
    """The files of a folder must not be read: a large one takes minutes."""
    monkeypatch.setattr(pair_folders, "_looks", None)


@pytest.mark.usefixtures("no_work", "no_look")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ckt", "-1"], "ckt is -1.0"),
        (["--hcr", "nan"], "hcr is nan"),
        (["--eps", "0"], "eps is 0.0"),
        (["--collation", "1.5"], "collation is 1.5; wanted: the first stage's share of the epochs"),
        (["--width", "3"], "width is 3; wanted: an even number"),
        (["--lr", "0"], "lr is 0.0"),
        (["--max-norm", "0"], "max_norm is 0.0; wanted: above 0"),
        (["--warm-up", "250"], "warm_up is 250; wanted: from 0 to less than the 250 epochs"),
        (["--batch-size", "3"], "batch_size is 3; wanted: a multiple of 2"),
        (["--batch-size", "6", "--accumulate", "2"], "a batch has 3 samples of each kind, which cannot be divided"),
        (["--out", __file__], "test_cli_restoration.py is a file; wanted: a folder"),
        (["--out", f"{__file__}/below"], "cannot be made"),
        (["--alpha", "0.5"], "--alpha was given, which only classification has; the task is restoration."),
        (["--monitor", "miou"], "--monitor was given, which only segmentation has; the task is restoration."),
        (["--temperature", "2"], "--temperature was given, which only classification and segmentation have"),
        (["--mean", "0.5"], "Leave it out, or say --task classification or segmentation."),
        (["--image-size", "64"], "--image-size was given, which only classification and segmentation have"),
        (["--weights", "none"], "--weights was given, which only segmentation and dehazing have"),
    ],
)
def test_impossible_settings(outdoors, two, tmp_path, options, message):
    words = ("distill", outdoors, *two, "--out", tmp_path / "s", *TASK, "--batch-size", 2, "--features", "none")
    assert message in refused(*words, *options)
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("no_work")
def test_more_images_in_a_batch_than_a_weather_has(outdoors, two, tmp_path):
    words = ("distill", outdoors, *two, "--out", tmp_path / "s", *TASK, "--batch-size", 10, "--features", "none")
    assert "there are 4 images of haze and each batch of 10 wants 5. Make the batch smaller" in refused(*words)
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("no_work", "no_look")
def test_a_run_is_not_gone_on_with_by_another_distance_nor_written_over_by_its_student(outdoors, haze, two):
    words = (outdoors, "--out", haze.out, "--epochs", 1, "--batch-size", 2, *TINY)
    said = refused("teach", *words, "--weather", "haze", "--resume", "--pixel", "mse")
    assert "pixel was 'l1', now 'mse'" in said
    assert "is where the teacher is, which would be written over" in refused("distill", *words, *two)


@pytest.mark.usefixtures("no_work", "no_look")
def test_what_else_is_refused_before_a_file_is_read(outdoors, student, two, tmp_path, monkeypatch):
    def offline(*_):
        raise InputError("no network")

    monkeypatch.setattr(train_restorer, "feature_slices", offline)
    words = (outdoors, "--out", tmp_path / "s", *TASK, "--batch-size")
    assert "no network" in refused("distill", *words, 2, *two, "--features", "imagenet")
    assert "--weather is fog; outdoors has haze, rain" in refused("teach", *words, 2, "--weather", "fog")
    assert "--weather is fog; weather has haze, rain, snow" in refused(
        "teach", "weather", *words[1:], 2, "--weather", "fog"
    )
    resumed = ("--out", student.out, "--resume", "--epochs", 2, *TINY)
    assert "hcr was 0.2, now 1.0" in refused("distill", *words, 2, *two, *resumed, "--hcr", 1)


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("teach", ("--weather", "haze"), "--weather was given, which only restoration and dehazing have; the"),
        ("teach", ("--width", 8, "--crop", 64), "--crop, --width was given, which only restoration has"),
        ("teach", ("--narrow",), "--narrow was given, which only segmentation, restoration and dehazing have"),
        ("teach", ("--task", "segmentation", "--warm-up", 2), "Leave it out, or say --task restoration."),
        ("distill", ("--hcr", 1), "--hcr was given, which only restoration has"),
        ("distill", ("--task", "segmentation", "--detach"), "--detach was given, which only restoration has"),
        ("distill", (), "--teacher is missing; wanted: what `kdlab teach` made."),
        ("distill", ("--task", "segmentation"), "--teacher is missing"),
        ("teach", ("--task", "restoration", "--weights", "none"), "which only classification, segmentation and deh"),
    ],
)
def test_options_of_another_task_are_not_ignored(command, words, message, tmp_path):
    assert message in refused(command, "digits", "--out", tmp_path / "o", *words)
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("no_work", "no_look")
def test_teachers_are_known_by_the_name_of_their_weather(outdoors, haze, models, tmp_path):
    words = ("distill", outdoors, "--out", tmp_path / "s", *TASK, "--batch-size", 2, "--features", "none", "--teacher")
    right = f"haze={haze.out}"
    other = ("--teacher", f"rain={models('rain')}")
    for teachers, said in (
        ((haze.out,), f"--teacher {haze.out} does not say of which weather; wanted: WEATHER=T, such as haze="),
        (("haze=",), "--teacher haze= does not say of which weather"),
        ((right, "--teacher", right), "--teacher was given twice for haze"),
        ((right,), "there is no teacher for rain; outdoors has haze, rain. Give --teacher rain=T, which `kdlab teach"),
        ((right, *other, "--teacher", f"fog={haze.out}"), "--teacher was given for fog; outdoors has haze, rain."),
        ((f"haze={models('rain')}", *other), "that teacher was trained for rain. Name it for its own weather"),
        ((f"rain={haze.out}", "--teacher", f"haze={models('rain')}"), "that teacher was trained for haze"),
        ((f"haze={models('classifier')}", *other), "was made for classification (StudentCNN), and the task is rest"),
        (("haze=nowhere", *other), "--teacher nowhere does not exist"),
        ((right, "--teacher", f"rain={models('wide')}"), "the teachers have different widths (haze 2, rain 4)"),
        ((f"haze={models('srktdn')}", *other), "was made for dehazing (SRKTDN), and the task is rest"),
    ):
        assert said in refused(*words, *teachers)
    torch.save({}, tmp_path / "teacher.pt")
    said = "teacher.pt is no file of kdlab's; wanted: what `kdlab teach --task restoration` made"
    assert said in refused(*words, f"haze={tmp_path / 'teacher.pt'}", *other)
    assert "was made for restoration (MSBDN), and the task is classification. Say --task restoration" in refused(
        "distill", "digits", "--teacher", haze.out, "--out", tmp_path / "s"
    )
    assert not (tmp_path / "s").exists()


def test_a_network_of_all_weathers_may_teach_any(outdoors, models, tmp_path, asked):
    teachers = ("--teacher", f"rain={models('all')}", "--teacher", f"haze={models('all')}")
    done("distill", outdoors, *teachers, "--out", tmp_path / "s", *TASK, "--batch-size", 2, "--features", "none")
    assert set(asked[0].arguments[1]) == {"haze", "rain"}


@pytest.mark.usefixtures("no_work")
def test_data_that_does_not_fit(outdoors, haze, models, two, tmp_path, monkeypatch):
    out = ("--out", tmp_path / "o")
    assert "--weather is fog; outdoors has haze, rain." in refused("teach", outdoors, *out, *TASK, "--weather", "fog")
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "scenes"):
        said = f"{name} has no clean image for each image, which restoration wants: weather or haze, or a folder"
        assert said in refused("teach", name, *out, *TASK)
        assert said in refused("evaluate", name, "--model", haze.out)
    said = "weather has a clean image for each image and no labels, which is for restoration; wanted for classification"
    assert said in refused("teach", "weather", *out)
    said = "weather has a clean image for each image and no masks, which is for restoration; wanted for segmentation"
    assert said in refused("teach", "weather", *out, "--task", "segmentation")
    assert said in refused("evaluate", "weather", "--model", models("segmenter"))
    uneven = grow(tmp_path / "uneven", train=2, val=1)
    grow(tmp_path / "uneven", ("snow",), train=2)
    for words in (("teach", uneven, *out, *TASK), ("distill", uneven, *two, *out, *TASK)):
        assert "'snow' is in train/ but not in val/" in refused(*words)
    (outdoors / "train" / "haze" / "input" / "notes.txt").write_text("no image")
    assert "batch_size is 33" in refused("teach", outdoors, *out, *TASK)
    (outdoors / "train" / "haze" / "input" / "notes.txt").unlink()
    assert not (tmp_path / "o").exists()


def test_a_set_without_one_weather_trains_with_the_teachers_of_the_others(models, tmp_path, asked):
    data = grow(tmp_path / "snowy", ("snow",), train=2, val=1)
    words = ("--teacher", f"snow={models('snow')}", "--batch-size", 2, "--features", "none", *TASK)
    done("distill", data, *words, "--out", tmp_path / "s")
    assert set(asked[0].arguments[1]) == {"snow"}


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_agrees_with_what_training_has_measured(outdoors, student):
    result = json.loads(done("evaluate", outdoors, "--model", student.out, "--format", "json", "--device", "cpu"))
    recorded = load_model(student.out)[1].metrics
    for name in QUALITY:
        assert result[name] == pytest.approx(recorded[name], rel=1e-5)
    for row in result["weathers"]:
        assert row["psnr"] == pytest.approx(recorded[f"psnr_{row['weather']}"], rel=1e-5)


def test_evaluate_gives_each_weather_and_the_mean_in_every_format(outdoors, haze, tmp_path):
    each = tmp_path / "new" / "each.csv"
    words = ("evaluate", outdoors, "--model", haze.out, "--device", "cpu", "--per-image", each, "--format")
    result = json.loads(done(*words, "json"))
    assert (result["data"], result["split"], result["images"]) == ("outdoors", "val", 4)
    assert result["trained_for"] == ["haze"]
    assert [(row["weather"], row["images"]) for row in result["weathers"]] == [("haze", 2), ("rain", 2)]

    literal = measure_each(load_model(haze.out)[0], load_pairs(outdoors).val)
    written = pd.read_csv(each, dtype={"name": str})
    assert list(written.columns) == ["name", "weather", *QUALITY]
    assert written["name"].tolist() == ["0", "1", "0", "1"]
    assert written[list(QUALITY)].to_numpy() == pytest.approx(literal[list(QUALITY)].to_numpy(), rel=1e-5)
    for name in QUALITY:
        means = literal.groupby("weather")[name].mean()
        assert [row[name] for row in result["weathers"]] == pytest.approx(means.tolist(), rel=1e-5)
        assert result[name] == pytest.approx(means.mean(), rel=1e-5)

    rows = {(row["measure"], row["weather"]): row["value"] for row in csv.DictReader(io.StringIO(done(*words, "csv")))}
    assert len(rows) == 4 + 2 * 5
    assert float(rows["psnr", ""]) == pytest.approx(result["psnr"])
    assert float(rows["ssim_y", "rain"]) == pytest.approx(result["weathers"][1]["ssim_y"])
    assert float(rows["images", "haze"]) == 2

    table = done(*words, "table").splitlines()
    assert table[0] == "outdoors, val: 4 images; the model was trained for haze"
    assert table[2].split() == ["images", "PSNR", "SSIM", "PSNR", "on", "Y", "SSIM", "on", "Y"]
    assert [line.split()[0] for line in table[3:]] == ["haze", "rain", "mean"]
    assert table[3].split()[1:3] == ["2", f"{result['weathers'][0]['psnr']:.4f}"]
    assert table[5].split()[1] == f"{result['psnr']:.4f}"


def test_evaluate_can_be_kept_to_one_weather_and_sees_whole_training_images(outdoors, haze):
    words = ("evaluate", outdoors, "--model", haze.out, "--split", "train", "--device", "cpu", "--format", "json")
    one, other = (json.loads(done(*words, "--weather", "rain")) for _ in range(2))
    assert [row["weather"] for row in one["weathers"]] == ["rain"]
    assert one["images"] == 4
    assert one == other  # crops would differ


def test_evaluate_on_the_built_in_weather(models):
    words = ("evaluate", "weather", "--model", models("all"), "--device", "cpu", "--weather", "snow")
    text = done(*words)
    assert text.startswith("weather, val: 2 images; the model was trained for haze, rain, snow\n")


def test_evaluate_takes_a_set_that_has_nothing_but_a_test(outdoors, models, tmp_path, monkeypatch):
    """SOTS by its name: its lists are in another folder than its files, and are of a test alone."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(outdoors / "test" / "haze", "data/sots/outdoor")
    lists = Path("data/sots-outdoor/meta/test")
    lists.mkdir(parents=True)
    pair = [f"../sots/outdoor/{kind}/0.png" for kind in ("target", "input")]
    (lists / "haze.json").write_text(json.dumps([pair]))
    words = ("evaluate", "sots-outdoor", "--model", models("all"), "--device", "cpu")
    assert done(*words, "--split", "test").startswith("sots-outdoor, test: 1 images")
    assert "sots-outdoor has no val/. Use --split test" in refused(*words)
    assert "has no train/ and no val/" in refused(*words, "--split", "train")


def test_what_is_drawn_keeps_its_name_and_its_kind_of_weather(outdoors, monkeypatch):
    """An evaluation is spared the variants, which take seconds."""
    calls = []

    def drawer(name):
        return lambda **options: calls.append((name, options)) or replace(load_pairs(outdoors), name="drawn")

    for name in ("haze", "weather"):
        monkeypatch.setattr(inputs, f"load_{name}", drawer(name))
        assert inputs.load_restoration(name, only_judged=True).name == name
        inputs.load_restoration(name, 48)
    given = [{"variants": 1}, {"crop": 48}]
    assert calls == [(name, options) for name in ("haze", "weather") for options in given]


def test_evaluate_refuses_what_does_not_fit(outdoors, haze, models, tmp_path):
    words = ("evaluate", outdoors, "--model", haze.out)
    assert "there is no image in fog; there are: haze, rain." in refused(*words, "--weather", "fog")
    for option in ("--batch-size", "--workers"):
        said = f"{option} was given, but the model is for restoration, which has no use for it"
        assert said in refused(*words, option, 2)
    assert "is a folder; wanted: a file to write" in refused(*words, "--per-image", tmp_path)
    for read in (haze.out / "best.safetensors", haze.out / "history.csv"):
        assert "is a file that is read here, or one of a training" in refused(*words, "--per-image", read)
    bare = grow(tmp_path / "bare", train=1, val=1)
    assert "bare has no test/" in refused("evaluate", bare, "--model", haze.out, "--split", "test")
    for name in ("classifier", "segmenter"):
        given = ("evaluate", outdoors, "--model", models(name))
        assert "--weather was given, but the model is for" in refused(*given, "--weather", "haze")
        assert "--per-image was given, but the model is for" in refused(*given, "--per-image", tmp_path / "o.csv")
        assert "--self-ensemble was given, but the model is for" in refused(*given, "--self-ensemble")


# --- restore ---------------------------------------------------------------------------------------------------------


def literally(model_path: Path, path: Path, tile: int | None = None, overlap: int = 32) -> np.ndarray:
    """The restored image's bytes, step by step."""
    model = load_model(model_path)[0]
    pixels = transforms.to_image(Image.open(path).convert("RGB")) / 255
    if tile is None:
        with torch.no_grad():
            restored = model(pixels[None])[0].clamp(0, 1)
    else:
        restored = restore_in_tiles(model, pixels, tile, overlap)
    return (restored * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    hazy(drawn(1, 45, 37)).save(folder / "odd.png")
    rainy(drawn(2, 70, 33)).convert("L").save(folder / "grey.png")
    drawn(3, 32, 32).convert("RGBA").save(folder / "more" / "odd.png")
    return folder


def test_restore_writes_images_of_their_own_size_and_the_comparison(photos, models, tmp_path):
    out = tmp_path / "restored"
    words = ("restore", photos, "--model", models("all"), "--out", out, "--device", "cpu")
    assert done(*words) == f"3 images restored, written to {out}\n"
    sizes = {"grey": (70, 33), "odd": (32, 32), "odd_2": (45, 37)}
    places = {"grey": "grey.png", "odd": "more/odd.png", "odd_2": "odd.png"}
    assert {path.name for path in out.iterdir()} == {f"{name}_restored.png" for name in sizes}
    for name, size in sizes.items():
        image = Image.open(out / f"{name}_restored.png")
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", size)
        assert np.abs(np.asarray(image, int) - literally(models("all"), photos / places[name])).max() <= 1

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    done(*words, "--side-by-side")
    assert {name: (out / name).read_bytes() for name in before} == before
    for name, (width, height) in sizes.items():
        both = Image.open(out / f"{name}_compared.png")
        assert both.size == (2 * width, height)
        left, right = both.crop((0, 0, width, height)), both.crop((width, 0, 2 * width, height))
        assert np.array_equal(left, Image.open(photos / places[name]).convert("RGB"))
        assert np.array_equal(right, Image.open(out / f"{name}_restored.png"))


@pytest.mark.parametrize("name", ["srktdn", "ktdn", "dehazing_teacher"])
def test_the_dehazing_networks_restore_and_are_evaluated_as_the_others(name, photos, outdoors, models, tmp_path):
    out = tmp_path / "restored"
    done("restore", photos, "--model", models(name), "--out", out, "--device", "cpu")
    for stem, place in (("grey", "grey.png"), ("odd_2", "odd.png")):
        image = np.asarray(Image.open(out / f"{stem}_restored.png"), int)
        assert np.abs(image - literally(models(name), photos / place)).max() <= 1

    words = ("evaluate", outdoors, "--model", models(name), "--format", "json", "--device", "cpu", "--weather", "haze")
    result = json.loads(done(*words))
    literal = measure_each(load_model(models(name))[0], load_pairs(outdoors).val.only(["haze"]))
    assert result["trained_for"] == ["haze"]
    assert result["psnr"] == pytest.approx(literal["psnr"].mean(), rel=1e-5)


def test_the_self_ensemble_restores_and_is_evaluated_in_eight_positions(photos, outdoors, models, tmp_path):
    model = SelfEnsemble(load_model(models("srktdn"))[0])
    words = ("--model", models("srktdn"), "--self-ensemble", "--device", "cpu")
    done("restore", photos / "odd.png", *words, "--out", tmp_path / "restored")
    pixels = transforms.to_image(Image.open(photos / "odd.png").convert("RGB")) / 255
    with torch.no_grad():
        expected = (model(pixels[None])[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    image = np.asarray(Image.open(tmp_path / "restored" / "odd_restored.png"), int)
    assert np.abs(image - expected).max() <= 1
    assert np.abs(image - literally(models("srktdn"), photos / "odd.png")).max() > 1

    result = json.loads(done("evaluate", outdoors, *words, "--format", "json", "--weather", "haze"))
    literal = measure_each(model, load_pairs(outdoors).val.only(["haze"]))
    assert result["psnr"] == pytest.approx(literal["psnr"].mean(), rel=1e-5)


def test_restore_in_tiles(photos, models, tmp_path, monkeypatch):
    words = ("restore", photos / "grey.png", "--model", models("all"), "--device", "cpu", "--out", tmp_path / "o")
    done(*words, "--tile", 32, "--overlap", 8)
    tiled = np.asarray(Image.open(tmp_path / "o" / "grey_restored.png"), int)
    assert np.abs(tiled - literally(models("all"), photos / "grey.png", 32, 8)).max() <= 1

    tiles = []

    def watched(model, image, tile, overlap):
        tiles.append(tile)
        return image

    monkeypatch.setattr(restore, "restore", watched)
    done(*words)
    assert tiles == [None]
    monkeypatch.setattr(restore, "WHOLE", 70 * 33 - 1)
    for given in ((), ("--tile", 0), ("--tile", 64)):
        done(*words, *given)
    assert tiles == [None, parsers.TILE, None, 64]


def test_restore_names_what_it_skips(photos, models, tmp_path):
    Image.new("RGB", (40, 1)).save(photos / "thread.png")
    (photos / "cut.png").write_bytes((photos / "odd.png").read_bytes()[:200])
    (photos / "notes.txt").write_text("no image")
    out = tmp_path / "restored"
    result = run("restore", photos, "--model", models("all"), "--out", out, "--device", "cpu")
    assert (result.status, result.out) == (0, f"3 images restored, written to {out}\n")
    assert f"kdlab: skipped {photos / 'thread.png'}: images are 1 high and 40 wide; wanted: at least 2x2" in result.err
    assert f"kdlab: skipped {photos / 'cut.png'}: damaged" in result.err
    assert f"kdlab: skipped {photos / 'notes.txt'}: not an image" in result.err
    assert len(list(out.iterdir())) == 3
    result = run("restore", photos / "thread.png", "--model", models("all"), "--out", out)
    assert (result.status, "not one of the 1 files could be used" in result.err) == (2, True)


def test_restore_names_what_it_skips_where_it_is_interrupted_too(photos, models, tmp_path, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(restore, "try_open", interrupted)
    (photos / "notes.txt").write_text("no image")
    result = run("restore", photos, "--model", models("all"), "--out", tmp_path / "o", "--device", "cpu")
    assert (result.status, result.out) == (130, "")
    assert f"kdlab: skipped {photos / 'notes.txt'}: not an image" in result.err


def test_a_comparison_is_not_written_over_an_image_either(models, tmp_path):
    out, linked = tmp_path / "o", tmp_path / "linked"
    out.mkdir()
    linked.mkdir()
    drawn(5).save(out / "odd_compared.png")
    (linked / "back").symlink_to(out)
    drawn(6).save(linked / "odd.png")
    said = refused("restore", linked, "--model", models("all"), "--out", out, "--side-by-side")
    assert "odd_compared.png is one of the images and would be written over" in said


def test_restore_never_writes_over_an_image(photos, models, tmp_path):
    before = {path: path.read_bytes() for path in photos.rglob("*.png")}
    said = "is where the images are, and restored images are images too. Name another folder"
    for given, place in ((photos, photos), (photos / "odd.png", photos), (photos, photos / "more")):
        assert said in refused("restore", given, "--model", models("all"), "--out", os.path.relpath(place))
    out = tmp_path / "restored"
    out.mkdir()
    drawn(5).save(out / "odd_restored.png")
    kept = (out / "odd_restored.png").read_bytes()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "back").symlink_to(out)
    drawn(6).save(linked / "odd.png")
    assert "odd_restored.png is one of the images and would be written over" in refused(
        "restore", linked, "--model", models("all"), "--out", out
    )
    assert (out / "odd_restored.png").read_bytes() == kept
    assert {path: path.read_bytes() for path in photos.rglob("*.png")} == before


def test_restore_and_predict_send_each_other_their_models(photos, models, tmp_path):
    out = tmp_path / "o"
    for name, task in (("classifier", "classification (StudentCNN)"), ("segmenter", "segmentation (PSPNet)")):
        message = refused("restore", photos, "--model", models(name), "--out", out)
        assert f"was made for {task} and restores nothing; wanted: what teach or distill made" in message
        assert "use `kdlab predict`" in message
    message = refused("predict", photos, "--model", models("all"), "--out", out)
    assert "is a restorer, which knows weather and no classes" in message
    assert "use `kdlab restore`" in message
    assert not out.exists()


def test_restore_refuses_what_cannot_be(photos, models, tmp_path):
    words = ("restore", photos, "--model", models("all"), "--out", tmp_path / "o")
    assert "tile is 40 and overlap 32; wanted: a tile of at least" in refused(*words, "--tile", 40)
    assert "tile is 512 and overlap 300" in refused(*words, "--overlap", 300)
    assert not (tmp_path / "o").exists()
    assert "is a file; wanted: a folder for the restored images" in refused(*words[:-1], __file__)
    assert "there is no file or folder nowhere" in refused("restore", "nowhere", *words[2:])
    assert "does not exist" in refused("restore", photos, "--model", tmp_path / "none", "--out", tmp_path / "o")
    result = run("restore", photos, "--model", models("all"), "--out", tmp_path / "o", "--tile", "-1")
    assert (result.status, "'-1' is not a whole number from 0 up" in result.err) == (2, True)
