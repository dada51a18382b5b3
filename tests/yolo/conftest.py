"""Small detectors, a dozen scenes, no network, and what ultralytics' files were like before."""

import hashlib
import importlib.metadata
import importlib.util
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from on_devices import device  # noqa: F401 a fixture

if importlib.util.find_spec("ultralytics"):  # before a test imports ultralytics itself, which looks for hosts, and
    import kdlab.yolo  # noqa: F401 which changes what opens an image and what saves a tensor


HERE = ("127.0.0.1", "::1", "localhost")


def fingerprint() -> str:
    """Of all files of the installed ultralytics but Python's own caches."""
    digest = hashlib.sha256()
    for file in sorted(importlib.metadata.files("ultralytics") or []):
        path = Path(file.locate())
        if path.is_file() and path.suffix != ".pyc":
            digest.update(str(file).encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="session", autouse=True)
def ultralytics_files():
    """What the files were like before the first test, and how to look again."""
    before = fingerprint() if importlib.util.find_spec("ultralytics") else ""
    return SimpleNamespace(before=before, now=fingerprint)


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Whoever looks for another host or connects to one is told no, and noted."""
    asked = []

    def refusing(call, host_of):
        def refuse(*args, **kwargs):
            if (host := host_of(*args)) in HERE:
                return call(*args, **kwargs)
            asked.append(host)
            raise OSError("there is no network in this test")

        return refuse

    def host_of(own, address):
        return "localhost" if own.family == socket.AF_UNIX else address[0]

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, refusing(getattr(socket.socket, name), host_of))
        patch.setattr(socket, "getaddrinfo", refusing(socket.getaddrinfo, lambda host, *_, **__: host))
        yield asked


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
