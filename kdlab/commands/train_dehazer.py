"""``kdlab teach`` and ``kdlab distill`` with ``--task dehazing``."""

import argparse
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from kdlab.commands.inputs import DRAWN, list_restoration, load_restoration, of_weathers
from kdlab.commands.runs import (
    architecture_of,
    check_batch_size,
    check_out,
    check_resumed,
    check_weights,
    finish,
    say_weights,
    settings_of,
    start_on_pairs,
    teacher_of,
    weathers_of,
)
from kdlab.commands.train_restorer import JUDGED_BY
from kdlab.data import ImageSplits
from kdlab.data.images import printable
from kdlab.errors import InputError
from kdlab.models import KTDN, SRKTDN, DehazingTeacher
from kdlab.models.dehazing import Dehazer
from kdlab.recipes import dehazing
from kdlab.recipes.dehazing import FAST, NARROW, NARROW_TEACHER, Dehazing, DehazingSettings
from kdlab.training import pick_device

CROP = 256  # as published
SCHEDULE = ("decay", "every", "freeze_from", "turned")


def teach_dehazer(args: argparse.Namespace) -> int:
    """Train the auto-encoder of clean images."""
    settings, device = _settings(args), pick_device(args.device)
    architecture = architecture_of(args, NARROW_TEACHER)
    check_out(args.out, args.data, args.resume)
    check_resumed(args, settings, weights=args.weights)
    data = _start(args, device, lambda: DehazingTeacher(**architecture or {}, weights=args.weights))
    fit = dehazing.teach(
        data, settings, out=args.out, architecture=architecture, weights=args.weights, resume=args.resume,
        device=device,
    )  # fmt: skip
    narrow = " --narrow" if args.narrow else ""
    use = f"--task dehazing{narrow} --teacher {shlex.quote(str(args.out))} --out STUDENT"
    finish(args, fit, JUDGED_BY, use=f"distill {shlex.quote(args.data)} {use}")
    return 0


def distill_dehazer(args: argparse.Namespace) -> int:
    """Distil a network that takes the haze away from one that knows clean images."""
    settings, device = _settings(args), pick_device(args.device)
    plan = Dehazing(transfer=args.transfer)
    architecture = architecture_of(args, NARROW)
    path = _path(args)
    check_out(args.out, args.data, args.resume, [path] if path else [])
    check_resumed(args, settings, **asdict(plan), weights=args.weights)
    teacher = None if path is None else _teacher(path)
    kind = SRKTDN if args.super_resolution else KTDN
    with torch.device("meta"):
        plan.objective(kind(**architecture or {}), teacher)  # refuses a teacher of another width
    data = _start(args, device, lambda: kind(**architecture or {}, weights=args.weights))
    weights = ", ".join(f"{name} {getattr(plan, name):g}" for name in ("l1", "laplacian", "lab", "transfer"))
    print(f"student: {kind.__name__}; weights: {weights}", flush=True)
    _, fit = dehazing.distill(
        data, teacher, plan, settings, super_resolution=args.super_resolution, out=args.out,
        architecture=architecture, weights=args.weights, resume=args.resume, device=device,
    )  # fmt: skip
    finish(args, fit, JUDGED_BY)
    return 0


def _settings(args: argparse.Namespace) -> DehazingSettings:
    """The published schedule, or the course's for its narrow networks, over the epochs that were asked for."""
    usual = (FAST if args.narrow else DehazingSettings()).over(args.epochs)
    args.steps = args.steps or usual.steps
    vars(args).update({name: getattr(usual, name) for name in SCHEDULE})
    return settings_of(args, DehazingSettings)


def _path(args: argparse.Namespace) -> Path | None:
    """Where the teacher is; None where the plan wants none."""
    given = args.teacher or []
    if args.transfer and len(given) != 1:
        raise InputError(
            f"--teacher was given {len(given)} times; wanted: once, what `kdlab teach --task dehazing` made, or never "
            "and --transfer 0."
        )
    if given and not args.transfer:
        raise InputError("--teacher was given with --transfer 0, which leaves it out. Leave one of them out.")
    return Path(given[0]) if given else None


def _teacher(path: Path) -> DehazingTeacher:
    teacher, card = teacher_of(path, "dehazing")
    if not isinstance(teacher, DehazingTeacher):
        raise InputError(
            f"--teacher {printable(path)} is {card.architecture['name']}, which is a student; wanted: what `kdlab "
            "teach --task dehazing` made."
        )
    return teacher


def _start(args: argparse.Namespace, device: torch.device, build: Callable[[], Dehazer]) -> ImageSplits:
    """The last checks before the work, what it will start from, and the images that it will work on."""
    check_batch_size(args)
    weathers = weathers_of(args, list_restoration(args.data), args.weather)
    check_weights(args, build)
    data = load_restoration(args.data, args.crop or (None if args.data in DRAWN else CROP))
    data = data if args.weather is None else of_weathers(data, weathers)
    start_on_pairs(args, data, batches=args.steps)
    print(f"device: {device}", flush=True)
    say_weights(args, build)
    return data
