"""Labelled scenes: textured shapes of six kinds, over one another and over real photographs, with masks and boxes."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import Dataset

from kdlab.data.photos import FILES, TILE, Tile, list_tiles, load_photograph
from kdlab.data.splits import ImageSplits
from kdlab.data.transforms import ImageTransform, three_numbers
from kdlab.errors import InputError, unknown
from kdlab.progress import progress

CLASSES = ("background", "disc", "square", "triangle", "star", "ring", "cross")
SAMPLES = {"train": 2000, "val": 200, "test": 500}
SIZE = 64

# Of the 2,000 training scenes with seed 0; those of other seeds and sizes differ by less than 0.01.
MEAN = (0.491, 0.452, 0.430)
STD = (0.255, 0.231, 0.238)

FEWEST, MOST = 2, 4  # shapes in a scene
OWN_TEXTURE = 0.5  # how often a shape has the texture of its class; else it is any, so texture is a hint and no proof


class Scenes(Dataset):
    """Item ``i`` is ``(image Float (3, size, size), mask Int64 (size, size))``; it depends on (seed, split, i) alone.

    Two to four shapes of random kind, place, size, turn, texture and colour lie over one another and over a softened
    part of a photograph. The splits take different parts of the photographs (`kdlab.data.photos.list_tiles`). Shapes
    are anti-aliased in the image and exact in the mask: a pixel belongs to the topmost shape that covers its centre.

    Args:
        split: "train", "val" or "test".
        samples: how many; 2,000, 200 and 500 where not given. More of them begin with the same ones.
        size: height and width in pixels; shapes and textures grow with it.
        seed: another one gives other scenes.
        mean, std: red, green, blue, for pixel values in 0 to 1; those of the training scenes where not given.

    Attributes:
        images: before the normalisation, uint8 (samples, 3, size, size).
        shapes: which shape each pixel shows, from the rearmost, 1, to the topmost; 0 is background.
        labels: the class of each shape, (samples, 5); of number 0 and of those that are not there, 0.

    Raises:
        InputError: a setting is wrong, or a photograph is missing.
    """

    classes = CLASSES

    def __init__(
        self,
        split: str,
        samples: int | None = None,
        size: int = SIZE,
        seed: int = 0,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        if split not in SAMPLES:
            raise InputError(unknown("split", split, SAMPLES))
        samples = SAMPLES[split] if samples is None else samples
        for name, value, least in (("samples", samples, 1), ("size", size, 16), ("seed", seed, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} is {value!r}, wanted a whole number from {least} up.")
        transform = ImageTransform(size, three_numbers("mean", mean), three_numbers("std", std))
        self.mean, self.std = transform.mean, transform.std

        photographs = {name: load_photograph(name) for name in FILES}
        tiles = list_tiles(split, photographs)
        self.images = torch.empty(samples, 3, size, size, dtype=torch.uint8)
        self.shapes = torch.zeros(samples, size, size, dtype=torch.uint8)
        self.labels = torch.zeros(samples, 1 + MOST, dtype=torch.long)
        for index in progress(range(samples), desc=f"drawing {split} scenes", unit="scene"):
            words = [seed, list(SAMPLES).index(split), index]
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))
            image = _background(tiles, photographs, size, generator)
            labels = _draw_shapes(image, self.shapes[index], generator)
            self.images[index] = image.mul_(255).round_().to(torch.uint8)
            self.labels[index, 1 : 1 + len(labels)] = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 s s"], Int64[Tensor, "s s"]]:
        image = self.images[index] / 255
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        return (image - mean) / std, self.labels[index][self.shapes[index].long()]

    def boxes(self, index: int) -> tuple[Float[Tensor, "b 4"], Int64[Tensor, " b"]]:
        """The box around what is visible of each shape, and its class; a shape that is wholly covered has none.

        A box is (left, top, right, bottom) in pixels, right and bottom exclusive.
        """
        boxes = []
        numbers = [number for number in self.shapes[index].unique().tolist() if number]
        for number in numbers:
            rows, columns = torch.where(self.shapes[index] == number)
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        return torch.tensor(boxes, dtype=torch.float32).view(-1, 4), self.labels[index][numbers]


def load_scenes(
    size: int = SIZE, seed: int = 0, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> ImageSplits:
    """All three splits of `Scenes`, 2,000, 200 and 500; an item is ``(image, mask)``. Raises as `Scenes` does."""
    train, val, test = (Scenes(split, size=size, seed=seed, mean=mean, std=std) for split in SAMPLES)
    return ImageSplits(
        train=train, val=val, test=test, classes=CLASSES,
        mean=train.mean, std=train.std, size=size, name="scenes", deterministic=True,
    )  # fmt: skip


# --- one scene -------------------------------------------------------------------------------------------------------


def _background(tiles: list[Tile], photographs: dict[str, Tensor], size: int, generator: torch.Generator) -> Tensor:
    """A random part of a random tile, 0 to 1. Through half the size, so that its edges are softer than the shapes'."""
    which, side, top, left, mirror = torch.rand(5, generator=generator).tolist()
    tile = tiles[int(which * len(tiles))]
    side = int((0.5 + 0.5 * side) * TILE)
    top, left = (int(start + free * (TILE - side + 1)) for start, free in ((tile.top, top), (tile.left, left)))
    part = photographs[tile.photograph][None, :, top : top + side, left : left + side] / 255
    small = F.interpolate(part, (size // 2, size // 2), mode="bilinear", antialias=True)
    image = F.interpolate(small, (size, size), mode="bilinear")[0]
    return image.flip(-1) if mirror < 0.5 else image


def _draw_shapes(image: Tensor, shapes: Tensor, generator: torch.Generator) -> list[int]:
    """Draw into ``image``, and the shapes' numbers into ``shapes``; returns the class of each."""
    size = image.shape[-1]
    pixels = torch.arange(size, dtype=torch.float32) + 0.5
    grid = torch.stack(torch.meshgrid(pixels, pixels, indexing="xy"), dim=-1)
    labels = []
    for number in range(1, 1 + FEWEST + int(torch.rand(1, generator=generator) * (MOST - FEWEST + 1))):
        kind, radius, left, top, turn, own, texture, period, *phase = torch.rand(10, generator=generator).tolist()
        colour = torch.rand(3, 1, 1, generator=generator)
        # Half way round each channel's circle, more or less: two colours that are never alike.
        other = (colour + 0.35 + 0.3 * torch.rand(3, 1, 1, generator=generator)) % 1
        label = 1 + int(kind * len(SHAPES))
        radius = size * (0.15 + 0.12 * radius)
        centre = size * torch.tensor([0.12 + 0.76 * left, 0.12 + 0.76 * top])
        cos, sin = math.cos(math.tau * turn), math.sin(math.tau * turn)
        points = (grid - centre) @ torch.tensor([[cos, -sin], [sin, cos]])
        distance = SHAPES[label - 1](points / radius) * radius
        waves = math.tau * (points / (size * (0.09 + 0.05 * period)) + torch.tensor(phase))
        blend = TEXTURES[label - 1 if own < OWN_TEXTURE else int(texture * len(TEXTURES))](waves, generator)
        image.lerp_(colour.lerp(other, blend), (0.5 - distance).clamp_(0, 1))
        shapes[distance < 0] = number
        labels.append(label)
    return labels


# --- shapes: points in the shape's own axes, in units of its radius -> distance to its outline, negative inside -------
# The sizes make the areas about equal.


def _sides(points: Tensor, count: int) -> Tensor:
    """How far each point is in the direction of each of ``count`` sides around the centre."""
    angles = math.tau / count * torch.arange(count)
    return points @ torch.stack([angles.cos(), angles.sin()])


def _disc(points: Tensor) -> Tensor:
    return points.norm(dim=-1) - 0.9


def _square(points: Tensor) -> Tensor:
    return points.abs().amax(dim=-1) - 0.8


def _triangle(points: Tensor) -> Tensor:
    return _sides(points, 3).amax(dim=-1) - 0.65


def _star(points: Tensor) -> Tensor:
    return _sides(points, 5).topk(2, dim=-1).values[..., 1] - 0.45  # a pentagram is inside all its lines but one


def _ring(points: Tensor) -> Tensor:
    return (points.norm(dim=-1) - 0.8).abs() - 0.25


def _cross(points: Tensor) -> Tensor:
    beyond = points.abs()
    bar = torch.tensor([1.05, 0.36])
    return torch.minimum((beyond - bar).amax(dim=-1), (beyond - bar.flip(0)).amax(dim=-1))


# --- textures: points in the shape's own axes, 2 pi a period -> 0 to 1, from one colour to the other ------------------


def _dots(waves: Tensor, generator: torch.Generator) -> Tensor:
    return (waves.cos().sum(dim=-1) * 1.5).clamp(0, 1)


def _checks(waves: Tensor, generator: torch.Generator) -> Tensor:
    return (0.5 + 2 * waves.sin().prod(dim=-1)).clamp(0, 1)


def _stripes(waves: Tensor, generator: torch.Generator) -> Tensor:
    return (0.5 + waves[..., 0].sin()).clamp(0, 1)


def _gradient(waves: Tensor, generator: torch.Generator) -> Tensor:
    return (0.5 + waves[..., 0] / 30).clamp(0, 1)


def _plain(waves: Tensor, generator: torch.Generator) -> Tensor:
    return torch.zeros(())


def _grain(waves: Tensor, generator: torch.Generator) -> Tensor:
    grains = torch.rand(32, 32, generator=generator)
    return F.interpolate(grains[None, None], waves.shape[:2], mode="nearest")[0, 0]


SHAPES: tuple[Callable[[Tensor], Tensor], ...] = (_disc, _square, _triangle, _star, _ring, _cross)
TEXTURES: tuple[Callable[[Tensor, torch.Generator], Tensor], ...] = (
    _dots, _checks, _stripes, _gradient, _plain, _grain,
)  # fmt: skip
