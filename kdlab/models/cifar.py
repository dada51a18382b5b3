"""The classifiers that the field's tables on CIFAR-100 compare: residual, wide residual and VGG networks for 32x32."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import conv1x1, conv3x3

from kdlab.errors import InputError, unknown
from kdlab.models.resnet import basic_stage, initialised


class CIFARClassifier(nn.Module):
    """A stem, stages, the average over all positions, and a linear layer: what the networks of this file share.

    Taps: ``stages.0`` and so on are the maps that feature losses read, with ``channels`` in this order;
    ``Tap("classifier", "input")`` is the pooled embedding, ``classifier`` the logits.

    Args:
        stem: from images to the first stage.
        stages: one after the other; the first keeps the size of the images, or halves it.
        channels: of the stages' maps.
        classes: number of classes, at least 2.

    Shapes: images (n, 3, h, w), made for 32x32, to logits (n, k).

    Raises:
        InputError: fewer than two classes.
    """

    architecture: dict[str, Any]

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], channels: Sequence[int], classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise InputError(f"classes is {classes}; a classifier needs at least 2.")
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.channels = tuple(channels)
        self.classifier = nn.Linear(channels[-1], classes)
        initialised(self)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        return self.classifier(self.stages(self.stem(images)).mean(dim=(2, 3)))


class CIFARResNet(CIFARClassifier):
    """Three stages of basic blocks, of which the second and the third halve the size.

    resnet8x4 (1,233,540 parameters for 100 classes) and resnet32x4 (7,433,860) have the widths 32, 64, 128, 256;
    resnet20 (278,324) and resnet56 (861,620) have 16, 16, 32, 64. Where a block changes width or size its shortcut is
    a 1x1 convolution with BatchNorm.

    Taps: those of :class:`.CIFARClassifier`, after the ReLU. Before it: ``Tap("stages.0.B.relu", "input", call=1)``,
    B being the number of the stage's last block.

    Args:
        depth: 6 n + 2, for n blocks in a stage.
        widths: channels of the stem and of the three stages.
        classes: number of classes.

    Raises:
        InputError: another depth; not four positive widths; fewer than two classes.

    Source: He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385.
    """

    def __init__(self, depth: int, widths: Sequence[int], classes: int = 100) -> None:
        blocks = _blocks(depth, 2)
        if len(widths) != 4 or min(widths) < 1:
            raise InputError(f"widths is {tuple(widths)}; wanted: the channels of the stem and of three stages.")
        stem = nn.Sequential(conv3x3(3, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU())
        strides = (1, 2, 2)
        stages = [basic_stage(*pair, blocks, stride) for pair, stride in zip(pairwise(widths), strides, strict=True)]
        super().__init__(stem, stages, widths[1:], classes)
        self.architecture = {"name": "CIFARResNet", "depth": depth, "widths": list(widths), "classes": classes}


class WideResNet(CIFARClassifier):
    """Three stages of blocks that normalise and activate before each convolution, of 16, 32 and 64 times the width.

    wrn-16-2 has 703,284 parameters for 100 classes, wrn-40-2 2,255,156. The second and the third stage halve the size.

    Taps: those of :class:`.CIFARClassifier`. The maps of the first two stages are sums that the next block is yet to
    normalise; that of the last is after BatchNorm and ReLU, and its sum ``stages.2.M`` with M the last block's number.
    Before the ReLU: ``stages.1.0.norm1`` and ``stages.2.0.norm1`` for the first two, ``stages.2.N`` with N the number
    of blocks for the last.

    Args:
        depth: 6 n + 4, for n blocks in a stage.
        width: factor of the channels.
        classes: number of classes.

    Raises:
        InputError: another depth; a width below 1; fewer than two classes.

    Source: Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016, arXiv:1605.07146.
    """

    def __init__(self, depth: int, width: int, classes: int = 100) -> None:
        blocks = _blocks(depth, 4)
        if width < 1:
            raise InputError(f"width is {width}; wanted: a whole number from 1 up.")
        channels = [16 * width, 32 * width, 64 * width]
        stages = []
        for (before, after), stride in zip(pairwise([16, *channels]), (1, 2, 2), strict=True):
            rest = (_PreActivated(after, after) for _ in range(1, blocks))
            stages.append(nn.Sequential(_PreActivated(before, after, stride), *rest))
        stages[-1].extend([nn.BatchNorm2d(channels[-1]), nn.ReLU()])
        super().__init__(conv3x3(3, 16), stages, channels, classes)
        self.architecture = {"name": "WideResNet", "depth": depth, "width": width, "classes": classes}


class _PreActivated(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(before), conv3x3(before, after, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(after), conv3x3(after, after)
        self.shortcut = None if before == after else conv1x1(before, after, stride)

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        active = F.relu(self.norm1(maps))
        change = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return change + (maps if self.shortcut is None else self.shortcut(active))


class CIFARVGG(CIFARClassifier):
    """Convolutions with BatchNorm and ReLU at five widths, and one linear layer in place of VGG's three.

    vgg8 (3,965,028 parameters for 100 classes) has one convolution at each width, vgg13 (9,462,180) two. The stem has
    64 channels, the four stages have 128, 256, 512 and 512; all but the last start with a 2x2 max pooling.

    Taps: those of :class:`.CIFARClassifier`, after the ReLU. Before it: the BatchNorm that stands before a stage's last
    layer, such as ``stages.0.2`` in vgg8.

    Args:
        convolutions: at each width.
        classes: number of classes.

    Raises:
        InputError: no convolution; fewer than two classes.

    Source: Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
    arXiv:1409.1556.
    """

    def __init__(self, convolutions: int, classes: int = 100) -> None:
        if convolutions < 1:
            raise InputError(f"convolutions is {convolutions}; wanted: a whole number from 1 up.")
        channels = [128, 256, 512, 512]
        stages = [_vgg_stage(before, after, convolutions) for before, after in pairwise([64, *channels])]
        for stage in stages[:-1]:
            stage.insert(0, nn.MaxPool2d(2))
        super().__init__(_vgg_stage(3, 64, convolutions), stages, channels, classes)
        self.architecture = {"name": "CIFARVGG", "convolutions": convolutions, "classes": classes}


def _vgg_stage(before: int, after: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, *[after] * (convolutions - 1)):
        layers += [nn.Conv2d(channels, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def _blocks(depth: int, besides: int) -> int:
    """Of a stage, in a network of three that has so many layers besides."""
    if depth < 6 + besides or (depth - besides) % 6:
        raise InputError(f"depth is {depth}; wanted: 6 n + {besides} with n from 1 up, such as {6 + besides}.")
    return (depth - besides) // 6


NETWORKS: dict[str, Callable[..., CIFARClassifier]] = {
    "resnet8x4": partial(CIFARResNet, 8, (32, 64, 128, 256)),
    "resnet32x4": partial(CIFARResNet, 32, (32, 64, 128, 256)),
    "resnet20": partial(CIFARResNet, 20, (16, 16, 32, 64)),
    "resnet56": partial(CIFARResNet, 56, (16, 16, 32, 64)),
    "wrn-16-2": partial(WideResNet, 16, 2),
    "wrn-40-2": partial(WideResNet, 40, 2),
    "vgg8": partial(CIFARVGG, 1),
    "vgg13": partial(CIFARVGG, 2),
}


def cifar_network(name: str, classes: int = 100) -> CIFARClassifier:
    """The network, at random, by the name that it has in the tables: one of :data:`NETWORKS`.

    Raises:
        InputError: an unknown name, fewer than two classes.
    """
    if name not in NETWORKS:
        raise InputError(unknown("network", name, NETWORKS))
    return NETWORKS[name](classes=classes)
