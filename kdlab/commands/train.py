"""``kdlab teach`` and ``kdlab distill``."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from kdlab.commands.inputs import check_classes, load_data, names
from kdlab.data import ImageSplits
from kdlab.errors import InputError
from kdlab.models import StudentCNN, densenet121
from kdlab.recipes import response
from kdlab.recipes.response import Distillation, Settings
from kdlab.training import Fit, ModelCard, load_model, load_weights, pick_device
from kdlab.training.checkpoints import BEST, LAST, RESUME


def teach(args: argparse.Namespace) -> int:
    """Train or fine-tune the teacher."""
    settings, device = _settings(args), pick_device(args.device)
    _check_folder(args.out, args.resume)
    data = load_data(args.data, args.image_size, _flat(args.mean), _flat(args.std), args.augment)
    _start(args, data, device)
    fit = response.teach(data, settings, out=args.out, weights=args.weights, resume=args.resume, device=device)
    _, card = load_model(args.out)
    print(f"started from weights: {card.weights}")
    _finish(args, fit)
    return 0


def distill(args: argparse.Namespace) -> int:
    """Distil a student from the teacher."""
    settings, device = _settings(args), pick_device(args.device)
    distillation = Distillation(args.temperature, args.alpha)
    widths = tuple(chain.from_iterable(args.widths))
    StudentCNN(2, widths, args.drop_rate)  # refuses widths and a drop rate that make no sense
    _check_folder(args.out, args.resume)
    teacher, card = _own_teacher(args.teacher)
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


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})


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


def _own_teacher(path: Path) -> tuple[nn.Module, ModelCard] | tuple[None, None]:
    """A teacher that kdlab has saved; (None, None) if the file is another's."""
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
    return load_model(path)


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


def _finish(args: argparse.Namespace, fit: Fit) -> None:
    out, early = shlex.quote(str(args.out)), f" (none better for {args.patience})" if fit.ended == "patience" else ""
    print(f"best epoch: {fit.best['epoch']} of {len(fit.history)}{early}, with validation accuracy "
          f"{fit.best['val_accuracy']:.4f} and loss {fit.best['val_loss']:.4f}")  # fmt: skip
    print(f"saved in {args.out}: {BEST}, {LAST}, history.csv")
    print(f"use it:\n  kdlab evaluate {shlex.quote(args.data)} --model {out}\n  kdlab predict IMAGES --model {out}")
