"""``kdlab teach`` and ``kdlab distill`` with ``--task restoration``."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kdlab import processes
from kdlab.commands.inputs import Listed, list_restoration, load_restoration, names, of_weathers
from kdlab.commands.runs import (
    check_out,
    check_resumed,
    finish,
    settings_of,
    start_on_pairs,
    teacher_of,
    weathers_of,
)
from kdlab.data import ImageSplits
from kdlab.data.images import printable
from kdlab.errors import InputError
from kdlab.models import MSBDN
from kdlab.recipes import restoration
from kdlab.recipes.perceptual import feature_slices
from kdlab.recipes.restoration import RestorationSettings, TwoStage
from kdlab.recipes.weather import NARROW, TWO_STAGE
from kdlab.training import ModelCard, pick_device

WARM_UP = 3  # epochs, as published
WEIGHTS = ("image", "ckt", "reconstruction", "scr", "hcr")
JUDGED_BY = ("psnr", "ssim")


def teach_restorer(args: argparse.Namespace) -> int:
    """Train a restorer on clean images: the teacher of one weather, or a network for all."""
    settings, device = _settings(args), pick_device(args.device)
    architecture = _architecture(args)
    check_out(args.out, args.data, args.resume)
    check_resumed(args, settings, pixel=args.pixel)
    weathers = weathers_of(args, list_restoration(args.data), args.weather)
    data = load_restoration(args.data, args.crop)
    _start(args, data, weathers, architecture, device)
    fit = restoration.teach(
        data, weathers, settings, out=args.out, pixel=args.pixel, architecture=architecture, resume=args.resume,
        device=device,
    )  # fmt: skip
    finish(args, fit, JUDGED_BY)
    return 0


def distill_restorer(args: argparse.Namespace) -> int:
    """Distil a restorer of all weathers from a teacher of each, in two stages."""
    settings, device, plan = _settings(args), pick_device(args.device), _plan(args)
    architecture = _architecture(args)
    paths = _by_weather(args.teacher or [])
    check_out(args.out, args.data, args.resume, list(paths.values()))
    check_resumed(args, settings, **asdict(plan))
    listed = list_restoration(args.data)
    weathers = weathers_of(args, listed)
    switch = plan.switch(settings.epochs)
    _check_weathers(paths, listed, all_wanted=switch > 0)
    teachers = _teachers(paths)
    used = {"SCR": plan.scr and switch > 0, "HCR": plan.hcr and switch < settings.epochs}
    contrasts = [name for name, in_use in used.items() if in_use]
    if contrasts and args.features == "imagenet":
        feature_slices("imagenet")  # refuses what cannot be had before the images are read
    data = load_restoration(args.data, args.crop)
    features = feature_slices(args.features) if contrasts else nn.Identity()
    _start(args, data, weathers, architecture, device)
    print(f"first stage: {_stage(1, switch)}, from the teachers' images and features")
    if plan.collation and not switch:
        print(
            f"warning: the teachers teach nothing: of --epochs {settings.epochs} the first stage, whose share is "
            f"{plan.collation:g}, gets none. Give more epochs, or a larger --collation."
        )
    print(f"second stage: {_stage(switch + 1, settings.epochs)}, from the clean images")
    for name, path in paths.items():
        print(f"teacher of {printable(name)}: {printable(path)}, width {teachers[name].width}")
    print(f"weights: {', '.join(f'{name} {getattr(plan, name):g}' for name in WEIGHTS)}")
    print(f"features of SCR and HCR: {features.weights_used if contrasts else 'none, they have no weight'}", flush=True)
    _warn_of_small_parts(contrasts, settings)
    _, fit = restoration.distill(
        data, teachers, plan, features, settings, out=args.out, architecture=architecture, resume=args.resume,
        device=device,
    )  # fmt: skip
    finish(args, fit, JUDGED_BY)
    return 0


def _warn_of_small_parts(contrasts: Sequence[str], settings: RestorationSettings) -> None:
    """Say which losses see less of a batch than where it is computed as a whole."""
    parts = processes.count() * settings.accumulate
    if contrasts and parts > 1:
        print(
            f"{', '.join(contrasts)}: a ratio of means over the images of a batch, and each of the {parts} parts that "
            f"are computed apart has {settings.batch_size // parts} of {settings.batch_size}. That is another loss "
            "than the whole batch's; for that one, run it in one process, without --accumulate.",
            flush=True,
        )


def _settings(args: argparse.Namespace) -> RestorationSettings:
    if args.warm_up is None:
        args.warm_up = min(WARM_UP, args.epochs - 1)
    return settings_of(args, RestorationSettings)


def _architecture(args: argparse.Namespace) -> dict[str, Any]:
    architecture = (NARROW if args.narrow else {}) | ({} if args.width is None else {"width": args.width})
    with torch.device("meta"):
        MSBDN(**architecture)  # refuses a width that makes no sense
    return architecture


def _plan(args: argparse.Namespace) -> TwoStage:
    """The published plan, or the course's for its narrow network, with what was given instead."""
    given = {one.name: getattr(args, one.name, None) for one in fields(TwoStage)}
    return replace(
        TWO_STAGE if args.narrow else TwoStage(), **{name: value for name, value in given.items() if value is not None}
    )


def _by_weather(given: list[str]) -> dict[str, Path]:
    """From WEATHER=T to the teachers' places."""
    paths: dict[str, Path] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path:
            raise InputError(f"--teacher {text} does not say of which weather; wanted: WEATHER=T, such as haze={text}.")
        if name in paths:
            raise InputError(f"--teacher was given twice for {name}; wanted: one teacher for each weather.")
        paths[name] = Path(path).expanduser()  # which a shell does not do behind a =
    return paths


def _check_weathers(paths: dict[str, Path], data: Listed, all_wanted: bool) -> None:
    surplus = [name for name in paths if name not in data.classes]
    missing = [name for name in data.classes if name not in paths] if all_wanted else []
    if surplus:
        raise InputError(
            f"--teacher was given for {names(surplus)}; {data.name} has {names(data.classes)}. Leave it out, or name "
            "it for the weather that the data has."
        )
    if missing:
        raise InputError(
            f"there is no teacher for {names(missing)}; {data.name} has {names(data.classes)}. Give --teacher "
            f"{printable(missing[0])}=T, which `kdlab teach --task restoration --weather {printable(missing[0])}` "
            "makes, or leave that weather out of the data."
        )


def _teachers(paths: dict[str, Path]) -> dict[str, MSBDN]:
    """Each by its weather, which its own card has to know."""
    teachers: dict[str, MSBDN] = {}
    for name, path in paths.items():
        teacher, card = cast("tuple[MSBDN, ModelCard]", teacher_of(path, "restoration"))  # the task has no other
        if name not in card.classes:
            raise InputError(
                f"--teacher {name}={path}: that teacher was trained for {names(card.classes)}. Name it for its own "
                f"weather, or train one for {name}."
            )
        teachers[name] = teacher
    widths = {name: teacher.width for name, teacher in teachers.items()}
    if len(set(widths.values())) > 1:
        said = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise InputError(f"the teachers have different widths ({said}); wanted: one, for one common space.")
    return teachers


def _start(
    args: argparse.Namespace,
    data: ImageSplits,
    weathers: Sequence[str],
    architecture: dict[str, Any],
    device: torch.device,
) -> None:
    """The last check before the work, and what it will work on."""
    start_on_pairs(args, of_weathers(data, weathers))
    print(f"network: MSBDN, {', '.join(f'{name} {value}' for name, value in architecture.items()) or 'as published'}")
    print(f"device: {device}", flush=True)


def _stage(first: int, last: int) -> str:
    return f"epochs {first} to {last}" if first <= last else "none"
