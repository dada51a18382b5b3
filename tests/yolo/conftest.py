"""Small detectors, a dozen scenes, and what ultralytics' files were like before."""

import importlib.util
from contextlib import nullcontext
from pathlib import Path

import guards
import pytest
import yaml
from on_devices import device  # noqa: F401 a fixture

if importlib.util.find_spec("ultralytics"):  # before a test imports ultralytics itself, which looks for hosts, and
    import kdlab.yolo  # noqa: F401 which changes what opens an image and what saves a tensor


@pytest.fixture(scope="session", autouse=True)
def unchanged_files():
    """Held against all tests of this folder that this process runs, once they are done."""
    with guards.unchanged_files() if importlib.util.find_spec("ultralytics") else nullcontext():
        yield


def graph(width: float) -> dict:
    """YOLOv8's layers at another width."""
    spec = importlib.util.find_spec("ultralytics")
    graph = yaml.safe_load((Path(spec.origin).parent / "cfg" / "models" / "v8" / "yolov8.yaml").read_text())
    return {**graph, "scales": {"n": [0.33, width, 256]}, "scale": "n"}


@pytest.fixture(scope="session")
def a_step_for_each_batch():
    """ultralytics would wait for 64 images before a step, more than there are, and begin with steps of size 0."""
    from ultralytics.utils import DEFAULT_CFG

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DEFAULT_CFG, "nbs", 3)
        patch.setattr(DEFAULT_CFG, "warmup_epochs", 0.0)
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("yolo")


@pytest.fixture(scope="session")
def tiny(folder, a_step_for_each_batch):
    """A YAML of 0.2 million parameters."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(graph(0.0625), sort_keys=False))
    return path


@pytest.fixture(scope="session")
def wide(folder, a_step_for_each_batch):
    """One of other channels."""
    path = folder / "wide.yaml"
    path.write_text(yaml.safe_dump(graph(0.125), sort_keys=False))
    return path


@pytest.fixture(scope="session")
def scenes(folder):
    from kdlab.data.yolo_scenes import write_yolo_scenes

    return write_yolo_scenes(folder / "scenes", {"train": 6, "val": 3, "test": 3}).parent


@pytest.fixture(scope="session")
def settings():
    from kdlab.detection import YoloSettings

    return YoloSettings(epochs=1, batch=3, imgsz=64)


@pytest.fixture(scope="session")
def trained(tiny, scenes, folder, settings):
    """A dense detector after one epoch."""
    from kdlab import yolo

    return yolo.fine_tune(tiny, scenes, settings, out=folder / "trained", device="cpu")


@pytest.fixture(scope="session")
def pruned(trained, folder):
    from kdlab import yolo

    yolo.prune_yolo(trained.best, folder / "pruned.pt", keep=0.7, at_least=4)
    return folder / "pruned.pt"
