"""``kdlab reproduce``."""

import argparse
import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from torch import nn

from kdlab import processes
from kdlab.data import ImageSplits, load_cifar100
from kdlab.files import check_writable, write_whole
from kdlab.recipes import cifar100
from kdlab.recipes.cifar100 import EPOCHS
from kdlab.recipes.cifar100_table import PAIRS
from kdlab.recipes.response import evaluate
from kdlab.recipes.settings import Settings
from kdlab.training import pick_device

TABLE = "table.csv"


def reproduce(args: argparse.Namespace) -> int:
    """Train the teacher and every student that is lacking, and print our rows beside the published ones."""
    cifar100.check_names(args.pair, args.method)
    device, pair = pick_device(args.device), PAIRS[args.pair]
    data = load_cifar100(args.data)
    teacher = None if args.teacher is None else cifar100.load_teacher(args.teacher, pair.teacher, data)
    out = args.out / args.pair / f"{args.epochs}-epochs"
    check_writable(out, "--out")
    train, test = len(data.train), len(data.test)  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out
    print(f"data: CIFAR-100, {train} training and {test} test images")
    print(f"device: {device}", flush=True)
    _warn_of_small_parts(args.method)
    rows = []
    if set(args.method) != {"alone"}:
        if teacher is None:
            teacher = cifar100.train_teacher(data, pair.teacher, _settings(args), device)
        rows.append(_teacher_row(args, teacher.to(device), data))
    for method in dict.fromkeys(args.method):
        fits = []
        for seed in range(args.seeds):
            run = out / method / f"seed-{seed}"
            tell = partial(print, f"{method}, seed {seed}:", flush=True)
            settings = _settings(args, seed)
            fits.append(cifar100.run(data, args.pair, method, settings, teacher, out=run, device=device, tell=tell))
            last, best = fits[-1].history.iloc[-1], fits[-1].best
            print(
                f"{method}, seed {seed}: last epoch {last['val_accuracy']:.2%}, best epoch {best['val_accuracy']:.2%} "
                f"(epoch {best['epoch']:.0f})",
                flush=True,
            )
        last_epochs = [one.history["val_accuracy"].iloc[-1] for one in fits]
        rows.append(cifar100.row(args.pair, method, last_epochs, [one.best["val_accuracy"] for one in fits]))
        if processes.is_first():
            write_whole(out / TABLE, with_earlier(out / TABLE, pd.DataFrame(rows)).to_csv(index=False).encode())
    _print_table(args, pd.DataFrame(rows))
    print(f"saved in {out}: {TABLE}, and each run in METHOD/seed-N")
    return 0


def _warn_of_small_parts(methods: Iterable[str]) -> None:
    """Say which losses see less of a batch here than where the published rows come from."""
    relations = [method for method in cifar100.OF_A_BATCH if method in methods]
    if relations and processes.count() > 1:
        print(
            f"{', '.join(relations)}: compares the images of a batch with one another, and each of the "
            f"{processes.count()} processes sees {cifar100.BATCH_SIZE // processes.count()} of {cifar100.BATCH_SIZE}. "
            "That is another loss than the published one; run it in one process.",
            flush=True,
        )


def _settings(args: argparse.Namespace, seed: int = 0) -> Settings:
    protocol = cifar100.protocol(args.epochs, seed, args.workers)
    return replace(protocol, precision=args.precision, channels_last=args.channels_last, compile=args.compile)


def _teacher_row(args: argparse.Namespace, teacher: nn.Module, data: ImageSplits) -> dict[str, object]:
    accuracy = evaluate(teacher, data.test, workers=args.workers)["accuracy"]
    print(f"teacher: {PAIRS[args.pair].teacher}, test accuracy {accuracy:.2%}", flush=True)
    return cifar100.row(args.pair, "teacher", [accuracy], [math.nan])


def with_earlier(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The rows, and those that earlier commands wrote of other methods; not of another teacher's students."""
    if not path.exists():
        return table
    earlier = pd.read_csv(path)
    teachers = pd.concat([rows[rows["method"] == "teacher"] for rows in (earlier, table)])
    if teachers["last"].nunique() > 1:
        return table
    both = pd.concat([earlier[~earlier["method"].isin(table["method"])], table])
    return both.sort_values("method", key=lambda method: method != "teacher", kind="stable")


def _print_table(args: argparse.Namespace, table: pd.DataFrame) -> None:
    pair = PAIRS[args.pair]
    print(f"\nCIFAR-100, {pair.teacher} -> {pair.student}, {args.epochs} epochs: top-1 test accuracy in percent")
    shown = pd.DataFrame({"method": table["method"], "seeds": table["seeds"]})
    for epoch in ("last", "best"):
        both = zip(table[epoch], table[f"{epoch}_interval"], strict=True)
        shown[f"{epoch} epoch"] = [_with_interval(mean, half) for mean, half in both]
    theirs = zip(table["published"], table["published_epoch"], table["source"], strict=True)
    shown["published"] = [
        "-" if math.isnan(accuracy) else f"{accuracy:.2f} (epoch: {epoch}; {source})"
        for accuracy, epoch, source in theirs
    ]
    print(shown.to_string(index=False))
    print("mean over the seeds ± half of its 95% interval. The test images have chosen the best epoch, and flatter it;")
    print("nothing has chosen the last one. Compare like with like: a published row says whose it is, and of which.")
    if args.epochs != EPOCHS:
        print(f"This is a trial of {args.epochs} epochs; the published rows are of {EPOCHS}.")


def _with_interval(mean: float, half: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.2f}" if math.isnan(half) else f"{mean:.2f} ± {half:.2f}"
