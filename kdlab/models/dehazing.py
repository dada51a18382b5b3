"""The dehazing networks: a teacher that knows clean images, and students of it with and without super-resolution."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from kdlab.errors import InputError
from kdlab.models.resnet import RESNET18, ResNetEncoder
from kdlab.models.restoration import Restorer
from kdlab.models.vgg import MEAN, STD
from kdlab.models.weights import Weights, backbone, trained

STAGES = 3  # of an encoder, at 1/4, 1/8 and 1/16 of the size
RES2NET101 = ((256, 512, 1024), (3, 4, 23))  # channels and blocks of the first three stages
RES2NET101_URL = "https://huggingface.co/timm/res2net101d.in1k/resolve/main/model.safetensors"
TEACHER = (tuple(RESNET18[0] * 2**stage for stage in range(STAGES)), RESNET18[1][:STAGES])
BASE_WIDTH, SCALE = 26, 4  # of Res2Net: channels of a split in 64 of the stage's, splits
POOLS = (32, 16, 8, 4)  # pixels that the enhancer averages over
PYRAMID = 20  # channels that it does so with
DETAILS = 4  # channels that the super-resolution branch adds


class Dehazer(Restorer):
    """An encoder, attention on its coarsest map, and the way up by pixel shuffle to the image.

    Taps: :attr:`TAP`, the map after the attention at 1/16 of the size, of ``tap_channels``, which the student and the
    teacher have alike.

    Args:
        encoder: from images to maps at 1/4, 1/8 and 1/16 of their size, of ``widths`` channels.
        bottom: brings the coarsest map to ``middle`` channels.
        widths: the encoder's channels, from the finest map.
        middle: channels of the tapped map.
        channels: of the last map before the tail.
        normalise: whether the encoder sees the images normalised as ImageNet's were.
    """

    TAP = "middle"
    weights_used: str
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        bottom: nn.Module,
        widths: Sequence[int],
        middle: int,
        channels: int,
        normalise: bool,
    ) -> None:
        super().__init__()
        up = [middle // 4, (middle // 4 + widths[1]) // 4]
        self.encoder, self.bottom, self.tap_channels = encoder, bottom, middle
        self.middle = AttentionBlock(middle)
        self.up = nn.ModuleList(nn.Sequential(nn.PixelShuffle(2), AttentionBlock(width)) for width in up)
        self.shuffle = nn.Sequential(nn.PixelShuffle(2), nn.PixelShuffle(2))
        self.enhancer = Enhancer((up[1] + widths[0]) // 16, channels)
        self.details: nn.Module | None = None  # from the raw images, beside the enhancer's channels
        self.tail = Tail(channels)
        self.normalise = normalise
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def restored(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        fine, half, coarse = self.encoder((images - self.mean) / self.std if self.normalise else images)
        x = self.middle(self.bottom(coarse))
        x = torch.cat([self.up[0](x), half], dim=1)
        x = torch.cat([self.up[1](x), fine], dim=1)
        x = self.enhancer(self.shuffle(x))
        if self.details is not None:
            x = torch.cat([x, self.details(images)], dim=1)
        return self.tail(x)


class DehazingTeacher(Dehazer):
    """A ResNet18 that encodes clean images and draws them again: 26,067,534 parameters.

    What it teaches is its map :attr:`TAP` of a clean image, 1024x16x16 of one of 256x256, which takes the first 14.7 of
    its 20.6 GFLOPs.

    Args:
        widths: channels of the encoder's three stages, each double the one before; the default is ResNet18's.
        blocks: residual blocks of the three; the default is ResNet18's.
        middle: channels of the tapped map: the student's.
        channels: of the last map before the tail.
        normalise: whether the encoder sees the images normalised as ImageNet's were, which its weights expect. The
            released code gives it the images as they are.
        weights: of the encoder: "imagenet" (in the default widths and blocks only), "none", or "auto" for ImageNet's
            where they can be had; ``weights_used`` says in words which.

    Shapes and errors of forward: as :class:`Restorer`. The output is a tanh, -1 to 1.

    Raises:
        InputError: arguments that do not go together; "imagenet" that cannot be had.

    Source: Chen et al.: SRKTDN: Applying Super Resolution Method to Dehazing Task, CVPR Workshops 2021, as its released
    code has it; after Wu et al.: Knowledge Transfer Dehazing Network for NonHomogeneous Dehazing, CVPR Workshops 2020.
    """

    def __init__(
        self,
        widths: Sequence[int] = TEACHER[0],
        blocks: Sequence[int] = TEACHER[1],
        middle: int = RES2NET101[0][-1],
        channels: int = 28,
        normalise: bool = False,
        weights: Weights = "none",
    ) -> None:
        if any(after != 2 * before for before, after in pairwise(widths)):
            raise InputError(f"widths are {tuple(widths)}; wanted: each double the one before, as in a ResNet.")
        _check(widths, blocks, channels, middle)
        encoder, used = backbone(
            "ResNet18", partial(ResNetEncoder, widths[0], blocks), trained(ResNet18_Weights.IMAGENET1K_V1), weights,
            published=(tuple(widths), tuple(blocks)) == TEACHER,
        )  # fmt: skip
        super().__init__(encoder, Bottom(widths[-1], middle), widths, middle, channels, normalise)
        self.weights_used = used
        self.architecture = {
            "name": "DehazingTeacher", "widths": list(widths), "blocks": list(blocks), "middle": middle,
            "channels": channels, "normalise": normalise,
        }  # fmt: skip


class KTDN(Dehazer):
    """Knowledge transfer dehazing network: a Res2Net101 and attention, 49,351,730 parameters.

    Args:
        widths: channels of the encoder's three stages; the default is Res2Net101's.
        blocks: of the three stages; the default is Res2Net101's.
        channels, normalise, weights: as in :class:`DehazingTeacher`.

    Shapes and errors of forward: as :class:`Restorer`. The output is a tanh, -1 to 1. :attr:`TAP` has the last of the
    widths.

    Raises:
        InputError: arguments that do not go together; "imagenet" that cannot be had.

    Source: as :class:`DehazingTeacher`. Encoder: Gao et al.: Res2Net: A New Multi-scale Backbone Architecture, IEEE
    TPAMI 2021, arXiv:1904.01169, version 1b of 26 channels and 4 scales: timm's ``res2net101d``.
    """

    def __init__(
        self,
        widths: Sequence[int] = RES2NET101[0],
        blocks: Sequence[int] = RES2NET101[1],
        channels: int = 28,
        normalise: bool = False,
        weights: Weights = "none",
    ) -> None:
        _check(widths, blocks, channels)
        encoder, used = backbone(
            "Res2Net101", partial(Res2NetEncoder, widths, blocks), _res2net101, weights,
            published=(tuple(widths), tuple(blocks)) == RES2NET101,
        )  # fmt: skip
        super().__init__(encoder, nn.Identity(), widths, widths[-1], channels, normalise)
        self.weights_used = used
        self.architecture = {
            "name": "KTDN", "widths": list(widths), "blocks": list(blocks), "channels": channels,
            "normalise": normalise,
        }  # fmt: skip


class SRKTDN(KTDN):
    """KTDN with a branch that looks for details in the raw images, as super-resolution does: 49,483,458 parameters.

    Args:
        widths, blocks, channels, normalise, weights: as in :class:`KTDN`.
        inside: channels of the branch.

    Shapes, taps and errors: as :class:`KTDN`.

    Source: as :class:`DehazingTeacher`. Where a figure of it scales the skip of the branch's blocks by 0.2, the code
    scales their body; this follows the code.
    """

    def __init__(
        self,
        widths: Sequence[int] = RES2NET101[0],
        blocks: Sequence[int] = RES2NET101[1],
        channels: int = 28,
        normalise: bool = False,
        weights: Weights = "none",
        inside: int = 16,
    ) -> None:
        if inside < 1:
            raise InputError(f"inside is {inside}; wanted: the channels of the branch, at least 1.")
        super().__init__(widths, blocks, channels, normalise, weights)
        self.details = SuperResolution(inside)
        self.tail = Tail(channels + DETAILS)
        self.architecture |= {"name": "SRKTDN", "inside": inside}


# --- encoders --------------------------------------------------------------------------------------------------------


class Res2NetEncoder(nn.Module):
    """timm's Res2Net of deep stem, without its last stage."""

    conv1: nn.Module
    bn1: nn.Module
    act1: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module

    def __init__(self, widths: Sequence[int], blocks: Sequence[int]) -> None:
        from timm.models.res2net import Bottle2neck  # seconds, for whoever builds one alone
        from timm.models.resnet import ResNet

        super().__init__()
        network = ResNet(
            Bottle2neck, tuple(blocks), num_classes=0, base_width=BASE_WIDTH, stem_width=widths[0] // 8,
            stem_type="deep", avg_down=True, channels=tuple(width // Bottle2neck.expansion for width in widths),
            block_args={"scale": SCALE},
        )  # fmt: skip
        for name in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3"):
            self.add_module(name, network.get_submodule(name))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        x = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
            maps.append(x)
        return maps

    def load_imagenet(self, weights: dict[str, Any]) -> None:
        end = ("fc.", "layer4.")
        self.load_state_dict({name: value for name, value in weights.items() if not name.startswith(end)})


def _res2net101() -> dict[str, Any]:
    """The weights of timm's res2net101d, through torch's cache: timm's own way tries for a minute without a network."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / "res2net101d.in1k.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(RES2NET101_URL, str(file))
    try:
        return load_file(file)
    except SafetensorError as error:
        raise OSError(f"{file} is damaged: delete it ({error})") from error


def _check(widths: Sequence[int], blocks: Sequence[int], channels: int, middle: int | None = None) -> None:
    if len(widths) != STAGES or len(blocks) != STAGES or min(*blocks, channels) < 1:
        raise InputError(
            f"widths are {tuple(widths)}, blocks {tuple(blocks)} and channels {channels}; wanted: three widths and "
            "three numbers of blocks, of at least 1, and at least 1 channel."
        )
    middle = widths[-1] if middle is None else middle
    if min(widths) < 16 or any(width % 8 for width in widths) or middle < 4 or middle % 4:
        raise InputError(
            f"widths are {tuple(widths)} and middle {middle}; wanted: widths of multiples of 8, at least 16, and a "
            "middle of a multiple of 4."
        )
    half = middle // 4 + widths[1]
    fine = half // 4 + widths[0]
    if half % 4 or fine % 16:
        raise InputError(
            f"widths {tuple(widths)} and middle {middle} make {half} channels at 1/8 of the size and {fine} at 1/4; a "
            "pixel shuffle takes a quarter at a time: wanted a multiple of 4, then one of 16. Published are widths "
            f"{RES2NET101[0]}."
        )


# --- what they are built from ----------------------------------------------------------------------------------------


class ChannelAttention(nn.Module):
    """Each channel times a number from 0 to 1, which is read from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_gate(channels, channels))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x * self.weigh(x)


class PixelAttention(nn.Module):
    """Each position times a number from 0 to 1, which is read from its channels: dense haze is not everywhere."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(*_gate(channels, 1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x * self.weigh(x)


def _gate(channels: int, weights: int) -> list[nn.Module]:
    inside = max(1, channels // 8)
    return [nn.Conv2d(channels, inside, 1), nn.ReLU(inplace=True), nn.Conv2d(inside, weights, 1), nn.Sigmoid()]


class AttentionBlock(nn.Module):
    """Two convolutions, each added to the map, the second after channel and pixel attention.

    Source: Qin, Wang, Bai, Xie, Jia: FFA-Net: Feature Fusion Attention Network for Single Image Dehazing, AAAI 2020,
    arXiv:1911.07559.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = nn.Sequential(ChannelAttention(channels), PixelAttention(channels))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.attention(self.conv2(self.conv1(x).relu() + x)) + x


class Bottom(nn.Module):
    """A residual block with instance normalisation, then the channels of the student's map."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, 2 * before, 3, padding=1), nn.InstanceNorm2d(2 * before), nn.ReLU(inplace=True),
            nn.Conv2d(2 * before, before, 3, padding=1), nn.InstanceNorm2d(before),
        )  # fmt: skip
        self.widen = nn.Conv2d(before, after, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return self.widen(x + self.body(x))


class Enhancer(nn.Module):
    """The map beside what its averages over 32, 16, 8 and 4 pixels say, fused; a tanh, -1 to 1."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, PYRAMID, 3, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(PYRAMID, PYRAMID, 3, padding=1), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.levels = nn.ModuleList(nn.Sequential(nn.Conv2d(PYRAMID, 1, 1), nn.LeakyReLU(0.2)) for _ in POOLS)
        self.fusion = nn.Conv2d(PYRAMID + len(POOLS), after, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        x = self.body(x)
        means = [
            F.interpolate(level(F.avg_pool2d(x, pool)), x.shape[2:])
            for pool, level in zip(POOLS, self.levels, strict=True)
        ]
        return self.fusion(torch.cat([*means, x], dim=1)).tanh()


class Tail(nn.Sequential):
    """To red, green and blue; a tanh, -1 to 1."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.ReflectionPad2d(3), nn.Conv2d(channels, 3, 7), nn.Tanh())


class SuperResolution(nn.Module):
    """Details out of the raw images: four by four pixels become channels, and after wide blocks pixels again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        side = 4
        folded = channels * side**2
        self.before = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.fold = nn.PixelUnshuffle(side)
        self.body = nn.Sequential(
            nn.Conv2d(folded, channels, 3, padding=1), nn.BatchNorm2d(channels),
            *(WideBlock(channels) for _ in range(3)),
            nn.Conv2d(channels, folded, 3, padding=1),
        )  # fmt: skip
        self.unfold = nn.PixelShuffle(side)
        self.after = nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, DETAILS, 3, padding=1))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d h w"]:
        return self.after(self.unfold(self.body(self.fold(self.before(images)))))


class WideBlock(nn.Module):
    """Four times the channels between two convolutions, whose fifth is added to the map.

    Source: Yu et al.: Wide Activation for Efficient and Accurate Image Super-Resolution, 2018, arXiv:1808.08718.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.BatchNorm2d(4 * channels), nn.ReLU(inplace=True),
            nn.Conv2d(4 * channels, channels, 3, padding=1), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x + 0.2 * self.body(x)
