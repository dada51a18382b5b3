"""What every training has before it starts and after it has ended, whatever the task."""

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from kdlab import processes
from kdlab.commands.inputs import METRICS, Listed, names, task_of
from kdlab.commands.outputs import SHOWN
from kdlab.commands.plain_weights import is_plain
from kdlab.data import ImageSplits, StratifiedBatches
from kdlab.data.pairs import share_of
from kdlab.errors import InputError
from kdlab.files import check_writable, write_whole
from kdlab.recipes.restorer import pairs
from kdlab.recipes.settings import Settings, learnt
from kdlab.training import Fit, ModelCard, load_model
from kdlab.training.batches import check_divides, check_shares
from kdlab.training.checkpoints import BEST, LAST, RESUME
from kdlab.training.run_folder import HISTORY, check_settings, earlier_start

USES = {
    "classification": "predict IMAGES --model {out}",
    "segmentation": "predict IMAGES --model {out} --out MASKS",
    "restoration": "restore IMAGES --model {out} --out RESTORED",
    "dehazing": "restore IMAGES --model {out} --out RESTORED",
}
SKIPPED = "skipped.txt"
Kind = TypeVar("Kind", bound=Settings)


def settings_of(args: argparse.Namespace, kind: type[Kind]) -> Kind:
    """The settings that the options say; a batch that the processes cannot divide is refused, before data is loaded."""
    settings = kind(**{field.name: getattr(args, field.name) for field in fields(kind)})
    check_divides(settings.batch_size, settings.accumulate)
    return settings


def architecture_of(args: argparse.Namespace, narrow: dict[str, Any]) -> dict[str, Any] | None:
    """The narrow network, where it was asked for; None is the recipe's own."""
    if args.narrow and args.weights == "imagenet":
        raise InputError(
            "--weights imagenet was given with --narrow, which ImageNet's do not fit. Leave one of them out."
        )
    return narrow if args.narrow else None


def check_batch_size(args: argparse.Namespace, most: int | None = None) -> None:
    """Refuse a batch that leaves a process, or a piece, one image alone; and one of more images than there are."""
    parts = processes.count() * args.accumulate
    least = 2 * parts
    if args.batch_size < least or (most is not None and args.batch_size > most):
        each = "" if parts == 1 else f" in each of the {parts} parts that are computed apart"
        limit = "" if most is None else f"; and at most {most}, the number of training images"
        raise InputError(
            f"--batch-size is {args.batch_size}; wanted: at least {least}, since batch normalisation compares images, "
            f"two or more{each}{limit}."
        )


def check_out(out: Path, data: str, resume: bool, teachers: Sequence[Path] = ()) -> None:
    """Refuse a folder that cannot take a new run, one whose model the run would write over, and that of the data."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; wanted: a folder, new or to --resume in.")
    if out.exists() and out.resolve() == Path(data).resolve():
        raise InputError(f"--out {out} is where the data is, and a run is not for its folder. Name another folder.")
    models = [(out / name).resolve() for name in (BEST, LAST)]
    for teacher in teachers:
        if teacher.resolve() in (out.resolve(), *models):
            raise InputError(f"--out {out} is where the teacher is, which would be written over. Name another folder.")
    if not resume and (out / RESUME).exists():
        raise InputError(
            f"--out {out} holds an earlier run. Go on with it (--resume), delete it, or name another folder."
        )
    if not (out / RESUME).exists() and any(model.exists() for model in models) and not (resume and _in_first_save(out)):
        raise InputError(
            f"--out {out} holds a model, which would be written over, and no {RESUME} to go on with. Name another "
            "folder, or delete the model."
        )
    if (out / RESUME).exists() and not (out / BEST).exists():
        raise InputError(
            f"--out {out} holds a run whose {BEST} is gone, and training on need not make it again. Put it back, or "
            "train anew in another folder."
        )
    check_writable(out, "--out")


def check_resumed(args: argparse.Namespace, settings: Settings, **what: Any) -> None:
    """Refuse to go on with a run of other settings, as far as these are known before the images are read."""
    if args.resume:
        # Whether the number of loading processes matters is known later.
        known = {name: value for name, value in learnt(settings).items() if name != "workers"}
        check_settings(args.out, known | what)


def _in_first_save(out: Path) -> bool:
    """Whether a run was killed there while it saved its first epoch, the history before all else: it starts anew."""
    return (out / HISTORY).is_file() and len((out / HISTORY).read_text().splitlines()) == 2


def own_teacher(path: Path, task: str) -> tuple[nn.Module, ModelCard] | tuple[None, None]:
    """A teacher that kdlab has saved, for this task; (None, None) if the file is another's.

    Raises:
        InputError: no such file; one of kdlab's that cannot be loaded, or was made for another task.
    """
    if not path.exists():
        raise InputError(f"--teacher {path} does not exist. Make a teacher with `kdlab teach`, or give a state_dict.")
    if is_plain(path):
        return None, None
    teacher, card = load_model(path)
    if task_of(teacher) != task:
        raise InputError(
            f"the teacher in {path} was made for {task_of(teacher)} ({card.architecture['name']}), and the task is "
            f"{task}. Say --task {task_of(teacher)}, or name another teacher."
        )
    return teacher, card


def teacher_of(path: Path, task: str) -> tuple[nn.Module, ModelCard]:
    """As :func:`own_teacher`, for a task that takes no other's.

    Raises:
        InputError: also a file that is another's.
    """
    teacher, card = own_teacher(path, task)
    if teacher is None or card is None:
        raise InputError(f"--teacher {path} is no file of kdlab's; wanted: what `kdlab teach --task {task}` made.")
    return teacher, card


def say_data(data: ImageSplits, kind: str, sizes: str, out: Path) -> None:
    """What the training will work on: ``kind`` is what the classes are, ``sizes`` the images' in words.

    Of many files that cannot be used the whole list goes to ``out``, from the first process.
    """
    train, val = len(data.train), len(data.val)  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out
    print(f"data: {data.name}, {train} training and {val} validation images {sizes}")
    if data.unlabelled is not None:
        print(f"unlabelled: {len(data.unlabelled)} images")  # type: ignore[arg-type]
    if data.val_is_drawn:
        print(
            f"split: {data.name} has no train/ and val/; {val} of its {train + val} images, chosen by their names, are "
            "for validation. Where several show one scene, make train/ and val/ yourself, each scene in one of them."
        )
    print(f"{kind}: {names(data.classes)}")
    if data.skipped:
        print(f"skipped: {len(data.skipped)} files that cannot be used")
        print(*(f"  {one}" for one in data.skipped[:SHOWN]), sep="\n")
    if len(data.skipped) > SHOWN:
        if processes.is_first():
            write_whole(out / SKIPPED, "".join(f"{one}\n" for one in data.skipped).encode())
        print(f"  ... all of them in {out / SKIPPED}")


def weathers_of(args: argparse.Namespace, listed: Listed, weather: str | None = None) -> tuple[str, ...]:
    """The weathers to train on: that of --weather, or all that the data has, in equal parts of a batch.

    Raises:
        InputError: a weather that the data lacks, or a batch that cannot have the same number of images of each.
    """
    if weather is not None and weather not in listed.classes:
        raise InputError(
            f"--weather is {weather}; {listed.name} has {names(listed.classes)}. Name one of these, or leave it "
            "out for all."
        )
    weathers = listed.classes if weather is None else (weather,)
    check_shares(share_of(args.batch_size, weathers), args.accumulate)
    return weathers


def start_on_pairs(args: argparse.Namespace, data: ImageSplits, batches: int | None = None) -> None:
    """The last check before the training of a restorer, and what it will work on."""
    StratifiedBatches(pairs(data.train), args.batch_size, batches=batches)  # refuses a weather with too few images
    say_data(data, "weathers", f"(trained on in parts of {data.size}x{data.size} pixels)", args.out)


def check_weights(args: argparse.Namespace, build: Callable[[], nn.Module]) -> None:
    """Refuse ImageNet's weights where they cannot be had, before the images are read."""
    if args.weights == "imagenet" and earlier_start(args.out, args.resume) is None:
        build()


def say_weights(args: argparse.Namespace, build: Callable[[], nn.Module]) -> str:
    """What the training starts from, before it takes hours: a download that fails leaves a random start."""
    used = earlier_start(args.out, args.resume) or str(build().weights_used)
    print(f"started from weights: {used}", flush=True)
    return used


def finish(args: argparse.Namespace, fit: Fit, judged_by: Sequence[str], use: str = "") -> None:
    """What has come of it, by these validation metrics, and how to use it: ``use``, or what the task's are used for."""
    out, early = shlex.quote(str(args.out)), f" (none better for {args.patience})" if fit.ended == "patience" else ""
    metrics = [f"{METRICS.get(name, name)} {fit.best[f'val_{name}']:.4f}" for name in judged_by]
    print(f"best epoch: {fit.best['epoch']} of {len(fit.history)}{early}, with validation {' and '.join(metrics)}")
    print(f"saved in {args.out}: {BEST}, {LAST}, history.csv")
    uses = [use] if use else [f"evaluate {shlex.quote(args.data)} --model {out}", USES[args.task].format(out=out)]
    print("use it:", *(f"  kdlab {one}" for one in uses), sep="\n")
