"""``kdlab restore``."""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from kdlab.commands.inputs import RESTORING, task_of
from kdlab.commands.outputs import as_png, distinct_names, make_folder, say_skipped
from kdlab.commands.parsers import TILE
from kdlab.data import Skipped
from kdlab.data.images import find_images, printable, try_open
from kdlab.errors import InputError
from kdlab.files import write_whole
from kdlab.progress import progress
from kdlab.training import SelfEnsemble, load_model, pick_device
from kdlab.training.tiles import check_tiles, restore

WHOLE = 2**20  # pixels up to which an image is restored in one piece
RESTORED, COMPARED = "_restored.png", "_compared.png"


def restore_images(args: argparse.Namespace) -> int:
    """Write the restored images into a folder."""
    device = pick_device(args.device)
    model, card = load_model(args.model)
    if task_of(model) not in RESTORING:
        raise InputError(
            f"the model in {args.model} was made for {task_of(model)} ({card.architecture['name']}) and restores "
            "nothing; wanted: what teach or distill made with --task restoration or dehazing. For this one use `kdlab "
            "predict`."
        )
    if args.tile != 0:
        check_tiles(args.tile or TILE, args.overlap)
    make_folder(args.out, args.images, "restored images")
    paths, skipped = find_images(args.images)
    names = distinct_names(paths)
    _check_not_over_images(args, names)
    model.to(device)
    if args.self_ensemble:
        model = SelfEnsemble(model)
    restored = 0
    try:
        for path in progress(paths, desc="restoring", unit="image"):
            image = try_open(path)
            if isinstance(image, Skipped):
                skipped.append(image)
                continue
            try:
                clean = _restored(model, image, args.tile, args.overlap)
            except InputError as error:
                skipped.append(Skipped(path, str(error)))
                continue
            write_whole(args.out / f"{names[path]}{RESTORED}", as_png(clean))
            if args.side_by_side:
                write_whole(args.out / f"{names[path]}{COMPARED}", as_png(_beside(image, clean)))
            restored += 1
    finally:  # where it ends early, too
        say_skipped(skipped)
    if not restored:
        raise InputError(f"not one of the {len(skipped)} files could be used.")
    print(f"{restored} images restored, written to {printable(args.out)}")
    return 0


def _check_not_over_images(args: argparse.Namespace, names: dict[Path, str]) -> None:
    """Refuse a folder in which a restored image would take the place of one that is to be restored, by a link."""
    given = {path.resolve() for path in names}
    for name in names.values():
        for target in (args.out / f"{name}{RESTORED}", args.out / f"{name}{COMPARED}"):
            if target.resolve() in given:
                raise InputError(
                    f"{printable(target)} is one of the images and would be written over. Name another folder."
                )


def _restored(model: nn.Module, image: Image.Image, tile: int | None, overlap: int) -> Image.Image:
    if tile is None:
        tile = TILE if image.width * image.height > WHOLE else 0
    pixels = transforms.to_dtype(transforms.pil_to_tensor(image), torch.float32, scale=True)
    restored = restore(model, pixels, tile or None, overlap)
    return transforms.to_pil_image((restored * 255).round().to(torch.uint8))


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + right.width, left.height))
    both.paste(left)
    both.paste(right, (left.width, 0))
    return both
