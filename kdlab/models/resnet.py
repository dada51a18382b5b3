"""ResNets of other widths and strides, and the parts that other networks are built from."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

Module = TypeVar("Module", bound=nn.Module)
RESNET18 = (64, (2, 2, 2, 2))  # channels of the first stage, blocks of the four


class ResNetEncoder(nn.Module):
    """torchvision's ResNet of basic blocks as the maps of its stages; its trained weights fit by name.

    Args:
        width: channels of the first stage; each has twice those of the one before.
        blocks: of each stage, of four at most.
        strides: of each stage; the first one sees the image at a quarter of its size.
    """

    def __init__(self, width: int, blocks: Sequence[int], strides: Sequence[int] = (1, 2, 2, 2)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.names = [f"layer{number}" for number in range(1, len(blocks) + 1)]
        widths = [width, *(width * 2**doublings for doublings in range(len(blocks)))]
        for name, (before, after), count, stride in zip(self.names, pairwise(widths), blocks, strides, strict=False):
            self.add_module(name, basic_stage(before, after, count, stride))
        initialised(self)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        x, maps = self.maxpool(self.relu(self.bn1(self.conv1(images)))), []
        for name in self.names:
            x = self.get_submodule(name)(x)
            maps.append(x)
        return maps

    def load_imagenet(self, weights: dict[str, Tensor]) -> None:
        own = self.state_dict()
        self.load_state_dict({name: value for name, value in weights.items() if name in own})


def basic_stage(before: int, width: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """Basic blocks, the first of which brings the map to the width and, by the stride, down."""
    downsample = None
    if before != width or stride != 1:
        downsample = nn.Sequential(
            nn.Conv2d(before, width, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(width)
        )
    rest = (BasicBlock(width, width) for _ in range(1, blocks))
    return nn.Sequential(BasicBlock(before, width, stride, downsample), *rest)


def initialised(module: Module) -> Module:
    """He's start for all convolutions in it, as torchvision's ResNet has it."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return module
