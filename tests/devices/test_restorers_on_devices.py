"""Restorers on another device: tiles, the self-ensemble, how they are judged, and what trains them."""

import pytest
import torch
from on_devices import agree, same_losses
from torch import nn

from kdlab.data.pairs import Pair, PairedImages
from kdlab.data.splits import ImageSplits
from kdlab.models import MSBDN, DehazingTeacher, VGGSlices
from kdlab.recipes import dehazing, restoration
from kdlab.recipes.dehazing import Dehazing, DehazingSettings
from kdlab.recipes.restoration import RestorationSettings, TwoStage
from kdlab.training import SelfEnsemble
from kdlab.training.restoration import QUALITY, measure_each
from kdlab.training.tiles import restore

WEATHERS = ("haze", "rain", "snow")


def images(count: int, crop: int | None = None) -> PairedImages:
    clean = torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)
    pairs = [Pair(clean[i] // 2 + 30, clean[i], weather, f"{weather}{i}") for i in range(count) for weather in WEATHERS]
    return PairedImages(pairs, WEATHERS, crop)


@pytest.fixture
def data():
    nothing, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return ImageSplits(images(1, 32), images(1), images(1), WEATHERS, nothing, one, 32, "noise", deterministic=False)


# --- use -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("on_device", [False, True])
def test_an_image_is_restored_in_tiles_as_on_the_cpu(on_device, ensemble, device):
    model = MSBDN(2).eval()
    restorer = SelfEnsemble(model) if ensemble else model
    image = torch.rand(3, 64, 80)
    reference = restore(restorer, image, tile=48, overlap=16).double()
    restorer.to(device)
    given = image.to(device) if on_device else image
    mine = restore(restorer, given, tile=48, overlap=16)
    assert mine.device == given.device
    agree(mine, reference, device)


def test_a_restorer_is_judged_as_on_the_cpu(data, device):
    model = MSBDN(2)
    reference = measure_each(model, data.test)
    mine = measure_each(model.to(device), data.test)
    assert mine[list(QUALITY)].to_numpy() == pytest.approx(reference[list(QUALITY)].to_numpy(), rel=1e-3)


# --- training --------------------------------------------------------------------------------------------------------


def collate(data: ImageSplits, device: torch.device, plan: TwoStage) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(0)
    teachers = {weather: MSBDN(2) for weather in WEATHERS}
    features = VGGSlices("none", width=2)
    settings = RestorationSettings(epochs=2 if plan.collation < 1 else 1, lr=1e-3, batch_size=3, warm_up=0)
    student, done = restoration.distill(
        data, teachers, plan, features, settings, architecture={"width": 2}, device=device
    )  # fmt: skip
    return student, done.history["total"].tolist()


PLANS = {
    "published": TwoStage(eps=1e-2),
    "one stage": TwoStage(1.0, eps=1e-2, detach=True, positive="target", negatives="same_weather", pixel="mse"),
}


@pytest.mark.parametrize("name", PLANS)
def test_three_teachers_and_clean_images_teach_as_on_the_cpu(name, data, device):
    _, reference = collate(data, torch.device("cpu"), PLANS[name])
    student, mine = collate(data, device, PLANS[name])
    same_losses(mine, reference, device)
    assert {tensor.device.type for tensor in student.state_dict().values()} == {device.type}


def dehaze(data: ImageSplits, device: torch.device) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(0)
    teacher = DehazingTeacher((16, 32, 64), (1, 1, 1), 128, 2, weights="none")
    settings = DehazingSettings(epochs=2, lr=1e-3, batch_size=3, steps=1, freeze_from=1)
    student, done = dehazing.distill(
        data, teacher, Dehazing(clamp=True), settings, weights="none", device=device,
        architecture={"widths": (16, 32, 128), "blocks": (1, 1, 1), "channels": 2},
    )  # fmt: skip
    return student, done.history["total"].tolist()


def test_a_teacher_of_clean_images_teaches_as_on_the_cpu(data, device):
    _, reference = dehaze(data, torch.device("cpu"))
    student, mine = dehaze(data, device)
    same_losses(mine, reference, device)
    assert {tensor.device.type for tensor in student.state_dict().values()} == {device.type}
