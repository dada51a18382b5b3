"""Scenes as a reader sees them: a colour for each class, a mask over its image, and where an answer is wrong."""

import html
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int, UInt8
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from torch import Tensor

from kdlab.classroom.figures import PALETTE, show
from kdlab.classroom.pictures import picture_grid
from kdlab.losses import PixelCrossEntropy

CLASS_COLOURS = ("#333333", *PALETTE[:6])  # the background's first
ERROR_COLOURS = {"shape missed": "#ff0000", "shape named wrongly": "#ffb000", "background taken for one": "#001f5c"}


def painted(mask: Int[Tensor, "h w"]) -> UInt8[Tensor, "h w 3"]:
    """Each pixel in the colour of its class; white where it has none."""
    known = mask != PixelCrossEntropy.IGNORE
    white = torch.full((*mask.shape, 3), 255, dtype=torch.uint8)
    return torch.where(known[..., None], _bytes(CLASS_COLOURS)[mask.long().where(known, 0)], white)


def overlaid(image: UInt8[Tensor, "3 h w"], mask: Int[Tensor, "h w"]) -> UInt8[Tensor, "h w 3"]:
    """The image, half covered by the colours of its classes; the background as it is."""
    pixels = image.movedim(0, -1)
    half = (pixels // 2) + (painted(mask) // 2)
    return torch.where((mask == 0)[..., None], pixels, half)


def wrong(answer: Int[Tensor, "h w"], mask: Int[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """Which pixels have another class than the answer says; those without a class count as right."""
    return (answer != mask) & (mask != PixelCrossEntropy.IGNORE)


def error_kinds(answer: Int[Tensor, "h w"], mask: Int[Tensor, "h w"]) -> Int[Tensor, "h w"]:
    """0 where the answer is right, else the number from 1 up of its mistake in :data:`ERROR_COLOURS`."""
    kinds = torch.where(mask == 0, 3, torch.where(answer == 0, 1, 2))
    return kinds * wrong(answer, mask)


def errors_over(
    image: UInt8[Tensor, "3 h w"], errors: Bool[Tensor, "h w"] | Int[Tensor, "h w"]
) -> UInt8[Tensor, "h w 3"]:
    """The image in pale grey, and in red where there is an error, or in the colour of its kind."""
    grey = (128 + image.float().mean(dim=0) / 2).to(torch.uint8)
    colours = _bytes(("#ffffff", *ERROR_COLOURS.values()))
    return torch.where(errors[..., None] > 0, colours[errors.long()], grey[..., None])


def legend_html(colours: Mapping[str, str]) -> str:
    """Which colour stands for what, in one line."""
    square = "display: inline-block; width: 0.8em; height: 0.8em; border: 1px solid currentColor"  # on any background
    marks = (
        f'<span style="{square}; background: {colour}"></span> {html.escape(name)}' for name, colour in colours.items()
    )
    return f"<p>{' &nbsp; '.join(marks)}</p>"


def show_pictures(
    rows: Mapping[str, Sequence[UInt8[Tensor, "_ _ 3"]]],
    alt: str,
    *,
    titles: Sequence[str] = (),
    classes: Sequence[str] = (),
    legend: Mapping[str, str] | None = None,
    width: float = 1.3,
    photographs: bool = False,
) -> None:
    """Pictures in rows, each row with its name at the left.

    Args:
        rows: from a row's name to its pictures; as many in each.
        alt: one sentence that says what they show, the finding included.
        titles: above the columns.
        classes, legend: which colour stands for which class, or for anything else, is said below.
        width: of one picture, in inches.
        photographs: as :func:`kdlab.classroom.show` has it.
    """
    fig = picture_grid(rows, titles, width, width, interpolation="nearest")
    colours = dict(zip(classes, CLASS_COLOURS, strict=False)) | dict(legend or {})
    if colours:
        patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
        fig.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, handlelength=1.0)
    show(fig, alt, photographs=photographs)


def _bytes(colours: Sequence[str]) -> UInt8[Tensor, "k 3"]:
    return (torch.tensor([to_rgb(colour) for colour in colours]) * 255).round().to(torch.uint8)
