"""``kdlab evaluate``."""

import argparse
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdlab.commands.evaluate_restorer import evaluate_restorer
from kdlab.commands.inputs import (
    METRICS,
    RESTORING,
    check_classes,
    check_split,
    list_data,
    load_data,
    load_masks,
    task_of,
)
from kdlab.commands.options import option
from kdlab.commands.outputs import as_json, say_skipped
from kdlab.commands.plain_weights import model_of
from kdlab.data import ImageSplits
from kdlab.data.masks import IGNORE
from kdlab.errors import InputError
from kdlab.loading import loaded_by
from kdlab.training import (
    ModelCard,
    classification_metrics,
    pick_device,
    predict_logits,
    segmentation_metrics,
)

BATCH_SIZE = 32
CONFUSIONS = 10  # that are shown, the most frequent ones


def evaluate(args: argparse.Namespace) -> int:
    """Measure a model on one split and print it as a table, CSV or JSON."""
    device = pick_device(args.device)
    model, card = model_of(args, lambda: list_data(args.data, args.split).classes)
    model.to(device)
    task = task_of(model)
    useless = ("batch_size", "workers") if task in RESTORING else ("weather", "per_image", "self_ensemble")
    for name in useless:
        if getattr(args, name) is not None:
            raise InputError(
                f"{option(name)} was given, but the model is for {task}, which has no use for it. Leave it out."
            )
    if task in RESTORING:
        evaluate_restorer(args, model, card)
    elif task == "segmentation":
        _evaluate_segmenter(args, model, card)
    else:
        _evaluate_classifier(args, model, card)
    return 0


def _evaluate_classifier(args: argparse.Namespace, model: nn.Module, card: ModelCard) -> None:
    check_classes("model", card.classes, list_data(args.data, args.split))
    data = load_data(args.data, card.size, card.mean, card.std, only=args.split)
    logits, labels = predict_logits(model, _loader(args, data))
    metrics = _named(classification_metrics(logits, labels))

    classes = np.array(card.classes)
    answers = pd.DataFrame({"class": classes[labels.numpy()], "predicted": classes[logits.argmax(dim=1).numpy()]})
    right = answers["class"] == answers["predicted"]
    by_class = right.groupby(answers["class"]).agg(images="size", accuracy="mean").loc[list(classes)].reset_index()
    counts = answers[~right].groupby(["class", "predicted"]).size().sort_values(ascending=False, kind="stable")
    confusions = counts.head(CONFUSIONS).reset_index(name="images")

    if args.format == "json":
        result = {"data": data.name, "split": args.split, "images": len(labels), **metrics}
        result |= {"classes": by_class.to_dict("records"), "confusions": confusions.to_dict("records")}
        print(as_json(result))
    elif args.format == "csv":
        parts = [
            pd.DataFrame({"measure": metrics.keys(), "class": "", "predicted": "", "value": metrics.values()}),
            by_class.rename(columns={"accuracy": "value"}).assign(measure="accuracy", predicted=""),
            confusions.rename(columns={"images": "value"}).assign(measure="confusions"),
        ]
        columns = ["measure", "class", "predicted", "value"]
        print(pd.concat([part[columns] for part in parts if len(part)]).to_csv(index=False), end="")
    else:
        _print_metrics(args, data, len(labels), metrics)
        print(f"\n{by_class.to_string(index=False, float_format='{:.4f}'.format)}")
        print(
            f"\nmost frequent confusions:\n{confusions.to_string(index=False)}" if len(confusions) else "\nno confusion"
        )


def _evaluate_segmenter(args: argparse.Namespace, model: nn.Module, card: ModelCard) -> None:
    data = load_masks(args.data, card.size, card.mean, card.std, who="model", classes=card.classes)
    pixels = torch.zeros(len(card.classes), dtype=torch.long)
    loader = _loader(args, data)
    measured, iou = segmentation_metrics(model, _counting(loader, pixels), len(card.classes))
    metrics = _named({name: measured[name] for name in ("miou", "mdice", "pixel_accuracy", "loss")})
    by_class = pd.DataFrame({"class": card.classes, "pixels": pixels.tolist(), "iou": iou.tolist()})
    images = len(loader.dataset)  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out

    if args.format == "json":
        result = {"data": data.name, "split": args.split, "images": images, **metrics}
        print(as_json(result | {"classes": by_class.to_dict("records")}))
    elif args.format == "csv":
        overall = pd.DataFrame({"measure": metrics.keys(), "class": "", "value": metrics.values()})
        each = by_class.melt("class", var_name="measure")[overall.columns]
        print(pd.concat([overall, each]).to_csv(index=False), end="")
    else:
        _print_metrics(args, data, images, metrics)
        print(f"\n{by_class.rename(columns={'iou': 'IoU'}).to_string(index=False, float_format='{:.4f}'.format)}")


def _loader(args: argparse.Namespace, data: ImageSplits) -> DataLoader:
    check_split(args, data)
    say_skipped(data.skipped)
    return DataLoader(getattr(data, args.split), args.batch_size or BATCH_SIZE, **loaded_by(args.workers or 0))


def _counting(loader: Iterable, pixels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What the loader yields; adds up in ``pixels`` how many of the masks' pixels have each class."""
    for images, masks in loader:
        pixels += masks[masks != IGNORE].bincount(minlength=len(pixels))
        yield images, masks


def _named(metrics: dict[str, float]) -> dict[str, float]:
    """Under the names of users, who do not know which loss is meant."""
    return {"cross_entropy" if name == "loss" else name: value for name, value in metrics.items()}


def _print_metrics(args: argparse.Namespace, data: ImageSplits, images: int, metrics: dict[str, float]) -> None:
    print(f"{data.name}, {args.split}: {images} images")
    for name, value in metrics.items():
        print(f"{METRICS.get(name, name.replace('_', ' ')):18}{value:.4f}")
