"""``kdlab teach`` and ``kdlab distill``."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from kdlab import processes
from kdlab.commands.inputs import check_classes, check_masks, list_data, load_data, load_masks, names
from kdlab.commands.methods import dense_distillation, describe, warn_of_small_maps
from kdlab.commands.options import FROM_IMAGENET, FROM_RANDOM
from kdlab.commands.runs import (
    architecture_of,
    check_batch_size,
    check_out,
    check_resumed,
    check_weights,
    finish,
    own_teacher,
    say_data,
    say_weights,
    settings_of,
    teacher_of,
)
from kdlab.commands.train_dehazer import distill_dehazer, teach_dehazer
from kdlab.commands.train_restorer import distill_restorer, teach_restorer
from kdlab.data import IGNORE, ImageSplits
from kdlab.data.unlabelled import add_unlabelled, check_folder
from kdlab.errors import InputError
from kdlab.files import check_writable
from kdlab.losses import LabelledCrossEntropy
from kdlab.models import PSPNet, StudentCNN, UPerNet, densenet121
from kdlab.paths import cache_dir
from kdlab.recipes import response, segmentation
from kdlab.recipes.response import Distillation
from kdlab.recipes.settings import Settings
from kdlab.training import load_weights, pick_device
from kdlab.training.run_folder import earlier_start

SOME = 2  # classes, of a network that is built for what else it refuses and starts from


def teach(args: argparse.Namespace) -> int:
    """Train or fine-tune the teacher."""
    if args.task == "restoration":
        return teach_restorer(args)
    if args.task == "dehazing":
        return teach_dehazer(args)
    _teachers_settings(args)  # refuses what makes no sense
    device = pick_device(args.device)
    check_out(args.out, args.data, args.resume)
    check_resumed(args, _teachers_settings(args, earlier_start(args.out, args.resume)), weights=args.weights)
    check_batch_size(args)
    size, mean, std = args.image_size, _flat(args.mean), _flat(args.std)
    run: dict[str, Any] = {"out": args.out, "weights": args.weights, "resume": args.resume, "device": device}
    if args.task == "segmentation":
        architecture = architecture_of(args, segmentation.NARROW_TEACHER)
        check_masks(args.data, classes=args.class_names)
        check_weights(args, lambda: UPerNet(SOME, **architecture or {}, weights=args.weights))
        data = load_masks(args.data, size, mean, std, classes=args.class_names)
        _start(args, data, device)
        used = say_weights(args, lambda: UPerNet(len(data.classes), **architecture or {}, weights=args.weights))
        settings = _teachers_settings(args, used)
        fit = segmentation.teach(data, settings, architecture=architecture, monitor=args.monitor, **run)
    else:
        check_weights(args, lambda: densenet121(SOME, args.weights))
        data = load_data(args.data, size, mean, std, args.augment)
        _start(args, data, device)
        used = say_weights(args, lambda: densenet121(len(data.classes), args.weights))
        fit = response.teach(data, _teachers_settings(args, used), **run)
    finish(args, fit, _judged_by(args))
    return 0


def _teachers_settings(args: argparse.Namespace, start: str | None = None) -> Settings:
    """With the learning rate that suits what the teacher starts from, where none was given."""
    rate = FROM_IMAGENET if start == "imagenet" else FROM_RANDOM
    return settings_of(argparse.Namespace(**vars(args) | ({"lr": rate} if args.lr is None else {})), Settings)


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
    if args.unlabelled is not None:
        check_folder(args.unlabelled)
    path = Path(args.teacher[0])
    return _distill_segmenter(args, path) if args.task == "segmentation" else _distill_classifier(args, path)


def _distill_classifier(args: argparse.Namespace, path: Path) -> int:
    settings, device = settings_of(args, Settings), pick_device(args.device)
    distillation = Distillation(args.temperature, args.alpha)
    widths = tuple(chain.from_iterable(args.widths))
    StudentCNN(SOME, widths, args.drop_rate)  # refuses widths and a drop rate that make no sense
    check_out(args.out, args.data, args.resume, [path])
    check_resumed(args, settings, **asdict(distillation), widths=list(widths), drop_rate=args.drop_rate)
    check_batch_size(args)
    if not args.augment:
        check_writable(cache_dir() / "teacher", "KDLAB_CACHE")
    teacher, card = own_teacher(path, args.task)
    listed = list_data(args.data)
    if card is not None:
        check_classes("teacher", card.classes, listed)
    if args.classes not in (None, len(listed.classes)):
        raise InputError(
            f"the teacher has {args.classes} classes by --classes; {listed.name} has {len(listed.classes)}: "
            f"{names(listed.classes)}. Wanted: as many, in the same order."
        )
    if teacher is None:
        teacher = densenet121(len(listed.classes), "none")
        load_weights(teacher, path)
    size, mean, std = args.image_size, _flat(args.mean), _flat(args.std)
    if card is not None:  # the images as the teacher knows them, for both networks
        size, mean, std = size or card.size, mean or card.mean, std or card.std
    data = load_data(args.data, size, mean, std, args.augment)
    data = _with_unlabelled(args, data, LabelledCrossEntropy.UNLABELLED)
    _start(args, data, device)
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
    check_out(args.out, args.data, args.resume, [path])
    check_resumed(args, settings, **asdict(distillation), weights=args.weights, monitor=args.monitor)
    check_batch_size(args)
    check_writable(cache_dir() / "teacher", "KDLAB_CACHE")
    teacher, card = teacher_of(path, args.task)
    distillation.check_teacher(teacher)
    check_masks(args.data, "teacher", card.classes)
    check_weights(args, lambda: PSPNet(SOME, **architecture or {}, weights=args.weights))
    size, mean, std = args.image_size or card.size, _flat(args.mean) or card.mean, _flat(args.std) or card.std
    data = load_masks(args.data, size, mean, std, who="teacher", classes=card.classes)
    data = _with_unlabelled(args, data, torch.full((data.size, data.size), IGNORE))
    _start(args, data, device)
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


def _with_unlabelled(args: argparse.Namespace, data: ImageSplits, target: Any) -> ImageSplits:
    return data if args.unlabelled is None else add_unlabelled(data, args.unlabelled, target)


def _flat(groups: Sequence[Sequence] | None) -> tuple | None:
    """0.5,0.5,0.5 arrives as one group of three, 0.5 0.5 0.5 as three of one."""
    return None if groups is None else tuple(chain.from_iterable(groups))


def _start(args: argparse.Namespace, data: ImageSplits, device: torch.device) -> None:
    """The last checks before the work, which want the images, and what it will work on."""
    check_batch_size(args, most=len(data.train))  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out
    processes.own_share(data.val)  # refuses now what it would refuse after the first epoch
    say_data(data, "classes", f"of {data.size}x{data.size} pixels", args.out)
    print(f"device: {device}", flush=True)


def _judged_by(args: argparse.Namespace) -> tuple[str, str]:
    return args.monitor if args.task == "segmentation" else "accuracy", "loss"
