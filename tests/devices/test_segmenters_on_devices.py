"""Dense distillation on another device: every method teaches, and what is learnt is measured, as on the CPU."""

import pytest
import torch
from on_devices import same_losses
from torch import nn
from torch.utils.data import TensorDataset

from kdlab.data.splits import ImageSplits
from kdlab.models import UPerNet
from kdlab.recipes import few_masks, segmentation
from kdlab.recipes.settings import Settings
from kdlab.training import load_model

# Nothing masked: the masks are each device's own.
METHODS = {name: how for name, how in few_masks.METHODS.items() if how and (how.method != "mgd" or not how.mask_ratio)}


@pytest.fixture(autouse=True)
def nothing_dropped(monkeypatch):
    """What dropout drops is each device's own."""
    monkeypatch.setattr(nn.Dropout2d, "forward", lambda self, images: images)


@pytest.fixture
def data():
    images, masks = torch.randn(10, 3, 32, 32), torch.arange(32)[:, None].expand(10, 32, 32) // 11
    train, val = TensorDataset(images[:8], masks[:8]), TensorDataset(images[8:], masks[8:])
    nothing, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return ImageSplits(train, val, val, ("a", "b", "c"), nothing, one, 32, "bars", deterministic=True)


def distil(name, data, device, folder, monkeypatch):
    monkeypatch.setenv("KDLAB_CACHE", str(folder / "cache"))  # so that the teacher runs on each device
    torch.manual_seed(0)
    teacher = UPerNet(3, widths=(4, 8, 8, 8), depths=(1, 1, 1, 1), channels=8, weights="none")
    done = segmentation.distill(
        data, teacher, METHODS[name], Settings(epochs=2, lr=1e-3, batch_size=4), out=folder / "run",
        architecture={"width": 8, "blocks": (1, 1, 1, 1), "channels": 6}, weights="none", device=device,
    )  # fmt: skip
    return done.history["total"].tolist()


@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_teaches_a_segmenter_as_on_the_cpu(name, data, device, tmp_path, monkeypatch):
    reference = distil(name, data, torch.device("cpu"), tmp_path / "here", monkeypatch)
    mine = distil(name, data, device, tmp_path / "there", monkeypatch)
    same_losses(mine, reference, device)


def test_a_segmenter_is_judged_as_on_the_cpu(data, device, tmp_path, monkeypatch):
    distil("pixel-wise KD", data, torch.device("cpu"), tmp_path, monkeypatch)
    student, _ = load_model(tmp_path / "run")
    reference = segmentation.measure(student, data.val)
    assert segmentation.measure(student.to(device), data.val) == pytest.approx(reference, rel=1e-2)
