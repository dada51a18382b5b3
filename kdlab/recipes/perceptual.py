"""The frozen network that SCR and HCR compare images by: VGG19's slices, of ImageNet, of the scenes, or at random."""

from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from kdlab.data import load_scenes
from kdlab.errors import InputError, unknown
from kdlab.loading import loaded_by
from kdlab.losses import PixelCrossEntropy
from kdlab.models import VGGReader, VGGSlices
from kdlab.recipes.settings import CPU, Settings, cached, fit_with, place, recipe_of
from kdlab.recipes.zoo import course_model
from kdlab.training import ModelCard, Supervised, segmentation_metrics

ZOO_NAME = "scenes_vgg"
WIDTH = 16  # a quarter of VGG19's: a sixteenth of its work
TRAINING = Settings(epochs=12, lr=1e-3, one_cycle=True, batch_size=16)

FeatureWeights = Literal["imagenet", "none", "scenes", "auto"]


def feature_slices(weights: FeatureWeights = "auto", normalise: bool = True) -> VGGSlices:
    """VGG19's slices for SCR and HCR; ``weights_used`` says in words where the weights are from.

    Args:
        weights: "imagenet"; "scenes", a quarter of the width, trained on the labelled scenes; "none", a random start of
            that width; "auto", ImageNet's where they can be had, else the scenes'.
        normalise: as :class:`VGGSlices` has it; those of the scenes were trained with it.

    Raises:
        InputError: unknown weights; "imagenet" that cannot be had.
    """
    match weights:
        case "none":
            with torch.random.fork_rng(devices=[]):
                # Always the same random start: a run can be repeated, and resumed.
                torch.default_generator.manual_seed(0)
                return VGGSlices("none", normalise, WIDTH)
        case "imagenet":
            return VGGSlices("imagenet", normalise)
        case "scenes":
            return _of_the_scenes(normalise)
        case "auto":
            slices = VGGSlices("auto", normalise)
            if slices.weights_used == "imagenet":
                return slices
            scenes = _of_the_scenes(normalise)
            scenes.weights_used += slices.weights_used.removeprefix("none: a random start")  # why: what has failed
            return scenes
        case _:
            raise InputError(unknown("weights", str(weights), get_args(FeatureWeights)))


def _of_the_scenes(normalise: bool) -> VGGSlices:
    reader, card = scenes_reader()
    slices = VGGSlices("none", normalise, WIDTH)
    slices.load_state_dict(reader.slices.state_dict())
    slices.weights_used = f"scenes: a quarter of the width, trained on {card.recipe['data']}"
    return slices


def scenes_reader(device: torch.device = CPU) -> tuple[VGGReader, ModelCard]:
    """The narrow slices with what reads the scenes from them: those of the course, else trained here, five minutes."""

    def train() -> Path:
        data = load_scenes(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # the slices normalise by themselves
        recipe = recipe_of(data, TRAINING, task="reader", width=WIDTH)
        out = cached(ZOO_NAME, recipe)
        torch.manual_seed(TRAINING.seed)
        objective = place(Supervised(VGGReader(len(data.classes), WIDTH), PixelCrossEntropy()), device)
        fit_with(
            TRAINING, objective, data.train, data, out=out, recipe=recipe, measure=measure, monitor="miou", resume=True
        )  # fmt: skip
        return out

    return course_model(ZOO_NAME, train, VGGReader, device)


def measure(model: nn.Module, dataset: Dataset, workers: int = 0) -> dict[str, float]:
    """How well the classes of the scenes' pixels can be read from the slices: mIoU and so on."""
    assert isinstance(model, VGGReader)
    return segmentation_metrics(model, DataLoader(dataset, 64, **loaded_by(workers)), model.architecture["classes"])[0]
