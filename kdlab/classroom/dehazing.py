"""Chapter 10: the dark channel prior, and the widgets: a haze maker, the self-ensemble, attention at a pixel."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import ipywidgets as widgets
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdlab.classroom.panel import Panel, choice, slider
from kdlab.classroom.pictures import coloured, photograph_html, side_by_side
from kdlab.classroom.svg import bar_chart
from kdlab.classroom.weather import as_pixels, psnr
from kdlab.data.weather import add_haze, smooth_noise
from kdlab.distill import Taps
from kdlab.models import KTDN
from kdlab.models.restoration import STRIDE
from kdlab.training.self_ensemble import POSITIONS

Image = Float[Tensor, "3 h w"]
Map = Float[Tensor, "1 h w"]

WINDOW = 9  # pixels a side; the published 15 are for photographs of twice the size
OMEGA = 0.95  # of the haze is taken away: a trace of it makes distance
LEAST = 0.1  # what the transmission is at least divided by
HAZIEST = 0.001  # of the pixels say what the air looks like
SMOOTH = 1e-3  # of the guided filter
WIDE, NARROW = 320, 240  # pixels of a photograph in a widget
CELL = 32  # pixels of one position of the coarsest map, in the picture that is clicked
CAPTION = 48  # pixels below that picture, for its title
BLOCKS = {"1/16 of the size": "middle", "1/8": "up.0.1", "1/4": "up.1.1"}


# --- the dark channel prior ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prior:
    """What the dark channel prior makes of a hazy image: the dark channel, the air, the transmission, the clear image.

    Source: He, Sun, Tang: Single Image Haze Removal Using Dark Channel Prior, CVPR 2009.
    """

    dark: Map
    airlight: Float[Tensor, "3 1 1"]
    transmission: Map
    dehazed: Image


def dark_channel(image: Image) -> Map:
    """At each pixel the least of the three colours in the window around it: near 0 in most clear photographs."""
    least = image.amin(dim=0, keepdim=True)
    return -F.max_pool2d(-least, WINDOW, stride=1, padding=WINDOW // 2)


def by_dark_channel(hazy: Image) -> Prior:
    """Dehaze as if every window of the clear image held a pixel with a colour of 0."""
    dark = dark_channel(hazy)
    haziest = dark.flatten().topk(math.ceil(HAZIEST * dark.numel())).indices
    airlight = hazy.flatten(1)[:, haziest].mean(dim=1).view(3, 1, 1)
    rough = 1 - OMEGA * dark_channel(hazy / airlight)
    transmission = guided(rough, hazy.mean(dim=0, keepdim=True)).clamp(0, 1)
    dehazed = ((hazy - airlight) / transmission.clamp(min=LEAST) + airlight).clamp(0, 1)
    return Prior(dark, airlight, transmission, dehazed)


def guided(rough: Map, guide: Map) -> Map:
    """The map with the edges of the guide instead of those of its windows: in each window a line through the guide.

    Source: He, Sun, Tang: Guided Image Filtering, ECCV 2010.
    """

    def mean(x: Map) -> Map:
        return F.avg_pool2d(x, 2 * WINDOW + 1, stride=1, padding=WINDOW, count_include_pad=False)

    slope = (mean(guide * rough) - mean(guide) * mean(rough)) / (mean(guide**2) - mean(guide) ** 2 + SMOOTH)
    offset = mean(rough) - slope * mean(guide)
    return mean(slope) * guide + mean(offset)


# --- make haze -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Haze:
    """A haze and its settings.

    Args:
        beta, airlight: as :func:`kdlab.data.weather.add_haze` has them.
        relief: how much of the depth is used, 0 to 1; at 0 all is as far away as the mean.
        patchiness: 0 to 1: how far the density goes up and down from place to place; at 1 from none to the double.
        seed: of the patches.
    """

    beta: float = 1.5
    airlight: float = 0.85
    relief: float = 1.0
    patchiness: float = 0.0
    seed: int = 0

    def transmission(self, depth: Map) -> Map:
        """The share of the light that comes through."""
        far = self.relief * depth + (1 - self.relief) * depth.mean()
        _, height, width = depth.shape
        hills = smooth_noise(height, width, torch.Generator().manual_seed(self.seed))
        return (-self.beta * (1 + self.patchiness * (2 * hills - 1)) * far).exp()

    def on(self, image: Image, depth: Map) -> Image:
        """The image in this haze."""
        # A depth whose exponential is the transmission, so that there is one scattering model.
        return add_haze(image, -self.transmission(depth).log(), beta=1.0, airlight=self.airlight)


def haze_maker(photograph: Image, depth: Map) -> Panel:
    """Make a haze, and see what the dark channel prior takes it for and makes of it.

    The panel has the controls as ``panel.beta``, ``.airlight``, ``.relief`` and ``.patchiness``.
    """
    sliders = {
        "beta": slider("Density β", 1.5, 0.0, 4.0, 0.1),
        "airlight": slider("Airlight A", 0.85, 0.5, 1.0, 0.05),
        "relief": slider("Depth", 1.0, 0.0, 1.0, 0.05),
        "patchiness": slider("Patchiness", 0.0, 0.0, 1.0, 0.05),
    }

    def draw() -> str:
        haze = Haze(**{name: control.value for name, control in sliders.items()})
        hazy, through = haze.on(photograph, depth), haze.transmission(depth)
        prior = by_dark_channel(hazy)
        off = (prior.transmission - through).abs().mean().item()
        above = [
            photograph_html(as_pixels(hazy), f"hazy: PSNR {psnr(hazy, photograph):.1f} dB", WIDE),
            photograph_html(
                as_pixels(prior.dehazed), f"by the dark channel: PSNR {psnr(prior.dehazed, photograph):.1f} dB", WIDE
            ),
        ]
        below = [
            photograph_html(coloured(one[0], (0.0, 1.0)), f"transmission, {name}", WIDE)
            for name, one in (("true", through), ("by the dark channel", prior.transmission))
        ]
        settings = ", ".join(f"{name} {control.value:g}" for name, control in sliders.items())
        words = (
            f"{settings}: {through.mean():.0%} of the light comes through on average; the prior's transmission is off "
            f"by {off:.2f}, and its air is {prior.airlight.mean():.2f}."
        )
        return f"{side_by_side(above)}{side_by_side(below)}<p>{words}</p>"

    panel = Panel([*sliders.values()], draw, "haze")
    for name, control in sliders.items():
        setattr(panel, name, control)
    return panel


# --- the self-ensemble -----------------------------------------------------------------------------------------------


@torch.no_grad()
def restored_in_each_position(network: nn.Module, hazy: Image) -> Float[Tensor, "8 3 h w"]:
    """What the network, in eval mode, makes of the image in each of its eight positions, turned back; on the CPU."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    found = []
    for transposed in (False, True):
        for dims in POSITIONS:
            seen = hazy[None].to(device).flip(dims)
            if transposed:
                seen = seen.transpose(2, 3)
            restored = network(seen)
            if transposed:
                restored = restored.transpose(2, 3)
            found.append(restored.flip(dims)[0].cpu())
    return torch.stack(found)


def ensemble_viewer(photographs: Mapping[str, tuple[Float[Tensor, "8 3 h w"], Image]]) -> Panel:
    """Pick a photograph, and switch the self-ensemble on and off: what is restored, and what is left.

    The panel has the controls as ``panel.photograph``, ``.ensemble`` and ``.position``, which counts while the ensemble
    is off.

    Args:
        photographs: by name what :func:`restored_in_each_position` gives, and the clean image.
    """
    photograph = choice("Photograph", list(photographs))
    ensemble = choice("Self-ensemble", ["off", "on"])
    position = slider("Position", 1, 1, 8, 1)
    position.readout_format = ".0f"

    def draw() -> str:
        each, clean = photographs[photograph.value]
        on = ensemble.value == "on"
        position.disabled = on
        restored = each.mean(dim=0) if on else each[int(position.value) - 1]
        scores = [psnr(one, clean) for one in each]
        together = psnr(each.mean(dim=0), clean)
        over = [one - min(scores) for one in (*scores, together)]
        name = "mean of eight positions" if on else f"position {int(position.value)}"
        pictures = [
            photograph_html(as_pixels(restored), f"{name}: PSNR {psnr(restored, clean):.2f} dB", WIDE),
            photograph_html(as_pixels(4 * (restored - clean).abs()), "4 × error", WIDE),
        ]
        chart = bar_chart(
            {"dB over the worst position": over}, [*map(str, range(1, 9)), "all"],
            "How much better than the worst position each of the eight is, and their mean", (0.0, max(over) + 0.05),
            ylabel="dB",
        )  # fmt: skip
        words = (
            f"{photograph.value}, self-ensemble {ensemble.value}: one position has {min(scores):.2f} to "
            f"{max(scores):.2f} dB, their mean {together:.2f} dB."
        )
        return f"{side_by_side(pictures)}{chart}<p>{words}</p>"

    panel = Panel([photograph, ensemble, position], draw, "ensemble")
    panel.photograph, panel.ensemble, panel.position = photograph, ensemble, position
    return panel


# --- attention -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def attention_maps(network: KTDN, hazy: Image) -> dict[str, Float[Tensor, "1 _ _"]]:
    """By :data:`BLOCKS` the weight of each position, 0 to 1; the maps go on over the image's padding. On the CPU."""
    places = {name: f"{block}.attention.1.weigh" for name, block in BLOCKS.items()}
    with Taps(network, list(places.values())) as taps:
        network(hazy[None].to(network.mean.device))
    return {name: taps[place][0].cpu() for name, place in places.items()}


def at_pixel(values: Map, row: int, column: int, height: int) -> float:
    """What the map has for a pixel of an image of this height, which was padded to a multiple of 16."""
    pixels = (height + -height % STRIDE) // values.shape[1]  # of one position
    return values[0, row // pixels, column // pixels].item()


def attention_explorer(network: KTDN, hazy: Mapping[str, Image], transmission: Mapping[str, Map]) -> Panel:
    """Click at a place of the photograph: how much weight each block gives it, and how much light comes through there.

    The panel has the controls as ``panel.photograph`` and ``panel.cells``, a button for each 16x16 pixels, row by row.

    Args:
        hazy, transmission: by name, all of one size.
    """
    photograph = choice("Photograph", list(hazy))
    first = next(iter(hazy.values()))
    _, height, width = first.shape
    rows, columns = math.ceil(height / STRIDE), math.ceil(width / STRIDE)
    maps = {name: attention_maps(network, image) for name, image in hazy.items()}
    size = widgets.Layout(width=f"{CELL}px", height=f"{CELL}px", margin="0", padding="0", min_width="0")
    clear, marked = (
        widgets.ButtonStyle(button_color=colour, text_color="#ffffff", font_weight="bold")
        for colour in ("transparent", "#000000")
    )
    cells = [
        widgets.Button(tooltip=f"row {row + 1}, column {column + 1}", layout=size)
        for row in range(rows) for column in range(columns)
    ]  # fmt: skip
    picture = widgets.HTML(layout=widgets.Layout(grid_area="1 / 1", margin="0"))
    grid = widgets.GridBox(
        cells,
        layout=widgets.Layout(
            grid_area="1 / 1", grid_template_columns=f"repeat({columns}, {CELL}px)",
            grid_template_rows=f"repeat({rows}, {CELL}px)",
        ),
    )  # fmt: skip
    clickable = widgets.GridBox([picture, grid], layout=widgets.Layout(height=f"{rows * CELL + CAPTION}px"))
    at = rows // 2 * columns + columns // 2

    def draw() -> str:
        row, column = (STRIDE * place + STRIDE // 2 for place in divmod(at, columns))
        row, column = min(row, height - 1), min(column, width - 1)
        image, found = hazy[photograph.value], maps[photograph.value]
        picture.value = photograph_html(as_pixels(image), photograph.value, CELL * width // STRIDE)
        for place, cell in enumerate(cells):
            cell.description = "×" if place == at else " "  # the page leaves the old text where the new one is empty
            cell.style = marked if place == at else clear
        said: list[str] = []
        pictures: list[str] = []
        for name, values in found.items():
            here = at_pixel(values, row, column, height)
            below = (values < here).float().mean().item()
            said.append(f"{name}: {here:.3f}, more than {below:.0%} of the map")
            pictures.append(photograph_html(coloured(values[0]), f"attention at {name}", NARROW))
        light = transmission[photograph.value][0, row, column].item()
        words = f"Row {row + 1}, column {column + 1}, where {light:.0%} of the light comes through. "
        return f"{side_by_side(pictures)}<p>{words}Weight at {'; '.join(said)}.</p>"

    panel = Panel([photograph, clickable], draw, "attention")

    def choose(place: int) -> None:
        nonlocal at
        at = place
        panel.redraw()

    for place, cell in enumerate(cells):
        cell.on_click(lambda _, place=place: choose(place))
    panel.photograph, panel.cells = photograph, cells
    return panel
