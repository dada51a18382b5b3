"""The command line, driven as a user drives it: from a folder of images to a student that names new ones."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from class_folder import grow, picture
from command_line import done, refused, run
from PIL import Image
from states import same, weights
from torch.utils.data import DataLoader, TensorDataset

import kdlab.doctor
from kdlab import loading, processes
from kdlab.cli import main
from kdlab.commands import evaluate as evaluation
from kdlab.commands.inputs import Listed, check_classes, list_data
from kdlab.commands.outputs import say_skipped
from kdlab.commands.runs import check_out, say_data
from kdlab.data import ImageSplits, Skipped, folders
from kdlab.errors import GET_YOLO, InputError
from kdlab.models import VGGReader, classification, densenet121
from kdlab.recipes import response
from kdlab.training import ModelCard, load_model, save_model

SMALL = ("--batch-size", "4", "--device", "cpu")
TINY = (*SMALL, "--widths", "4,4,8,8", "--lr", "1e-2")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """The folder of images that all tests train on, with one file in it that is no image."""
    root = grow(tmp_path_factory.mktemp("data") / "shapes")
    (root / "train" / "circle" / "notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="module")
def taught(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "the teacher"
    text = done("teach", shapes, "--out", out, "--weights", "none", "--epochs", 1, "--image-size", 32, *SMALL)
    return SimpleNamespace(out=out, text=text)


@pytest.fixture(scope="module")
def student(shapes, taught, tmp_path_factory):
    """A student that learns the labels alone, and therefore knows them: the teacher has seen one epoch.

    It is also the teacher of the tests that any teacher will do for, since it loads and computes in no time.
    """
    out = tmp_path_factory.mktemp("runs") / "student"
    done("distill", shapes, "--teacher", taught.out, "--out", out, "--alpha", 0, "--epochs", 12, *TINY)
    return out


@pytest.fixture(scope="module")
def plain(taught, tmp_path_factory):
    """The teacher's weights as another program would have saved them."""
    folder = tmp_path_factory.mktemp("foreign")
    weights = {f"module.{name}": value for name, value in load_model(taught.out)[0].state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 7}, folder / "teacher.pth")
    return folder / "teacher.pth"


# --- training --------------------------------------------------------------------------------------------------------


def test_teach_says_what_it_did_and_leaves_a_model_with_a_card(taught, shapes):
    for said in (
        "12 training and 6 validation images of 32x32",
        "classes: circle, square",
        "skipped: 1 file",
        "notes.txt: not an image",
        "device: cpu",
        "started from weights: none: a random start",
        "best epoch: 1 of 1, with validation accuracy",
        f"predict IMAGES --model '{taught.out}'",  # quoted: it has a space
    ):
        assert said in taught.text
    model, card = load_model(taught.out)
    assert (card.classes, card.size) == (("circle", "square"), 32)
    assert model.classifier.out_features == 2
    assert (taught.out / "last.safetensors").exists()
    assert (taught.out / "history.csv").exists()


def test_without_a_network_auto_starts_at_random_and_says_so(shapes, tmp_path, monkeypatch):
    def offline():
        raise OSError("no network")

    def no_training(data, settings, *, out, weights, **rest):
        model = densenet121(2, weights)
        card = ModelCard(model.architecture, data.classes, data.mean, data.std, data.size, model.weights_used)
        save_model(out / "best.safetensors", model, card)
        return response.Fit(pd.DataFrame([{}]), {"epoch": 1, "val_accuracy": 0.5, "val_loss": 1.0}, "epochs")

    monkeypatch.setattr(classification, "_imagenet_densenet121", offline)
    monkeypatch.setattr(response, "teach", no_training)
    text = done("teach", shapes, "--out", tmp_path / "t", "--image-size", 32, *SMALL)
    before, _ = text.split("best epoch")
    assert "random start, because the ImageNet weights could not be downloaded (no network)" in before


@pytest.mark.parametrize(
    ("options", "rate"),
    [((), 1e-4), (("--weights", "none"), 1e-3), (("--lr", 3e-3), 3e-3), (("--weights", "none", "--lr", 3e-3), 3e-3)],
)
def test_imagenets_weights_are_fine_tuned_at_a_lower_rate(shapes, tmp_path, monkeypatch, options, rate):
    rates = []

    def no_training(data, settings, **_):
        rates.append(settings.lr)
        return response.Fit(pd.DataFrame([{}]), {"epoch": 1, "val_accuracy": 0.5, "val_loss": 1.0}, "epochs")

    monkeypatch.setattr(classification, "_imagenet_densenet121", lambda: densenet121(2))
    monkeypatch.setattr(response, "teach", no_training)
    done("teach", shapes, "--out", tmp_path / "t", "--image-size", 32, *SMALL, *options)
    assert rates == [rate]
    said = " ".join(done("teach", "--help").split())
    assert "(default: 0.0001 from ImageNet's weights, 0.001 from random ones, for restoration 0.0002" in said


def test_help_says_how_to_get_the_extra():
    assert GET_YOLO in " ".join(done("yolo", "--help").split())


def test_distill_makes_a_student_of_the_teachers_images(shapes, taught, tmp_path):
    text = done("distill", shapes, "--teacher", taught.out, "--out", tmp_path / "s", "--epochs", 1, *TINY)
    assert "teacher outputs: computed once and cached" in text
    card = load_model(tmp_path / "s")[1]
    teacher = load_model(taught.out)[1]
    assert (card.classes, card.mean, card.std, card.size) == (teacher.classes, teacher.mean, teacher.std, teacher.size)
    assert card.architecture == {"name": "StudentCNN", "classes": 2, "widths": [4, 4, 8, 8], "drop_rate": 0.2}
    assert card.recipe.items() >= {"temperature": 2.0, "alpha": 0.7, "batch_size": 4, "patience": 30}.items()


def test_the_images_are_normalised_as_the_teacher_knows_them(shapes, student, tmp_path):
    model, card = load_model(student)
    save_model(tmp_path / "t.safetensors", model, replace(card, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    words = ("--teacher", tmp_path / "t.safetensors", "--out", tmp_path / "s", "--epochs", 1, *TINY)
    done("distill", shapes, *words)
    card = load_model(tmp_path / "s")[1]
    assert (card.mean, card.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_size_mean_and_std_can_be_given_in_every_notation(shapes, student, tmp_path):
    out = tmp_path / "s"
    done(
        *("distill", shapes, "--teacher", student, "--out", out, "--epochs", 1, *SMALL, "--image-size", 40),
        *("--mean", "0.5", "0.4", "0.3", "--std", "(0.2, 0.3,0.4)", "--widths", 4, 4, "8,8"),
    )
    card = load_model(out)[1]
    assert (card.size, card.mean, card.std) == (40, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.mark.parametrize("options", [(), ("--augment",)], ids=" ".join)
def test_images_without_labels_are_seen_through_the_teacher(shapes, student, options, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(40):
        picture("square", seed).save(folder / f"{seed}.png")
    words = ("distill", shapes, "--teacher", student, "--out", tmp_path / "s", "--epochs", 1, *TINY, *options)
    assert "unlabelled: 40 images" in done(*words, "--unlabelled", folder)
    assert load_model(tmp_path / "s")[1].recipe["unlabelled files"].startswith("40 files")


def test_with_augmentation_nothing_is_cached(shapes, student, tmp_path):
    out = tmp_path / "s"
    text = done("distill", shapes, "--teacher", student, "--out", out, "--epochs", 1, *TINY, "--augment")
    assert "teacher outputs: computed at each step" in text


def test_a_plain_state_dict_teaches_as_the_same_teacher_of_kdlabs(shapes, taught, plain, tmp_path):
    settings = ("--epochs", 1, *TINY)
    done("distill", shapes, "--teacher", taught.out, "--out", tmp_path / "a", *settings)
    done("distill", shapes, "--teacher", plain, "--classes", 2, "--image-size", 32, "--out", tmp_path / "b", *settings)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_patience_ends_a_run_early_and_says_so(shapes, student, tmp_path, monkeypatch):
    monkeypatch.setattr(response, "evaluate", lambda *_, **__: {"accuracy": 0.5, "loss": 1.0})
    words = ("distill", shapes, "--teacher", student, "--out", tmp_path / "s", "--epochs", 9, "--patience", 2)
    assert "best epoch: 1 of 3 (none better for 2)" in done(*words, *TINY)
    assert "best epoch: 1 of 5 (none better for 4)" in done(*words[:-1], 4, *TINY, "--resume")


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_an_interrupted_run_resumed_ends_as_if_left_alone(shapes, student, tmp_path, monkeypatch, number, said):
    words = ("distill", shapes, "--teacher", student, "--epochs", 2, *TINY, "--out")
    done(*words, tmp_path / "alone")
    with monkeypatch.context() as patch:
        whole, calls = response.evaluate, []

        def interrupted(*arguments, **options):
            calls.append(1)
            if len(calls) == 3:  # the teacher's, and the first epoch's, are through
                os.kill(os.getpid(), number)
            return whole(*arguments, **options)

        patch.setattr(response, "evaluate", interrupted)
        result = run(*words, tmp_path / "resumed")
    assert result.status == 128 + number
    assert result.err == f"kdlab: {said}. The same command with --resume goes on after the last whole epoch.\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not same(weights(tmp_path / "alone"), weights(tmp_path / "resumed"))
    assert "holds an earlier run. Go on with it (--resume)" in refused(*words, tmp_path / "resumed")
    assert "best epoch" in done(*words, tmp_path / "resumed", "--resume")
    assert same(weights(tmp_path / "alone"), weights(tmp_path / "resumed"))
    other = ("--out", tmp_path / "resumed", "--resume", "--temperature", 3)
    assert "temperature was 2.0, now 3.0" in " ".join(run(*words[:-1], *other).err.split())


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_run_is_not_gone_on_with_on_other_images(shapes, taught, student, tmp_path, split):
    other = shutil.copytree(shapes, tmp_path / "shapes")
    (other / split / "circle" / "1.png").rename(other / split / "circle" / "renamed.png")
    size = len(list((other / split).glob("*/*.png")))
    words = ("distill", other, "--teacher", taught.out, "--out", student, "--alpha", 0, "--epochs", 12, *TINY)
    message = " ".join(run(*words, "--resume").err.split())
    assert re.search(f"settings: {split} files was '{size} files, .{{8}}', now '{size} files, .{{8}}'. Resume", message)


@pytest.mark.parametrize(("epochs", "resume", "goes_on"), [(1, True, True), (1, False, False), (2, True, False)])
def test_a_run_that_was_killed_in_its_first_save_starts_anew(tmp_path, epochs, resume, goes_on):
    (tmp_path / "best.safetensors").write_bytes(b"whole")
    pd.DataFrame({"epoch": range(epochs), "loss": 1.0}).to_csv(tmp_path / "history.csv", index=False)
    with nullcontext() if goes_on else pytest.raises(InputError, match="holds a model"):
        check_out(tmp_path, "digits", resume)


def test_a_run_is_not_for_the_folder_of_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    with pytest.raises(InputError, match="--out pets is where the data is"):
        check_out(Path("pets"), str(tmp_path / "pets"), False)
    check_out(Path("digits"), "digits", False)  # a built-in set, and no folder yet


@pytest.mark.usefixtures("no_work")
def test_no_model_is_written_over(shapes, student, tmp_path):
    for name in ("best", "last"):
        kept = tmp_path / name / f"{name}.safetensors"
        kept.parent.mkdir()
        kept.write_bytes((student / kept.name).read_bytes())
        words = ("distill", shapes, "--teacher", student, "--out", kept.parent, *TINY)
        assert "holds a model, which would be written over, and no resume.safetensors" in refused(*words)
        assert "holds a model" in refused(*words, "--resume")
        assert "holds a model" in refused("teach", shapes, "--out", kept.parent, *SMALL)
        for teacher in (kept, kept.parent):
            words = ("distill", shapes, "--teacher", teacher, "--out", tmp_path / "." / name, *TINY)
            assert "is where the teacher is" in refused(*words)


def test_of_many_files_that_cannot_be_used_a_list_is_written(shapes, student, tmp_path):
    root = shutil.copytree(shapes, tmp_path / "shapes")
    for index in range(22):
        (root / "val" / "square" / f"{index:02}.txt").write_text("no image")
    words = ("distill", root, "--teacher", student, "--out", tmp_path / "s", "--epochs", 1, *TINY)
    text = done(*words)
    listed = (tmp_path / "s" / "skipped.txt").read_text()
    assert listed.count("\n") == 23
    assert f"skipped: 23 files that cannot be used\n  {listed[:50]}" in text
    assert "18.txt" in text
    assert "19.txt" not in text
    assert f"all of them in {tmp_path / 's' / 'skipped.txt'}" in text


@pytest.mark.parametrize("place", [0, 1])
def test_of_several_processes_the_first_one_writes_that_list(tmp_path, monkeypatch, place):
    monkeypatch.setattr(processes, "own_place", lambda: place)
    skipped = tuple(Skipped(Path(f"{index}.txt"), "no image") for index in range(22))
    images = TensorDataset(torch.zeros(1))
    data = ImageSplits(images, images, images, ("a", "b"), (0.0,) * 3, (1.0,) * 3, 32, "shapes", True, skipped)
    say_data(data, "classes", "of 32x32 pixels", tmp_path)
    assert (tmp_path / "skipped.txt").exists() == (place == 0)


@pytest.mark.usefixtures("no_work")
def test_a_cache_that_cannot_be_written_to(shapes, student, tmp_path, monkeypatch):
    monkeypatch.setenv("KDLAB_CACHE", __file__)
    words = ("distill", shapes, "--teacher", student, "--out", tmp_path / "s", *TINY)
    assert f"KDLAB_CACHE {__file__}/teacher cannot be made: Not a directory" in refused(*words)


@pytest.mark.usefixtures("no_work")
def test_a_classifiers_student_has_one_teacher(shapes, student, tmp_path):
    for task in ("classification", "segmentation"):
        words = ("distill", shapes, "--task", task, "--teacher", student, "--teacher", student)
        assert "--teacher was given 2 times; wanted: one" in refused(*words, "--out", tmp_path / "s")


@pytest.mark.usefixtures("no_work")
def test_a_finished_run_whose_model_is_gone(shapes, student, tmp_path):
    for name in ("last.safetensors", "resume.safetensors"):
        (tmp_path / name).write_bytes((student / name).read_bytes())
    words = ("distill", shapes, "--teacher", student, "--out", tmp_path, *TINY, "--resume")
    assert "holds a run whose best.safetensors is gone" in refused(*words)


def test_a_loss_that_is_not_finite_is_a_message(shapes, student, tmp_path):
    words = (
        "distill",
        shapes,
        "--teacher",
        student,
        "--out",
        tmp_path / "s",
        "--epochs",
        2,
        *TINY,
        "--temperature",
        1e-38,
    )
    result = run(*words)
    assert result.status == 2
    assert re.match(r"kdlab: the loss is no longer finite at step \d+: kd = nan", result.err)


def test_the_word_digits_is_the_built_in_data(monkeypatch, tmp_path):
    message = refused("teach", "digits", "--out", tmp_path / "t", "--batch-size", 4000)
    assert "at most 1200, the number of training images" in message
    monkeypatch.chdir(tmp_path)
    assert "digits: no such folder" in refused("teach", "./digits", "--out", tmp_path / "t")


# --- refused before any work -----------------------------------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch):
    """Training, and the teacher's run over the images, must not be reached."""

    def reached(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(response, "fit_with", reached)
    monkeypatch.setattr(response.TeacherCache, "build", reached)


@pytest.fixture
def no_look(monkeypatch):
    """The images of a folder must not be read: a large one takes minutes."""
    monkeypatch.setattr(folders, "scan", None)


@pytest.mark.usefixtures("no_work", "no_look")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "0"], "temperature is 0.0; it must be a finite number above 0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--alpha", "1.5"], "alpha is 1.5; wanted: from 0 (labels only) to 1 (teacher only)"),
        (["--drop-rate", "1"], "drop_rate is 1.0; wanted: from 0 to below 1"),
        (["--widths", "4,8"], "widths is (4, 8); wanted: the channels of four blocks"),
        (["--lr", "-1"], "lr is -1.0; wanted: above 0 and at most 10"),
        (["--mean", "0.5"], "mean has 1 value, 3 wanted"),
        (["--std", "0.5,0.5,0.5,0.5"], "std has 4 values, 3 wanted"),
        (["--std", "0,0.5,0.5"], "wanted three values above 0"),
        (["--mean", "127,127,127", "--std", "50,50,50"], "mean is (127.0, 127.0, 127.0), wanted for pixels in 0 to 1"),
        (["--classes", "3"], "the teacher has 3 classes by --classes; shapes has 2: circle, square"),
        (["--batch-size", "1"], "--batch-size is 1; wanted: at least 2"),
        (
            ["--batch-size", "4", "--accumulate", "4"],
            "--batch-size is 4; wanted: at least 8, since batch normalisation compares images, two or more in each of "
            "the 4 parts",
        ),
        (["--unlabelled", "nowhere"], "nowhere is no folder; wanted: one that holds images without labels"),
        (["--teacher", "nowhere"], "--teacher nowhere does not exist. Make a teacher with `kdlab teach`"),
        (["--teacher", "nowhere.pt"], "--teacher nowhere.pt does not exist"),
        (["--out", __file__], "test_cli.py is a file; wanted: a folder"),
        (["--out", f"{__file__}/below"], "cannot be made"),
        (["--out", "/proc/self"], "--out /proc/self cannot be written to"),
    ],
)
def test_impossible_settings_of_distill(shapes, student, tmp_path, options, message):
    out = tmp_path / "s"
    teacher = () if "--teacher" in options else ("--teacher", student)
    assert message in refused("distill", shapes, *teacher, "--out", out, *SMALL, *options)
    assert not out.exists()


@pytest.mark.usefixtures("no_work")
def test_more_images_in_a_batch_than_there_are(shapes, student, tmp_path):
    words = ("distill", shapes, "--teacher", student, "--out", tmp_path / "s", *SMALL, "--batch-size", 13)
    assert "at most 12, the number of training images" in refused(*words)
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("no_work", "no_look")
def test_what_teach_and_resume_refuse_before_an_image_is_read(shapes, student, tmp_path, monkeypatch):
    def offline():
        raise OSError("no network")

    monkeypatch.setattr(classification, "_imagenet_densenet121", offline)
    for options, message in (
        (("--weights", "imagenet"), "no network"),
        (("--batch-size", 1), "--batch-size is 1; wanted: at least 2"),
        (("--out", "/proc/self"), "--out /proc/self cannot be written to"),
        (("--out", student), "holds an earlier run"),
    ):
        assert message in refused("teach", shapes, "--out", tmp_path / "t", *SMALL, *options)
    words = ("distill", shapes, "--teacher", tmp_path / "t", "--out", student, *TINY, "--alpha", 0, "--epochs")
    assert "epochs was 12, now 13" in refused(*words, 13, "--resume")
    assert "temperature was 2.0, now 3.0" in refused(*words, 12, "--resume", "--temperature", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "argument --epochs: '0' is not a whole number from 1 up"),
        (["--patience", "0"], "argument --patience: '0' is not a whole number from 1 up"),
        (["--image-size", "16"], "argument --image-size: '16' is not a whole number from 32 up"),
        (["--workers", "-1"], "argument --workers: '-1' is not a whole number from 0 up"),
        (["--mean", "grey"], "argument --mean: 'grey' is not made of numbers"),
        (["--mean", "0.5", "0.5", "0.5", "pets/"], "'pets/' is not made of numbers between commas (and DATA stands"),
        (["--mean", ""], "argument --mean: '' is not made of numbers"),
        (["--device", "abacus"], "argument --device: invalid choice"),
        (["--image-size", "100000"], "argument --image-size: 100000 is too large; wanted: at most 8192"),
        (["--workers", "100000"], "argument --workers: 100000 is too large; wanted: at most 128"),
        (["--seed", str(2**63)], f"argument --seed: {2**63} is too large; wanted: at most {2**63 - 1}"),
        (["--batch-size", "9" * 20], "argument --batch-size: 99999999999999999999 is too large"),
    ],
)
def test_words_that_are_no_settings(options, message):
    result = run("distill", "digits", "--teacher", "t", "--out", "s", *options)
    assert result.status == 2
    assert message in result.err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("distill digits --teacher t --out s --temprature 4", "--temprature'. Did you mean '--temperature'"),
        ("predict a.png --model m --topk=3", "--topk'. Did you mean '--top-k'?"),
        ("yolo prune --model m --out o --keep 0.5 --image-sise 64", "--image-sise'. Did you mean '--image-size'?"),
    ],
)
def test_an_option_that_is_misspelt_is_told_which_was_meant(words, meant):
    result = run(*words.split())
    assert result.status == 2
    assert f"unknown option '{meant}" in result.err
    assert result.err.startswith(f"usage: kdlab {words.split()[0]} ")


@pytest.mark.usefixtures("no_work", "no_look")
@pytest.mark.parametrize(
    ("classes", "wanted"),
    [
        (("cat", "dog"), "the teacher knows circle, square; other has cat, dog: wanted the same classes"),
        (("circle", "oval", "square"), "the teacher knows circle, square; other has circle, oval, square"),
    ],
)
def test_a_teacher_of_other_classes(student, tmp_path, classes, wanted):
    data = grow(tmp_path / "other", classes, train=2, val=1)
    assert wanted in refused("distill", data, "--teacher", student, "--out", tmp_path / "s", *SMALL)


@pytest.mark.usefixtures("no_work")
def test_a_teacher_that_orders_the_classes_otherwise(shapes, student, tmp_path):
    model, card = load_model(student)
    turned = ModelCard(**{**vars(card), "classes": card.classes[::-1]})
    save_model(tmp_path / "turned.safetensors", model, turned)
    words = ("distill", shapes, "--teacher", tmp_path / "turned.safetensors", "--out", tmp_path / "s", *SMALL)
    assert "the teacher knows square, circle; shapes has circle, square" in refused(*words)


def test_one_name_in_two_notations_is_one_class():
    """As a folder is called that was made on another system."""
    check_classes("model", ["caf\u00e9"], Listed("cups", ("cafe\u0301",)))
    check_classes("model", ["cafe\u0301"], Listed("cups", ("caf\u00e9",)))


@pytest.mark.parametrize("name", ["haze", "weather", "scenes"])
def test_a_folder_that_is_called_like_a_set_of_another_task_is_read(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grow(Path(name), train=1, val=1)
    assert list_data(name) == Listed(name, ("circle", "square"))


@pytest.mark.usefixtures("no_work")
def test_a_folder_without_val(student, tmp_path):
    data = grow(tmp_path / "pets", train=2)
    for words in (("teach", data), ("distill", data, "--teacher", student)):
        assert "has no val/ in it" in refused(*words, "--out", tmp_path / "s")


def test_a_teacher_that_knows_the_classes_in_another_order_is_told(shapes, student, tmp_path):
    words = ("distill", shapes, "--epochs", 1, *TINY, "--teacher")
    right = done(*words, student, "--out", tmp_path / "right")
    assert "teacher: validation accuracy 1.0000, loss" in right
    assert "warning" not in right
    teacher, card = load_model(student)
    with torch.no_grad():
        for parameter in teacher.classifier[-1].parameters():
            parameter.copy_(parameter.flip(0))
    save_model(tmp_path / "turned.safetensors", teacher, card)
    turned = done(*words, tmp_path / "turned.safetensors", "--out", tmp_path / "turned")
    assert "teacher: validation accuracy 0.0000, loss" in turned
    assert "warning: the teacher is about as good as chance (0.5000)" in turned


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", ["predict", "evaluate", "restore", "distill"])
def test_what_only_compares_images_is_no_model_of_any_command(shapes, command, tmp_path):
    reader = VGGReader(classes=7, width=1)
    card = ModelCard(reader.architecture, tuple("abcdefg"), (0.0,) * 3, (1.0,) * 3, size=64)
    save_model(tmp_path / "vgg.safetensors", reader, card)
    role = "--teacher" if command == "distill" else "--model"
    out = ("--out", tmp_path / "o") if command in ("restore", "distill") else ()
    message = refused(command, shapes, role, tmp_path / "vgg.safetensors", *out)
    assert "a VGGReader was given, which is for SCR and HCR to compare images by; wanted: what teach" in message


def test_a_teacher_file_that_runs_code_is_refused(shapes, tmp_path):
    trace = tmp_path / "it ran"

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    torch.save({"classifier.weight": Malicious()}, tmp_path / "teacher.pt")
    words = ("distill", shapes, "--teacher", tmp_path / "teacher.pt", "--out", tmp_path / "s", *SMALL)
    assert "cannot be read as plain weights" in refused(*words, "--image-size", 32)
    assert not trace.exists()


@pytest.mark.usefixtures("no_work", "no_look")
@pytest.mark.parametrize("name", ["teacher.pt", "teacher.safetensors"])
def test_a_damaged_teacher_file(shapes, taught, plain, tmp_path, name):
    whole = plain if name.endswith(".pt") else taught.out / "best.safetensors"
    (tmp_path / name).write_bytes(whole.read_bytes()[:5000])
    words = ("distill", shapes, "--teacher", tmp_path / name, "--out", tmp_path / "s", *SMALL, "--image-size", 32)
    assert "cannot be read as" in refused(*words)


@pytest.mark.usefixtures("no_work", "no_look")
def test_a_plain_state_dict_of_another_number_of_classes(plain, tmp_path):
    data = grow(tmp_path / "three", ("circle", "oval", "square"), train=2, val=1)
    words = ("distill", data, "--teacher", plain, "--out", tmp_path / "s", *SMALL, "--image-size", 32)
    assert "do not fit DenseNet: 2 of another shape (classifier.weight is (2, 1024), the model's (3, 1024))" in refused(
        *words
    )


@pytest.mark.usefixtures("no_work")
def test_the_digits_are_not_mirrored(tmp_path):
    assert "--augment was given with digits" in refused("teach", "digits", "--out", tmp_path / "t", "--augment")


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_agrees_with_what_training_has_measured(shapes, student):
    measured = json.loads(run("evaluate", shapes, "--model", student, "--format", "json", "--device", "cpu").out)
    recorded = load_model(student)[1].metrics
    assert measured["accuracy"] == recorded["accuracy"] == 1
    assert measured["cross_entropy"] == pytest.approx(recorded["loss"], rel=1e-4)
    assert measured["calibration_error"] == pytest.approx(recorded["calibration_error"], rel=1e-4)


@pytest.fixture(scope="module")
def one_sided(student, tmp_path_factory):
    """The student with a bias that lets it see nothing but squares."""
    model, card = load_model(student)
    with torch.no_grad():
        model.classifier[-1].bias += torch.tensor([-100.0, 100.0])
    path = tmp_path_factory.mktemp("models") / "one_sided.safetensors"
    save_model(path, model, card)
    return path


def test_evaluate_counts_each_class_and_each_confusion(shapes, one_sided):
    words = ("evaluate", shapes, "--model", one_sided, "--split", "test", "--device", "cpu", "--format")
    result = json.loads(run(*words, "json").out)
    assert (result["split"], result["images"], result["accuracy"]) == ("test", 6, 0.5)
    assert result["calibration_error"] == pytest.approx(0.5)
    assert result["classes"] == [
        {"class": "circle", "images": 3, "accuracy": 0.0},
        {"class": "square", "images": 3, "accuracy": 1.0},
    ]
    assert result["confusions"] == [{"class": "circle", "predicted": "square", "images": 3}]

    rows = list(csv.DictReader(io.StringIO(run(*words, "csv").out)))
    values = {(row["measure"], row["class"], row["predicted"]): float(row["value"]) for row in rows}
    assert values["accuracy", "", ""] == 0.5
    assert values["cross_entropy", "", ""] == pytest.approx(result["cross_entropy"])
    assert values["accuracy", "circle", ""] == 0
    assert values["confusions", "circle", "square"] == 3

    table = run(*words, "table")
    assert table.out.startswith("shapes, test: 6 images\naccuracy          0.5000\n")
    assert "most frequent confusions" in table.out
    assert table.err == ""
    skipped = run("evaluate", shapes, "--model", one_sided, "--split", "train", "--device", "cpu").err
    assert skipped.startswith(f"kdlab: skipped {shapes / 'train' / 'circle' / 'notes.txt'}: not an image")


def test_json_has_null_where_a_number_is_none(shapes, student, tmp_path):
    model, card = load_model(student)
    with torch.no_grad():
        model.classifier[-1].weight.fill_(3e38)
        model.classifier[-1].bias.copy_(torch.tensor([3e38, -3e38]))
    path = tmp_path / "too_large.safetensors"
    save_model(path, model, card)
    for words in (("evaluate", shapes), ("predict", shapes / "test")):
        said = done(*words, "--model", path, "--device", "cpu", "--format", "json")
        assert "null" in said
        assert "NaN" not in said
        assert "Infinity" not in said


def test_the_most_frequent_confusions_come_first(shapes, student, monkeypatch):
    answers, labels = torch.tensor([1, 0, 0, 0, 0, 0]), torch.tensor([0, 0, 0, 1, 1, 1])
    monkeypatch.setattr(evaluation, "predict_logits", lambda *_: (F.one_hot(answers, 2).float(), labels))
    result = json.loads(run("evaluate", shapes, "--model", student, "--format", "json", "--device", "cpu").out)
    assert result["confusions"] == [
        {"class": "square", "predicted": "circle", "images": 3},
        {"class": "circle", "predicted": "square", "images": 1},
    ]


def test_evaluate_reads_no_split_but_its_own(student, tmp_path):
    data = grow(tmp_path / "shapes", test=2)
    words = ("evaluate", data, "--model", student, "--device", "cpu")
    assert "shapes, test: 4 images" in done(*words, "--split", "test")
    assert "shapes has no val/ in it; folders found: test/" in refused(*words)


def test_evaluate_refuses_what_does_not_fit(shapes, student, tmp_path):
    data = grow(tmp_path / "pets", ("cat", "dog"), train=1, val=1)
    assert "the model knows circle, square; pets has cat, dog" in refused("evaluate", data, "--model", student)
    data = grow(tmp_path / "bare", train=1, val=1)
    assert "bare has no test/" in refused("evaluate", data, "--model", student, "--split", "test")
    assert "does not exist" in refused("evaluate", shapes, "--model", tmp_path / "nowhere")


# --- predict ---------------------------------------------------------------------------------------------------------


def test_predict_needs_no_flags_and_names_what_it_skips(shapes, student, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture("circle", 3).resize((90, 50)).save(folder / "a, b.png")
    picture("square", 4).convert("RGBA").save(folder / "c.png")
    (folder / "cut.png").write_bytes((folder / "c.png").read_bytes()[:120])
    (folder / "d.txt").write_text("no image")
    result = run("predict", folder, shapes / "test", "--model", student, "--format", "csv", "--device", "cpu")
    assert result.status == 0
    rows = {row["file"]: row for row in csv.DictReader(io.StringIO(result.out))}
    assert len(rows) == 8
    for path, row in rows.items():
        right = {"a, b.png": "circle", "c.png": "square"}.get(Path(path).name, Path(path).parent.name)
        assert row["class"] == right
        assert 0.5 < float(row["probability"]) <= 1
    skipped = result.err.splitlines()
    assert len(skipped) == 2
    assert f"kdlab: skipped {folder / 'cut.png'}: damaged" in result.err
    assert f"kdlab: skipped {folder / 'd.txt'}: not an image" in result.err


def test_pillows_warnings_which_name_no_file_are_not_shown(shapes, student, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        done("predict", shapes / "test" / "square" / "0.png", "--model", student, "--device", "cpu")
    assert [one for one in shown if issubclass(one.category, Image.DecompressionBombWarning)] == []


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="an Apple GPU")
def test_an_apple_gpu_that_is_not_there_takes_one_line(student):
    message = refused("evaluate", "digits", "--model", student, "--device", "mps")
    assert message == "kdlab: device 'mps' cannot be used here (no Apple GPU). Try 'auto' or 'cpu'."


def test_top_k_in_every_format(shapes, student, tmp_path):
    image = shapes / "test" / "square" / "0.png"
    words = ("predict", image, "--model", student, "--top-k", 2, "--device", "cpu")
    records = json.loads(done(*words, "--format", "json"))
    assert [record["rank"] for record in records] == [1, 2]
    assert {record["class"] for record in records} == {"circle", "square"}
    assert records[0]["probability"] >= records[1]["probability"]
    assert sum(record["probability"] for record in records) == pytest.approx(1)
    out = tmp_path / "new" / "classes.csv"
    assert f"1 images predicted, written to {out}" in done(*words, "--out", out)
    rows = pd.read_csv(out)
    assert rows["class"].tolist() == [record["class"] for record in records]
    assert rows["probability"].tolist() == pytest.approx([record["probability"] for record in records])
    done(*words, "--out", out.with_suffix(".JSON"))
    assert json.loads(out.with_suffix(".JSON").read_text()) == records
    done(*words, "--format", "table", "--out", out)
    assert out.read_text().startswith(" ")
    header, first, _ = done(*words).splitlines()
    assert header.split() == ["file", "rank", "class", "probability"]
    assert first.split()[:3] == [str(image), "1", "square"]


def test_batches_do_not_change_a_prediction(shapes, student):
    words = ("predict", shapes / "train" / "square", "--model", student, "--format", "json", "--device", "cpu")
    one, many = (json.loads(done(*words, "--batch-size", size)) for size in (1, 4))
    assert [row["file"] for row in one] == [row["file"] for row in many]
    assert [row["probability"] for row in one] == pytest.approx([row["probability"] for row in many], abs=1e-5)


def test_predict_refuses_what_cannot_be(shapes, student, tmp_path):
    words = ("predict", shapes / "test", "--model", student)
    assert "--top-k is 3, but the model knows only 2 classes" in refused(*words, "--top-k", 3)
    assert "is a folder; wanted: a file to write" in refused(*words, "--out", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdlab.commands.predict._predict_classes", None)  # before the images are predicted
        assert "--out, /proc/self cannot be written to" in refused(*words, "--out", "/proc/self/classes.csv")
    assert "there is no file or folder nowhere" in refused("predict", "nowhere", "--model", student)
    (tmp_path / "a.txt").write_text("no image")
    assert "no usable image" in refused("predict", tmp_path / "a.txt", "--model", student)
    cut = tmp_path / "cut.png"
    cut.write_bytes((shapes / "test" / "circle" / "0.png").read_bytes()[:100])
    result = run("predict", cut, "--model", student)
    assert result.status == 2
    assert "skipped" in result.err
    assert "not one of the 1 files could be used" in result.err


# --- the command line itself -----------------------------------------------------------------------------------------


def test_help_is_instant_because_torch_is_not_imported():
    code = "import sys; from kdlab.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: kdlab" in result.stdout
    assert result.stdout.endswith("False\n")


@pytest.mark.parametrize(
    "command", ["teach", "distill", "evaluate", "predict", "restore", "reproduce", "yolo", "doctor"]
)
def test_every_help_explains_and_has_examples_that_parse(command, monkeypatch):
    text = done(command, "--help")
    assert text.startswith(f"usage: kdlab {command}")
    examples = [line.split()[1:] for line in text.splitlines() if line.startswith("  kdlab ")]
    assert examples
    parsed = []
    monkeypatch.setattr("kdlab.cli._run", lambda args: parsed.append(args) or 0)
    for example in examples:
        done(*example)
    assert [args.command for args in parsed] == [command] * len(examples)


def test_the_defaults_of_distill_are_the_articles(monkeypatch):
    parsed = []
    monkeypatch.setattr("kdlab.cli._run", lambda args: parsed.append(vars(args)) or 0)
    done("distill", "digits", "--teacher", "t", "--out", "s")
    article = {"temperature": 2.0, "alpha": 0.7, "lr": 1e-4, "epochs": 500, "drop_rate": 0.2, "batch_size": 4}
    assert parsed[0].items() >= article.items()


def test_python_can_start_it_where_it_is_not_on_the_path():
    words = ("evaluate", "digits", "--model", "nowhere")
    result = subprocess.run([sys.executable, "-m", "kdlab", *words], capture_output=True, text=True)
    assert result.returncode == 2
    assert "kdlab: nowhere does not exist" in result.stderr


def test_version_and_doctor(monkeypatch):
    assert done("--version") == f"kdlab {kdlab.__version__}\n"
    monkeypatch.setattr(kdlab.doctor, "report", lambda: 1)
    assert run("doctor").status == 1


def test_a_reader_that_goes_away_is_no_error(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    err = io.StringIO()
    with os.fdopen(write, "w") as pipe, redirect_stdout(pipe), redirect_stderr(err):
        monkeypatch.setattr(kdlab.doctor, "report", lambda: print("all is well") or 0)
        assert main(["doctor"]) == 141
        print("and what comes after goes nowhere", flush=True)
    assert err.getvalue() == ""


def test_a_full_disk_is_a_message_also_where_the_output_goes(monkeypatch):
    monkeypatch.setattr(kdlab.doctor, "report", lambda: print("all is well") or 0)
    err = io.StringIO()
    with open("/dev/full", "w") as full, redirect_stdout(full), redirect_stderr(err):
        assert main(["doctor"]) == 2
        print("and what comes after goes nowhere", flush=True)
    assert err.getvalue().startswith("kdlab: the disk is full.")


def failing(monkeypatch, error: BaseException, cause: BaseException | None = None) -> SimpleNamespace:
    """A command that fails with an error, while it handles another one."""

    def fail():
        try:
            if cause is not None:
                raise cause
        finally:
            raise error

    monkeypatch.setattr(kdlab.doctor, "report", fail)
    return run("doctor")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_little_memory_is_a_message(monkeypatch, error):
    result = failing(monkeypatch, error)
    assert result.status == 2
    assert result.err.startswith("kdlab: out of memory (")
    assert "a smaller --batch-size" in result.err


def test_a_warning_is_a_message_without_a_place_in_the_source():
    lines = [
        "import warnings, kdlab.doctor",
        "from kdlab.cli import main",
        "kdlab.doctor.report = lambda: warnings.warn('the cache is full') or 0",
        "main(['doctor'])",
        "warnings.warn('in Python')",
    ]
    result = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    said, theirs = result.stderr.splitlines()[:2]
    assert (said, theirs) == ("kdlab: the cache is full", "<string>:5: UserWarning: in Python")


def test_a_loading_process_that_ends_at_an_interrupt_is_the_interrupt(monkeypatch):
    result = failing(monkeypatch, RuntimeError("DataLoader worker (pid 7) exited unexpectedly"), KeyboardInterrupt())
    assert (result.status, result.err) == (130, "kdlab: interrupted.\n")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
        RuntimeError("DataLoader timed out after 300 seconds"),
        RuntimeError("unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)"),
        ConnectionResetError(104, "Connection reset by peer"),
        EOFError(),
    ],
)
def test_a_loading_process_that_is_lost_is_a_message(monkeypatch, error, student, shapes):
    def fail(*_):
        raise error

    monkeypatch.setattr("kdlab.commands.evaluate.check_split", fail)
    words = ("evaluate", shapes, "--model", student, "--device", "cpu")
    assert "a process that loads images has ended" in refused(*words, "--workers", 1)
    with pytest.raises(type(error)):  # without such a process it is a fault of our own
        run(*words)


def test_a_batch_that_never_comes_is_not_waited_for_endlessly(monkeypatch):
    monkeypatch.setattr(loading, "LONGEST_WAIT", 1.0)
    with pytest.raises(RuntimeError, match="timed out after 1"):
        next(iter(DataLoader([1.0], collate_fn=lambda _: time.sleep(60), **loading.loaded_by(1))))
    assert next(iter(DataLoader([1.0], **loading.loaded_by(0)))) == 1


def test_of_many_files_that_cannot_be_used_the_first_are_named(capsys):
    say_skipped([Skipped(Path(f"{number}.png"), "no image") for number in range(50)])
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "kdlab: skipped 0.png: no image"
    assert said[20:] == ["kdlab: skipped 30 more"]


def test_an_image_that_is_gone_is_one_line_from_a_loading_process_too(shapes, student, tmp_path):
    root = shutil.copytree(shapes, tmp_path / "shapes")
    words = ("evaluate", root, "--model", student, "--device", "cpu", "--workers", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdlab.commands.evaluate.check_split", lambda *_: (root / "val/circle/0.png").unlink())
        result = run(*words)
    assert result.err.splitlines() == [f"kdlab: cannot use {root}/val/circle/0.png: no such file"]


def test_a_fault_of_our_own_is_not_passed_off_as_the_users(monkeypatch):
    def broken():
        raise RuntimeError("a defect")

    monkeypatch.setattr(kdlab.doctor, "report", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["doctor"])
