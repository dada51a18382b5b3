"""What ``kdlab predict`` makes with a segmenter: a mask and an overlay for each image."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as transforms

from kdlab.commands.outputs import as_png, distinct_names, make_folder
from kdlab.data import Skipped
from kdlab.data.images import printable, try_open
from kdlab.errors import InputError
from kdlab.files import write_whole
from kdlab.loading import loaded_by
from kdlab.progress import progress
from kdlab.training import ModelCard

LONGEST = 20  # times the shorter side; scaled up to the model's size, a hair's breadth would fill the memory


class WholePictures(Dataset):
    """Files as (path, image, tensor of the whole image whose shorter side is the card's size), or why there is none."""

    def __init__(self, paths: list[Path], card: ModelCard) -> None:
        self.paths = paths
        self.card = card

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Path, Image.Image, Tensor] | Skipped:
        path = self.paths[index]
        image = try_open(path)
        if isinstance(image, Skipped):
            return image
        shorter = min(image.size)
        if max(image.size) > LONGEST * shorter:
            width, height = image.size
            return Skipped(path, f"{width}x{height} pixels, one side over {LONGEST} times the other; cut it in pieces")
        width, height = (round(side * self.card.size / shorter) for side in image.size)
        scaled = transforms.pil_to_tensor(image.resize((width, height), Image.Resampling.BILINEAR))
        pixels = transforms.to_dtype(scaled, torch.float32, scale=True)
        return path, image, transforms.normalize(pixels, list(self.card.mean), list(self.card.std))


def check_mask_options(args: argparse.Namespace, card: ModelCard) -> None:
    """Refuse what a segmenter has no use for, and a folder that cannot take the masks; make the folder."""
    for name, value in (("--top-k", args.top_k), ("--batch-size", args.batch_size)):
        if value is not None:
            raise InputError(f"{name} was given, but the model is a segmenter, which has no use for it. Leave it out.")
    if args.out is None:
        raise InputError("the model is a segmenter, which writes masks; wanted: --out FOLDER for them.")
    make_folder(args.out, args.images, "masks")


@torch.inference_mode()
def predict_masks(
    args: argparse.Namespace, model: nn.Module, card: ModelCard, paths: list[Path]
) -> tuple[pd.DataFrame, list[Skipped]]:
    """Write NAME_mask.png and NAME_overlay.png for each file.

    Returns:
        A row for each file with the share of each class, and the files that could not be used.
    """
    device = next(model.parameters()).device
    names = distinct_names(paths)
    rows: list[list[object]] = []
    skipped: list[Skipped] = []
    loader = DataLoader(WholePictures(paths, card), batch_size=None, **loaded_by(args.workers))
    for item in progress(loader, desc="predicting", unit="image"):
        if isinstance(item, Skipped):
            skipped.append(item)
            continue
        path, image, tensor = item
        width, height = image.size
        answer = decide(model(tensor[None].to(device))[0].float(), height, width).cpu().numpy()
        mask = Image.fromarray(answer)
        mask.putpalette(PALETTE)
        name = f"{names[path]}_mask.png"
        write_whole(args.out / name, as_png(mask))
        write_whole(args.out / f"{names[path]}_overlay.png", as_png(Image.blend(image, mask.convert("RGB"), alpha=0.5)))
        shares = np.bincount(answer.reshape(-1), minlength=len(card.classes)) / answer.size
        rows.append([printable(path), printable(name), *shares.tolist()])
    return pd.DataFrame(rows, columns=["file", "mask", *card.classes]), skipped


def decide(logits: Float[Tensor, "k _ _"], height: int, width: int) -> UInt8[Tensor, "height width"]:
    """The class of each pixel of an image of that size.

    The logits are scaled before the decision, so that outlines are smooth, and one class at a time: those of all
    classes for a large photograph would fill the memory.
    """
    best = torch.full((height, width), -torch.inf, device=logits.device)
    answer = torch.zeros(height, width, dtype=torch.uint8, device=logits.device)
    for number, logit in enumerate(logits):
        scaled = F.interpolate(logit[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
        answer[scaled > best] = number
        best = best.maximum(scaled)
    return answer


def _colour(number: int) -> tuple[int, int, int]:
    """The colour of Pascal VOC's masks: the number's bits, dealt out to red, green and blue from the highest down."""
    red, green, blue = (
        sum((number >> 3 * digit + channel & 1) << 7 - digit for digit in range(3)) for channel in range(3)
    )
    return red, green, blue


PALETTE = [level for number in range(256) for level in _colour(number)]
