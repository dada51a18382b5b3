"""``kdlab predict``."""

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kdlab.commands.inputs import RESTORING, task_of
from kdlab.commands.outputs import as_json, check_out_file, say_skipped
from kdlab.commands.plain_weights import model_of
from kdlab.commands.predict_masks import check_mask_options, predict_masks
from kdlab.data import ImageTransform, Skipped
from kdlab.data.images import find_images, printable, try_open
from kdlab.errors import InputError
from kdlab.files import write_whole
from kdlab.loading import loaded_by
from kdlab.progress import progress
from kdlab.training import ModelCard, pick_device

BATCH_SIZE = 32


class Pictures(Dataset):
    """Files as (path, tensor), or as the reason why there is no tensor: one bad file shall not end a long run."""

    def __init__(self, paths: list[Path], transform: ImageTransform) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Path, Tensor] | Skipped:
        image = try_open(self.paths[index])
        return image if isinstance(image, Skipped) else (self.paths[index], self.transform(image))


def predict(args: argparse.Namespace) -> int:
    """Name the classes of image files, or of their pixels, in a table, CSV or JSON."""
    device = pick_device(args.device)
    model, card = model_of(args)
    if task_of(model) in RESTORING:
        raise InputError(
            f"the model in {args.model} is a restorer, which knows weather and no classes. For images without their "
            "weather use `kdlab restore`."
        )
    segmenter = task_of(model) == "segmentation"
    (check_mask_options if segmenter else _check_class_options)(args, card)
    paths, skipped = find_images(args.images)
    if args.out is not None and not segmenter:
        check_out_file(args.out, "--out", [*paths, *filter(None, [args.labels])], args.model)
    rows, unusable = (predict_masks if segmenter else _predict_classes)(args, model.to(device), card, paths)
    skipped += unusable
    say_skipped(skipped)
    if rows.empty:
        raise InputError(f"not one of the {len(skipped)} files could be used.")
    ending = "" if segmenter or args.out is None else args.out.suffix.lower()[1:]
    text = _formatted(rows, args.format or ending)
    if segmenter or args.out is None:
        print(text)
    else:
        write_whole(args.out, f"{text}\n".encode(errors="backslashreplace"))
        print(f"{rows['file'].nunique()} images predicted, written to {args.out}")
    return 0


def _check_class_options(args: argparse.Namespace, card: ModelCard) -> None:
    if args.top_k is not None and args.top_k > len(card.classes):
        raise InputError(f"--top-k is {args.top_k}, but the model knows only {len(card.classes)} classes.")


@torch.inference_mode()
def _predict_classes(
    args: argparse.Namespace, model: nn.Module, card: ModelCard, paths: list[Path]
) -> tuple[pd.DataFrame, list[Skipped]]:
    """A row for each file and rank, and the files that could not be used."""
    device = next(model.parameters()).device
    transform = ImageTransform(card.size, card.mean, card.std)
    batch_size = args.batch_size or BATCH_SIZE
    loader = DataLoader(Pictures(paths, transform), batch_size, collate_fn=list, **loaded_by(args.workers))
    rows: list[dict[str, object]] = []
    skipped: list[Skipped] = []
    for batch in progress(loader, desc="predicting", unit="batch"):
        skipped += [item for item in batch if isinstance(item, Skipped)]
        usable = [item for item in batch if not isinstance(item, Skipped)]
        if not usable:
            continue
        logits = model(torch.stack([tensor for _, tensor in usable]).to(device))
        best = logits.float().softmax(dim=1).topk(args.top_k or 1)
        for (path, _), probabilities, labels in zip(usable, best.values.tolist(), best.indices.tolist(), strict=True):
            rows += [
                {"file": printable(path), "rank": rank, "class": card.classes[label], "probability": probability}
                for rank, (probability, label) in enumerate(zip(probabilities, labels, strict=True), start=1)
            ]
    return pd.DataFrame(rows), skipped


def _formatted(rows: pd.DataFrame, form: str) -> str:
    if form == "json":
        return as_json(rows.to_dict("records"))
    if form == "csv":
        return rows.to_csv(index=False).rstrip("\n")
    return rows.to_string(index=False, float_format="{:.4f}".format)
