"""The comparison at the end of chapter 06: a pruned detector and scenes of which only a few have their boxes.

What needs the optional extra imports :mod:`kdlab.yolo` itself, so that this file can be read without it.
"""

import json
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from torch import nn

from kdlab.data.yolo_layout import description
from kdlab.data.yolo_scenes import NAMES
from kdlab.detection import Distillation
from kdlab.distill.schedules import check_weight
from kdlab.errors import InputError, unknown
from kdlab.recipes import detection

# The weights were chosen on the validation scenes, see benchmarks/evidence/few_boxes_tuning.csv.
METHODS = {"fine-tuned": 0.0, "CWD": 1.0, "MGD": 2e-2}


@dataclass(frozen=True)
class FewBoxes:
    """One run: the course's dense detector, pruned, and trained on the few scenes that have boxes, or also on the rest.

    An epoch has as many steps whatever the number of boxes: the few come again and again, each time changed at random.

    Args:
        method: a name of :data:`METHODS`.
        weight: of what the method adds to the detector's own loss.
        seed: draws the scenes that keep their boxes, and what the detector sees of them.
        boxes: how many of the training scenes keep their boxes.
        unlabelled: whether the teacher also speaks of all training scenes, without their boxes.
        keep: the fraction of the prunable channels that stays.

    Raises:
        InputError: an unknown method, a negative weight, more boxes than scenes, images without labels and no teacher.
    """

    method: str
    weight: float
    seed: int
    boxes: int = 25
    unlabelled: bool = True
    keep: float = 0.2
    epochs: int = 10

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(unknown("method", self.method, METHODS))
        check_weight("weight", self.weight)
        if not 1 <= self.boxes <= detection.SAMPLES["train"]:
            raise InputError(
                f"boxes is {self.boxes}; wanted: from 1 to {detection.SAMPLES['train']}, the training scenes."
            )
        if self.unlabelled and self.method == "fine-tuned":
            raise InputError("'fine-tuned' has no teacher to speak of images without labels; wanted: unlabelled=False.")

    def run(self, data: Path, dense: nn.Module, device: str = "auto") -> tuple[nn.Module, pd.DataFrame]:
        """The detector after the last epoch, and a row for each epoch.

        Args:
            data: :func:`kdlab.recipes.detection.detection_scenes`'s.
            dense: what is pruned, and then the teacher; it stays as it is.
        """
        from kdlab import yolo

        settings = replace(detection.SPARSE, epochs=self.epochs, lr=None, seed=self.seed)
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            pruned, out = folder / "pruned.pt", folder / "run"
            yolo.prune_yolo(dense, pruned, keep=self.keep, imgsz=detection.SIZE, at_least=detection.AT_LEAST)
            few = self._few(data, folder)
            if self.method == "fine-tuned":
                done = yolo.fine_tune(pruned, few, settings, out=out, device=device)
            else:
                distillation = Distillation("cwd" if self.method == "CWD" else "mgd", weight=self.weight)
                done = yolo.distill(
                    pruned, deepcopy(dense), few, distillation, settings, out=out, device=device,
                    unlabelled=data / "images" / "train" if self.unlabelled else None,
                )  # fmt: skip
            return yolo.load_model(done.last).eval(), done.history

    def _few(self, data: Path, folder: Path) -> Path:
        """A data set whose training scenes are the few, each so often that there are as many as before."""
        scenes = sorted((data / "images" / "train").iterdir())
        drawn = torch.randperm(len(scenes), generator=torch.Generator().manual_seed(self.seed))[: self.boxes]
        listed = islice(cycle([str(scenes[index]) for index in drawn]), len(scenes))
        (folder / "few.txt").write_text("\n".join(listed))
        places = {"path": str(data), "train": str(folder / "few.txt")}
        said = [f"{name}: {json.dumps(place)}\n" for name, place in places.items()]
        (folder / "few.yaml").write_text("".join(said) + description(("val", "test"), NAMES))
        return folder / "few.yaml"
