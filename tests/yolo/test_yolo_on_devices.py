"""YOLO detectors on another device: the distillation loss is the CPU's, and ultralytics' trainer learns it on a GPU."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("ultralytics")

from on_devices import IN_ITS_OWN_PROCESS, NEEDS_CUDA, ON_SECOND, TOLERANCE, agree, passes_on_the_second_device

from kdlab import yolo
from kdlab.detection import LAYERS, DetectionDistiller, Distillation, tapped_channels
from kdlab.training.device import to_device

pytestmark = pytest.mark.usefixtures("one_thread")

HYPERPARAMETERS = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)  # ultralytics' own, which its trainer hands to a detector


@IN_ITS_OWN_PROCESS
def test_this_holds_where_nothing_may_stay_on_the_cpu():
    passes_on_the_second_device(Path(__file__))


def learnt(distillation: Distillation, device: torch.device) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The parts of the loss, and its gradient to the student's first weights."""
    torch.manual_seed(0)
    student, teacher = (yolo.build_yolov8(width, ["cat", "dog"]) for width in (0.0625, 0.125))
    images, boxes = torch.rand(2, 3, 64, 64), torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.3]])
    batch = {"img": images, "bboxes": boxes, "cls": torch.tensor([[0.0], [1.0]]), "batch_idx": torch.tensor([0.0, 1.0])}
    for detector in (student, teacher):
        detector.args = HYPERPARAMETERS
        detector.to(device)
    channels = tapped_channels(student, teacher, LAYERS)
    distiller = DetectionDistiller(student, teacher, distillation, channels, device)
    distiller.set_epoch(0, 10)
    total, parts = distiller(to_device(batch, device))
    total.backward()
    return parts | {"total": total}, student.model[0].conv.weight.grad


# Nothing masked: the masks are each device's own.
@pytest.mark.parametrize("method", ["cwd", "mgd"])
def test_a_detector_learns_from_its_teacher_as_on_the_cpu(method, device):
    distillation = Distillation(method, mask_ratio=0.0)
    mine, gradient = learnt(distillation, device)
    reference, its = learnt(distillation, torch.device("cpu"))
    assert {value.device.type for value in mine.values()} == {device.type}
    assert {name: value.item() for name, value in mine.items()} == pytest.approx(
        {name: value.item() for name, value in reference.items()}, rel=TOLERANCE[device.type]
    )
    agree(gradient, its, device)


@pytest.mark.skipif(ON_SECOND, reason="ultralytics trains on no device that it does not know")
@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_a_detector_is_trained_judged_and_used_on_a_device(name, tiny, trained, scenes, settings, tmp_path):
    run = yolo.distill(tiny, trained.best, scenes, Distillation(), settings, out=tmp_path / "run", device=name)
    losses = run.history.filter(like="train/").to_numpy()
    assert (losses > 0).all()
    mine, reference = (yolo.evaluate(trained.best, scenes, imgsz=64, device=one) for one in (name, "cpu"))
    assert mine["map50"].to_numpy() == pytest.approx(reference["map50"].to_numpy(), abs=0.05)
    images = sorted((scenes / "images" / "test").glob("*.png"))
    assert set(yolo.predict(run.best, images, imgsz=64, confidence=0.0, device=name)["image"]) == set(map(str, images))
