"""Pixels as a reader sees them: in a widget's view, in a row of it, or in the rows of a figure."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from kdlab.classroom.figures import figure

Pixels = UInt8[Tensor, "h w 3"]
GREY = "#d9d9d9"


def coloured(
    values: Float[Tensor, "h w"], limits: tuple[float, float] | None = None, colours: str = "viridis"
) -> Pixels:
    """A map in false colours, dark to bright between two limits, its own where there are none; grey where it is NaN."""
    values = values.detach().float().cpu()
    low, high = limits or (values.nan_to_num(torch.inf).min().item(), values.nan_to_num(-torch.inf).max().item())
    shares = (values - low) / max(high - low, 1e-12)
    return torch.from_numpy(colormaps[colours].with_extremes(bad=GREY)(shares.numpy(), bytes=True)[..., :3].copy())


def picture_html(pixels: Pixels, caption: str, width: int = 160) -> str:
    """A square picture with its caption under it, every pixel a sharp square: for a widget's view."""
    return _figure_html(pixels, caption, width, f'height="{width}" style="image-rendering: pixelated" ')


def photograph_html(pixels: Pixels, caption: str, width: int) -> str:
    """A photograph with its caption under it, in its own proportions: for a widget's view."""
    return _figure_html(pixels, caption, width)


def side_by_side(pictures: Iterable[str], wrap: bool = False) -> str:
    """Pictures side by side; with ``wrap`` in more lines than one where the view is too narrow."""
    return f'<div style="display: flex; gap: 12px{"; flex-wrap: wrap" * wrap}">{"".join(pictures)}</div>'


def picture_grid(
    rows: Mapping[str, Sequence[UInt8[Tensor, "_ _ 3"]]],
    titles: Sequence[str],
    width: float,
    height: float,
    **drawing: Any,
) -> Figure:
    """Pictures in rows of a figure, each row with its name at the left.

    Args:
        rows: from a row's name to its pictures, of any sizes; as many in each.
        titles: above the columns.
        width, height: of one picture, in inches.
        drawing: what matplotlib's ``imshow`` can be told.
    """
    columns = max(len(pictures) for pictures in rows.values())
    fig, axes = figure(len(rows), columns, width=width, height=height, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for ax, pixels in zip(line, pictures, strict=True):
            ax.imshow(pixels.numpy(), **drawing)
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=8)
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title(title, fontsize=8)
    return fig


def _figure_html(pixels: Pixels, caption: str, width: int, shape: str = "") -> str:
    png = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(png, format="png", compress_level=1)
    source, words = base64.b64encode(png.getvalue()).decode(), html.escape(caption)
    return (
        f'<figure style="margin: 0; width: {width}px"><img alt="{words}" width="{width}" {shape}'
        f'src="data:image/png;base64,{source}"><figcaption>{words}</figcaption></figure>'
    )
