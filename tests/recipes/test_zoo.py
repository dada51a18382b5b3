"""The checkpoints that come with the course: small, with their provenance, and as good as they say."""

import importlib.util

import pytest
import torch

from kdlab.data import Scenes
from kdlab.data.weather import WEATHERS
from kdlab.data.weather_photos import load_haze, load_weather
from kdlab.files import load_tensors
from kdlab.recipes import detection, haze, perceptual
from kdlab.recipes.dehazing import clean_alone
from kdlab.recipes.few_masks import TEACHER_SCENES
from kdlab.recipes.segmentation import measure
from kdlab.recipes.zoo import ZOO, load_from_zoo
from kdlab.training.restoration import restoration_metrics

NAMES = sorted(path.stem for path in ZOO.glob("*.safetensors"))


def test_the_zoo_is_small():
    sizes = {name: (ZOO / f"{name}.safetensors").stat().st_size for name in NAMES}
    assert sizes
    assert max(sizes.values()) <= 4 * 2**20
    assert sum(sizes.values()) <= 30 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_says_what_made_it(name):
    card = load_tensors(ZOO / f"{name}.safetensors")[1]["card"]
    assert card["recipe"]["command"] == f"python data_scripts/make_zoo.py {name}"
    assert {"seed", "date", "epochs", "lr"} <= set(card["recipe"])
    assert card["metrics"]


def test_the_teacher_of_the_scenes_meets_its_metric_and_has_not_seen_the_test_scenes():
    found = load_from_zoo("scenes_teacher")
    assert found is not None
    teacher, card = found
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    measured = measure(teacher, Scenes("test", mean=card.mean, std=card.std))
    assert measured["miou"] == pytest.approx(card.metrics["miou"], abs=0.002)
    assert card.recipe["data"] == f"scenes-{TEACHER_SCENES}"


def test_what_images_are_compared_by_has_learnt_to_tell_the_scenes_apart():
    reader, card = perceptual.scenes_reader()
    measured = perceptual.measure(reader, Scenes("test", mean=card.mean, std=card.std))
    assert measured["miou"] == pytest.approx(card.metrics["miou"], abs=0.002)
    assert measured["miou"] > 0.5


STUDENTS = ["weather_from_scratch", "weather_two_stages"]


@pytest.mark.parametrize("name", [*(f"{weather}_teacher" for weather in WEATHERS), *STUDENTS])
def test_a_restorer_meets_its_metric_on_photographs_that_it_has_not_seen(name):
    found = load_from_zoo(name)
    assert found is not None
    model, card = found
    test = load_weather(variants=1).test.only(card.classes)
    measured = restoration_metrics(model, test)
    assert measured["psnr"] == pytest.approx(card.metrics["psnr"], abs=0.05)
    assert measured["psnr"] > restoration_metrics(torch.nn.Identity(), test)["psnr"] + 1


HAZE = [name for name in ("clean_teacher", *map(haze.zoo_name, haze.METHODS)) if name in NAMES]


@pytest.mark.parametrize("name", HAZE)
def test_a_network_of_the_dehazing_chapter_meets_its_metric_on_photographs_that_it_has_not_seen(name):
    found = load_from_zoo(name)
    assert found is not None
    model, card = found
    hazy = load_haze(variants=1).test
    measured = restoration_metrics(model, clean_alone(hazy) if name == "clean_teacher" else hazy)
    assert measured["psnr"] == pytest.approx(card.metrics["psnr"], abs=0.05)
    assert measured["psnr"] > restoration_metrics(torch.nn.Identity(), hazy)["psnr"] + 1


DETECTORS = [name for name in map(detection.zoo_name, detection.METHODS) if name in NAMES]


@pytest.mark.skipif(importlib.util.find_spec("ultralytics") is None, reason="needs the extra [yolo]")
@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_meets_its_metric_on_scenes_that_it_has_not_seen(name):
    detector, card = detection.load_detector(ZOO / f"{name}.safetensors")
    measured = detection.measure(detector, detection.detection_scenes(), device="cpu")
    assert measured["map50_95"] == pytest.approx(card.metrics["map50_95"], abs=0.005)
    assert measured["parameters"] == card.metrics["parameters"]


def test_it_is_made_again_where_that_is_asked_for(monkeypatch):
    monkeypatch.setenv("KDLAB_RETRAIN", "1")
    assert load_from_zoo("scenes_teacher") is None
    monkeypatch.setenv("KDLAB_RETRAIN", "scenes_teacher")
    assert load_from_zoo("scenes_teacher") is None
    assert load_from_zoo("haze_teacher") is not None  # a student is taught by what comes with the course
    monkeypatch.delenv("KDLAB_RETRAIN")
    assert load_from_zoo("no_such_model") is None
