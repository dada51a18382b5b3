"""One way to make and show a figure: its size, colours, markers, and a text for those who cannot see it."""

import base64
import html
import io
import zlib
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from cycler import cycler
from IPython.display import HTML, display
from matplotlib.figure import Figure

from kdlab.errors import InputError

# Okabe and Ito's colours, told apart with every form of colour blindness. In black and white a line has its marker.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def use_style() -> None:
    """kdlab's look for every figure made from here on."""
    plt.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=PALETTE, marker=MARKERS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.6,
            "lines.markersize": 4,
            "legend.frameon": False,
            "font.size": 10,
            "figure.dpi": 100,
        }
    )


def figure(
    rows: int = 1, columns: int = 1, *, width: float = 4.4, height: float = 3.0, **options: Any
) -> tuple[Figure, Any]:
    """A grid of axes; width and height in inches are those of one of them. Returns (figure, axes) as plt.subplots."""
    return plt.subplots(rows, columns, figsize=(width * columns, height * rows), layout="constrained", **options)


def show(drawn: Figure, alt: str, *, photographs: bool = False) -> None:
    """Show a figure under the cell, with ``alt``: one sentence that says what it shows, the finding included.

    Args:
        photographs: whether it is mostly these: a JPEG then, of far fewer bytes.

    Raises:
        InputError: an empty text.
    """
    if not alt.strip():
        raise InputError("show(figure, alt) got an empty text; wanted: a sentence that says what the figure shows.")
    kind = "jpeg" if photographs else "png"
    written = io.BytesIO()
    drawn.savefig(written, format=kind, bbox_inches="tight", pil_kwargs={"quality": 85} if photographs else None)
    plt.close(drawn)
    # As HTML, because JupyterLab drops the alternative text of an image output.
    source = f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"
    display(HTML(f'<img alt="{html.escape(alt)}" src="{source}" style="max-width: 100%">'))


def show_table(table: pd.DataFrame, caption: str, decimals: int = 3) -> None:
    """Show a table with its caption above; numbers rounded, the index hidden."""
    styled = table.style.format(precision=decimals, na_rep="").hide(axis="index").set_caption(caption)
    styled = styled.set_table_styles([{"selector": "caption", "props": "text-align: left"}])
    known_by = f"{zlib.crc32(caption.encode()):08x}"  # pandas' own is random: a notebook that is run again would differ
    display(HTML(styled.to_html(table_uuid=known_by)))
