"""The experiment behind chapter 06: a narrow YOLOv8 on scenes, trained sparse, pruned, and taught by what it was.

What needs the optional extra imports :mod:`kdlab.yolo` itself, so that this file can be read without it.
"""

import warnings
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from torch import nn

from kdlab import pruning
from kdlab.data.yolo_scenes import NAMES, write_yolo_scenes
from kdlab.detection import Distillation, YoloRun, YoloSettings
from kdlab.distill import weights_hash
from kdlab.distill.schedules import check_weight
from kdlab.errors import InputError, unknown
from kdlab.files import load_tensors
from kdlab.paths import cache_dir
from kdlab.recipes.settings import cached
from kdlab.recipes.zoo import load_from_zoo
from kdlab.training import ModelCard

WIDTH = 0.125  # half of YOLOv8n's: 0.9 million parameters
SIZE = 128  # pixels a side
SAMPLES = {"train": 500, "val": 100, "test": 300}
STRENGTH = 1e-2  # of the penalty on the gammas, as published
AT_LEAST = 4  # channels that stay in a layer; the published 8 are of a network twice as wide
KEEP = 0.15  # down to a quarter the cut costs little: seven in ten of the dense one's gammas are next to 0
EPOCHS = 20  # of a pruned detector
# Of the dense one. AdamW moves a gamma by about the rate at a step: from 1 to 0 it takes rates that add up to 1 at
# least, and these come to almost 2. A pruned one takes ultralytics' own rate, which is half of it.
SPARSE = YoloSettings(epochs=60, batch=16, imgsz=SIZE, lr=2e-3, nominal_batch=16)
METRICS = ("map50_95", "map50", "parameters", "gflops")

# What a method adds to the detector's own loss weighs so much, as chosen on validation scenes. CWD's is the published
# one; MGD's official one is 2e-5, and ultralytics' own 6.
METHODS = {
    "dense": 0.0,  # before it is pruned: the teacher
    "pruned": 0.0,  # and not trained since
    "from scratch": 0.0,  # as narrow as the pruned one, and started at random
    "fine-tuned": 0.0,
    "CWD": 1.0,
    "MGD": 2e-4,
    "ultralytics": 0.6,
}
UNTRAINED = ("dense", "pruned")
PRETRAINED = "yolov8n.pt"


def detection_scenes() -> Path:
    """The folder of the scenes as a YOLO data set, in kdlab's cache; they are written where they are not there yet."""
    folder = cached("yolo-scenes", {"samples": SAMPLES, "size": SIZE})
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # one process writes, and others wait
        if not folder.exists():
            write_yolo_scenes(folder, SAMPLES, SIZE)
    return folder


def pretrained() -> Path | None:
    """``yolov8n.pt`` as ultralytics released it, where somebody put it: here, or in kdlab's cache. None is fetched."""
    return next((folder / PRETRAINED for folder in (Path(), cache_dir()) if (folder / PRETRAINED).is_file()), None)


def dense_detector(
    data: Path, settings: YoloSettings, *, strength: float = STRENGTH, start: Path | None = None, device: str = "auto"
) -> tuple[nn.Module, YoloRun]:
    """The detector before it is pruned, after its last epoch: trained here, or loaded where that has been done.

    Args:
        data: :func:`detection_scenes`'s.
        settings: how it is trained; :data:`SPARSE` is the course's.
        strength: of the penalty on the gammas; 0 for a detector that has never felt one.
        start: weights (.pt); without, YOLOv8 of :data:`WIDTH` at random.
    """
    from kdlab import yolo

    recipe = _recipe(data, settings, strength=strength, start=str(start) if start else WIDTH)
    out = cached("dense-detector", recipe)
    run = yolo.finished(out)
    if run is None:
        first = start or _at_random(settings.seed)
        with warnings.catch_warnings():  # the chapter's first look, of a few epochs, is known to be too short
            warnings.filterwarnings("ignore", message="the steps of this run move a gamma")
            run = yolo.sparse_train(first, data, settings, out=out, strength=strength, resume=True, device=device)
    return yolo.load_model(run.last).eval(), run


def course_detector(method: str, data: Path, device: str = "auto") -> tuple[nn.Module, ModelCard]:
    """A method's detector of seed 0: the one that comes with the course, else trained here and kept, in minutes.

    Args:
        method: a name of :data:`METHODS`; of :data:`UNTRAINED` ones only "dense" takes a training.

    Raises:
        InputError: an unknown method.
    """
    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    found = load_from_zoo(zoo_name(method), load_detector)
    if found is not None:
        return found
    if method == "dense":
        dense, _ = dense_detector(data, SPARSE, device=device)
        return dense, _card(dense, _recipe(data, SPARSE, strength=STRENGTH))
    run = DetectionRun(method, METHODS[method], seed=0, epochs=0 if method in UNTRAINED else EPOCHS)
    detector, _ = run.run(data, course_detector("dense", data, device)[0], cache=True, device=device)
    return detector, _card(detector, _recipe(data, run.settings, **asdict(run)))


def zoo_name(method: str) -> str:
    """What a method's detector is called among the checkpoints that come with the course."""
    return f"detector_{method.lower().replace('-', '_').replace(' ', '_')}"


def load_detector(path: Path) -> tuple[nn.Module, ModelCard]:
    """A detector that :func:`kdlab.training.save_model` wrote with :func:`course_detector`'s card, in float32.

    Raises:
        InputError: no such file, a foreign one.
    """
    from kdlab import yolo

    tensors, meta = load_tensors(path)
    try:
        card = ModelCard.from_json(meta["card"])
        detector = yolo.build_yolov8(card.architecture["width"], card.classes, card.architecture["structure"])
        detector.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} holds no detector ({error}). Take another copy, or make it again.") from error
    return detector.eval(), card


@dataclass(frozen=True)
class DetectionRun:
    """One run of the comparison: a dense detector, pruned, and trained again with one method.

    Args:
        method: a name of :data:`METHODS`.
        weight: of what the method adds to the detector's own loss.
        seed: of what the pruned detector sees, and of a random start.
        keep: the fraction of the prunable channels that stays.
        epochs: the budget that all methods share; 0 for those that train nothing.

    Raises:
        InputError: an unknown method, a negative weight, keep out of range, epochs for what is not trained or none for
            what is.
    """

    method: str
    weight: float
    seed: int
    keep: float = KEEP
    epochs: int = EPOCHS

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(unknown("method", self.method, METHODS))
        check_weight("weight", self.weight)
        if not 0 < self.keep <= 1:
            raise InputError(f"keep is {self.keep}; wanted: the fraction of channels to keep, above 0 and at most 1.")
        if (self.epochs == 0) != (self.method in UNTRAINED):
            raise InputError(
                f"{self.method!r} with {self.epochs} epochs; wanted: 0 for {' and '.join(UNTRAINED)}, which are not "
                "trained, and at least 1 for the others."
            )

    @property
    def settings(self) -> YoloSettings:
        """How it is trained."""
        return replace(SPARSE, epochs=max(1, self.epochs), lr=None, seed=self.seed)

    def run(
        self, data: Path, dense: nn.Module, *, cache: bool = False, device: str = "auto"
    ) -> tuple[nn.Module, pd.DataFrame]:
        """The detector after the last epoch, and a row for each epoch, none where nothing was trained.

        Args:
            data: :func:`detection_scenes`'s.
            dense: what is pruned, and then the teacher; it stays as it is.
            cache: keep the training in kdlab's cache, and load it from there where it is already.
        """
        from kdlab import yolo

        if self.method == "dense":
            return deepcopy(dense), pd.DataFrame()
        with ExitStack() as stack:
            recipe = _recipe(data, self.settings, **asdict(self), dense=weights_hash(dense)[:16])
            folder = cached("detector", recipe) if cache else Path(stack.enter_context(TemporaryDirectory()))
            pruned = folder / "pruned.pt"
            if not pruned.exists():
                yolo.prune_yolo(dense, pruned, keep=self.keep, imgsz=SIZE, at_least=AT_LEAST)
            if self.method == "pruned":
                return yolo.load_model(pruned).eval(), pd.DataFrame()
            done = yolo.finished(folder / "run") or self._train(folder, data, dense, device)
            return yolo.load_model(done.last).eval(), done.history

    def _train(self, folder: Path, data: Path, dense: Any, device: str) -> YoloRun:
        from kdlab import yolo

        student, teacher = folder / "pruned.pt", folder / "teacher.pt"
        how: dict[str, Any] = {"out": folder / "run", "resume": True, "device": device}
        match self.method:
            case "CWD" | "MGD":
                distillation = Distillation("cwd" if self.method == "CWD" else "mgd", weight=self.weight)
                return yolo.distill(student, deepcopy(dense), data, distillation, self.settings, **how)
            case "ultralytics":
                yolo.save_model(teacher, dense)
                return yolo.distill_by_ultralytics(student, teacher, data, self.settings, weight=self.weight, **how)
            case "from scratch":
                start = _at_random(self.seed, pruning.structure(yolo.load_model(student)))
                return yolo.fine_tune(start, data, self.settings, **how)
            case _:
                return yolo.fine_tune(student, data, self.settings, **how)


def measure(detector: nn.Module, data: Path, device: str = "auto") -> dict[str, float]:
    """mAP50-95 and mAP50, and parameters and GFLOPs of the network as it is used, for one image of :data:`SIZE`."""
    from kdlab import yolo

    row = yolo.compare({"detector": detector}, data, split="test", imgsz=SIZE, device=device).iloc[0]
    return {name: float(row[name]) for name in METRICS}


def _at_random(seed: int, structure: dict[str, dict[str, Any]] | None = None) -> nn.Module:
    from kdlab import yolo

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return yolo.build_yolov8(WIDTH, NAMES, structure)


def _recipe(data: Path, settings: YoloSettings, **what: Any) -> dict[str, Any]:
    """All that a training depends on."""
    return {"data": data.name, **what, **asdict(settings)}


def _card(detector: nn.Module, recipe: dict[str, Any]) -> ModelCard:
    """With the width of each layer, from which :func:`load_detector` builds the detector again."""
    architecture = {"name": "YOLOv8", "width": WIDTH, "structure": pruning.structure(detector)}
    return ModelCard(architecture, NAMES, (0.0,) * 3, (1.0,) * 3, SIZE, recipe=recipe)
