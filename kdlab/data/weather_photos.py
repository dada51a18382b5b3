"""Rain, haze and snow on the built-in photographs, split by photograph."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.data.pairs import Pair, PairedImages
from kdlab.data.photos import SPLITS, load_depth, load_photograph
from kdlab.data.splits import ImageSplits
from kdlab.data.weather import HAZES, WEATHERS, draw_haze, draw_weather
from kdlab.errors import InputError
from kdlab.progress import progress

SCALE = 2  # photographs at half their size: a crop then shows more, and a CPU restores four of them in the time of one
VARIANTS = {"train": 24, "val": 2, "test": 3}  # of each photograph in each weather


def load_weather(crop: int = 64, variants: int = VARIANTS["train"], seed: int = 0) -> ImageSplits:
    """Pairs of 8 photographs for training, 1 for validation and 2 for the test, each in haze, rain and snow.

    An item is ``(degraded, (clean, weather))``, as :class:`PairedImages` has it: random crops for training, whole
    photographs, 150 to 250 rows of 225 to 370 pixels, for the others. For training, each variant of a photograph has
    colours and a brightness of its own: there are only eight, and four are grey. The motorcycle's haze follows its true
    depth, all other haze a synthetic one.

    Args:
        crop: height and width of the training crops.
        variants: of each training photograph in each weather.
        seed: another one draws another weather, in all splits.

    Raises:
        InputError: a setting out of range, or a photograph is missing.
    """
    return _splits("weather", WEATHERS, draw_weather, crop, variants, seed)


def load_haze(crop: int = 64, variants: int = VARIANTS["train"], seed: int = 0) -> ImageSplits:
    """Pairs of the same photographs in two kinds of haze, homogeneous and in patches, as :func:`load_weather` has them.

    The motorcycle's haze follows its true depth, all other haze a synthetic one.

    Args:
        crop: height and width of the training crops.
        variants: of each training photograph in each haze.
        seed: another one draws another haze, in all splits.

    Raises:
        InputError: a setting out of range, or a photograph is missing.
    """
    return _splits("haze", HAZES, draw_haze, crop, variants, seed)


def check_photographs(count: int) -> None:
    """Refuse a number of training photographs that there is not."""
    if not 1 <= count <= len(SPLITS["train"]):
        raise InputError(f"photographs is {count}; wanted: from 1 to {len(SPLITS['train'])}.")


def photograph_indices(train: PairedImages, count: int, seed: int) -> list[int]:
    """The indices of the pairs of so many training photographs; the seed chooses which."""
    names = SPLITS["train"]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = {names[place] for place in order[:count]}
    return [index for index, pair in enumerate(train.pairs) if pair.name.split("_")[0] in chosen]


def _splits(
    name: str, weathers: tuple[str, ...], draw: Callable[..., Tensor], crop: int, variants: int, seed: int
) -> ImageSplits:
    if crop < 16 or variants < 1:
        raise InputError(f"crop is {crop} and variants {variants}; wanted: at least 16 pixels and at least 1 variant.")
    many = VARIANTS | {"train": variants}
    train, val, test = (
        PairedImages(_draw(split, weathers, draw, many[split], seed), weathers, crop if split == "train" else None)
        for split in SPLITS
    )
    return ImageSplits(
        train=train, val=val, test=test, classes=weathers, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=crop,
        name=f"{name}-{variants}-{seed}", deterministic=False,
    )  # fmt: skip


def _draw(split: str, weathers: Sequence[str], draw: Callable[..., Tensor], variants: int, seed: int) -> list[Pair]:
    generator = torch.Generator().manual_seed(1000 * seed + list(SPLITS).index(split))
    pairs = []
    for name in progress(SPLITS[split], desc=f"drawing weather on {split} photographs", unit="photograph"):
        photograph = _smaller(load_photograph(name).float() / 255)
        depth = _smaller(load_depth(name)) if name == "motorcycle" else None
        for weather in weathers:
            for variant in range(variants):
                clean = _recoloured(photograph, generator) if split == "train" else photograph
                degraded = draw(weather, clean, generator, depth)
                pairs.append(Pair(_bytes(degraded), _bytes(clean), weather, f"{name}_{variant + 1}"))
    return pairs


def _smaller(image: Tensor) -> Tensor:
    size = [side // SCALE for side in image.shape[1:]]
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _recoloured(photograph: Tensor, generator: torch.Generator) -> Tensor:
    """Each channel to a power of its own around a common one: 0 and 1 stay what they are."""
    common, *each = torch.randn(4, generator=generator).tolist()
    powers = torch.tensor([0.3 * common + 0.2 * one for one in each]).view(3, 1, 1).exp()
    return photograph**powers


def _bytes(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
