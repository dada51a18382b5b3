"""Restoring an image of any size: as a whole, or in overlapping tiles."""

from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.restoration import LEAST, STRIDE
from kdlab.modes import evaluating
from kdlab.progress import progress

OVERLAP = 32


@torch.no_grad()
def restore(
    model: nn.Module, image: Float[Tensor, "3 h w"], tile: int | None = None, overlap: int = OVERLAP
) -> Float[Tensor, "3 h w"]:
    """The image as the model restores it, clamped to 0 to 1, on the image's device.

    The model computes in eval mode, on its own device. In tiles it wants memory for one of them, however large the
    image is. A tile ends where the image goes on, which a network does not know: the outer quarter of an overlap does
    not count, over the half between the weight goes from one tile to the next, linearly. A model that sees no farther
    than that quarter restores in tiles what it restores in one piece. Tiles start at multiples of 16, so that the
    coarse maps of :class:`kdlab.models.MSBDN` lie in a tile as they lie in the whole image.

    Args:
        model: from images (1, 3, h, w) in 0 to 1 to the same.
        tile: height and width of a tile; None: the whole image at once, as where a tile covers it all.
        overlap: pixels that neighbouring tiles share, at least.

    Raises:
        InputError: an overlap below 0, or of more than half a tile; whatever the model refuses.
    """
    if tile is not None:
        check_tiles(tile, overlap)
    rows, columns = (_parts(length, tile or length, overlap) for length in image.shape[1:])
    tiles = list(product(rows, columns))
    device = next((parameter.device for parameter in model.parameters()), image.device)
    restored = torch.zeros_like(image, dtype=torch.float32)
    with evaluating(model):
        for (down, fade_down), (across, fade_across) in tiles if len(tiles) == 1 else progress(tiles, unit="tile"):
            weight = (fade_down[:, None] * fade_across).to(restored.device)
            restored[:, down, across] += weight * model(image[None, :, down, across].to(device))[0].to(restored)
    return restored.clamp(0, 1)


def check_tiles(tile: int, overlap: int) -> None:
    """Refuse tiles that do not get along.

    Raises:
        InputError: an overlap below 0, or of more than half a tile; a tile below 32.
    """
    if overlap < 0:
        raise InputError(f"overlap is {overlap}; wanted: 0 or more pixels, such as {OVERLAP}.")
    if tile < max(LEAST, 2 * overlap):
        raise InputError(
            f"tile is {tile} and overlap {overlap}; wanted: a tile of at least {LEAST} pixels and of at least twice "
            f"the overlap, such as 512 with {OVERLAP}."
        )


def _parts(length: int, tile: int, overlap: int) -> list[tuple[slice, Tensor]]:
    """The tiles along one side, each with its pixels' weights; at every pixel those of all tiles add up to 1."""
    if length <= tile:
        return [(slice(length), torch.ones(length))]
    starts = range(0, length - tile, (tile - overlap) // STRIDE * STRIDE)
    last = -((tile - length) // STRIDE) * STRIDE
    total, parts = torch.zeros(length), []
    for start in (*starts, last):
        part = slice(start, min(start + tile, length))
        rise = ((torch.arange(part.stop - start) + 0.5 - overlap / 4) / (overlap / 2)).clamp(0, 1)
        weight = rise if start > 0 else torch.ones_like(rise)
        if part.stop < length:
            weight = weight * rise.flip(0)
        total[part] += weight
        parts.append((part, weight))
    return [(part, weight / total[part]) for part, weight in parts]
