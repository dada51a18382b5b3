"""Degraded images with their clean ones, by weather: what a restorer is trained on."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import functional as TF

from kdlab.data.images import open_image
from kdlab.errors import InputError

Picture = UInt8[Tensor, "3 h w"]
Item = tuple[Float[Tensor, "3 h w"], tuple[Float[Tensor, "3 h w"], int]]


class Pair(NamedTuple):
    """One image twice: as the weather left it and clean, in memory or as files; the weather; and a name.

    ``margin`` says that the clean image goes on around what the degraded one shows, the same on opposite sides.
    """

    degraded: Picture | Path
    clean: Picture | Path
    weather: str
    name: str
    margin: bool = False


class PairedImages(Dataset):
    """Item ``i`` is ``(degraded, (clean, weather))``: two images of one size in 0 to 1, and the weather's number.

    Args:
        pairs: at least one.
        weathers: their names; a pair's number is its weather's place among them.
        crop: the height and width of a random part, mirrored half of the time; None: the whole image, as it is. An
            image that is smaller is continued by reflection: it keeps its scale.
        turned: whether a part is also upside down half of the time, and transposed: one of eight positions.

    Raises:
        InputError: no pairs; a pair of another weather; a weather called "y"; when an item is read, two images of
            different sizes.
    """

    def __init__(
        self, pairs: Sequence[Pair], weathers: Sequence[str], crop: int | None = None, turned: bool = False
    ) -> None:
        if not pairs:
            raise InputError("there are no pairs; wanted: at least one degraded image with its clean one.")
        foreign = sorted({pair.weather for pair in pairs} - set(weathers))
        if foreign:
            raise InputError(f"a pair's weather is {foreign[0]!r}; wanted: one of {', '.join(weathers)}.")
        if "y" in weathers:
            raise InputError(
                "a weather is called 'y', and its PSNR would be psnr_y, as that of the brightness is; wanted: another "
                "name. Rename its folder."
            )
        self.pairs, self.weathers, self.crop, self.turned = tuple(pairs), tuple(weathers), crop, turned

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        pair = self.pairs[index]
        # Stacked, so that no crop and no mirror can take the one for the other.
        both = torch.stack(_same_size(pair))
        if self.crop is not None:
            both = _random_part(both, self.crop)
            both = _turned(both) if self.turned else both
        degraded, clean = both.float() / 255
        return degraded, (clean, self.weathers.index(pair.weather))

    def where(self, weather: str) -> list[int]:
        """The indices of the pairs of a weather."""
        return [index for index, pair in enumerate(self.pairs) if pair.weather == weather]

    def only(self, weathers: Sequence[str]) -> "PairedImages":
        """The pairs of these weathers alone; they keep their numbers.

        Raises:
            InputError: there is none.
        """
        kept = [pair for pair in self.pairs if pair.weather in weathers]
        if not kept:
            raise InputError(f"there is no image in {' or '.join(weathers)}; there are: {', '.join(self.weathers)}.")
        return PairedImages(kept, self.weathers, self.crop, self.turned)


class StratifiedBatches(Sampler[list[int]]):
    """Batches with the same number of images of each weather, so that no teacher is without work in any step.

    Each weather's images come in a new order whenever all have come. Order and choice are drawn from torch's random
    numbers.

    Args:
        pairs: the data set, and no part or other form of it: these do not know their weathers.
        batch_size: a multiple of the number of weathers that are in it.
        indices: which of the pairs; None: all.
        batches: of an epoch, at least 1; None: as many as can be filled from the rarest weather without showing one of
            its images twice.

    Attributes:
        each: how many images of each weather a batch has.

    Raises:
        InputError: other data; another batch size; a weather with fewer pairs than its part of a batch; no such pairs;
            no batches.
    """

    def __init__(
        self,
        pairs: PairedImages,
        batch_size: int,
        indices: Sequence[int] | None = None,
        batches: int | None = None,
    ) -> None:
        if not isinstance(pairs, PairedImages):
            raise InputError(
                f"the data set is {type(pairs).__name__}; wanted: PairedImages, which know the weather of each pair. "
                "Give these, with the indices of a part."
            )
        allowed = set(range(len(pairs)) if indices is None else indices)
        if not allowed or min(allowed) < 0 or max(allowed) >= len(pairs):
            given = f"from {min(allowed)} to {max(allowed)}" if allowed else "empty"
            raise InputError(f"indices are {given}; wanted: at least one, each from 0 to {len(pairs) - 1}.")
        if batches is not None and batches < 1:
            raise InputError(f"batches is {batches}; wanted: at least 1, or None for as many as there are images for.")
        strata = {weather: [i for i in pairs.where(weather) if i in allowed] for weather in pairs.weathers}
        self.strata = {weather: found for weather, found in strata.items() if found}
        self.each = share_of(batch_size, self.strata)
        rarest = min(self.strata, key=lambda weather: len(self.strata[weather]))
        if len(self.strata[rarest]) < self.each:
            raise InputError(
                f"there are {len(self.strata[rarest])} images of {rarest} and each batch of {batch_size} wants "
                f"{self.each}. Make the batch smaller."
            )
        self.batches = len(self.strata[rarest]) // self.each if batches is None else batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        drawn = [self._draw(found) for found in self.strata.values()]
        for step in range(self.batches):
            part = slice(step * self.each, (step + 1) * self.each)
            yield [index for order in drawn for index in order[part]]

    def _draw(self, found: list[int]) -> list[int]:
        drawn: list[int] = []
        while len(drawn) < self.batches * self.each:
            drawn += [found[place] for place in torch.randperm(len(found)).tolist()]
        return drawn


def share_of(batch_size: int, weathers: Collection[str]) -> int:
    """How many images of each weather a batch has.

    Raises:
        InputError: a batch that cannot have the same number of each.
    """
    if batch_size < 1 or batch_size % len(weathers):
        raise InputError(
            f"batch_size is {batch_size}; wanted: a multiple of {len(weathers)}, the same number of images of each "
            f"weather ({', '.join(weathers)})."
        )
    return batch_size // len(weathers)


def fit(degraded: Sequence[int], clean: Sequence[int], margin: bool) -> bool:
    """Whether two images make a pair by their sizes: these are the same, or the clean one's margin can be cut."""
    sides = zip(degraded, clean, strict=True)
    return all(inner <= outer if margin else inner == outer for inner, outer in sides)


def _same_size(pair: Pair) -> tuple[Tensor, Tensor]:
    degraded, clean = (_pixels(image) for image in (pair.degraded, pair.clean))
    if not fit(degraded.shape, clean.shape, pair.margin):
        sizes = [f"{image.shape[2]}x{image.shape[1]}" for image in (degraded, clean)]
        raise InputError(f"{pair.name} is {sizes[0]} in {pair.weather} and {sizes[1]} clean; wanted: one size.")
    return degraded, TF.center_crop(clean, list(degraded.shape[1:])) if pair.margin else clean


def _pixels(image: Picture | Path) -> Tensor:
    return image if isinstance(image, Tensor) else TF.pil_to_tensor(open_image(image))


def _random_part(images: UInt8[Tensor, "n 3 h w"], size: int) -> UInt8[Tensor, "n 3 s s"]:
    for dim in (2, 3):
        if images.shape[dim] < size:
            images = images.index_select(dim, _there_and_back(images.shape[dim], size))
    top, left = (int(torch.randint(side - size + 1, ())) for side in images.shape[2:])
    images = images[:, :, top : top + size, left : left + size]
    return images.flip(-1) if torch.rand(()) < 0.5 else images


def _turned(images: UInt8[Tensor, "n 3 s s"]) -> UInt8[Tensor, "n 3 s s"]:
    upside_down, transposed = (torch.rand(2) < 0.5).tolist()
    images = images.flip(-2) if upside_down else images
    return images.transpose(-2, -1) if transposed else images


def _there_and_back(side: int, steps: int) -> Tensor:
    """Places from 0 to ``side - 1``, back to 0 and so on, the turning points once."""
    period = max(2 * (side - 1), 1)
    place = torch.arange(steps) % period
    return torch.minimum(place, period - place)
