"""``kdlab yolo``."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transforms
from torchvision.utils import draw_bounding_boxes

from kdlab.commands.options import check_used
from kdlab.commands.outputs import as_png, distinct_names, make_folder, say_skipped
from kdlab.data.images import Skipped, find_images, open_image, printable
from kdlab.data.named import locate_boxes
from kdlab.detection import Distillation, YoloRun, YoloSettings
from kdlab.errors import InputError
from kdlab.files import write_whole

with redirect_stdout(sys.stderr):  # its line about the licence is no result
    from kdlab import yolo

BOXES = "_boxes.png"
USED_BY = {"temperature": ("cwd",), "mask_ratio": ("mgd",)}


def run_step(args: argparse.Namespace) -> int:
    """One step of the pipeline."""
    if "data" in args:
        args.data = locate_boxes(args.data)
    STEPS[args.step](args)
    return 0


def _sparse_train(args: argparse.Namespace) -> None:
    run = yolo.sparse_train(
        args.model, args.data, _settings(args), out=args.out, strength=args.strength, resume=args.resume,
        device=args.device,
    )  # fmt: skip
    _finish(args, run)


def _fine_tune(args: argparse.Namespace) -> None:
    run = yolo.fine_tune(
        args.model, args.data, _settings(args), out=args.out, resume=args.resume, device=args.device
    )  # fmt: skip
    _finish(args, run)


def _distill(args: argparse.Namespace) -> None:
    check_used(args, args.method, USED_BY)
    numbers = {name: getattr(args, name) for name in USED_BY if getattr(args, name) is not None}
    distillation = Distillation(args.method, args.layers, args.weight, **numbers)
    run = yolo.distill(
        args.model, args.teacher, args.data, distillation, _settings(args), out=args.out, unlabelled=args.unlabelled,
        resume=args.resume, device=args.device,
    )  # fmt: skip
    _finish(args, run)


def _prune(args: argparse.Namespace) -> None:
    plan = yolo.prune_yolo(
        args.model, args.out, keep=args.keep, parameters=args.parameters, gflops=args.gflops, imgsz=args.image_size,
        at_least=args.at_least,
    )  # fmt: skip
    if args.format != "table":
        _print_rows(args, plan.table())
        return
    print(plan.table().to_string(index=False, float_format="{:.2f}".format))
    before, after = plan.parameters
    print(f"\nkept: {plan.keep:.1%} of the channels that could go, {after / before:.1%} of the parameters")
    print(f"parameters: {before:,} before, {after:,} after")
    print(
        "GFLOPs at {0}x{0}: {1:.3g} before, {2:.3g} after".format(args.image_size, *(2e-9 * one for one in plan.macs))
    )
    print(f"saved: {printable(args.out)}")


def _export(args: argparse.Namespace) -> None:
    exported = yolo.export_onnx(args.model, args.out, imgsz=args.image_size)
    print(f"saved: {printable(exported.path)}; onnxruntime and PyTorch differ by {exported.difference:.1g} at most")


def _compare(args: argparse.Namespace) -> None:
    table = yolo.compare(
        args.models, args.data, split=args.split, imgsz=args.image_size, batch=args.batch_size, device=args.device
    )
    _print_rows(args, table)


def _evaluate(args: argparse.Namespace) -> None:
    table = yolo.evaluate(
        args.model, args.data, split=args.split, imgsz=args.image_size, batch=args.batch_size, device=args.device
    )
    _print_rows(args, table)


def _predict(args: argparse.Namespace) -> None:
    paths, skipped = find_images(args.images)
    if args.out is not None:
        make_folder(args.out, args.images, "images with boxes")
    unusable: list[Skipped] = []
    table = yolo.predict(
        args.model, paths, imgsz=args.image_size, confidence=args.confidence, device=args.device, skipped=unusable
    )
    skipped += unusable
    used = [path for path in paths if path not in {one.path for one in unusable}]
    if args.out is not None:
        for path, name in distinct_names(used).items():
            write_whole(args.out / f"{name}{BOXES}", as_png(_drawn(path, table[table["image"] == str(path)])))
    say_skipped(skipped)
    if not used:
        raise InputError(f"not one of the {len(skipped)} files could be used.")
    if table.empty and args.format == "table":
        print(f"no objects above confidence {args.confidence:g} in {len(used)} images")
    else:
        _print_rows(args, table.assign(image=table["image"].map(printable)))


def _drawn(path: Path, found: pd.DataFrame) -> Image.Image:
    pixels = transforms.pil_to_tensor(open_image(path))
    if len(found):
        boxes = torch.tensor(found[["left", "top", "right", "bottom"]].to_numpy())
        labels = [f"{row['class']} {row['confidence']:.2f}" for _, row in found.iterrows()]
        pixels = draw_bounding_boxes(pixels, boxes, labels, colors="red", width=max(1, min(pixels.shape[1:]) // 200))
    return transforms.to_pil_image(pixels)


STEPS: dict[str, Callable[[argparse.Namespace], None]] = {
    "sparse-train": _sparse_train,
    "prune": _prune,
    "fine-tune": _fine_tune,
    "distill": _distill,
    "export": _export,
    "compare": _compare,
    "predict": _predict,
    "evaluate": _evaluate,
}


def _settings(args: argparse.Namespace) -> YoloSettings:
    return YoloSettings(
        epochs=args.epochs, batch=args.batch_size, imgsz=args.image_size, lr=args.lr, workers=args.workers,
        seed=args.seed, precision=args.precision, nominal_batch=args.nominal_batch,
    )  # fmt: skip


def _finish(args: argparse.Namespace, run: YoloRun) -> None:
    best = run.history.iloc[int(run.history["metrics/mAP50-95(B)"].to_numpy().argmax())]
    print(
        f"best epoch: {best['epoch']:.0f} of {len(run.history)}, with validation mAP50-95 "
        f"{best['metrics/mAP50-95(B)']:.4f} and mAP50 {best['metrics/mAP50(B)']:.4f}"
    )
    print(f"saved in {printable(args.out)}: weights/best.pt, weights/last.pt, results.csv")
    data, model = shlex.quote(str(args.data)), shlex.quote(str(run.best))
    print(f"use it:\n  kdlab yolo evaluate {data} --model {model} --image-size {args.image_size}")
    print(f"  kdlab yolo predict IMAGES --model {model} --image-size {args.image_size}")


def _print_rows(args: argparse.Namespace, table: pd.DataFrame) -> None:
    if args.format == "json":
        print(json.dumps(json.loads(table.to_json(orient="records")), indent=2))
    elif args.format == "csv":
        print(table.to_csv(index=False), end="")
    else:
        print(table.to_string(index=False, float_format="{:.4f}".format))
