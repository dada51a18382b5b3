"""``kdlab teach`` and ``kdlab distill``."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from kdlab.commands.inputs import METRICS, check_classes, load_data, load_masks, names, task_of
from kdlab.commands.methods import dense_distillation, describe
from kdlab.data import ImageSplits
from kdlab.errors import InputError
from kdlab.models import StudentCNN, densenet121
from kdlab.recipes import response, segmentation
from kdlab.recipes.response import Distillation, Settings
from kdlab.training import Fit, ModelCard, load_model, load_weights, pick_device
from kdlab.training.checkpoints import BEST, LAST, RESUME


def teach(args: argparse.Namespace) -> int:
    """Train or fine-tune the teacher."""
    settings, device = _settings(args), pick_device(args.device)
    _check_folder(args.out, args.resume)
    size, mean, std = args.image_size, _flat(args.mean), _flat(args.std)
    run: dict[str, Any] = {"out": args.out, "weights": args.weights, "resume": args.resume, "device": device}
    if args.task == "segmentation":
        architecture = _architecture(args, segmentation.NARROW_TEACHER)
        data = load_masks(args.data, size, mean, std)
        _start(args, data, device)
        fit = segmentation.teach(data, settings, architecture=architecture, monitor=args.monitor, **run)
    else:
        data = load_data(args.data, size, mean, std, args.augment)
        _start(args, data, device)
        fit = response.teach(data, settings, **run)
    _say_weights(args.out)
    _finish(args, fit)
    return 0


def distill(args: argparse.Namespace) -> int:
    """Distil a student from the teacher."""
    return _distill_segmenter(args) if args.task == "segmentation" else _distill_classifier(args)


def _distill_classifier(args: argparse.Namespace) -> int:
    settings, device = _settings(args), pick_device(args.device)
    distillation = Distillation(args.temperature, args.alpha)
    widths = tuple(chain.from_iterable(args.widths))
    StudentCNN(2, widths, args.drop_rate)  # refuses widths and a drop rate that make no sense
    _check_folder(args.out, args.resume)
    teacher, card = _own_teacher(args)
    size, mean, std = args.image_size, _flat(args.mean), _flat(args.std)
    if card is not None:  # the images as the teacher knows them, for both networks
        size, mean, std = size or card.size, mean or card.mean, std or card.std
    data = load_data(args.data, size, mean, std, args.augment)
    if card is not None:
        check_classes("teacher", card.classes, data)
    if args.classes not in (None, len(data.classes)):
        raise InputError(
            f"the teacher has {args.classes} classes by --classes; {data.name} has {len(data.classes)}: "
            f"{names(data.classes)}. Wanted: as many, in the same order."
        )
    if teacher is None:
        teacher = densenet121(len(data.classes), "none")
        load_weights(teacher, args.teacher)
    _start(args, data, device)
    print("teacher outputs:", "computed once and cached" if data.deterministic else "computed at each step (--augment)")
    fit = response.distil(
        data, teacher, distillation, settings, out=args.out, widths=widths, drop_rate=args.drop_rate,
        resume=args.resume, device=device,
    )  # fmt: skip
    _finish(args, fit)
    return 0


def _distill_segmenter(args: argparse.Namespace) -> int:
    settings, device = _settings(args), pick_device(args.device)
    distillation = dense_distillation(args)
    architecture = _architecture(args, segmentation.NARROW_STUDENT)
    _check_folder(args.out, args.resume)
    teacher, card = _own_teacher(args)
    if teacher is None or card is None:
        raise InputError(
            f"--teacher {args.teacher} is no file of kdlab's; wanted: what `kdlab teach --task segmentation` made."
        )
    size, mean, std = args.image_size or card.size, _flat(args.mean) or card.mean, _flat(args.std) or card.std
    data = load_masks(args.data, size, mean, std, who="teacher", classes=card.classes)
    _start(args, data, device)
    print(f"distillation: {describe(distillation)}")
    known = segmentation.measure(teacher.to(device), data.val, settings.batch_size, settings.workers)
    print(f"teacher: validation mIoU {known['miou']:.4f}, mDice {known['mdice']:.4f}", flush=True)
    fit = segmentation.distil(
        data, teacher, distillation, settings, out=args.out, architecture=architecture, weights=args.weights,
        monitor=args.monitor, resume=args.resume, device=device,
    )  # fmt: skip
    _say_weights(args.out)
    _finish(args, fit)
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})


def _architecture(args: argparse.Namespace, narrow: dict[str, Any]) -> dict[str, Any] | None:
    """The narrow network, where it was asked for; None is the recipe's own."""
    if args.narrow and args.weights == "imagenet":
        raise InputError(
            "--weights imagenet was given with --narrow, which ImageNet's do not fit. Leave one of them out."
        )
    return narrow if args.narrow else None


def _flat(groups: Sequence[Sequence] | None) -> tuple | None:
    """0.5,0.5,0.5 arrives as one group of three, 0.5 0.5 0.5 as three of one."""
    return None if groups is None else tuple(chain.from_iterable(groups))


def _check_folder(out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; wanted: a folder, new or to --resume in.")
    if not resume and (out / RESUME).exists():
        raise InputError(
            f"--out {out} holds an earlier run. Go on with it (--resume), delete it, or name another folder."
        )


def _own_teacher(args: argparse.Namespace) -> tuple[nn.Module, ModelCard] | tuple[None, None]:
    """A teacher that kdlab has saved, for this task; (None, None) if the file is another's."""
    path: Path = args.teacher
    if not path.exists():
        raise InputError(f"--teacher {path} does not exist. Make a teacher with `kdlab teach`, or give a state_dict.")
    if path.is_file():
        if path.suffix != ".safetensors":
            return None, None
        try:
            with safe_open(path, framework="pt") as file:
                if "kdlab" not in (file.metadata() or {}):
                    return None, None
        except (SafetensorError, OSError):
            pass  # load_model says what is wrong with it
    teacher, card = load_model(path)
    if task_of(teacher) != args.task:
        raise InputError(
            f"the teacher in {path} was made for {task_of(teacher)} ({card.architecture['name']}), and the task is "
            f"{args.task}. Say --task {task_of(teacher)}, or name another teacher."
        )
    return teacher, card


def _start(args: argparse.Namespace, data: ImageSplits, device: torch.device) -> None:
    """The last checks before the work, and what it will work on."""
    train, val = len(data.train), len(data.val)  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out
    if not 2 <= args.batch_size <= train:
        raise InputError(
            f"--batch-size is {args.batch_size}; wanted: at least 2, since batch normalisation compares images, and at "
            f"most {train}, the number of training images."
        )
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {args.out} cannot be made: {error.strerror}. Name another folder.") from error
    print(f"data: {data.name}, {train} training and {val} validation images of {data.size}x{data.size} pixels")
    print(f"classes: {names(data.classes)}")
    if data.skipped:
        print(f"skipped: {len(data.skipped)} files that cannot be used, such as")
        print(*(f"  {one}" for one in data.skipped[:3]), sep="\n")
    print(f"device: {device}", flush=True)


def _say_weights(out: Path) -> None:
    print(f"started from weights: {load_model(out)[1].weights}")


def _finish(args: argparse.Namespace, fit: Fit) -> None:
    monitor = getattr(args, "monitor", "accuracy")
    out, early = shlex.quote(str(args.out)), f" (none better for {args.patience})" if fit.ended == "patience" else ""
    metric = f"{METRICS.get(monitor, monitor)} {fit.best[f'val_{monitor}']:.4f}"
    loss = f"loss {fit.best['val_loss']:.4f}"
    print(f"best epoch: {fit.best['epoch']} of {len(fit.history)}{early}, with validation {metric} and {loss}")
    print(f"saved in {args.out}: {BEST}, {LAST}, history.csv")
    masks = " --out MASKS" if args.task == "segmentation" else ""
    print("use it:")
    print(f"  kdlab evaluate {shlex.quote(args.data)} --model {out}\n  kdlab predict IMAGES --model {out}{masks}")
