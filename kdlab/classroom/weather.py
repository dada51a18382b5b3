"""The widgets of chapter 07: weather made on a photograph, and a divider that is dragged from before to after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kdlab import training
from kdlab.classroom.figures import show
from kdlab.classroom.panel import Panel, choice, slider
from kdlab.classroom.pictures import Pixels, photograph_html, picture_grid
from kdlab.data.weather import WEATHERS, add_haze, add_rain, add_snow
from kdlab.errors import InputError, unknown

Image = Float[Tensor, "3 h w"]
LISTENS_TO = {"haze": ("beta", "airlight"), "rain": ("density", "angle"), "snow": ("density", "size")}


@dataclass(frozen=True)
class Weather:
    """A weather and its settings, those of :mod:`kdlab.data.weather`; each weather listens to its own.

    Args:
        name: "haze", "rain" or "snow".
        beta, airlight: of haze.
        density: of rain and snow.
        angle: of rain.
        size: of the flakes.
        seed: of the drops' and the flakes' places.
    """

    name: str
    beta: float = 1.2
    airlight: float = 0.85
    density: float = 1.0
    angle: float = 10.0
    size: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in WEATHERS:
            raise InputError(unknown("weather", self.name, WEATHERS))

    def on(self, image: Image, depth: Float[Tensor, "1 h w"]) -> Image:
        """The image in this weather. A higher density adds drops or flakes and moves none that are there."""
        drawn = torch.Generator().manual_seed(self.seed)
        match self.name:
            case "haze":
                return add_haze(image, depth, self.beta, self.airlight)
            case "rain":
                return add_rain(image, drawn, self.density, self.angle)
            case _:
                return add_snow(image, drawn, self.density, self.size)


def weather_maker(photograph: Image, depth: Float[Tensor, "1 h w"]) -> Panel:
    """Choose a weather and its settings: the photograph in it, and how far that is from the clean one.

    The panel has the controls as ``panel.weather``, ``.beta``, ``.airlight``, ``.density``, ``.angle`` and ``.size``;
    those that the weather does not listen to are disabled.
    """
    weather = choice("Weather", WEATHERS)
    sliders = {
        "beta": slider("Haze β", 1.2, 0.0, 3.0, 0.1),
        "airlight": slider("Airlight A", 0.85, 0.0, 1.0, 0.05),
        "density": slider("Drops or flakes", 1.0, 0.0, 3.0, 0.1),
        "angle": slider("Angle of the rain", 10.0, -60.0, 60.0, 5.0),
        "size": slider("Flake size", 1.0, 0.3, 3.0, 0.1),
    }

    def enable(change: object = None) -> None:
        for name, control in sliders.items():
            control.disabled = name not in LISTENS_TO[weather.value]

    def draw() -> str:
        made = Weather(weather.value, **{name: control.value for name, control in sliders.items()})
        degraded = made.on(photograph, depth)
        settings = ", ".join(f"{name} {getattr(made, name):g}" for name in LISTENS_TO[made.name])
        words = f"{made.name} with {settings}: PSNR {psnr(degraded, photograph):.1f} dB on RGB"
        if made.name == "haze":
            words += f"; of the farthest point's light {(-made.beta * depth.max()).exp():.0%} comes through"
        return photograph_html(as_pixels(degraded), words, width=480)

    weather.observe(enable, names="value")
    enable()
    panel = Panel([weather, *sliders.values()], draw, "weather")
    panel.weather = weather
    for name, control in sliders.items():
        setattr(panel, name, control)
    return panel


def divided(left: Image, right: Image, position: float) -> Image:
    """The left image up to a share of the width and the right image from there, with a white line between them."""
    columns = torch.arange(left.shape[-1])
    edge = round(position * left.shape[-1])
    together = torch.where(columns < edge, left, right)
    return torch.where(columns == edge, 1.0, together) if 0 < position < 1 else together


def before_after(results: Mapping[str, Mapping[str, Image]]) -> Panel:
    """Pick a photograph and two versions of it, and drag the divider from one to the other.

    The panel has the controls as ``panel.photograph``, ``.left``, ``.right`` and ``.divider``.

    Args:
        results: from a photograph's name to its versions by name, the same for each, "clean" among them; the first is
            at the left of the divider at the start and the second at its right.
    """
    versions = list(next(iter(results.values())))
    photograph = choice("Photograph", list(results))
    left, right = choice("Left", versions), choice("Right", versions)
    right.value = versions[1]
    divider = slider("Divider", 0.5, 0.0, 1.0, 0.01)

    def draw() -> str:
        of = results[photograph.value]
        said = (
            f"{side}: {name}" + ("" if name == "clean" else f", {psnr(of[name], of['clean']):.1f} dB")
            for side, name in (("left", left.value), ("right", right.value))
        )
        words = f"{photograph.value}, {' · '.join(said)} (PSNR of the whole image, on RGB)"
        return photograph_html(as_pixels(divided(of[left.value], of[right.value], divider.value)), words, width=480)

    panel = Panel([photograph, left, right, divider], draw, "before-after")
    panel.photograph, panel.left, panel.right, panel.divider = photograph, left, right, divider
    return panel


def as_pixels(image: Image) -> Pixels:
    """An image in 0 to 1, cut where it is beyond, as bytes with the channels last."""
    return (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1)


def psnr(image: Image, clean: Image) -> float:
    """On RGB, in decibels, without the SSIM that takes longer."""
    return training.psnr(image, clean).item()


def show_photographs(
    rows: Mapping[str, Sequence[Image]], alt: str, *, titles: Sequence[str] = (), width: float = 1.8
) -> None:
    """Photographs in rows, each row with its name at the left, in the proportions of the first.

    Args:
        rows: from a row's name to its photographs; as many in each.
        alt: one sentence that says what they show, the finding included.
        titles: above the columns.
        width: of one photograph, in inches.

    Raises:
        InputError: an empty text.
    """
    pictures = {name: [as_pixels(image) for image in images] for name, images in rows.items()}
    height, across, _ = next(iter(pictures.values()))[0].shape
    show(picture_grid(pictures, titles, width, width * height / across + 0.15), alt, photographs=True)
