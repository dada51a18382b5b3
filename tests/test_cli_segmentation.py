"""The command line for segmentation: from a folder of images and masks to a small student that draws new masks."""

import csv
import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from command_line import done, refused, run
from mask_folder import drawn, grow
from PIL import Image
from states import same, weights
from torchvision.models import ConvNeXt_Tiny_Weights, ResNet18_Weights
from torchvision.transforms.v2 import functional as transforms

from kdlab.commands import segmentation_options
from kdlab.commands.methods import BASES, dense_distillation
from kdlab.commands.outputs import distinct_names
from kdlab.commands.predict_masks import PALETTE
from kdlab.data import masks, scenes
from kdlab.models import PSPNet, StudentCNN
from kdlab.recipes import segmentation
from kdlab.recipes.few_masks import METHODS
from kdlab.recipes.segmentation import NARROW_STUDENT, NARROW_TEACHER, PRESETS, DenseDistillation, Layer, Method
from kdlab.recipes.settings import Settings
from kdlab.training import Fit, ModelCard, load_model, save_model

SEGMENTATION = ("--task", "segmentation", "--narrow", "--device", "cpu")
TINY = (*SEGMENTATION, "--batch-size", 4, "--lr", 3e-3)
SIZE = 36  # no multiple of the student's stride 8 nor of the teacher's 32

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def roads(tmp_path_factory):
    return grow(tmp_path_factory.mktemp("data") / "roads")


@pytest.fixture(scope="module")
def taught(roads, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "the teacher"
    text = done("teach", roads, "--out", out, "--epochs", 8, "--image-size", SIZE, *TINY)
    return SimpleNamespace(out=out, text=text)


@pytest.fixture(scope="module")
def student(roads, taught, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "student"
    text = done("distill", roads, "--teacher", taught.out, "--out", out, "--epochs", 16, *TINY)
    return SimpleNamespace(out=out, text=text)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A model of the other task."""
    path = tmp_path_factory.mktemp("classifier") / "best.safetensors"
    model = StudentCNN(3, (4, 4, 4, 4))
    save_model(path, model, ModelCard(model.architecture, ("0", "1", "2"), (0.5,) * 3, (0.2,) * 3, 32))
    return path


@pytest.fixture
def no_work(monkeypatch):
    def reached(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(segmentation, "fit_with", reached)
    monkeypatch.setattr(segmentation.TeacherCache, "build", reached)


@pytest.fixture
def asked(monkeypatch):
    """What a command asks of the recipe, which does nothing."""
    calls = []

    def recipe(*arguments, out, **options):
        calls.append(SimpleNamespace(arguments=arguments, **options))
        model = PSPNet(3, width=8, blocks=(1, 1, 1, 1), channels=4)
        save_model(
            out / "best.safetensors", model, ModelCard(model.architecture, ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3, 32)
        )
        return Fit(pd.DataFrame([{}]), {"epoch": 1, "val_miou": 0.25, "val_mdice": 0.75, "val_loss": 1.0}, "epochs")

    monkeypatch.setattr(segmentation, "teach", recipe)
    monkeypatch.setattr(segmentation, "distill", recipe)
    return calls


# --- training --------------------------------------------------------------------------------------------------------


def test_teach_says_what_it_did_and_leaves_a_segmenter_with_a_card(taught):
    for said in (
        f"roads, 8 training and 3 validation images of {SIZE}x{SIZE} pixels",
        "classes: 0, 1, 2",
        "started from weights: none: a random start, because there are no ImageNet weights",
        "of 8, with validation mIoU 0.",
        f"predict IMAGES --model '{taught.out}' --out MASKS",
    ):
        assert said in taught.text
    model, card = load_model(taught.out)
    widths = {name: list(value) if isinstance(value, tuple) else value for name, value in NARROW_TEACHER.items()}
    assert card.architecture == {"name": "UPerNet", "classes": 3, "auxiliary": False, **widths}
    assert (card.classes, card.size) == (("0", "1", "2"), SIZE)
    assert model(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 3, SIZE, SIZE)


def test_a_folders_classes_get_the_names_that_are_given_and_keep_them(roads, tmp_path):
    names = ("ground", "road", "car", "tree")  # of which no mask has the last
    words = ("--epochs", 1, "--image-size", SIZE, *TINY)
    said = done("teach", roads, "--out", tmp_path / "t", *words, "--class-names", *names)
    assert f"classes: {', '.join(names)}" in said
    done("distill", roads, "--teacher", tmp_path / "t", "--out", tmp_path / "s", *words[:2], *TINY)
    for who in "ts":
        assert load_model(tmp_path / who)[1].classes == names


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("data", "names", "said"),
    [
        ("roads", ["ground", "road"], "--class-names gives 2 classes: ground, road"),
        ("roads", ["ground", "ground", "car"], "wanted 2 or more different names"),
        ("scenes", ["ground", "road"], "--class-names was given, and scenes has names: background, "),
    ],
)
def test_names_that_do_not_fit(data, names, said, roads, tmp_path):
    data = roads if data == "roads" else data
    words = ("teach", data, "--out", tmp_path / "t", *SEGMENTATION)
    assert said in refused(*words, "--class-names", *names)
    assert not (tmp_path / "t").exists()


def test_distill_makes_a_student_of_the_teachers_images(student, taught):
    assert "distillation: cwd on logits, weight 3, temperature 4\n" in student.text
    assert "teacher: validation mIoU 0." in student.text
    card, teacher = load_model(student.out)[1], load_model(taught.out)[1]
    assert (card.classes, card.mean, card.std, card.size) == (teacher.classes, teacher.mean, teacher.std, SIZE)
    assert (card.architecture["name"], card.architecture["width"]) == ("PSPNet", NARROW_STUDENT["width"])
    assert card.recipe.items() >= {"method": "cwd", "layer": "logits", "weight": 3.0, "one_cycle": True}.items()
    assert card.metrics["miou"] > 0.6  # three colours are easy


def offline(**_):
    raise OSError("no network")


def test_the_defaults_suit_segmentation_and_narrow_is_asked_for(roads, taught, tmp_path, asked, monkeypatch):
    for published in (ConvNeXt_Tiny_Weights.IMAGENET1K_V1, ResNet18_Weights.IMAGENET1K_V1):  # whose rate is another
        monkeypatch.setattr(published, "get_state_dict", offline)
    plain = ("--task", "segmentation", "--device", "cpu", "--image-size", 32, "--batch-size", 2, "--out")
    done("teach", roads, *plain, tmp_path / "a")
    done("distill", roads, "--teacher", taught.out, *plain, tmp_path / "b")
    done("teach", roads, *plain, tmp_path / "c", "--narrow", "--weights", "none")
    done("distill", roads, "--teacher", taught.out, *plain, tmp_path / "d", "--narrow", "--epochs", 3)
    settings = [next(one for one in call.arguments if isinstance(one, Settings)) for call in asked]
    assert settings[0] == settings[1] == Settings(epochs=60, lr=1e-3, one_cycle=True, batch_size=2, patience=None)
    assert settings[3].epochs == 3
    assert not asked[0].architecture
    assert not asked[1].architecture
    assert [call.architecture for call in asked[2:]] == [NARROW_TEACHER, NARROW_STUDENT]
    assert [call.weights for call in asked] == ["auto", "auto", "none", "auto"]


@pytest.mark.usefixtures("asked")
def test_the_published_weight_of_mgd_is_warned_of_where_the_maps_are_small(roads, taught, tmp_path):
    words = ("distill", roads, "--teacher", taught.out, *TINY, "--out")
    text = done(*words, tmp_path / "a", "--method", "mgd")
    assert "weight 2e-05 belongs to maps of 64x64; of these images of 36x36 they are 5x5" in text
    assert "pulls 164 times less. --weight 0.0033 pulls as hard" in text
    for number, more in enumerate((("--weight", 1e-3), ("--image-size", 264))):
        assert "warning" not in done(*words, tmp_path / f"b{number}", "--method", "mgd", *more)
    assert "warning" not in done(*words, tmp_path / "c", "--method", "cwd")


def test_the_best_epoch_is_that_of_the_metric_asked_for(roads, taught, tmp_path, monkeypatch):
    words = ("distill", roads, "--teacher", taught.out, "--epochs", 2, *TINY, "--out")
    for monitor, epoch, said in (("miou", 2, "mIoU 0.4000"), ("mdice", 1, "mDice 0.6000")):
        of_teacher = {"miou": 0.9, "mdice": 0.9, "loss": 0.1}
        looks = iter([of_teacher, {"miou": 0.3, "mdice": 0.6, "loss": 1.0}, {"miou": 0.4, "mdice": 0.5, "loss": 1.0}])
        with monkeypatch.context() as patch:
            patch.setattr(segmentation, "measure", lambda *_, looks=looks, **__: next(looks))
            text = done(*words, tmp_path / monitor, "--monitor", monitor)
        assert f"best epoch: {epoch} of 2, with validation {said}" in text


def test_an_interrupted_run_resumed_ends_as_if_left_alone(roads, taught, tmp_path, monkeypatch):
    words = ("distill", roads, "--teacher", taught.out, "--method", "mgd", "--epochs", 2, *TINY, "--out")
    done(*words, tmp_path / "alone")
    with monkeypatch.context() as patch:
        whole, calls = segmentation.measure, []

        def interrupted(*arguments, **options):
            calls.append(1)
            if len(calls) == 3:  # the teacher, the first epoch, the second
                raise KeyboardInterrupt
            return whole(*arguments, **options)

        patch.setattr(segmentation, "measure", interrupted)
        result = run(*words, tmp_path / "resumed")
    assert (result.status, "--resume goes on" in result.err) == (130, True)
    assert "holds an earlier run. Go on with it (--resume)" in refused(*words, tmp_path / "resumed")
    assert not same(weights(tmp_path / "alone"), weights(tmp_path / "resumed"))
    done(*words, tmp_path / "resumed", "--resume")
    assert same(weights(tmp_path / "alone"), weights(tmp_path / "resumed"))
    other = run(*words, tmp_path / "resumed", "--resume", "--mask-ratio", 0.5)
    assert "mask_ratio was 0.75, now 0.5" in " ".join(other.err.split())


def test_images_without_masks_are_seen_through_the_teacher(roads, taught, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(20):
        drawn(seed)[0].save(folder / f"{seed}.png")
    out = tmp_path / "student"
    words = ("distill", roads, "--teacher", taught.out, "--out", out, "--epochs", 1, *TINY)
    assert "unlabelled: 20 images" in done(*words, "--unlabelled", folder)
    assert load_model(out)[1].recipe["unlabelled files"].startswith("20 files")


# --- methods ---------------------------------------------------------------------------------------------------------

CHOSEN = {
    "nothing": ((), PRESETS["cwd-logits"]),
    "cwd": (("--method", "cwd"), PRESETS["cwd-logits"]),
    "cwd features": (("--method", "cwd", "--layer", "features"), PRESETS["cwd-features"]),
    "layer alone": (("--layer", "features"), PRESETS["cwd-features"]),
    "mgd": (("--method", "mgd"), PRESETS["mgd"]),
    "kd": (("--method", "kd"), METHODS["pixel-wise KD"]),
    "hard": (("--method", "hard"), METHODS["hard labels"]),
    "pseudo": (("--method", "pseudo"), METHODS["pseudo-masks"]),
    "at": (("--method", "at"), METHODS["AT"]),
    "preset": (("--preset", "cwd-logits-mmrazor"), PRESETS["cwd-logits-mmrazor"]),
    "preset and numbers": (
        ("--preset", "cwd-features", "--weight", "20", "--temperature", "2"),
        DenseDistillation("cwd", "features", weight=20.0, temperature=2.0),
    ),
    "ratio 0": (
        ("--preset", "mgd", "--mask-ratio", "0", "--weight", "0"),
        DenseDistillation("mgd", "features", weight=0.0, mask_ratio=0.0),
    ),
}


@pytest.mark.parametrize(("words", "wanted"), CHOSEN.values(), ids=CHOSEN)
def test_a_method_has_its_layer_and_numbers_and_each_can_be_changed(words, wanted, monkeypatch):
    parsed = []
    monkeypatch.setattr("kdlab.cli._run", lambda args: parsed.append(args) or 0)
    done("distill", "scenes", "--teacher", "t", "--out", "s", "--task", "segmentation", *words)
    assert dense_distillation(parsed[0]) == wanted


def test_the_choices_of_the_command_line_are_those_of_the_recipe():
    assert set(segmentation_options.PRESETS) == set(PRESETS)
    assert set(segmentation_options.METHODS) == set(get_args(Method))
    assert {method for method, _ in BASES} == set(get_args(Method))
    assert {layer for _, layer in BASES} == set(get_args(Layer))


def test_help_names_the_weights():
    text = " ".join(done("distill", "--help").split())
    published, chosen = re.search(r"as published: (.*?); (.*?)\)", text).groups()
    for (method, layer), base in BASES.items():
        number = f"{base.weight:g}".replace("e-0", "e-")
        words = f"or {number} on features" if (method, layer) == ("cwd", "features") else f"{method} {number}"
        assert words in (published if method in ("cwd", "mgd") else chosen)
    assert METHODS["MGD 0.75"].weight == 2e-3
    assert "mgd did best with 2e-3" in chosen


@pytest.fixture
def no_look(monkeypatch):
    """The masks of a folder must not be read: a large one takes minutes."""
    monkeypatch.setattr(masks, "_look", None)


@pytest.mark.usefixtures("no_work", "no_look")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "mgd", "--method", "cwd"], "--preset mgd was given with --method, but a preset says both itself"),
        (["--preset", "mgd", "--layer", "logits"], "--preset mgd was given with --layer"),
        (["--method", "mgd", "--layer", "logits"], "layer is 'logits'; wanted for mgd: 'features'"),
        (["--method", "kd", "--layer", "features"], "layer is 'features'; wanted for kd: 'logits'"),
        (
            ["--method", "mgd", "--temperature", "2"],
            "--temperature was given, which mgd has no use for, only kd and cwd",
        ),
        (["--mask-ratio", "0.5"], "--mask-ratio was given, which cwd has no use for, only mgd"),
        (["--temperature", "0"], "temperature is 0.0"),
        (["--weight", "-1"], "weight is -1"),
        (["--weight", "nan"], "weight is nan"),
        (["--method", "mgd", "--mask-ratio", "1.5"], "mask_ratio is 1.5"),
        (["--lr", "0"], "lr is 0.0"),
        (["--weights", "imagenet"], "--weights imagenet was given with --narrow, which ImageNet's do not fit"),
        (["--batch-size", "1"], "--batch-size is 1; wanted: at least 2"),
        (["--teacher", "nowhere"], "--teacher nowhere does not exist"),
        (["--out", __file__], "test_cli_segmentation.py is a file; wanted: a folder"),
        (["--out", f"{__file__}/below"], "cannot be made"),
        (
            ["--alpha", "0.5"],
            "--alpha was given, which only classification has; the task is segmentation. Leave it out",
        ),
        (["--augment", "--drop-rate", "0"], "--augment, --drop-rate was given, which only classification has"),
        (["--classes", "3"], "--classes was given"),
        (["--widths", "4,4,8,8"], "--widths was given"),
    ],
)
def test_impossible_settings(roads, taught, tmp_path, options, message):
    teacher = () if "--teacher" in options else ("--teacher", taught.out)
    words = ("distill", roads, *teacher, "--out", tmp_path / "s", *SEGMENTATION, "--batch-size", 4)
    assert message in refused(*words, *options)
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("no_work")
def test_more_images_in_a_batch_than_there_are(roads, taught, tmp_path):
    words = ("distill", roads, "--teacher", taught.out, "--out", tmp_path / "s", *SEGMENTATION, "--batch-size", 9)
    assert "at most 8, the number of training images" in refused(*words)
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("no_work", "no_look")
def test_what_else_is_refused_before_a_mask_is_read(roads, taught, student, tmp_path, monkeypatch):
    for published in (ConvNeXt_Tiny_Weights.IMAGENET1K_V1, ResNet18_Weights.IMAGENET1K_V1):
        monkeypatch.setattr(published, "get_state_dict", offline)
    words = (roads, "--out", tmp_path / "o", "--task", "segmentation", "--batch-size", 4, "--device", "cpu")
    assert "no network" in refused("teach", *words, "--weights", "imagenet")
    assert "no network" in refused("distill", *words, "--teacher", taught.out, "--weights", "imagenet")
    for command, more in (("teach", ()), ("distill", ("--teacher", taught.out))):  # nor is anything downloaded for
        assert "has no images and masks for train and val" in refused(
            command, tmp_path, *words[1:], *more, "--weights", "imagenet"
        )
    resumed = ("--out", student.out, "--resume", "--temperature", 3)
    assert "now 3.0" in refused("distill", *words, "--narrow", "--teacher", taught.out, *resumed)
    assert "the teacher knows 0, 1, 2; voc has background" in refused(
        "distill", "voc", *words[1:], "--teacher", taught.out
    )


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("teach", ("--narrow",), "--narrow was given, which only segmentation, restoration and dehazing have"),
        ("teach", ("--monitor", "miou"), "Leave it out, or say --task segmentation."),
        ("teach", ("--task", "segmentation", "--augment"), "--augment was given, which only classification has"),
        ("distill", ("--teacher", "t", "--method", "cwd"), "--method was given, which only segmentation has"),
        ("distill", ("--teacher", "t", "--weights", "none"), "which only segmentation and dehazing have"),
        ("distill", ("--teacher", "t", "--preset", "mgd", "--mask-ratio", "0"), "--mask-ratio, --preset was given"),
    ],
)
def test_options_of_the_other_task_are_not_ignored(command, words, message, tmp_path):
    assert message in refused(command, "digits", "--out", tmp_path / "o", *words)
    assert not (tmp_path / "o").exists()


# --- data and teachers that do not fit -------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_work")
def test_a_set_of_the_other_task(classifier, student, taught, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("scenes", "pets", "voc"):
        said = f"{name} has a mask for each image, which is for segmentation; wanted for classification"
        assert said in refused("teach", name, "--out", "o")
        assert said in refused("evaluate", name, "--model", classifier)
    said = (
        "digits has a label for each image and no masks, which is for classification; wanted for segmentation: scenes"
    )
    assert said in refused("teach", "digits", "--out", "o", *SEGMENTATION)
    assert said in refused("distill", "digits", "--teacher", taught.out, "--out", "o", *SEGMENTATION)
    assert said in refused("evaluate", "digits", "--model", student.out)
    assert "VOCSegmentation is not there" in refused("teach", "voc", "--out", "o", *SEGMENTATION)
    (tmp_path / "pets").mkdir()  # a folder of one's own is what it was
    assert "has no train/ and no val/" in refused("teach", "pets", "--out", "o")


@pytest.mark.usefixtures("no_work")
def test_a_teacher_of_the_other_task(roads, taught, classifier, tmp_path):
    words = ("distill", roads, "--out", tmp_path / "o", "--teacher")
    said = "was made for classification (StudentCNN), and the task is segmentation. Say --task classification"
    assert said in refused(*words, classifier, *SEGMENTATION)
    assert "was made for segmentation (UPerNet), and the task is classification" in refused(*words, taught.out)
    torch.save({}, tmp_path / "teacher.pt")
    assert "teacher.pt is no file of kdlab's; wanted: what `kdlab teach --task" in refused(
        *words, tmp_path / "teacher.pt", *SEGMENTATION
    )


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("words", [("--method", "mgd"), ("--method", "at"), ("--method", "cwd", "--layer", "features")])
def test_a_teacher_without_the_layer_is_refused_before_the_data_is_read(student, tmp_path, words):
    said = refused("distill", "nowhere", "--teacher", student.out, "--out", tmp_path / "o", *SEGMENTATION, *words)
    assert "the teacher is a PSPNet" in said
    assert "whose features are those of UPerNet" in said


@pytest.mark.usefixtures("no_work")
def test_a_teacher_of_other_classes(taught, tmp_path, monkeypatch):
    words = ("--teacher", taught.out, "--out", tmp_path / "o", *SEGMENTATION)
    data = grow(tmp_path / "more", lambda mask: mask * 2, train=2, val=1)
    message = refused("distill", data, *words)
    assert "train/masks/0.png: value 4, but the classes are 0 to 2, and 255 means ignore" in message
    assert message.endswith("The teacher knows 3 classes: 0, 1, 2.")
    monkeypatch.setattr(scenes, "SAMPLES", {"train": 2, "val": 2, "test": 2})
    assert "the teacher knows 0, 1, 2; scenes has background, disc" in refused("distill", "scenes", *words)
    assert "the model knows 0, 1, 2; scenes has" in refused("evaluate", "scenes", "--model", taught.out)


def test_classes_that_a_folder_happens_to_lack_are_still_the_teachers(taught, tmp_path):
    data = grow(tmp_path / "fewer", lambda mask: mask.clip(max=1), train=4, val=1)
    done("distill", data, "--teacher", taught.out, "--out", tmp_path / "o", "--epochs", 1, *TINY)
    assert load_model(tmp_path / "o")[1].classes == ("0", "1", "2")


def no_mask(root):
    (root / "val" / "masks" / "0.png").unlink()


def another_size(root):
    drawn(0, 47, 40)[1].save(root / "val" / "masks" / "0.png")


def colours(root):
    drawn(0)[0].save(root / "val" / "masks" / "0.png")


def no_masks_at_all(root):
    (root / "val" / "masks").rename(root / "val" / "labels")


SPOILED = {
    no_mask: "1 of the images in",
    another_size: "val/masks/0.png: 47x40 pixels, but its image 0.png has 48x40",
    colours: "val/masks/0.png: colours (mode RGB), wanted one class number a pixel",
    no_masks_at_all: "has no images and masks for val",
}


def test_a_folder_without_splits_is_split_and_that_is_said(tmp_path):
    (grow(tmp_path, train=5) / "train").rename(tmp_path / "fields")
    out = tmp_path / "out"
    text = done("teach", tmp_path / "fields", "--out", out, "--epochs", 1, "--image-size", SIZE, *TINY)
    assert "data: fields, 4 training and 1 validation images" in text
    assert text.count("fields has no train/ and val/; 1 of its 5 images, chosen by their names") == 1


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(("spoil", "said"), SPOILED.items(), ids=[spoil.__name__ for spoil in SPOILED])
def test_masks_that_do_not_fit(taught, tmp_path, spoil, said):
    data = grow(tmp_path / "spoiled", train=2, val=1)
    spoil(data)
    for words in (
        ("teach", data, "--out", tmp_path / "o", *SEGMENTATION),
        ("distill", data, "--teacher", taught.out, "--out", tmp_path / "o", *SEGMENTATION),
        ("evaluate", data, "--model", taught.out),
    ):
        assert said in refused(*words)
    assert not (tmp_path / "o").exists()


def only_the_outline(mask):
    """Nothing but two rows has a class."""
    mask[2:] = 255
    mask[0, :2] = (1, 2)
    return mask


def one_class(mask):
    """Every other image is all background, the rest all of class 1."""
    one_class.calls += 1
    return np.full_like(mask, one_class.calls % 2)


one_class.calls = 0


@pytest.mark.parametrize("change", [only_the_outline, one_class])
def test_masks_with_little_in_them_train_to_finite_numbers(tmp_path, change):
    data = grow(tmp_path / "data", change, train=4, val=2)
    words = (*SEGMENTATION, "--batch-size", 2, "--epochs", 1, "--image-size", 32)
    done("teach", data, "--out", tmp_path / "t", *words)
    done("distill", data, "--teacher", tmp_path / "t", "--out", tmp_path / "s", *words)
    for out in (tmp_path / "t", tmp_path / "s"):
        (row,) = csv.DictReader((out / "history.csv").open())
        assert all(np.isfinite(float(value)) for value in row.values())


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_agrees_with_what_training_has_measured(roads, student):
    result = json.loads(done("evaluate", roads, "--model", student.out, "--format", "json", "--device", "cpu"))
    recorded = load_model(student.out)[1].metrics
    for name in ("miou", "mdice", "pixel_accuracy"):
        assert result[name] == pytest.approx(recorded[name], abs=1e-6)
    assert result["cross_entropy"] == pytest.approx(recorded["loss"], rel=1e-4)
    assert result["miou"] == pytest.approx(np.mean([one["iou"] for one in result["classes"]]), abs=1e-6)


@pytest.fixture(scope="module")
def one_sided(student, tmp_path_factory):
    """The student with a bias that lets it see nothing but class 1."""
    model, card = load_model(student.out)
    with torch.no_grad():
        model.decode_head.conv_seg.bias += torch.tensor([-1e3, 1e3, -1e3])
    path = tmp_path_factory.mktemp("models") / "one_sided.safetensors"
    save_model(path, model, card)
    return path


def test_evaluate_counts_each_class_but_no_pixel_to_ignore(one_sided, tmp_path):
    def quarters(mask):
        """Half of the pixels to ignore; of the others half background, a quarter each of the two classes."""
        mask[:] = np.array([255, 0, 255, 1, 255, 0, 255, 2], np.uint8)[np.arange(40) // 5][:, None]
        return mask[:, :40]

    data = grow(tmp_path / "quarters", quarters, train=2, val=1, test=2)
    for path in data.rglob("images/*.png"):
        Image.open(path).crop((0, 0, 40, 40)).save(path)
    words = ("evaluate", data, "--model", one_sided, "--split", "test", "--device", "cpu", "--format")
    result = json.loads(done(*words, "json"))
    assert (result["data"], result["split"], result["images"]) == ("quarters", "test", 2)
    pixels = [one["pixels"] for one in result["classes"]]
    assert pixels[0] == pytest.approx(2 * SIZE * SIZE / 4, rel=0.2)
    assert [one["class"] for one in result["classes"]] == ["0", "1", "2"]
    share = pixels[1] / sum(pixels)
    assert [one["iou"] for one in result["classes"]] == [0.0, pytest.approx(share), 0.0]
    assert result["pixel_accuracy"] == pytest.approx(share)
    assert result["miou"] == pytest.approx(share / 3)
    assert result["mdice"] == pytest.approx(2 * share / (1 + share) / 3)

    def edges(mask):
        """A class only where the central square does not reach, at the left."""
        mask[:], mask[:, 0] = 255, 1
        return mask

    plain = grow(tmp_path / "plain", edges, train=2, val=1)
    nothing = json.loads(done("evaluate", plain, "--model", one_sided, "--device", "cpu", "--format", "json"))
    assert nothing["miou"] is None  # and no NaN, which JSON does not have

    rows = {
        (row["measure"], row["class"]): float(row["value"]) for row in csv.DictReader(io.StringIO(done(*words, "csv")))
    }
    assert rows["miou", ""] == pytest.approx(result["miou"])
    assert rows["iou", "1"] == pytest.approx(share)
    assert rows["pixels", "2"] == pixels[2]

    table = done(*words, "table")
    assert table.startswith(f"quarters, test: 2 images\nmIoU              {share / 3:.4f}\nmDice ")
    assert "class  pixels    IoU\n" in table


def test_evaluate_refuses_what_does_not_fit(student, tmp_path):
    data = grow(tmp_path / "bare", train=1, val=1)
    assert "bare has no test/" in refused("evaluate", data, "--model", student.out, "--split", "test")


# --- predict ---------------------------------------------------------------------------------------------------------


def literally(model_path: Path, path: Path) -> np.ndarray:
    """The classes of an image's pixels, step by step."""
    model, card = load_model(model_path)
    image = Image.open(path).convert("RGB")
    width, height = image.size
    scale = card.size / min(width, height)
    small = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    pixels = transforms.normalize(transforms.to_image(small) / 255, list(card.mean), list(card.std))
    with torch.no_grad():
        logits = F.interpolate(model(pixels[None]), (height, width), mode="bilinear")
    return logits[0].argmax(dim=0).numpy()


def test_predict_writes_masks_and_overlays_of_the_images_own_size(student, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "masks"
    folder.mkdir()
    sizes = {"square": (40, 40), "wide": (131, 50), "tall": (37, 90), "large": (201, 160)}
    for seed, (name, size) in enumerate(sizes.items()):
        drawn(seed, *size)[0].save(folder / f"{name}.png")
    words = ("predict", folder, "--model", student.out, "--device", "cpu", "--format")
    rows = {Path(row["file"]).stem: row for row in json.loads(done(*words, "json", "--out", out))}
    assert {path.name for path in out.iterdir()} == {f"{n}_{kind}.png" for n in sizes for kind in ("mask", "overlay")}
    for seed, (name, size) in enumerate(sizes.items()):
        mask = Image.open(out / f"{name}_mask.png")
        assert (mask.format, mask.mode, mask.size) == ("PNG", "P", size)
        values = np.asarray(mask)
        assert (values == literally(student.out, folder / f"{name}.png")).mean() > 0.999
        assert (values == np.asarray(drawn(seed, *size)[1])).mean() > 0.7  # background is little more than half
        shares = [(values == number).mean() for number in range(3)]
        assert [rows[name][key] for key in ("0", "1", "2")] == pytest.approx(shares)
        assert rows[name]["mask"] == f"{name}_mask.png"
        overlay, image = Image.open(out / f"{name}_overlay.png"), Image.open(folder / f"{name}.png")
        assert (overlay.mode, overlay.size) == ("RGB", size)
        mixed = (np.asarray(image, float) + np.array(PALETTE).reshape(-1, 3)[values]) / 2
        assert np.abs(np.asarray(overlay) - mixed).max() <= 1

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    parsed = list(csv.DictReader(io.StringIO(done(*words, "csv", "--out", out, "--workers", 1))))  # again
    assert parsed[0].keys() == {"file", "mask", "0", "1", "2"}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert done(*words, "table", "--out", out).split()[:5] == ["file", "mask", "0", "1", "2"]


def test_the_colours_are_those_of_pascal_voc():
    colours = np.array(PALETTE).reshape(-1, 3).tolist()
    known = {0: [0, 0, 0], 1: [128, 0, 0], 2: [0, 128, 0], 7: [128, 128, 128], 15: [192, 128, 128], 20: [0, 64, 128]}
    assert {number: colours[number] for number in known} == known
    assert colours[255] == [224, 224, 192]
    assert len({tuple(colour) for colour in colours}) == 256


def test_images_of_one_name_do_not_overwrite_each_other(student, tmp_path):
    for index, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        drawn(index, 40 + index, 40)[0].save(tmp_path / folder / "road.png")
    drawn(2, 42, 40)[0].save(tmp_path / "b" / "ROAD.jpg")
    out = tmp_path / "masks"
    words = ("predict", tmp_path / "a", tmp_path / "b", "--model", student.out, "--out", out, "--device", "cpu")
    rows = json.loads(done(*words, "--format", "json"))
    assert len({row["mask"].casefold() for row in rows}) == 3
    for row in rows:
        assert Image.open(out / row["mask"]).size == Image.open(row["file"]).size
    assert len(list(out.iterdir())) == 6


def test_a_number_behind_a_name_is_no_other_images_name():
    paths = [Path(name) for name in ("a/x.png", "a/x_2.png", "b/x.png", "c/x.png", "c/X.jpg")]
    assert list(distinct_names(paths).values()) == ["x", "x_2", "x_3", "x_4", "X_5"]
    long = [Path(f"{'ß' * 120}{number}.png") for number in range(2)]  # 241 bytes, of the 255 that a name may have
    assert list(distinct_names(long).values()) == ["ß" * 100, "ß" * 100 + "_2"]


def test_predict_names_what_it_skips(student, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    drawn(0)[0].save(folder / "a.png")
    Image.new("RGB", (800, 3)).save(folder / "thread.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    out = tmp_path / "masks"
    result = run("predict", folder, "--model", student.out, "--out", out, "--format", "csv", "--device", "cpu")
    assert result.status == 0
    assert len(result.out.splitlines()) == 2
    assert f"kdlab: skipped {folder / 'thread.png'}: 800x3 pixels, one side over 20 times the other" in result.err
    assert f"kdlab: skipped {folder / 'cut.png'}: damaged" in result.err
    assert f"kdlab: skipped {folder / 'notes.txt'}: not an image" in result.err
    assert sorted(path.name for path in out.iterdir()) == ["a_mask.png", "a_overlay.png"]
    result = run("predict", folder / "thread.png", "--model", student.out, "--out", out)
    assert (result.status, "not one of the 1 files could be used" in result.err) == (2, True)


def test_a_mask_of_a_name_that_is_no_text_is_named_as_its_image_is(student, tmp_path):
    name = os.fsdecode(b"r\xe9.png")
    try:
        Image.new("RGB", (20, 18)).save(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes only names that are text")
    words = ("--model", student.out, "--out", tmp_path / "out", "--format", "csv", "--device", "cpu")
    (row,) = csv.DictReader(io.StringIO(done("predict", tmp_path / name, *words)))
    assert (row["file"], row["mask"]) == (str(tmp_path / "r?.png"), "r?_mask.png")
    assert (tmp_path / "out" / os.fsdecode(b"r\xe9_mask.png")).exists()


def test_predict_refuses_what_a_segmenter_cannot_use(student, roads, tmp_path):
    images = roads / "test" / "images"
    words = ("predict", images, "--model", student.out)
    assert "the model is a segmenter, which writes masks; wanted: --out FOLDER" in refused(*words)
    out = tmp_path / "masks"
    assert "--top-k was given, but the model is a segmenter" in refused(*words, "--out", out, "--top-k", 1)
    assert "--batch-size was given, but the model is a segmenter" in refused(*words, "--out", out, "--batch-size", 2)
    assert not out.exists()
    assert "is a file; wanted: a folder for the masks" in refused(*words, "--out", images / "0.png")
    assert "cannot be made: Not a directory" in refused(*words, "--out", Path(__file__) / "masks")
    said = "is where the images are, and masks are images too. Name another folder"
    for given, place in ((images, images), (images / "0.png", images), (images, images / "masks")):
        assert said in refused("predict", given, "--model", student.out, "--out", os.path.relpath(place))
    assert len(list(images.iterdir())) == 4
