"""Measure distilled detectors: an epoch beside its parts and beside ultralytics' own, and pruned beside dense ones.

    python benchmarks/detection.py                    # everything
    python benchmarks/detection.py epoch              # one part
    python benchmarks/detection.py --device cuda      # on a GPU, YOLOv8n at 640 pixels
    python benchmarks/detection.py --write            # everything, kept in benchmarks/RESULTS.md

It takes the extra [yolo]. Compared variants take turns; a table shows medians with their quartiles in brackets; "ratio"
is ours over the other's, so that smaller is better.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from timing import Parts, Row, command_line, compare, forward, spread, take_turns, time_chapters, wait_for
from torch import Tensor, nn

from kdlab import yolo
from kdlab.data.yolo_scenes import NAMES, write_yolo_scenes
from kdlab.detection import LAYERS, Distillation, YoloRun, YoloSettings
from kdlab.distill import Taps
from kdlab.losses import MGDLoss
from kdlab.recipes import detection

SAMPLES = {"train": 256, "val": 4}
TIMED = 2  # epochs of a run, after one that does not count
KEEPS = (0.75, 0.5)
NETWORKS = {"half of n, 128x128": (detection.WIDTH, detection.SIZE), "n, 640x640": (0.25, 640)}
CHAPTERS = ["06_prune_and_distil_yolov8"]
PACKAGES = ["torch", "torchvision", "ultralytics", "kdlab"]


def epoch(device: str, repeats: int) -> list[Row]:
    """An epoch with each distillation, its loading included, beside a plain one plus the teacher's forward passes."""
    width, size = NETWORKS["n, 640x640" if device == "cuda" else "half of n, 128x128"]
    settings = YoloSettings(epochs=1 + TIMED, batch=16, imgsz=size, nominal_batch=16)
    with TemporaryDirectory() as folder:
        data = write_yolo_scenes(Path(folder) / "scenes", SAMPLES, size)
        teacher, student = Path(folder) / "teacher.pt", Path(folder) / "student.pt"
        dense = _random_gammas(width)
        yolo.save_model(teacher, dense)
        yolo.prune_yolo(dense, student, keep=0.5, at_least=4)
        runs: dict[str, Callable[..., YoloRun]] = {
            "plain": partial(yolo.fine_tune, student, data, settings),
            "CWD": partial(yolo.distill, student, teacher, data, Distillation("cwd"), settings),
            "MGD": partial(yolo.distill, student, teacher, data, Distillation("mgd"), settings),
            "ultralytics": partial(yolo.distill_by_ultralytics, student, teacher, data, settings),
        }
        times = _epochs(runs, Path(folder), device, repeats)
    known = dense.to(device).eval()
    batch = torch.rand(settings.batch, 3, size, size, device=device)
    passes = take_turns({"teacher": partial(forward, known, batch)}, repeats)["teacher"]
    batches = SAMPLES["train"] // settings.batch
    parts = times["plain"] + batches * np.median(passes)
    rows = [Row("a plain epoch", spread(times["plain"])), Row("the teacher's forward pass of a batch", spread(passes))]
    for method in ("CWD", "MGD"):
        rows.append(compare(f"{method}, beside plain and teacher", times[method], parts, at_most=1.1))
        rows.append(compare(f"{method}, beside ultralytics' own", times[method], times["ultralytics"], at_most=1.0))
    generating = _generating(known, batch, repeats)
    rows.append(Row("MGD's generators alone, a batch, forward and backward", spread(generating)))
    without = times["MGD"] - batches * np.median(generating)
    rows.append(compare("MGD without its generators, beside plain and teacher", without, parts))
    rows.append(compare("MGD without its generators, beside ultralytics' own", without, times["ultralytics"]))
    return rows


def latency(device: str, repeats: int) -> list[Row]:
    """The forward pass of one image, BatchNorm folded: pruned beside dense, at random gammas."""
    rows = []
    for name, (width, size) in NETWORKS.items():
        dense, image = _random_gammas(width), torch.rand(1, 3, size, size, device=device)
        for keep in KEEPS:
            with TemporaryDirectory() as folder:
                plan = yolo.prune_yolo(dense, Path(folder) / "p.pt", keep=keep, at_least=4)
                networks = {"ours": yolo.load_model(Path(folder) / "p.pt"), "other": yolo.build_yolov8(width, NAMES)}
            runs = {}
            for who, network in networks.items():
                runs[who] = partial(forward, network.eval().fuse(verbose=False).to(device), image)
            times = take_turns(runs, repeats)
            what = f"{name}, {keep:.0%} of the channels"
            ratio = np.median(times["ours"]) / np.median(times["other"])
            rows.append(Row(what, spread(times["ours"]), spread(times["other"]), f"{ratio:.3f}"))
            before, after = plan.parameters
            rows.append(Row(f"{what}: parameters", f"{after:,}", f"{before:,}", f"{after / before:.3f}"))
            rows.append(Row(f"{what}: multiplications", ratio=f"{plan.macs.after / plan.macs.before:.3f}"))
    return rows


def chapters(device: str, repeats: int) -> list[Row]:
    """The chapter of detection, executed in the fast profile with an empty cache."""
    return time_chapters(CHAPTERS, at_most=180)


def _epochs(
    runs: Mapping[str, Callable[..., YoloRun]], folder: Path, device: str, repeats: int
) -> dict[str, np.ndarray]:
    """Seconds of each run's epochs but the first, by its own clock; the runs take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name, run in runs.items():
            done = run(out=folder / f"{name} {turn}", device=device)
            times[name] += np.diff(done.history["time"]).tolist()
    return {name: np.array(taken) for name, taken in times.items()}


def _generating(teacher: nn.Module, batch: Tensor, repeats: int) -> np.ndarray:
    """Seconds of MGD's generators with their backward pass, on maps such as the teacher's."""
    layers = [f"model.{layer}" for layer in LAYERS]
    with torch.no_grad(), Taps(teacher, layers) as taps:
        teacher(batch)
        maps = [taps[layer].clone().requires_grad_() for layer in layers]
    generators = [MGDLoss(seen.shape[1], seen.shape[1]).generator.to(batch.device) for seen in maps]
    slopes = [torch.randn_like(seen) for seen in maps]

    def generate() -> None:
        generated = [generator(seen) for generator, seen in zip(generators, maps, strict=True)]
        torch.autograd.backward(generated, slopes)
        wait_for(batch)

    return take_turns({"MGD": generate}, repeats)["MGD"]


def _random_gammas(width: float) -> nn.Module:
    torch.manual_seed(0)
    detector = yolo.build_yolov8(width, NAMES)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 1.0)
    return detector


PARTS: Parts = {"epoch": (epoch, 5), "latency": (latency, 20), "chapters": (chapters, 1)}

if __name__ == "__main__":
    command_line(__doc__, PARTS, PACKAGES, "detection")
