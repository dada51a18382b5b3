"""Make the small trained checkpoints that come with the course, in data_scripts/zoo.

    python data_scripts/make_zoo.py                     # all of them
    python data_scripts/make_zoo.py scenes_teacher      # one

Each is trained on this machine (or taken from kdlab's cache, where it was trained before by the same recipe), measured
on the test split, and saved in half precision with the command, the seed, the date and the metric in its card. A
training that is interrupted goes on where it was. The detectors take the extra [yolo].
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch import nn

from kdlab.data import load_scenes
from kdlab.data.weather_photos import load_haze, load_weather
from kdlab.errors import unknown
from kdlab.recipes import detection, few_masks, haze, perceptual, segmentation
from kdlab.recipes import weather as weather_recipe
from kdlab.recipes.dehazing import clean_alone
from kdlab.recipes.zoo import ZOO
from kdlab.training import ModelCard, load_model, pick_device, save_model
from kdlab.training.restoration import restoration_metrics

MOST_BYTES = 4 * 2**20


Made = tuple[nn.Module, ModelCard, Callable[[nn.Module], dict[str, float]]]


def scenes_teacher() -> Made:
    """The teacher of chapters 04 and 05: the narrow UPerNet."""
    data = load_scenes()
    teacher, card = few_masks.scenes_teacher(data, pick_device())
    return teacher, card, lambda model: segmentation.measure(model, data.test)


def scenes_vgg() -> Made:
    """What SCR and HCR compare images by: a quarter of VGG19's width, trained on the scenes."""
    reader, card = perceptual.scenes_reader(pick_device())
    data = load_scenes(mean=card.mean, std=card.std)
    return reader, card, lambda model: perceptual.measure(model, data.test)


def weather_teacher(weather: str) -> Made:
    """A teacher of chapters 07 to 09: the narrow MSBDN of one weather."""
    teacher, card = weather_recipe.weather_teacher(weather, pick_device())
    test = load_weather(variants=1).test.only([weather])
    return teacher, card, lambda model: restoration_metrics(model, test)


def weather_student(method: str) -> Made:
    """A student of chapter 09: the narrow MSBDN of all three weathers."""
    student, card = weather_recipe.weather_student(method, pick_device())
    test = load_weather(variants=1).test
    return student, card, lambda model: restoration_metrics(model, test)


def clean_teacher() -> Made:
    """The teacher of chapter 10: the narrow auto-encoder of clean images, which it draws again."""
    teacher, card = haze.clean_teacher(pick_device())
    test = clean_alone(load_haze(variants=1).test)
    return teacher, card, lambda model: restoration_metrics(model, test)


def haze_student(method: str) -> Made:
    """A student of chapter 10: the narrow dehazing network."""
    student, card = haze.haze_student(method, pick_device())
    test = load_haze(variants=1).test
    return student, card, lambda model: restoration_metrics(model, test)


def detector(method: str) -> Made:
    """A detector of chapter 06: the narrow YOLOv8, dense, or pruned and trained again."""
    data, device = detection.detection_scenes(), str(pick_device())
    model, card = detection.course_detector(method, data, device)
    return model, card, lambda model: detection.measure(model, data, device=device)


MAKERS: dict[str, Callable[[], Made]] = {
    "scenes_teacher": scenes_teacher,
    "scenes_vgg": scenes_vgg,
    "haze_teacher": partial(weather_teacher, "haze"),
    "rain_teacher": partial(weather_teacher, "rain"),
    "snow_teacher": partial(weather_teacher, "snow"),
    "weather_from_scratch": partial(weather_student, "from scratch"),
    "weather_two_stages": partial(weather_student, "two stages"),
    "clean_teacher": clean_teacher,
    **{haze.zoo_name(method): partial(haze_student, method) for method in ("alone", "both")},
    **{detection.zoo_name(method): partial(detector, method) for method in ("dense", "fine-tuned", "CWD", "MGD")},
}
LOADERS: dict[str, Callable[[Path], tuple[nn.Module, ModelCard]]] = {"YOLOv8": detection.load_detector}


def make(name: str) -> None:
    """Train, halve, measure what was halved, and save."""
    model, card, measure = MAKERS[name]()
    half = {
        key: value.half().float() if value.is_floating_point() else value for key, value in model.state_dict().items()
    }
    model.load_state_dict(half)
    metrics = measure(model)
    made = {"command": f"python data_scripts/make_zoo.py {name}", "date": str(date.today())}
    path = ZOO / f"{name}.safetensors"
    ZOO.mkdir(parents=True, exist_ok=True)
    save_model(path, model.half(), replace(card, recipe=card.recipe | made, metrics=metrics))
    LOADERS.get(card.architecture["name"], load_model)(path)
    size = path.stat().st_size
    if size > MOST_BYTES:
        path.unlink()
        raise SystemExit(f"{name} takes {size / 2**20:.1f} MiB; wanted: at most 4. Make it narrower.")
    print(f"{path.name}: {size / 2**20:.2f} MiB, on the test split:", {k: round(v, 4) for k, v in metrics.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of: {', '.join(MAKERS)} (default: all)")
    names = parser.parse_args().names or MAKERS
    for name in names:
        if name not in MAKERS:
            parser.error(unknown("checkpoint", name, MAKERS))
    for name in names:
        os.environ["KDLAB_RETRAIN"] = name  # a student is taught by the teachers that come with the course
        torch.manual_seed(0)
        make(name)


if __name__ == "__main__":
    main()
