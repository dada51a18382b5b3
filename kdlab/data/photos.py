"""The real photographs that come inside scikit-image and scikit-learn: no download, ever."""

from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from kdlab.data.images import Skipped, try_open
from kdlab.errors import InputError, unknown

# Not all that is there: no drawings, no microscopy, no night sky; not the coins, which are discs among the shapes of
# the scenes, and not the motorcycle's right view, which is its left view again.
FILES = {
    "astronaut": "skimage/data/astronaut.png",
    "brick": "skimage/data/brick.png",
    "camera": "skimage/data/camera.png",
    "cat": "skimage/data/chelsea.png",
    "china": "sklearn/datasets/images/china.jpg",
    "coffee": "skimage/data/coffee.png",
    "flower": "sklearn/datasets/images/flower.jpg",
    "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "rocket": "skimage/data/rocket.jpg",
}
PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn"}

# The motorcycle has its true disparity and is kept for the test, with one close view. Of the two with a far view and a
# sky, china and rocket, neither can be spared from training: a sky is what haze looks like.
SPLITS = {
    "train": ("astronaut", "brick", "camera", "china", "flower", "grass", "gravel", "rocket"),
    "val": ("coffee",),
    "test": ("cat", "motorcycle"),
}

TILE = 96
TILES = {"train": (1, 2, 3, 5, 6, 8, 9), "val": (0,), "test": (4, 7)}  # of every ten


class Tile(NamedTuple):
    """A square of `TILE` pixels of a photograph: its name, its first row and its first column."""

    photograph: str
    top: int
    left: int


def load_photograph(name: str) -> UInt8[Tensor, "3 h w"]:
    """One of `FILES` as it is on disk, 0 to 255, 300 to 512 rows, 451 to 741 columns; a grey one in equal channels.

    Raises:
        InputError: there is no such photograph, or the package that holds it is not installed or lacks the file.

    Source: scikit-image's data, public domain or CC0 but for the motorcycle (Scharstein et al., Middlebury 2014); china
    and flower from scikit-learn's (CC BY 2.0, danielbuechele and vultilion on Flickr).
    """
    if name not in FILES:
        raise InputError(unknown("photograph", name, FILES))
    module = Path(FILES[name]).parts[0]
    package = PACKAGES[module]
    image = try_open(_folder_of(module, name) / FILES[name])
    if isinstance(image, Skipped):
        raise InputError(
            f"photograph {name!r} should be inside {package}, but {package} {metadata.version(package)} is installed "
            f"without it ({image}). Install it anew: pip install --force-reinstall --no-deps {package}"
        )
    return F.pil_to_tensor(image)


def load_depth(name: str) -> Float[Tensor, "1 h w"]:
    """The true depth of the motorcycle's scene, 0 for what is nearest to 1 for what is farthest, from its disparity.

    Where the second camera did not see a point, the depth of the nearest one to its left is taken, or, where there is
    none, of the nearest one to its right.

    Raises:
        InputError: another photograph, none of which has a depth; or the package that holds it lacks the file.

    Source: Scharstein et al.: High-Resolution Stereo Datasets with Subpixel-Accurate Ground Truth, GCPR 2014.
    """
    if name != "motorcycle":
        raise InputError(f"photograph {name!r} has no known depth; wanted: 'motorcycle'.")
    file = _folder_of("skimage", name) / "skimage/data/motorcycle_disp.npz"
    if not file.exists():
        raise InputError(f"{file} is missing. Install scikit-image anew: pip install --force-reinstall scikit-image")
    with np.load(file) as archive:
        disparity = archive["arr_0"]
    known = np.isfinite(disparity)
    first = known.argmax(axis=1, keepdims=True)
    nearest = np.maximum.accumulate(np.where(known, np.arange(disparity.shape[1]), first), axis=1)
    distance = 1 / np.take_along_axis(disparity, nearest, axis=1)
    depth = (distance - distance.min()) / (distance.max() - distance.min())
    return torch.from_numpy(depth).float()[None]


def load_photographs(split: str) -> dict[str, Tensor]:
    """The photographs (3, h, w) of "train" (8), "val" (1) or "test" (2), each in one of them alone.

    Raises:
        InputError: there is no such split, or a photograph is missing.
    """
    if split not in SPLITS:
        raise InputError(unknown("split", split, SPLITS))
    return {name: load_photograph(name) for name in SPLITS[split]}


def _folder_of(module: str, name: str) -> Path:
    """Where the package is, found without being imported: scikit-image's own loader may go to the network."""
    spec = util.find_spec(module)
    if spec is None or spec.origin is None:
        package = PACKAGES[module]
        raise InputError(f"photograph {name!r} is inside {package}, which is not installed: pip install {package}")
    return Path(spec.origin).parents[1]


def list_tiles(split: str, photographs: Mapping[str, Tensor]) -> list[Tile]:
    """The tiles of "train" (7 of 10), "val" (1) or "test" (2): of every photograph some, and no pixel in two splits.

    For what needs many backgrounds and not new ones: neighbouring tiles show the same wall or the same grass.

    Raises:
        InputError: there is no such split.
    """
    if split not in TILES:
        raise InputError(unknown("split", split, TILES))
    return [
        Tile(name, TILE * row, TILE * column)
        for name, pixels in photographs.items()
        for row in range(pixels.shape[1] // TILE)
        for column in range(pixels.shape[2] // TILE)
        if (3 * row + column) % 10 in TILES[split]
    ]
