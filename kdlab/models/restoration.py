"""The network that takes rain, haze and snow out of an image: teacher and student of the two-stage system."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdlab.errors import InputError

STRIDE = 16  # of the deepest maps
LEAST = 2 * STRIDE  # a map of one position has nothing to reflect
BOTTLENECK_BLOCKS = 18


class Restorer(nn.Module):
    """A network from images to images, whatever their size: they are padded by reflection and cropped again.

    Shapes: RGB images in 0 to 1, (n, 3, h, w) of at least 2x2 pixels, to the same; nothing keeps the output in 0 to 1.
    What :meth:`restored` gets has sides of multiples of 16, at least 32.

    Raises:
        InputError: no RGB images; an image with a side of one pixel.
    """

    architecture: dict[str, Any]

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(
                f"images are {tuple(images.shape)}; wanted: (n, 3, h, w), red, green and blue. A grey image goes in as "
                "three equal channels."
            )
        height, width = images.shape[2:]
        return self.restored(padded(images))[:, :, :height, :width]

    def restored(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """The images without what has befallen them, of the same size."""
        raise NotImplementedError


class MSBDN(Restorer):
    """Multi-scale boosted dehazing network with dense feature fusion (MSBDN-RDFF): 28,712,861 parameters.

    Five sizes down and up again. At each, half of the channels are corrected by what the finer (on the way up: the
    coarser) sizes hold, which is its memory, and the other half pass a dense block; on the way up each size refines the
    sum of what comes from below and what the encoder had, and takes the former away once: the boosting. Half the width
    has 7,183,497 parameters.

    Taps (:attr:`TAPS`): for an image of 224x224 and the width 16, "encoder_dense.2" is 64x56x56, "encoder_dense.3"
    128x28x28, "encoder_fuse.3" 256x14x14 and "bottleneck" 256x14x14; :attr:`tap_channels` says how many channels each
    has.

    Args:
        width: channels at the full size, doubled at each smaller one; an even number. The published network has 16.
        residual: whether the output is added to the images. The published network's is not; a narrow one then spends
            its first thousand steps on learning to copy. The last convolution then starts at 0, so that the network
            starts as the identity, which saves as many steps again.

    Shapes and errors of forward: as :class:`Restorer`.

    Raises:
        InputError: an odd width.

    Source: Dong et al.: Multi-Scale Boosted Dehazing Network with Dense Feature Fusion, CVPR 2020, arXiv:2004.13388,
    as the two-stage system has it: Chen et al.: Learning Multiple Adverse Weather Removal via Two-stage Knowledge
    Learning and Multi-contrastive Regularization, CVPR 2022.
    """

    TAPS = ("encoder_dense.2", "encoder_dense.3", "encoder_fuse.3", "bottleneck")

    def __init__(self, width: int = 16, residual: bool = False) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise InputError(f"width is {width}; wanted: an even number, such as 16 (the published one) or 8.")
        self.width, self.residual = width, residual
        c = [width * 2**level for level in range(5)]
        self.conv_input = ReflectedConv(3, c[0], kernel=11)
        self.down = nn.ModuleList(ReflectedConv(c[i], c[i + 1], stride=2) for i in range(4))
        self.encoder_fuse = nn.ModuleList(Fuse(c[i + 1], i + 1, finer=True) for i in range(4))
        self.encoder_dense = nn.ModuleList(Dense(c[i]) for i in range(4))
        self.bottleneck = Bottleneck(c[4])
        # On the way up, from the coarsest.
        self.up = nn.ModuleList(nn.ConvTranspose2d(c[i + 1], c[i], 3, stride=2) for i in reversed(range(4)))
        self.decoder_dense = nn.ModuleList(Dense(c[i]) for i in reversed(range(4)))
        self.decoder_fuse = nn.ModuleList(Fuse(c[i], 4 - i, finer=False) for i in reversed(range(4)))
        self.conv_output = ReflectedConv(c[0], 3)
        if residual:
            for parameter in self.conv_output.parameters():
                nn.init.zeros_(parameter)
        self.architecture = {"name": "MSBDN", "width": width, "residual": residual}

    @property
    def tap_channels(self) -> tuple[int, ...]:
        """The channels of the four taps."""
        return 4 * self.width, 8 * self.width, 16 * self.width, 16 * self.width

    def restored(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        x = self.conv_input(images)
        memory = [_first_half(x)]
        skips = [self.encoder_dense[0](x)]
        for level, (down, fuse) in enumerate(zip(self.down, self.encoder_fuse, strict=True), start=1):
            x = fuse(down(skips[-1]), memory)
            memory.append(_first_half(x))
            if level < len(self.encoder_dense):
                skips.append(self.encoder_dense[level](x))
        x = self.bottleneck(x)
        memory = [_first_half(x)]
        for up, dense, fuse, skip in zip(self.up, self.decoder_dense, self.decoder_fuse, reversed(skips), strict=True):
            coarse = F.interpolate(up(x), skip.shape[2:], mode="bilinear", align_corners=False)
            x = fuse(dense(coarse + skip) - coarse, memory)
            memory.append(_first_half(x))
        output = self.conv_output(x)
        return images + output if self.residual else output


def padded(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c _ _"]:
    """The images continued by reflection, below and to the right, to multiples of 16 and at least 32.

    Raises:
        InputError: a side of one pixel, which has nothing to reflect.
    """
    if min(images.shape[2:]) < 2:
        height, width = images.shape[2:]
        raise InputError(f"images are {height} high and {width} wide; wanted: at least 2x2 pixels, better 32x32.")
    wanted = [max(LEAST, -(-side // STRIDE) * STRIDE) for side in images.shape[2:]]
    while list(images.shape[2:]) != wanted:  # once, unless the padding is larger than the image
        below, right = (min(goal - side, side - 1) for goal, side in zip(wanted, images.shape[2:], strict=True))
        images = F.pad(images, (0, right, 0, below), mode="reflect")
    return images


def _first_half(maps: Tensor) -> Tensor:
    return maps[:, : maps.shape[1] // 2]


class ReflectedConv(nn.Sequential):
    """A convolution on a map that is continued by reflection: the size stays, or is divided by the stride."""

    def __init__(self, before: int, after: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(nn.ReflectionPad2d(kernel // 2), nn.Conv2d(before, after, kernel, stride))


class ResidualBlock(nn.Module):
    """Two convolutions whose tenth is added to the map. No normalisation anywhere in the network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(ReflectedConv(channels, channels), nn.PReLU(), ReflectedConv(channels, channels))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x + 0.1 * self.body(x)


class Dense(nn.Module):
    """Three residual blocks, and the map once more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(3)))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.blocks(x) + x


class Bottleneck(nn.Module):
    """Eighteen residual blocks on twice the map; the map is added once."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(BOTTLENECK_BLOCKS)))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.blocks(2 * x) + x


class Fuse(nn.Module):
    """The first half of the channels corrected by the memory, beside the second half after a dense block.

    Args:
        channels: of the map.
        memories: how many earlier maps there are: of the finer sizes, or of the coarser ones.
    """

    def __init__(self, channels: int, memories: int, finer: bool) -> None:
        super().__init__()
        half = channels // 2
        self.correct = Correct(half, memories, finer)
        self.dense = ResidualDense(half)

    def forward(self, x: Float[Tensor, "n c h w"], memory: Sequence[Float[Tensor, "n _ _ _"]]) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return torch.cat([self.correct(first, memory), self.dense(second)], dim=1)


class Correct(nn.Module):
    """Back-projection: bring the map to an earlier size, and add what it lacks there, brought back.

    A map of c channels meets finer ones of c/2, c/4, ... channels, or coarser ones of 2c, 4c, ...; the memory starts
    with the farthest. The path to a nearer one is that to a farther one without its outermost steps.
    """

    def __init__(self, channels: int, memories: int, finer: bool) -> None:
        super().__init__()
        near_to_far = [channels // 2**i if finer else channels * 2**i for i in range(memories + 1)]
        there, back = (_halve_channels, _double_channels) if finer else (_double_channels, _halve_channels)
        self.there = nn.ModuleList(there(c) for c in near_to_far[:-1])
        self.back = nn.ModuleList(back(c) for c in near_to_far[1:])

    def forward(
        self, x: Float[Tensor, "n c h w"], memory: Sequence[Float[Tensor, "n _ _ _"]]
    ) -> Float[Tensor, "n c h w"]:
        for index, earlier in enumerate(memory):
            steps = len(memory) - index
            lack = x
            for step in self.there[:steps]:
                lack = step(lack)
            lack = lack - earlier
            for step in reversed(self.back[:steps]):
                lack = step(lack)
            x = x + lack
        return x


def _halve_channels(channels: int) -> nn.Sequential:
    """To twice the height and width."""
    return nn.Sequential(nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1), nn.PReLU())


def _double_channels(channels: int) -> nn.Sequential:
    """To half the height and width."""
    return nn.Sequential(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), nn.PReLU())


class ResidualDense(nn.Module):
    """Four convolutions that each see all before them, fused to the map's channels and added to it. No biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = 4
        self.layers = nn.ModuleList(
            nn.Conv2d(channels * (1 + index), channels, 3, padding=1, bias=False) for index in range(layers)
        )
        self.fusion = nn.Conv2d(channels * (1 + layers), channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        seen = [x]
        for layer in self.layers:
            seen.append(layer(torch.cat(seen, dim=1)).relu())
        return x + self.fusion(torch.cat(seen, dim=1))
