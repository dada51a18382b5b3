"""Rain, haze and snow on clean images, made as they come about: scattering by depth, streaks, flakes.

All draw from an explicit generator: the same seed gives the same bytes.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from kdlab.errors import InputError, unknown

Image = Float[Tensor, "3 h w"]
Map = Float[Tensor, "1 h w"]


def add_haze(image: Image, depth: Map, beta: float = 1.2, airlight: float = 0.85, patches: Map | float = 1.0) -> Image:
    """Light that is scattered away between thing and eye, and light of the air that is scattered in.

    I = J t + A (1 - t) with the transmission t = exp(-beta d): the atmospheric scattering model.

    Args:
        image: J, 0 to 1.
        depth: d, 0 (near) to 1 (far).
        beta: how dense the haze is, at least 0, in units of 1 / depth.
        airlight: A, the brightness of the air, 0 to 1, the same in all channels.
        patches: how much denser or thinner it is at each place; 1 everywhere for a homogeneous haze.

    Raises:
        InputError: a density or an airlight out of range; a depth of another size.

    Source: Koschmieder's law, as Narasimhan and Nayar use it: Vision and the Atmosphere, IJCV 2002.
    """
    _within("beta", beta, 0, math.inf)
    _within("airlight", airlight, 0, 1)
    if depth.shape[1:] != image.shape[1:]:
        raise InputError(f"the depth is {tuple(depth.shape)} and the image {tuple(image.shape)}; wanted: one size.")
    transmission = (-beta * patches * depth).exp()
    return image * transmission + airlight * (1 - transmission)


def add_rain(
    image: Image, generator: torch.Generator, density: float = 1.0, angle: float = 10.0, strength: float = 0.4
) -> Image:
    """Streaks in three layers, the nearer the longer, wider and fewer: drops, smeared along their way, brighten.

    Args:
        image: 0 to 1.
        density: how many drops, at least 0; 1 is a shower.
        angle: degrees from the vertical, -60 to 60; positive falls to the right.
        strength: how bright the streaks are, 0 to 1.

    Raises:
        InputError: a setting out of range.
    """
    _within("density", density, 0, math.inf)
    _within("angle", angle, -60, 60)
    _within("strength", strength, 0, 1)
    height, width = image.shape[1:]
    streaks = torch.zeros(1, height, width)
    for share, length, thick, bright in ((0.012, 0.05, 0.6, 0.6), (0.005, 0.1, 0.9, 0.8), (0.0012, 0.18, 1.4, 0.6)):
        drops = (torch.rand(1, height, width, generator=generator) < share * density).float()
        drops = bright * drops * (0.3 + 0.7 * torch.rand(1, height, width, generator=generator))
        kernel = _line(max(3, round(length * height)), angle, thick)
        streaks += _stamped(drops, kernel)
    streaks = strength * streaks.clamp(0, 1)
    # A drop is a lens with much sky in it: its streak brightens, and never beyond white.
    return image + (1 - image) * streaks


def add_snow(
    image: Image, generator: torch.Generator, density: float = 1.0, size: float = 1.0, veil: float = 0.12
) -> Image:
    """Flakes of four sizes, the larger ones out of focus, and a veil of those too far to be seen.

    Args:
        image: 0 to 1.
        density: how many flakes, at least 0; 1 is a flurry.
        size: of the flakes, as a factor, 0.1 to 10.
        veil: how much the air brightens in a flurry, 0 to 1; up to twice as much in denser snow, at most to its grey.

    Raises:
        InputError: a setting out of range.
    """
    _within("density", density, 0, math.inf)
    _within("size", size, 0.1, 10)
    _within("veil", veil, 0, 1)
    height, width = image.shape[1:]
    cover = torch.zeros(1, height, width)
    for radius, share, bright in ((0.6, 0.010, 0.7), (1.2, 0.004, 0.8), (2.2, 0.0012, 0.9), (4.0, 0.0003, 0.75)):
        radius = max(0.5, radius * size * height / 256)
        often = share * density / (size * height / 256) ** 2
        places = (torch.rand(1, height, width, generator=generator) < often).float()
        places = places * (0.6 + 0.4 * torch.rand(1, height, width, generator=generator))
        flakes = _stamped(places, _disc(radius)).clamp(0, 1)
        cover = torch.maximum(cover, bright * flakes)
    share = min(1.0, veil * density / (1 + density) * 2)  # beyond the air's grey lies the image's negative
    veiled = image + share * (0.95 - image)
    return (veiled * (1 - cover) + cover).clamp(0, 1)


def synthetic_depth(height: int, width: int, generator: torch.Generator) -> Map:
    """A depth for an image that has none, 0 to 1: farther towards the top, with smooth hills of several sizes."""
    slope = torch.linspace(1, 0.15, height).view(1, height, 1).expand(1, height, width)
    hills = smooth_noise(height, width, generator)
    return (0.65 * slope + 0.35 * hills).clamp(0, 1)


def smooth_noise(height: int, width: int, generator: torch.Generator) -> Map:
    """Random hills, 0 to 1: grids of 3, 6 and 12 cells a side, each half as high, smoothly enlarged and added."""
    total = torch.zeros(1, height, width)
    for octave, cells in enumerate((3, 6, 12)):
        grid = torch.rand(1, 1, cells, cells, generator=generator)
        total += F.interpolate(grid, (height, width), mode="bicubic", align_corners=True)[0] / 2**octave
    return (total - total.amin()) / (total.amax() - total.amin())


WEATHERS = ("haze", "rain", "snow")


def draw_weather(name: str, image: Image, generator: torch.Generator, depth: Map | None = None) -> Image:
    """The image in a weather of random density: what the restoration chapters train on.

    Args:
        name: "haze", "rain" or "snow".
        depth: for haze; a synthetic one where not given.

    Raises:
        InputError: another weather.
    """
    first, second, third = torch.rand(3, generator=generator).tolist()
    match name:
        case "haze":
            height, width = image.shape[1:]
            depth = synthetic_depth(height, width, generator) if depth is None else depth
            return add_haze(image, depth, beta=0.5 + first, airlight=0.7 + 0.25 * second)
        case "rain":
            return add_rain(image, generator, 0.5 + 1.5 * first, -25 + 50 * second, 0.4 + 0.4 * third)
        case "snow":
            return add_snow(image, generator, 0.7 + 1.3 * first, 0.7 + 0.8 * second, 0.02 + 0.06 * third)
        case _:
            raise InputError(unknown("weather", name, WEATHERS))


HAZES = ("homogeneous", "non-homogeneous")


def draw_haze(kind: str, image: Image, generator: torch.Generator, depth: Map | None = None) -> Image:
    """The image in a haze of random density, dense more often than not: what the dehazing chapter trains on.

    Args:
        kind: "homogeneous", or "non-homogeneous": in patches, from none at all to twice as dense.
        depth: a synthetic one where not given.

    Raises:
        InputError: another kind.
    """
    if kind not in HAZES:
        raise InputError(unknown("kind of haze", kind, HAZES))
    height, width = image.shape[1:]
    density, bright = torch.rand(2, generator=generator).tolist()
    depth = synthetic_depth(height, width, generator) if depth is None else depth
    patches = 1.0 if kind == "homogeneous" else 2 * smooth_noise(height, width, generator)
    return add_haze(image, depth, beta=1 + 2 * density, airlight=0.7 + 0.25 * bright, patches=patches)


def _stamped(places: Map, stamp: Float[Tensor, "a b"]) -> Map:
    """A stamp of odd sides, set down at each place as strongly as the place says: their convolution.

    Through Fourier space: for a stamp of 45x45 pixels a layer of one channel takes hundreds of times as long.
    """
    size = [side + reach - 1 for side, reach in zip(places.shape[1:], stamp.shape, strict=True)]
    spread = torch.fft.irfft2(torch.fft.rfft2(places, size) * torch.fft.rfft2(stamp, size), size)
    return TF.center_crop(spread, list(places.shape[1:]))


def _line(length: int, angle: float, thick: float) -> Tensor:
    """A smeared drop: an anti-aliased line, square, of odd size, brightest 1."""
    length += 1 - length % 2
    pixels = torch.arange(length) - (length - 1) / 2
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")
    turn = math.radians(angle)
    away = (x * math.cos(turn) - y * math.sin(turn)).abs()
    along = (x * math.sin(turn) + y * math.cos(turn)).abs()
    return ((thick + 1) / 2 - away).clamp(0, 1) * (length / 2 - along).clamp(0, 1)


def _disc(radius: float) -> Tensor:
    """A flake: a disc with a soft edge, of odd size, brightest 1."""
    reach = math.ceil(radius + 1)
    pixels = torch.arange(-reach, reach + 1, dtype=torch.float32)
    distance = (pixels[:, None] ** 2 + pixels**2).sqrt()
    return (1 - (distance - radius * 0.6) / (radius * 0.4 + 0.5)).clamp(0, 1)


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        bound = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise InputError(f"{name} is {value}; wanted: {bound}.")
