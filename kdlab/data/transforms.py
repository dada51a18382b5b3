"""From a picture of any size to the normalised square tensor that a network takes."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from kdlab.errors import InputError


@dataclass(frozen=True)
class ImageTransform:
    """PIL RGB image of any size -> Float tensor (3, size, size), normalised per channel.

    The whole short side is used: the largest central square, scaled to ``size``. With ``augment``, a random part of
    the image (8 to 100% of its area), mirrored half of the time; `torch.manual_seed` makes that repeatable.

    Args:
        size: height and width of the result, in pixels.
        mean, std: red, green, blue, for pixel values in 0 to 1.

    Raises:
        InputError: size below 1, not three numbers in mean or std, a std that is not above 0, or values that pixels in
            0 to 1 cannot have.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augment: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise InputError(f"size is {self.size!r}, wanted a whole number of pixels from 1 up, such as 224.")
        for name in ("mean", "std"):
            object.__setattr__(self, name, three_numbers(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise InputError(f"std is {self.std}, wanted three values above 0: the pixels are divided by them.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not 0 <= min(values) <= max(values) <= 1:
                raise InputError(
                    f"{name} is {values}, wanted for pixels in 0 to 1. Divide what is for 0 to 255 by 255."
                )

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 s s"]:
        image = self._random_part(image) if self.augment else central_square(image, self.size)
        pixels = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
        return F.normalize(pixels, list(self.mean), list(self.std))

    @cached_property
    def _random_part(self) -> v2.Compose:
        return v2.Compose([v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip()])


def central_square(image: Image.Image, size: int) -> Image.Image:
    """The largest central square of ``image``, scaled to (size, size) with antialiasing.

    The same pixels as resizing the short side and then cropping the centre, in one step: a very long and narrow image
    is never blown up to its full length first.
    """
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def three_numbers(name: str, values: Any) -> tuple[float, float, float]:
    """``values`` as red, green, blue. Raises `InputError`, calling them ``name``, if they are not three numbers."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {values!r}, wanted 3 numbers (red, green, blue), such as 0.5 0.5 0.5.") from None
    if len(numbers) != 3:
        raise InputError(
            f"{name} has {len(numbers)} value{'s' * (len(numbers) != 1)}, 3 wanted (red, green, blue), "
            "such as 0.5 0.5 0.5. Grey images count as three equal channels."
        )
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{name} is {numbers}, wanted 3 finite numbers (red, green, blue).")
    return numbers
