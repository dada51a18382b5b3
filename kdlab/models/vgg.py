"""VGG19 up to its fifth stage, as maps to compare images by."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import VGG19_Weights
from torchvision.models.vgg import cfgs, make_layers

from kdlab.errors import InputError
from kdlab.models.weights import Weights, pretrained

ENDS = (2, 7, 12, 21, 30)  # of the slices, in torchvision's features: relu1_1, relu2_1, relu3_1, relu4_1, relu5_1
FULL_WIDTH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, red, green, blue


class VGGSlices(nn.Module):
    """VGG19's maps relu1_1 to relu5_1, frozen: 12,944,960 parameters.

    It is always in eval mode and never trained; the gradient passes through it to the images. ``weights_used`` says in
    words where its weights come from.

    Args:
        weights: "imagenet", "none", or "auto" for ImageNet's where they can be had. With a random start the maps still
            tell images apart, but by nothing that was learnt.
        width: channels of the first map; ImageNet's weights are for 64. 16 takes a sixteenth of the work.
        normalise: whether the images, in 0 to 1, are first normalised as ImageNet's were. The two-stage system's
            released code does not, although its network was trained so.

    Shapes: images (n, 3, h, w) in 0 to 1, of at least 16x16 pixels, to five maps: 64 channels at the full size, 128 at
    1/2, 256 at 1/4, 512 at 1/8 and 512 at 1/16 (all for a width of 64), sizes rounded down.

    Raises:
        InputError: "imagenet" that cannot be had, or with another width; a width below 1; in forward, images below
            16x16.

    Source: Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
    arXiv:1409.1556.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Weights = "auto", normalise: bool = True, width: int = FULL_WIDTH) -> None:
        super().__init__()
        if width < 1 or (weights == "imagenet" and width != FULL_WIDTH):
            raise InputError(f"width is {width}; wanted: from 1 up, and {FULL_WIDTH} for the weights 'imagenet'.")
        found, self.weights_used = pretrained("VGG19", weights if width == FULL_WIDTH else "none", _imagenet)
        layers = found if found is not None else _layers(width)
        self.slices = nn.ModuleList(layers[start:end] for start, end in zip((0, *ENDS[:-1]), ENDS, strict=True))
        self.normalise = normalise
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "VGGSlices":
        """Stays in eval mode, whatever is asked for."""
        return super().train(False)

    def extra_repr(self) -> str:
        return f"normalise={self.normalise}"

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        if min(images.shape[2:]) < 16:
            height, width = images.shape[2:]
            raise InputError(f"images are {height} high and {width} wide; VGG19 halves that four times: wanted 16x16.")
        if self.normalise:
            images = (images - self.mean) / self.std
        maps = []
        for layers in self.slices:
            images = layers(images)
            maps.append(images)
        return maps


def _layers(width: int = FULL_WIDTH) -> nn.Sequential:
    """torchvision's layers up to relu5_1, at random. Its ReLUs work in place: what they overwrite is no slice's map."""
    channels = [size if isinstance(size, str) else _scaled(size, width) for size in cfgs["E"]]
    layers = make_layers(channels)[: ENDS[-1]]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):  # as torchvision starts it: nothing fades through sixteen layers
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.constant_(layer.bias, 0)  # type: ignore[arg-type]  # there is one
    return layers


def _scaled(channels: int, width: int) -> int:
    return max(1, channels * width // FULL_WIDTH)


def _imagenet() -> nn.Sequential:
    trained = VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    layers = _layers()
    named = {name.removeprefix("features."): value for name, value in trained.items() if name.startswith("features.")}
    layers.load_state_dict({name: value for name, value in named.items() if int(name.split(".")[0]) < ENDS[-1]})
    return layers


class VGGReader(nn.Module):
    """A segmenter that reads all five maps of VGG19's slices by a 1x1 convolution each, and trains them so.

    What each map has learnt to tell apart is then what images are compared by: see :class:`VGGSlices`.

    Args:
        classes: of the pixels.
        width: of the slices, which start at random.

    Shapes: images (n, 3, h, w) in 0 to 1, of at least 16x16 pixels, to logits (n, classes, h, w).
    """

    def __init__(self, classes: int, width: int = FULL_WIDTH) -> None:
        super().__init__()
        self.slices = VGGSlices("none", width=width).requires_grad_(True)
        channels = [_scaled(one, width) for one in (64, 128, 256, 512, 512)]
        self.classifiers = nn.ModuleList(nn.Conv2d(one, classes, 1) for one in channels)
        self.architecture: dict[str, Any] = {"name": "VGGReader", "classes": classes, "width": width}

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k h w"]:
        maps = zip(self.classifiers, self.slices(images), strict=True)
        logits = [F.interpolate(classify(one), images.shape[2:], mode="bilinear") for classify, one in maps]
        return torch.stack(logits).sum(dim=0)
