"""The parts of a ResNet that networks of other widths and strides are built from."""

from typing import TypeVar

from torch import nn
from torchvision.models.resnet import BasicBlock

Module = TypeVar("Module", bound=nn.Module)
RESNET18 = (64, (2, 2, 2, 2))  # channels of the first stage, blocks of the four


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
