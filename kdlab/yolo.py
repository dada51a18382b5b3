"""YOLO detectors of the package ultralytics: train sparse, prune, fine-tune, distil, export, compare.

ultralytics is an optional extra under the AGPL-3.0, and this is the only file of kdlab that imports it. Training goes
through its own extension points: a trainer's methods, and the hooks of PyTorch's optimisers. Nothing is downloaded:
what would be (a font, a network to try half precision with, missing weights) is refused while a function of this file
runs.

>>> sparse = sparse_train("yolov8n.yaml", "scenes", YoloSettings(epochs=50), out="runs/sparse")
>>> prune_yolo(sparse.best, "runs/pruned.pt", keep=0.5)
>>> distill("runs/pruned.pt", sparse.best, "scenes", Distillation("cwd"), YoloSettings(epochs=100), out="runs/student")

Where torchrun has started several processes (:mod:`kdlab.processes`), they train one detector together.

The trainers also serve a program that uses ultralytics already:

>>> YOLO("pruned.pt").train(trainer=partial(DistillTrainer, teacher="dense.pt"), data="data.yaml", epochs=100)
"""

import io
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from copy import copy, deepcopy
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from kdlab import processes, pruning
from kdlab.data.images import Skipped, try_open
from kdlab.detection import (
    STRIDE,
    DetectionDistiller,
    Distillation,
    Exported,
    YoloRun,
    YoloSettings,
    check_classes,
    check_size,
    tapped_channels,
)
from kdlab.detection.classes import named, same_names
from kdlab.detection.images import check_unlabelled, split_images, summary
from kdlab.detection.run_recipe import check_recipe, keep_recipe
from kdlab.distill import weights_hash
from kdlab.distill.schedules import check_weight
from kdlab.errors import GET_YOLO, InputError, first_line
from kdlab.files import write_whole
from kdlab.frames import with_room_for_frames
from kdlab.progress import progress
from kdlab.training.device import pick_device
from kdlab.training.loop import seed_everything
from kdlab.training.run_folder import alone_in

TESTED = "8.4.190"
GET_IT = f"{__name__} needs ultralytics {TESTED}; {GET_YOLO}"
OFFLINE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}  # no telemetry, no pip

try:
    if version("ultralytics") != TESTED:
        raise InputError(f"ultralytics {version('ultralytics')} is installed. {GET_IT}")
    # As all was afterwards, too: ultralytics sets variables such as OMP_NUM_THREADS, and changes what opens an image,
    # what saves a tensor, and how numbers are printed.
    with (
        mock.patch.dict(os.environ, OFFLINE),
        mock.patch.object(Image, "open", Image.open),
        mock.patch.object(torch, "save", torch.save),
        np.printoptions(),
    ):
        from ultralytics.data.dataset import YOLODataset
        from ultralytics.data.utils import check_det_dataset, img2label_paths
        from ultralytics.engine.exporter import Exporter
        from ultralytics.models.yolo.detect import DetectionPredictor, DetectionTrainer, DetectionValidator
        from ultralytics.nn.modules.block import C2f
        from ultralytics.nn.modules.head import Detect, v10Detect
        from ultralytics.nn.tasks import DetectionModel, torch_safe_load, yaml_model_load
        from ultralytics.utils import LOGGER, ROOT
        from ultralytics.utils.torch_utils import unwrap_model
    torch.set_printoptions(profile="default")
except PackageNotFoundError as error:
    raise InputError(f"ultralytics is not installed. {GET_IT}") from error

if processes.is_first():
    print(f"{__name__} uses ultralytics {TESTED}, which is under the AGPL-3.0: https://ultralytics.com/license")

Model = str | Path | nn.Module
LAST, BEST, RESULTS = "weights/last.pt", "weights/best.pt", "results.csv"
ONNX_TOLERANCE = 1e-3
DATA_SETS = ROOT / "cfg" / "datasets"  # of the package


# --- the steps -------------------------------------------------------------------------------------------------------


def sparse_train(
    model: Model,
    data: str | Path,
    settings: YoloSettings,
    *,
    out: str | Path,
    strength: float = 1e-2,
    resume: bool = False,
    device: str = "auto",
) -> YoloRun:
    """Train with an L1 penalty on BatchNorm's gammas, so that channels which matter little can be told and pruned.

    Args:
        model: weights (.pt), a YAML of ultralytics such as "yolov8n.yaml", which starts at random, or a module, which
            stays as it is: what has been trained is in ``out``.
        data: a data.yaml in ultralytics' format, or the folder that it is in.
        out: folder of the run; its weights are in ``weights/``.
        strength: of the penalty at the start, as published; it falls by epoch to a tenth. How far it takes a gamma is
            up to the steps, about a learning rate each with AdamW: where they do not lead to zero, a warning says so.
        resume: go on with the run in ``out`` that was interrupted, after its last whole epoch, with any number of
            processes; start where there is none, and return one that has ended. Everything else has to be as it was.
        device: "auto", or one device of torch.

    Raises:
        InputError: what cannot be used: weights, data, settings, ``out``, the device; a batch that the processes cannot
            share equally.
    """
    check_weight("strength", strength)
    recipe = {"step": "sparse-train", "strength": strength}
    return _train(SparseTrainer, {"strength": strength}, recipe, model, data, settings, out, resume, device)


def prune_yolo(
    model: Model,
    out: str | Path,
    *,
    keep: float | None = None,
    parameters: int | None = None,
    gflops: float | None = None,
    imgsz: int = 640,
    at_least: int = 8,
) -> pruning.PruningPlan:
    """Take away the channels of smallest gammas, and save what is left in ultralytics' format and half precision.

    The plan says what stays: ``plan.table()`` by layer, ``plan.parameters`` and ``plan.macs`` before and after, these
    for an image of imgsz x imgsz pixels. The head's outputs stay whole. The constant that a removed channel put out is
    folded into what read it, and the result is verified, as :func:`kdlab.pruning.prune` says.

    Args:
        out: the file, whose name ends in .pt.
        keep: the fraction of the prunable channels that stays, above 0 and at most 1.
        parameters: the most that the pruned detector may have.
        gflops: the most that it may take for such an image, a multiplication with its addition being two operations.
            Exactly one of the three is wanted.
        at_least: channels that stay in each layer; the default 8 is the published one.

    Raises:
        InputError: what cannot be loaded; not exactly one target; one that is out of range, or would leave a layer with
            fewer channels than ``at_least``; a file that would overwrite the model itself, or another run's.
    """
    check_size(imgsz)
    place = Path(out).resolve()
    if place.suffix != ".pt":
        raise InputError(f"out is {out}; wanted: a file whose name ends in .pt.")
    of_a_run = place in [place.parent.parent / name for name in (BEST, LAST)] and place.exists()
    if of_a_run or (not isinstance(model, nn.Module) and place == Path(model).resolve()):
        raise InputError(f"out is {out}, which is what is to be pruned, or what a run has trained. Name another file.")
    dense = load_model(model)
    plan = plan_yolo(dense, keep=keep, parameters=parameters, gflops=gflops, imgsz=imgsz, at_least=at_least)
    pruned: Any = pruning.prune(dense, _example(dense, 2 * STRIDE), plan, outputs=_head_outputs)
    save_model(out, _told_their_widths(pruned))
    return plan


def plan_yolo(
    model: Model,
    *,
    keep: float | None = None,
    parameters: int | None = None,
    gflops: float | None = None,
    imgsz: int = 640,
    at_least: int = 8,
) -> pruning.PruningPlan:
    """What :func:`prune_yolo` would take away, without doing it. Arguments and errors are the same.

    Args:
        imgsz: of the image that ``plan.macs`` are counted for, and ``gflops`` are meant for.
    """
    check_size(imgsz)
    if gflops is not None and not 0 < gflops < float("inf"):
        raise InputError(f"gflops is {gflops}; wanted: above 0, such as 4.")
    dense = load_model(model)
    if getattr(dense.model[-1], "one2one_cv2", None) is not None:
        raise InputError(
            f"the head of {_named(model)} is one of two branches, as YOLOv10's and YOLO26's are, which kdlab cannot "
            "prune. Wanted: a detector such as YOLOv8's."
        )
    macs = None if gflops is None else int(gflops * 1e9 / 2)
    return pruning.plan_pruning(
        dense, _example(dense, imgsz), keep=keep, parameters=parameters, macs=macs, at_least=at_least,
        outputs=_head_outputs,
    )  # fmt: skip


def _example(model: DetectionModel, side: int) -> Tensor:
    return torch.rand(1, _channels(model), side, side, generator=torch.Generator().manual_seed(0))


def _told_their_widths(model: DetectionModel) -> DetectionModel:
    for block in model.modules():
        if isinstance(block, C2f):
            block.c = block.cv1.conv.out_channels // 2  # which some of ultralytics' exports go by
    return model


def _head_outputs(given: Any) -> list[Tensor]:
    """What has to keep its channels: not the feature maps, which the head hands on in its training format."""
    return [given[1]["boxes"], given[1]["scores"]]


def fine_tune(
    model: Model,
    data: str | Path,
    settings: YoloSettings,
    *,
    out: str | Path,
    resume: bool = False,
    device: str = "auto",
) -> YoloRun:
    """Train a detector, pruned or not, as it is. Arguments, result and errors are those of :func:`sparse_train`."""
    return _train(Trainer, {}, {"step": "fine-tune"}, model, data, settings, out, resume, device)


def distill(
    student: Model,
    teacher: Model,
    data: str | Path,
    distillation: Distillation,
    settings: YoloSettings,
    *,
    out: str | Path,
    unlabelled: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
) -> YoloRun:
    """Train a student, pruned or not, on the labels and on what the teacher's layers hold for the same batch.

    What is delivered is the student alone. The other arguments and the result are those of :func:`sparse_train`.

    Args:
        teacher: weights (.pt) or a module, for the classes of the data; it stays as it is.
        unlabelled: a folder of more images, or a .txt file that lists them. As many as a batch has join each batch, and
            only the teacher speaks of them; labels beside them are not looked at.

    Raises:
        InputError: also a teacher with other classes, a layer that a network does not have, or one whose map has
            another size in the teacher; no image in ``unlabelled``, or one of validation or test.
    """
    options = {"teacher": load_model(teacher), "distillation": distillation, "unlabelled": unlabelled}
    recipe = {"step": "distill", "teacher": weights_hash(options["teacher"])[:16], **asdict(distillation)}
    if unlabelled is not None:
        more = check_unlabelled(unlabelled, read_data(data, "train", "val"))
        recipe["unlabelled"] = f"{Path(unlabelled).resolve().name}, {summary(more)}"
    return _train(DistillTrainer, options, recipe, student, data, settings, out, resume, device)


def distill_by_ultralytics(
    student: Model,
    teacher: str | Path,
    data: str | Path,
    settings: YoloSettings,
    *,
    out: str | Path,
    weight: float = 6.0,
    resume: bool = False,
    device: str = "auto",
) -> YoloRun:
    """Train a student by the distillation that ultralytics has itself, to compare :func:`distill` with.

    It compares the maps that the head reads, through a learnt projector for each, by squared differences that are
    weighted by how sure the teacher is at that place; its loss is ``dis_loss`` in the history.

    Args:
        teacher: weights (.pt), for the classes of the data.
        weight: of its loss; 6 is ultralytics' default.

    Raises:
        InputError: as for :func:`distill`.
    """
    check_weight("weight", weight)
    if Path(teacher).suffix != ".pt":
        raise InputError(f"the teacher is {teacher}; wanted: weights, a .pt file, which ultralytics reads itself.")
    network = load_model(teacher)
    _check_fits("teacher", network, read_data(data))
    its_own = {"distill_model": str(Path(teacher).resolve()), "dis": weight}
    recipe = {"step": "distill by ultralytics", "teacher": weights_hash(network)[:16], "weight": weight}
    return _train(Trainer, {}, recipe, student, data, settings, out, resume, device, its_own)


def evaluate(
    model: Model,
    data: str | Path,
    *,
    split: str = "val",
    imgsz: int = 640,
    batch: int = 16,
    device: str = "auto",
) -> pd.DataFrame:
    """Average precision, precision and recall: a row for "all" classes, then one for each that the images have.

    Images are padded to squares, as they are in training. ultralytics validates on rectangles with a wider margin, in
    ``YOLO.val`` and after each epoch (``rect=True``), which gives other figures, of small images by points of mAP. Hold
    figures of one kind against each other alone.

    Args:
        split: "val", "test" or "train".

    Raises:
        InputError: as for :func:`sparse_train`; a split that the data set lacks; a model for other classes.
    """
    chosen = pick_device(device)
    detector = load_model(model)
    check_size(imgsz, _stride(detector))
    described = read_data(data, split)
    _check_fits("model", detector, described)
    overrides = {
        "data": described["yaml_file"], "split": split, "imgsz": imgsz, "batch": batch, "device": _as_told(chosen),
        "plots": False, "workers": 0, "mode": "val",
    }  # fmt: skip
    with _silent(), TemporaryDirectory() as folder:
        validator = DetectionValidator(args=overrides, save_dir=Path(folder))
        validator(model=detector)
    box = validator.metrics.box
    columns = ["class", "map50_95", "map50", "precision", "recall"]
    rows = [("all", box.map, box.map50, box.mp, box.mr)]
    for row, number in enumerate(box.ap_class_index):
        precision, recall, ap50, ap = box.class_result(row)
        rows.append((described["names"][number], ap, ap50, precision, recall))
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[1:], float))


def predict(
    model: Model,
    images: Iterable[str | Path],
    *,
    imgsz: int = 640,
    confidence: float = 0.25,
    device: str = "auto",
    skipped: list[Skipped] | None = None,
) -> pd.DataFrame:
    """A row for each object that is found: image, class, confidence, and its box in pixels of the image.

    Args:
        images: files; kdlab.data.images.find_images lists a folder's.
        confidence: the least that counts, 0 to 1.
        skipped: takes the files that cannot be used, and why; without it the first of them is an error.

    Raises:
        InputError: as for :func:`sparse_train`; a file that is no image, where ``skipped`` is None.
    """
    if not 0 <= confidence <= 1:
        raise InputError(f"confidence is {confidence}; wanted: 0 to 1.")
    chosen = pick_device(device)
    detector = load_model(model)
    check_size(imgsz, _stride(detector))
    rows: list[tuple] = []
    overrides = {"imgsz": imgsz, "conf": confidence, "device": _as_told(chosen), "save": False, "mode": "predict"}
    with _silent(), TemporaryDirectory() as folder:
        predictor = DetectionPredictor(overrides=overrides | {"save_dir": folder, "verbose": False})
        predictor.setup_model(detector, verbose=False)
        for path in progress(list(images), desc="predicting", unit="image"):
            image = try_open(path)
            if isinstance(image, Skipped):
                if skipped is None:
                    raise InputError(f"cannot use {image}")
                skipped.append(image)
                continue
            (result,) = predictor(source=image)
            for box in result.boxes:
                (left, top, right, bottom), label = box.xyxy[0].tolist(), int(box.cls)
                rows.append((str(path), result.names[label], float(box.conf), left, top, right, bottom))
    columns = ["image", "class", "confidence", "left", "top", "right", "bottom"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[2:], float))


def compare(
    models: Mapping[str, Model] | Sequence[str | Path],
    data: str | Path,
    *,
    split: str = "val",
    imgsz: int = 640,
    batch: int = 16,
    device: str = "auto",
) -> pd.DataFrame:
    """A row for each model: mAP50-95 and mAP50, parameters, GFLOPs, latency in ms and the size of its file in MB.

    Parameters, operations and latency are of the network as it is used, BatchNorm folded into the convolutions. Two
    operations are one multiplication with its addition, of one image. Latency is the median forward pass of one image
    of imgsz x imgsz pixels on the device, without reading it and without the suppression of double boxes.

    Args:
        models: by a name for the table, or files, which are then called as they are.

    Raises:
        InputError: as for :func:`evaluate`; no models.
    """
    named = dict(models) if isinstance(models, Mapping) else {str(path): path for path in models}
    if not named:
        raise InputError("there are no models to compare; name at least one.")
    loaded = {name: load_model(model) for name, model in named.items()}
    rows = []
    for name, detector in progress(loaded.items(), desc="comparing", unit="model"):
        accuracy = evaluate(detector, data, split=split, imgsz=imgsz, batch=batch, device=device).iloc[0]
        used = _ready(detector).to(pick_device(device))
        image = torch.zeros(1, _channels(used), imgsz, imgsz, device=_device(used))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            used(image)
        with torch.inference_mode():
            timer = Timer("used(image)", globals={"used": used, "image": image}, num_threads=torch.get_num_threads())
            latency = timer.blocked_autorange(min_run_time=0.5).median
        file = named[name]
        rows.append(
            {
                "model": name,
                "map50_95": accuracy["map50_95"],
                "map50": accuracy["map50"],
                "parameters": sum(p.numel() for p in used.parameters()),
                "gflops": counter.get_total_flops() / 1e9,
                "latency_ms": 1e3 * latency,
                "file_mb": float("nan") if isinstance(file, nn.Module) else Path(file).stat().st_size / 1e6,
            }
        )
    return pd.DataFrame(rows)


def export_onnx(model: Model, out: str | Path, *, imgsz: int = 640) -> Exported:
    """Write the detector as an ONNX file for images of one size, and compare it with PyTorch on a random image.

    Args:
        out: the file, whose name ends in .onnx.

    Raises:
        InputError: as for :func:`sparse_train`; another ending; onnx or onnxruntime is not installed.
        RuntimeError: onnxruntime computes something else than PyTorch; no file is left.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise InputError(f"out is {out}; wanted: a file whose name ends in .onnx.")
    try:
        import onnx  # noqa: F401, ultralytics would install it
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{error.name} is not installed, which an ONNX file takes; {GET_YOLO}") from error
    detector = load_model(model)
    check_size(imgsz, _stride(detector))
    with _silent(), TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's: what it fixes is the size of the image
        copy = deepcopy(detector)
        copy.pt_path = str(Path(folder) / out.with_suffix(".pt").name)  # beside which ultralytics writes
        overrides = {"format": "onnx", "imgsz": imgsz, "batch": 1, "device": "cpu", "simplify": False, "mode": "export"}
        content = Path(Exporter(overrides=overrides)(model=copy)).read_bytes()
    image = _example(detector, imgsz)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (exported,) = session.run(None, {"images": image.numpy()})
    with torch.inference_mode():
        gap = (torch.from_numpy(exported) - _ready(detector)(image)[0]).abs()
    difference = max(gap[:, :4].max().item() / imgsz, gap[:, 4:].max().item())
    if not difference < ONNX_TOLERANCE:
        raise RuntimeError(
            f"onnxruntime and PyTorch differ by {difference:.2g} (allowed: {ONNX_TOLERANCE:g}). The file was not kept."
        )
    write_whole(out, content)
    return Exported(out, difference)


# --- models and data -------------------------------------------------------------------------------------------------


def load_model(model: Model, classes: int | None = None, channels: int = 3) -> DetectionModel:
    """The detector in float32: from weights (.pt), from which no code is run, or at random from a YAML.

    A module is copied: what is done with the detector leaves it as it is. Of a ``YOLO`` object its detector is.

    Args:
        classes: of a YAML's detector, in place of the number in it.
        channels: of the images of a YAML's detector.

    Raises:
        InputError: no such file; nothing is downloaded; a file that holds no detector of ultralytics, but nothing or a
            model of another task.
    """
    loaded: Any
    if isinstance(model, nn.Module):
        inner = getattr(model, "model", None)
        loaded = deepcopy(inner if isinstance(inner, DetectionModel) else model)
    elif Path(model).suffix in (".yaml", ".yml"):
        try:
            with _silent():
                loaded = DetectionModel(str(model), ch=channels, nc=classes, verbose=False)
        except Exception as error:
            raise InputError(
                f"{model} describes no detector ({first_line(error)}); wanted: as yolov8n.yaml."
            ) from error
    else:
        path = Path(model)
        if not path.is_file() or path.suffix != ".pt":
            what = f"{path} is no .pt file" if path.exists() else f"there are no weights {path}"
            raise InputError(
                f"{what}; wanted: a .pt file of ultralytics that is on this machine, or a YAML such as yolov8n.yaml, "
                "which starts at random. kdlab downloads none."
            )
        checkpoint = _load_checkpoint(path)
        loaded = checkpoint.get("ema") or checkpoint.get("model")
        if loaded is None:
            raise InputError(f"{path} holds no model; wanted: what ultralytics or kdlab has saved, not a state_dict.")
    # Models of other tasks (masks, poses, turned boxes) are subclasses of the detector, and their heads of its head.
    if type(loaded) is not DetectionModel or type(loaded.model[-1]) not in (Detect, v10Detect):
        head = f" with the head {type(loaded.model[-1]).__name__}" if isinstance(loaded, DetectionModel) else ""
        raise InputError(f"{_named(model)} is a {type(loaded).__name__}{head}; wanted: a detector, such as YOLOv8's.")
    loaded.task = "detect"
    return loaded.float()


def build_yolov8(
    width: float, classes: Sequence[str], structure: Mapping[str, Mapping[str, Any]] | None = None
) -> DetectionModel:
    """YOLOv8 at random, as deep as n and of any width.

    Args:
        width: 0.25 is n's, 0.125 half of it.
        classes: their names.
        structure: of a pruned one, as :func:`kdlab.pruning.structure` gives it; the detector is cut to it, and means
            nothing until weights are loaded.

    Raises:
        InputError: a width that is not above 0; no classes; a structure of another width.
    """
    if not width > 0 or not classes:
        raise InputError(f"width is {width} for {len(classes)} classes; wanted: above 0, and at least one class.")
    with _silent():
        graph = yaml_model_load("yolov8n.yaml")
        depth, _, most = graph["scales"]["n"]
        graph["scales"] = {"n": [depth, width, most]}
        detector = DetectionModel(graph, nc=len(classes), verbose=False)
    detector.names = dict(enumerate(classes))
    return detector if structure is None else _told_their_widths(pruning.rebuild(detector, structure))


def save_model(path: str | Path, model: DetectionModel) -> None:
    """Write a detector as ultralytics does: the module itself, in half precision, without what training needs."""
    copy = deepcopy(model).cpu().half().requires_grad_(False)
    copy.criterion = None
    file = io.BytesIO()
    torch.save({"epoch": -1, "model": copy, "ema": None, "optimizer": None, "train_args": {}, "version": TESTED}, file)
    write_whole(Path(path), file.getvalue())


def _load_checkpoint(path: Path) -> dict[str, Any]:
    try:
        with _silent():
            return torch_safe_load(path, safe_only=True)[0]
    except Exception as error:
        raise InputError(
            f"{path} holds no detector that can be loaded ({type(error).__name__}: {first_line(error)}). Wanted: "
            "weights as ultralytics and kdlab save them."
        ) from error


def read_data(data: str | Path, *splits: str) -> dict[str, Any]:
    """What a data.yaml says, its paths made absolute, as ultralytics has it.

    Args:
        data: the file, the folder that it is in, or one of ultralytics' own by its name, such as "coco8.yaml".
        splits: that have to be there and to hold images, some of them with labels.

    Raises:
        InputError: no such file, no data set in it, or one without images. Nothing is downloaded.
    """
    path = Path(data) / "data.yaml" if Path(data).is_dir() else Path(data)
    if not path.exists() and (DATA_SETS / path).is_file():
        path = DATA_SETS / path
    if not path.is_file():
        raise InputError(f"there is no {path}; wanted: a data.yaml in ultralytics' format, or the folder that has one.")
    try:
        with _silent():
            described = check_det_dataset(path, autodownload=False)
    except Exception as error:
        raise InputError(f"{path} describes no data set that is here: {first_line(error)}") from error
    for split in splits:
        _labelled_images(path, split, described.get(split))
    return described


def _labelled_images(described_by: Path, split: str, places: str | list[str] | None) -> list[str]:
    """The images of a split, of which some have labels."""
    images = split_images(described_by, split, places)
    if not any(Path(label).is_file() and Path(label).read_bytes().strip() for label in img2label_paths(images)):
        raise InputError(
            f"{described_by}: not one of the {len(images)} {split} images has labels; wanted: for images/x.png a file "
            "labels/x.txt with a line `class x y width height` for each object, in parts of the image."
        )
    return images


def _named(model: Model) -> str:
    return "the model" if isinstance(model, nn.Module) else str(model)


def _ready(model: DetectionModel) -> DetectionModel:
    """A copy as it is used: in eval mode, BatchNorm folded into the convolutions."""
    with _silent():
        return deepcopy(model).cpu().eval().fuse(verbose=False)


@contextmanager
def _silent() -> Iterator[None]:
    """Without ultralytics' log, its downloads, and its own view of several processes."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        with _without_downloads(), _alone(), _naming_what_is_dropped():
            yield
    finally:
        LOGGER.setLevel(level)


@contextmanager
def _naming_what_is_dropped() -> Iterator[None]:
    """Say which images a data set goes without, which ultralytics tells its log alone."""
    look = YOLODataset._load_or_scan_cache

    def look_and_say(dataset: Any, *args: Any) -> Any:
        found, known = look(dataset, *args)
        *_, dropped, total = found["results"]
        if dropped:
            lines = [line for line in found["msgs"] if ": ignoring corrupt image/label: " in line]
            reasons = [line.partition(": ")[2].removeprefix("\x1b[0m") for line in lines]  # "train: ", in colour or not
            said = f"{dropped} of the {total} images of {dataset.img_path} cannot be used, such as"
            said = "\n  ".join([said, *reasons[:3]])
            if not found["labels"]:
                raise InputError(f"{said}\nCorrect these files.")
            if processes.is_first():
                warnings.warn(f"{said}\nThey are left out.", stacklevel=2)
        return found, known

    with mock.patch.object(YOLODataset, "_load_or_scan_cache", look_and_say):
        yield


@contextmanager
def _without_downloads() -> Iterator[None]:
    """Without a font for plots that are not made, without a network to try half precision with, without anything."""
    with (
        mock.patch("ultralytics.data.utils.check_font"),
        mock.patch("ultralytics.engine.trainer.check_amp", lambda model: _device(model).type == "cuda"),
        mock.patch("ultralytics.utils.downloads.safe_download", side_effect=ConnectionError("kdlab downloads nothing")),
    ):
        yield


@contextmanager
def _alone() -> Iterator[None]:
    """As if this process were the only one, whatever torchrun has told it: what is shared, kdlab shares.

    By itself ultralytics would take the group for one of GPUs, on a single machine.
    """
    with ExitStack() as stack:
        for module in [module for name, module in sys.modules.items() if name.startswith("ultralytics.")]:
            for name in {"RANK", "LOCAL_RANK"} & vars(module).keys():
                stack.enter_context(mock.patch.object(module, name, -1))
        if not processes.is_first():  # what follows a run, such as MLflow, follows the first process
            stack.enter_context(mock.patch("ultralytics.utils.callbacks.add_integration_callbacks"))
        yield


# --- trainers --------------------------------------------------------------------------------------------------------


class Trainer(DetectionTrainer):
    """ultralytics' trainer, which trains a copy of the module that it is given and builds no other from its YAML.

    So a pruned network stays pruned, in a resumed run as well. For other classes it gets a last layer of its own, which
    knows what the old one knew of classes of the same name; as many of other names alone begin with the old one.
    """

    model: Any
    last: Path
    best: Path

    def get_dataset(self) -> dict[str, Any]:
        data = read_data(self.args.data, "train", "val")
        self.args.data = data["yaml_file"]
        if self.args.single_cls:
            data["names"], data["nc"] = {0: "item"}, 1  # as ultralytics has it
        return data

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
        if weights is None:
            if str(self.args.model).endswith(".pt"):
                raise InputError(
                    f"pretrained is False: {self.args.model} would be built anew from its YAML, and a pruned detector "
                    "be a dense one. Leave pretrained out, or start from the YAML itself."
                )
            return super().get_model(cfg, verbose=verbose)
        weights = deepcopy(weights)
        _check_channels("model", weights, self.data)
        _adapt_classes(weights, self.data["names"], by_name=self.args.cls_remap)
        return weights.float().requires_grad_(True)

    def _setup_train(self) -> None:
        with _without_downloads():
            super()._setup_train()

    def _build_train_pipeline(self) -> None:
        if self.optimizer is not None:  # ultralytics would go on with half of the batch, and say so in its log alone
            raise InputError(
                f"{self.device} is out of memory; wanted: a smaller batch or smaller images, or more processes, each "
                "with a GPU."
            )
        super()._build_train_pipeline()

    def save_model(self) -> bool:
        """Each file appears whole: a run that is killed meanwhile can be resumed."""
        final = self.last, self.best
        self.last, self.best = (path.with_suffix(".partial") for path in final)
        try:
            saved = super().save_model()
            for partial, path in zip((self.best, self.last), reversed(final), strict=True):
                if partial.exists():
                    os.replace(partial, path)
        finally:
            self.last, self.best = final
        return saved

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        super().resume_training(ckpt)
        if self.start_epoch and self.csv.exists():  # an epoch that was recorded, and then not saved, comes again
            rows = pd.read_csv(self.csv)
            rows[rows["epoch"] <= self.start_epoch].to_csv(self.csv, index=False)

    def final_eval(self) -> None:
        with _without_downloads():
            super().final_eval()


class SparseTrainer(Trainer):
    """Adds the L1 penalty on BatchNorm's gammas to their gradient.

    It comes right before the optimiser's step: the gradient has been unscaled and clipped by then, and the penalty is
    what it says. It warns at the start where the steps are too few or too small for a gamma to get to zero.

    Args:
        strength: at the start; it is multiplied by 1 - 0.9 * epoch / epochs.
    """

    def __init__(self, *args: Any, strength: float = 1e-2, **options: Any) -> None:
        super().__init__(*args, **options)
        self.strength = strength
        self.add_callback("on_train_start", self._warn_of_short_way)

    def build_optimizer(self, *args: Any, **options: Any) -> Optimizer:
        optimizer = super().build_optimizer(*args, **options)
        optimizer.register_step_pre_hook(self._add_penalty)
        return optimizer

    def _add_penalty(self, *_: Any) -> None:
        strength = pruning.gamma_l1_weight(self.epoch, self.epochs, self.strength)
        pruning.add_gamma_l1(unwrap_model(self.model), strength)

    def _warn_of_short_way(self, *_: Any) -> None:
        """Compare how far the penalty alone takes a gamma with how far half of them are from zero."""
        group = next(group for group in self.optimizer.param_groups if group["param_group"] == "bn")
        # Adam and its kin divide a gradient by its own size, so a step is as long as the rate whatever the strength.
        # SGD's is the rate times the strength, and momentum repeats it.
        sgd = "SGD" in type(self.optimizer).__name__
        rates = sum(
            self.lf(epoch)
            * (pruning.gamma_l1_weight(epoch, self.epochs, self.strength) / (1 - group["momentum"]) if sgd else 1)
            for epoch in range(self.start_epoch, self.epochs)
        )
        way = group["initial_lr"] * rates * len(self.train_loader) / self.accumulate
        typical = torch.cat(list(pruning.gammas(unwrap_model(self.model)).values())).median().item()
        if self.strength and way < typical and processes.is_first():
            warnings.warn(
                f"the steps of this run move a gamma by about {way:.2g}, and half of them are at {typical:.2g} or "
                f"more, so few get to zero; wanted: more epochs, a higher lr (now {group['initial_lr']:g}), or a "
                f"smaller nominal batch (now {self.args.nbs}).",
                stacklevel=2,
            )


class DistillTrainer(Trainer):
    """Adds the distillation loss. What is averaged, saved and delivered is the student alone.

    Connectors and generators are trained beside it; a checkpoint to resume from has them with the optimiser's state.

    Args:
        teacher: weights (.pt) or a module.
        distillation: what is compared, and its weight.
        unlabelled: as :func:`distill` takes it.
    """

    def __init__(
        self,
        *args: Any,
        teacher: Model,
        distillation: Distillation | None = None,
        unlabelled: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if self.args.compile:
            raise InputError("compile is on, with which ultralytics asks the student alone; wanted: compile=False.")
        self.teacher = load_model(teacher)
        self.distillation = distillation or Distillation()
        self.unlabelled = None if unlabelled is None else Path(unlabelled).resolve()
        self.add_callback("on_train_epoch_start", self._begin_epoch)
        self.add_callback("on_train_batch_start", self._begin_batch)

    def setup_model(self) -> dict[str, Any] | None:
        checkpoint = super().setup_model()
        if self.unlabelled is not None:
            check_unlabelled(self.unlabelled, self.data)
        _check_fits("teacher", self.teacher, self.data)
        self.channels = tapped_channels(self.model, self.teacher, self.distillation.layers)
        self.teacher.fuse(verbose=False)  # nobody trains it, and BatchNorm in eval mode is part of a convolution
        return checkpoint

    def build_optimizer(self, *args: Any, **options: Any) -> Optimizer:
        optimizer = super().build_optimizer(*args, **options)
        teacher, filters = self.teacher.to(self.device), next(self.model.parameters())
        # On a CPU it is faster so. Elsewhere ultralytics has decided, for the student.
        if self.device.type == "cpu" or filters.is_contiguous(memory_format=torch.channels_last):
            teacher = teacher.to(memory_format=torch.channels_last)
        self.distiller = DetectionDistiller(self.model, teacher, self.distillation, self.channels, self.device)
        if self.distiller.learnt:
            like = next(group for group in optimizer.param_groups if group["param_group"] == "weight")
            # Fused: there may be several times the student's parameters. An optimiser without that pays no heed.
            optimizer.add_param_group({**like, "params": self.distiller.learnt, "fused": True})
        optimizer.register_state_dict_post_hook(self._add_to_checkpoint)
        return optimizer

    def _build_train_pipeline(self) -> None:
        super()._build_train_pipeline()
        if self.unlabelled is not None:
            with mock.patch("ultralytics.data.build.YOLODataset", _Unlabelled):
                self.more = self.get_dataloader(str(self.unlabelled), self.train_loader.batch_size, rank=-1)
            self._more_batches = _without_end(self.more)

    def _setup_train(self) -> None:
        super()._setup_train()
        self.model = self.distiller

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """With the images without labels behind those with labels, whose number says where they begin."""
        if self.unlabelled is not None:
            batch["labelled"] = len(batch["img"])
            batch["img"] = torch.cat([batch["img"], next(self._more_batches)["img"]])
        return super().preprocess_batch(batch)

    def _close_dataloader_mosaic(self) -> None:
        super()._close_dataloader_mosaic()
        if self.unlabelled is not None:
            self.more.dataset.mosaic = False
            self.more.dataset.close_mosaic(hyp=copy(self.args))
            self.more.reset()

    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any:
        """Without the distillation loss where it is not computed, in validation."""
        labelled = super().label_loss_items(loss_items, prefix)
        absent = f"val/{self.distillation.method}_loss"
        if loss_items is None:
            return [name for name in labelled if name != absent]
        return {name: value for name, value in labelled.items() if name != absent}

    def final_eval(self) -> None:
        self.model = unwrap_model(self.model)
        super().final_eval()

    def _begin_epoch(self, *_: Any) -> None:
        self._batches = 0

    def _begin_batch(self, *_: Any) -> None:
        self.distiller.set_epoch(self.epoch + self._batches / len(self.train_loader), self.epochs)
        self._batches += 1

    def _add_to_checkpoint(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        state["distillation"] = asdict(self.distillation)
        state["learnt"] = [parameter.detach() for parameter in self.distiller.learnt]

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        state = ckpt["optimizer"]
        if state.get("distillation") != asdict(self.distillation):
            raise InputError(
                f"the run in {self.save_dir} had other settings of the distillation: {state.get('distillation')}. "
                "Resume with the same ones, or train into another folder."
            )
        super()._load_checkpoint_state(ckpt)
        with torch.no_grad():
            for parameter, saved in zip(self.distiller.learnt, state["learnt"], strict=True):
                parameter.copy_(saved)


class _OneOfSeveral(Trainer):
    """One of several processes that train a detector together, mixed into a trainer; to ultralytics each is alone.

    All draw the same batches, and each computes its part of them; as the loss is a sum over images, the gradients are
    added up. Each also validates its part. The first alone writes.
    """

    loss: Any
    tloss: Any

    def build_dataset(self, *args: Any, **options: Any) -> Any:
        with processes.first_leads():  # it caches what the labels say
            return super().build_dataset(*args, **options)

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        batches = loader.batch_sampler.sampler
        if mode == "train":
            loader.batch_sampler.sampler = _Parts(batches)
            return loader
        images, several = len(loader.dataset), processes.count()
        if images < several:
            raise InputError(f"there are {images} validation images for {several} processes; wanted: one for each.")
        parts = [batch[processes.own_place() :: several] for batch in batches]
        loader.batch_sampler.sampler = [part for part in parts if part]
        return loader

    def get_validator(self) -> Any:
        return _SharedValidator(
            self.test_loader, save_dir=self.save_dir, args=copy(self.args), _callbacks=self.callbacks
        )

    def _setup_train(self) -> None:
        super()._setup_train()
        for module in (self.model, self.ema.ema):
            processes.take_from_first(module)
        seed = self.args.seed + 1_009 * processes.own_place()
        seed_everything(seed)  # the same batches, but other crops of them, and other features masked
        self.train_loader.generator = torch.Generator().manual_seed(seed)  # which seeds its workers

    def optimizer_step(self) -> None:
        processes.sum_gradients(self.model.parameters())
        super().optimizer_step()

    def validate(self) -> Any:
        for module in (self.model, self.ema.ema):
            processes.average_buffers(module)
        self.loss = processes.mean(self.loss.detach())  # NaN in one process is NaN in all, which then go back together
        self.tloss = {name: processes.mean(value) for name, value in self.tloss.items()}
        return super().validate()

    def save_model(self) -> bool:
        return processes.is_first() and super().save_model()

    def final_eval(self) -> None:
        self.validator.dataloader = None  # it makes its own one, with all images
        processes.from_first(super().final_eval)


class _Unlabelled(YOLODataset):
    """Images alone: labels beside them are not looked at, nor is a list of these kept there."""

    def get_labels(self) -> list[dict[str, Any]]:
        # ultralytics wants some labels where images are changed at random, so it looks in a folder without any, as for
        # a validation.
        with TemporaryDirectory() as nowhere, mock.patch.object(self, "augment", False):
            self._no_label = str(Path(nowhere) / "labels" / "none.txt")
            return super().get_labels()

    def get_label_files(self) -> list[str]:
        self.label_files = [self._no_label] * len(self.im_files)
        return self.label_files


def _without_end(loader: Any) -> Iterator[dict[str, Any]]:
    """Its batches, pass after pass."""
    while True:
        yield from loader


class _Parts:
    """This process's part of every batch. The last one's first images come twice where the parts would not be equal."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            missing = -len(batch) % processes.count()
            yield [*batch, *islice(cycle(batch), missing)][processes.own_place() :: processes.count()]


class _SharedValidator(DetectionValidator):
    """Measures what all processes have found, each in its part of the images; at the end of a run the first has all."""

    loss: Any

    def gather_stats(self) -> None:
        if not self.training:
            return
        found = processes.from_all((self.metrics.stats, self.metrics.box.image_metrics))
        self.metrics.stats = {name: [one for stats, _ in found for one in stats[name]] for name in self.metrics.stats}
        for _, images in found:
            self.metrics.box.image_metrics.update(images)
        own = torch.tensor(float(len(self.dataloader)), device=self.device)  # by which ultralytics divides the sums
        share = own / processes.mean(own)
        self.loss = {name: share * processes.mean(loss) for name, loss in self.loss.items()}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _stride(model: DetectionModel) -> int:
    """Of its coarsest map: 64 with a level P6, else 32."""
    return int(model.stride.max())


def _channels(model: DetectionModel) -> int:
    """Of the images that it takes."""
    return model.yaml.get("channels", 3)


def _check_fits(who: str, model: DetectionModel, data: Mapping[str, Any]) -> None:
    """Refuse a detector for images of other channels or for other classes than the data's."""
    _check_channels(who, model, data)
    check_classes(who, model, data["names"])


def _check_channels(who: str, model: DetectionModel, data: Mapping[str, Any]) -> None:
    if _channels(model) != data["channels"]:
        raise InputError(
            f"the {who} takes images of {_channels(model)} channels, and {data['yaml_file']} says channels: "
            f"{data['channels']} (3 where it says nothing). Correct that line, or train a {who} on these images, from "
            "a YAML such as yolov8n.yaml."
        )


def _adapt_classes(model: DetectionModel, names: Mapping[int, str], by_name: bool) -> None:
    """Give the head, for each of its maps, a last layer for these classes; all else, pruned or not, stays as it is.

    A class whose name the detector knows keeps its row; the others begin where ultralytics begins them, at few objects
    an image. (ultralytics' own function for that would start the boxes anew, too.) As many classes of which it knows
    none, or only numbers, keep the layer that is there.
    """
    rows = same_names(model.names, names) if by_name and named(model.names) and named(names) else {}
    if len(model.names) == len(names) and (not rows or all(rows.get(number) == number for number in names)):
        return
    head, classes = model.model[-1], len(names)
    for branches in filter(None, (head.cv3, getattr(head, "one2one_cv3", None))):  # YOLOv10 says each class twice
        for branch, stride in zip(branches, head.stride.tolist(), strict=True):
            old, last = branch[-1], nn.Conv2d(branch[-1].in_channels, classes, 1)
            nn.init.constant_(last.bias, math.log(5 / classes / (640 / stride) ** 2))  # type: ignore[arg-type]
            branch[-1] = last.to(old.weight)
            with torch.no_grad():
                for ours, its in zip(last.parameters(), old.parameters(), strict=True):
                    ours[list(rows)] = its[list(rows.values())]
    head.nc, head.no = classes, classes + 4 * head.reg_max
    model.yaml = {**model.yaml, "nc": classes}


def _train(
    trainer_class: type[Trainer],
    options: Mapping[str, Any],
    recipe: Mapping[str, Any],
    model: Model,
    data: str | Path,
    settings: YoloSettings,
    out: str | Path,
    resume: bool,
    device: str,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> YoloRun:
    out, chosen, several = Path(out).resolve(), pick_device(device), processes.count()
    if out.is_file():
        raise InputError(f"out is {out}, which is a file; wanted: a folder for the run.")
    if settings.precision != "fp32" and chosen.type != "cuda":
        raise InputError(f"precision is {settings.precision!r} on {chosen}; wanted: 'fp32', or a CUDA device.")
    if settings.batch % several:
        raise InputError(f"batch is {settings.batch} for {several} processes; wanted: a multiple of {several}.")
    described = read_data(data, "train", "val")
    arguments: dict[str, Any] = {
        "epochs": settings.epochs, "batch": settings.batch, "imgsz": settings.imgsz, "seed": settings.seed,
        "amp": settings.precision, **more,
    }  # fmt: skip
    if settings.nominal_batch is not None:
        arguments["nbs"] = settings.nominal_batch
    if settings.lr is not None:
        arguments |= {"optimizer": "AdamW", "lr0": settings.lr, "warmup_bias_lr": 0.0}  # as it is with its own choice
    places = {"data": described["yaml_file"], "device": _as_told(chosen), "workers": settings.workers}
    with alone_in(out) if processes.is_first() else nullcontext():
        begun = processes.from_first((out / LAST).exists)
        if begun and not resume:
            raise InputError(f"{out} holds an earlier run. Resume it, delete the folder, or choose another one.")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)
            detector = load_model(model, described["nc"], described["channels"])
        _check_channels("model", detector, described)
        recipe = {
            **recipe, "model": weights_hash(detector)[:16], "data": Path(described["yaml_file"]).resolve().parent.name,
            "classes": list(described["names"].values()), **asdict(settings),
        }  # fmt: skip
        for split in ("train", "val"):
            images = _labelled_images(Path(described["yaml_file"]), split, described[split])
            recipe[split] = summary(images, img2label_paths(images))
        del recipe["workers"]
        if begun:
            processes.from_first(lambda: check_recipe(out, recipe))
            if processes.from_first(lambda: finished(out) is not None):
                return _run_in(out)
            overrides = places | {"resume": str(out / LAST)}
        else:
            processes.from_first(lambda: keep_recipe(out, recipe))
            silent = {"plots": False, "patience": 0, "exist_ok": True}
            overrides = places | arguments | silent | {"model": _named(model), "task": "detect", "mode": "train"}
        if several > 1:
            trainer_class = type(trainer_class.__name__, (_OneOfSeveral, trainer_class), {})
        with _silent(), TemporaryDirectory() as unread:
            overrides["save_dir"] = str(out) if processes.is_first() else unread
            trainer = trainer_class(overrides=overrides, **options)
            trainer.last, trainer.best = out / LAST, out / BEST  # where all read
            if not begun:
                trainer.model = trainer.get_model(weights=detector)
            with _progress(trainer):
                with_room_for_frames(trainer.train)()
    return _run_in(out)


def finished(out: str | Path) -> YoloRun | None:
    """The run in a folder, where it has ended; None where there is none, or one to resume."""
    path = Path(out).resolve() / LAST
    return _run_in(Path(out).resolve()) if path.exists() and _has_ended(_load_checkpoint(path)) else None


def _as_told(device: torch.device) -> str:
    """The device for ultralytics, to which plain "cuda" is the first one and not that of this process."""
    return f"cuda:{torch.cuda.current_device()}" if device == torch.device("cuda") else str(device)


def _run_in(out: Path) -> YoloRun:
    return YoloRun(out / BEST, out / LAST, pd.read_csv(out / RESULTS).rename(columns=str.strip))


def _has_ended(checkpoint: Mapping[str, Any]) -> bool:
    return checkpoint.get("optimizer") is None


@contextmanager
def _progress(trainer: Trainer) -> Iterator[None]:
    """kdlab's bar over all steps, with each part of the loss by its name."""

    def start(trainer: Trainer) -> None:
        bar.reset(total=(trainer.epochs - trainer.start_epoch) * len(trainer.train_loader))

    def step(trainer: Trainer) -> None:
        bar.set_postfix({name: f"{float(value):.3g}" for name, value in trainer.tloss.items()}, refresh=False)
        bar.update()

    with progress(desc="training", unit="step") as bar:
        trainer.add_callback("on_train_start", start)
        trainer.add_callback("on_train_batch_end", step)
        yield
