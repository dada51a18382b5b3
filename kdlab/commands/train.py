"""``kdlab teach`` and ``kdlab distill``."""

import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from kdlab import processes
from kdlab.commands.inputs import check_classes, load_data, load_masks, names
from kdlab.commands.methods import dense_distillation, describe, warn_of_small_maps
from kdlab.commands.runs import (
    architecture_of,
    check_batch_size,
    check_out,
    finish,
    own_teacher,
    say_data,
    say_weights,
    settings_of,
    teacher_of,
)
from kdlab.commands.train_dehazer import distill_dehazer, teach_dehazer
from kdlab.commands.train_restorer import distill_restorer, teach_restorer
from kdlab.data import ImageSplits
from kdlab.errors import InputError
from kdlab.files import check_writable
from kdlab.models import PSPNet, StudentCNN, UPerNet, densenet121
from kdlab.paths import cache_dir
from kdlab.recipes import response, segmentation
from kdlab.recipes.response import Distillation
from kdlab.recipes.settings import Settings
from kdlab.training import load_weights, pick_device


def teach(args: argparse.Namespace) -> int:
    """Train or fine-tune the teacher."""
    if args.task == "restoration":
        return teach_restorer(args)
    if args.task == "dehazing":
        return teach_dehazer(args)
    settings, device = settings_of(args, Settings), pick_device(args.device)
    check_out(args.out, args.resume)
    size, mean, std = args.image_size, _flat(args.mean), _flat(args.std)
    run: dict[str, Any] = {"out": args.out, "weights": args.weights, "resume": args.resume, "device": device}
    if args.task == "segmentation":
        architecture = architecture_of(args, segmentation.NARROW_TEACHER)
        data = load_masks(args.data, size, mean, std)
        _start(args, data, device)
        say_weights(args, lambda: UPerNet(len(data.classes), **architecture or {}, weights=args.weights))
        fit = segmentation.teach(data, settings, architecture=architecture, monitor=args.monitor, **run)
    else:
        data = load_data(args.data, size, mean, std, args.augment)
        _start(args, data, device)
        say_weights(args, lambda: densenet121(len(data.classes), args.weights))
        fit = response.teach(data, settings, **run)
    finish(args, fit, _judged_by(args))
    return 0


def distill(args: argparse.Namespace) -> int:
    """Distil a student from the teacher."""
    if args.task == "restoration":
        return distill_restorer(args)
    if args.task == "dehazing":
        return distill_dehazer(args)
    if not args.teacher:
        raise InputError("--teacher is missing; wanted: what `kdlab teach` made.")
    if len(args.teacher) > 1:
        raise InputError(
            f"--teacher was given {len(args.teacher)} times; wanted: one. Several are for --task restoration, each of "
            "a weather."
        )
    path = Path(args.teacher[0])
    return _distill_segmenter(args, path) if args.task == "segmentation" else _distill_classifier(args, path)


def _distill_classifier(args: argparse.Namespace, path: Path) -> int:
    settings, device = settings_of(args, Settings), pick_device(args.device)
    distillation = Distillation(args.temperature, args.alpha)
    widths = tuple(chain.from_iterable(args.widths))
    StudentCNN(2, widths, args.drop_rate)  # refuses widths and a drop rate that make no sense
    check_out(args.out, args.resume, [path])
    teacher, card = own_teacher(path, args.task)
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
        load_weights(teacher, path)
    _start(args, data, device)
    if data.deterministic:
        check_writable(cache_dir() / "teacher", "KDLAB_CACHE")
    print("teacher outputs:", "computed once and cached" if data.deterministic else "computed at each step (--augment)")
    known = response.evaluate(teacher.to(device), data.val, settings.batch_size, settings.workers)
    print(f"teacher: validation accuracy {known['accuracy']:.4f}, loss {known['loss']:.4f}", flush=True)
    chance = 1 / len(data.classes)
    if known["accuracy"] <= min(1.5 * chance, chance + 0.1):
        print(
            f"warning: the teacher is about as good as chance ({chance:.4f}), and has nothing to teach. Does it know "
            "the classes in another order, or images of another --mean, --std or --image-size?",
            flush=True,
        )
    fit = response.distill(
        data, teacher, distillation, settings, out=args.out, widths=widths, drop_rate=args.drop_rate,
        resume=args.resume, device=device,
    )  # fmt: skip
    finish(args, fit, _judged_by(args))
    return 0


def _distill_segmenter(args: argparse.Namespace, path: Path) -> int:
    settings, device = settings_of(args, Settings), pick_device(args.device)
    distillation = dense_distillation(args)
    architecture = architecture_of(args, segmentation.NARROW_STUDENT)
    check_out(args.out, args.resume, [path])
    teacher, card = teacher_of(path, args.task)
    distillation.check_teacher(teacher)
    size, mean, std = args.image_size or card.size, _flat(args.mean) or card.mean, _flat(args.std) or card.std
    data = load_masks(args.data, size, mean, std, who="teacher", classes=card.classes)
    _start(args, data, device)
    check_writable(cache_dir() / "teacher", "KDLAB_CACHE")
    print(f"distillation: {describe(distillation)}")
    warn_of_small_maps(args, distillation, data.size)
    known = segmentation.measure(teacher.to(device), data.val, settings.batch_size, settings.workers)
    print(f"teacher: validation mIoU {known['miou']:.4f}, mDice {known['mdice']:.4f}", flush=True)
    say_weights(args, lambda: PSPNet(len(data.classes), **architecture or {}, weights=args.weights))
    fit = segmentation.distill(
        data, teacher, distillation, settings, out=args.out, architecture=architecture, weights=args.weights,
        monitor=args.monitor, resume=args.resume, device=device,
    )  # fmt: skip
    finish(args, fit, _judged_by(args))
    return 0


def _flat(groups: Sequence[Sequence] | None) -> tuple | None:
    """0.5,0.5,0.5 arrives as one group of three, 0.5 0.5 0.5 as three of one."""
    return None if groups is None else tuple(chain.from_iterable(groups))


def _start(args: argparse.Namespace, data: ImageSplits, device: torch.device) -> None:
    """The last checks before the work, and what it will work on."""
    check_batch_size(args, most=len(data.train))  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out
    processes.own_share(data.val)  # refuses now what it would refuse after the first epoch
    check_writable(args.out, "--out")
    say_data(data, "classes", f"of {data.size}x{data.size} pixels", args.out)
    print(f"device: {device}", flush=True)


def _judged_by(args: argparse.Namespace) -> tuple[str, str]:
    return args.monitor if args.task == "segmentation" else "accuracy", "loss"
