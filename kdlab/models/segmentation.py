"""Segmenters: the large teacher and the small student of dense distillation."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import ConvNeXt, ConvNeXt_Tiny_Weights, ResNet18_Weights
from torchvision.models.convnext import CNBlockConfig, LayerNorm2d

from kdlab.errors import InputError
from kdlab.models.resnet import RESNET18, ResNetEncoder, initialised
from kdlab.models.weights import Weights, backbone, trained

POOL_SCALES = (1, 2, 3, 6)
CONVNEXT_TINY = ((96, 192, 384, 768), (3, 3, 9, 3))  # channels and blocks of the four stages
# Of fewer channels, PyTorch 2.12's 1x1 convolution of stride 2, channels last, writes past its memory on AVX2.
LEAST_WIDTH = 8


class Segmenter(nn.Module):
    """A backbone of four stages, a head that decodes them, and where wanted an auxiliary head on the third stage.

    ``weights_used`` says in words what the backbone started from.
    """

    decode_head: nn.Module
    auxiliary_head: nn.Module | None
    weights_used: str

    def __init__(self, backbone: nn.Module, decode_head: nn.Module, auxiliary_head: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k h w"]:
        """The logits. In training mode the auxiliary head runs too, so that a tap on it is reached."""
        if self.training and self.auxiliary_head is not None:
            return self.forward_with_auxiliary(images)[0]
        return _resized(self.decode_head(self._maps(images)), images)

    def forward_with_auxiliary(
        self, images: Float[Tensor, "n 3 h w"]
    ) -> tuple[Float[Tensor, "n k h w"], Float[Tensor, "n k h w"]]:
        """The logits and those of the auxiliary head, both of the images' size.

        Raises:
            InputError: the network was built without an auxiliary head; what forward raises.
        """
        if self.auxiliary_head is None:
            raise InputError(f"this {type(self).__name__} has no auxiliary head; build it with auxiliary=True.")
        maps = self._maps(images)
        return _resized(self.decode_head(maps), images), _resized(self.auxiliary_head(maps), images)

    def _maps(self, images: Float[Tensor, "n 3 _ _"]) -> list[Float[Tensor, "n _ _ _"]]:
        if len(images) == 1 and any(m.training for m in self.modules() if isinstance(m, nn.BatchNorm2d)):
            raise InputError(
                f"{type(self).__name__} averages each image to one position, where BatchNorm cannot train on a batch "
                "of one image. Raise the batch size, accumulate fewer pieces of a batch (--accumulate), or give the "
                "data loader drop_last=True."
            )
        return self.backbone(images)


class UPerNet(Segmenter):
    """ConvNeXt-Tiny, its four stages joined by a feature pyramid: 59,242,914 parameters for two classes.

    The last stage is pooled to 1, 2, 3 and 6 cells a side; each stage is brought to ``channels``, the coarser added to
    the finer from the top down, and all four are fused at a quarter of the size. Widths (24, 48, 96, 192), depths
    (1, 1, 3, 1) and 64 channels make 1,248,202 parameters.

    Taps: ``decode_head.conv_seg`` the logits at 1/4, ``decode_head.fusion`` what they are read from (``channels``),
    ``backbone.norms.0`` to ``backbone.norms.3`` the stages at 1/4 to 1/32; ``auxiliary_head.conv_seg`` at 1/16, in
    training mode. Sizes are rounded down at each stage.

    Args:
        classes: number of classes, the background among them, at least 2.
        widths: channels of the four stages; the default is ConvNeXt-Tiny's.
        depths: blocks of the four stages; the default is ConvNeXt-Tiny's.
        channels: of the head; the published runs have 512. An auxiliary head has half as many.
        auxiliary: an FCN head on the third stage: 885,762 parameters more. The published weight of its loss is 0.4.
        weights: of the backbone: "imagenet" (in the default widths and depths only), "none", or "auto" for ImageNet's
            where they can be had.

    Stochastic depth is 0.1, as in torchvision's ConvNeXt-Tiny; mmsegmentation's runs have 0.4. Dropout before
    ``conv_seg`` drops whole channels with 0.1.

    Shapes: images (n, 3, h, w) of at least 32x32 to logits (n, k, h, w).

    Raises:
        InputError: arguments out of range, "imagenet" that cannot be had; in forward, images below 32x32, a batch of
            one in training mode.

    Source: Xiao, Liu, Zhou, Jiang, Sun: Unified Perceptual Parsing for Scene Understanding, ECCV 2018,
    arXiv:1807.10221. Backbone: Liu, Mao, Wu, Feichtenhofer, Darrell, Xie: A ConvNet for the 2020s, CVPR 2022,
    arXiv:2201.03545.
    """

    def __init__(
        self,
        classes: int = 2,
        widths: Sequence[int] = CONVNEXT_TINY[0],
        depths: Sequence[int] = CONVNEXT_TINY[1],
        channels: int = 512,
        auxiliary: bool = False,
        weights: Weights = "none",
    ) -> None:
        _check(classes, channels)
        _check_stages("widths", widths)
        _check_stages("depths", depths)
        trunk, used = backbone(
            "ConvNeXt-Tiny", partial(ConvNeXtStages, widths, depths), trained(ConvNeXt_Tiny_Weights.IMAGENET1K_V1),
            weights, published=(tuple(widths), tuple(depths)) == CONVNEXT_TINY,
        )  # fmt: skip
        super().__init__(
            trunk,
            UPerHead(widths, channels, classes),
            FCNHead(widths[2], channels // 2, classes) if auxiliary else None,
        )
        self.weights_used = used
        self.architecture = {
            "name": "UPerNet", "classes": classes, "widths": list(widths), "depths": list(depths),
            "channels": channels, "auxiliary": auxiliary,
        }  # fmt: skip


class PSPNet(Segmenter):
    """ResNet18 of output stride 8 and a pyramid of poolings: 12,619,842 parameters for two classes.

    The last stage is pooled to 1, 2, 3 and 6 cells a side and fused with these, so that each position sees the whole
    image. Width 16, one block a stage and 48 channels make 472,850 parameters.

    Taps: ``decode_head.conv_seg`` the logits at 1/8, ``decode_head.pyramid`` what they are read from (``channels``),
    ``backbone.layer1`` to ``backbone.layer4`` the stages at 1/4, 1/8, 1/8 and 1/8; ``auxiliary_head.conv_seg`` at 1/8,
    in training mode. Sizes are rounded up at each stage.

    Args:
        classes: number of classes, the background among them, at least 2.
        width: channels of the first stage, at least 8, doubled at each other; the default is ResNet18's.
        blocks: residual blocks of the four stages; the default is ResNet18's.
        channels: of the head; None for twice the width, which is a quarter of the last stage's as in the paper. An
            auxiliary head has half as many.
        auxiliary: an FCN head on the third stage: 147,714 parameters more. The published weight of its loss is 0.4.
        weights: of the backbone: "imagenet" (in the default width and blocks only), "none", or "auto" for ImageNet's
            where they can be had.

    Dropout before ``conv_seg`` drops whole channels with 0.1.

    Shapes: images (n, 3, h, w) of any size to logits (n, k, h, w).

    Raises:
        InputError: arguments out of range, "imagenet" that cannot be had; in forward, a batch of one in training mode.

    Source: Zhao, Shi, Qi, Wang, Jia: Pyramid Scene Parsing Network, CVPR 2017, arXiv:1612.01105. Backbone: He, Zhang,
    Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385.
    """

    def __init__(
        self,
        classes: int = 2,
        width: int = RESNET18[0],
        blocks: Sequence[int] = RESNET18[1],
        channels: int | None = None,
        auxiliary: bool = False,
        weights: Weights = "none",
    ) -> None:
        if width < LEAST_WIDTH:
            raise InputError(f"width is {width}; wanted: the channels of the first stage, at least {LEAST_WIDTH}.")
        channels = 2 * width if channels is None else channels
        _check(classes, channels)
        _check_stages("blocks", blocks)
        trunk, used = backbone(
            "ResNet18", partial(DilatedResNet, width, blocks), trained(ResNet18_Weights.IMAGENET1K_V1), weights,
            published=(width, tuple(blocks)) == RESNET18,
        )  # fmt: skip
        super().__init__(
            trunk,
            PSPHead(8 * width, channels, classes),
            FCNHead(4 * width, channels // 2, classes) if auxiliary else None,
        )
        self.weights_used = used
        self.architecture = {
            "name": "PSPNet", "classes": classes, "width": width, "blocks": list(blocks), "channels": channels,
            "auxiliary": auxiliary,
        }  # fmt: skip


# --- backbones -------------------------------------------------------------------------------------------------------


class ConvNeXtStages(nn.Module):
    """torchvision's ConvNeXt as four maps at 1/4 to 1/32 of the size, each normalised over its channels.

    The norms are the segmentation runs' own; ``features`` is torchvision's, and its trained weights fit by name.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        stages = [CNBlockConfig(*stage) for stage in zip(widths, [*widths[1:], None], depths, strict=True)]
        self.features = ConvNeXt(stages, stochastic_depth_prob=0.1).features
        self.norms = nn.ModuleList(LayerNorm2d(width, eps=1e-6) for width in widths)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        if min(images.shape[2:]) < 32:
            height, width = images.shape[2:]
            raise InputError(
                f"images are {height} high and {width} wide; ConvNeXt halves the size five times and wants at least "
                "32x32. Enlarge or pad them."
            )
        maps: list[Tensor] = []
        # A layer that brings the size down, then a stage, four times.
        for index, layer in enumerate(self.features):
            images = layer(images)
            if index % 2:
                maps.append(self.norms[index // 2](images))
        return maps

    def load_imagenet(self, weights: dict[str, Tensor]) -> None:
        ours = {name: value for name, value in weights.items() if not name.startswith("classifier.")}
        self.features.load_state_dict({name.removeprefix("features."): value for name, value in ours.items()})


class DilatedResNet(ResNetEncoder):
    """A ResNet of torchvision's basic blocks as four maps at 1/4, 1/8, 1/8 and 1/8 of the size.

    Stages 3 and 4 have dilations 2 and 4 where a ResNet has stride 2. The first convolution of a stage still sees the
    map before that stride and keeps the dilation of the stage below; so every second (fourth) position of the map holds
    exactly what the strided network would, and its trained weights mean the same here. mmsegmentation's basic blocks
    dilate their first convolution alone, and its stem has three small convolutions for the one of 7x7.
    """

    def __init__(self, width: int, blocks: Sequence[int]) -> None:
        super().__init__(width, blocks, strides=(1, 2, 1, 1))
        _dilate(self.get_submodule("layer3"), 2, first=1)
        _dilate(self.get_submodule("layer4"), 4, first=2)


def _dilate(stage: nn.Module, dilation: int, first: int) -> None:
    convolutions = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    for convolution, cells in zip(convolutions, [first] + [dilation] * len(convolutions), strict=False):
        convolution.dilation = convolution.padding = (cells, cells)


# --- heads -----------------------------------------------------------------------------------------------------------


class Head(nn.Module):
    """What all heads end with: dropout of whole channels, then one linear classifier at each position."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(channels, classes, kernel_size=1)

    def classify(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        return self.conv_seg(self.dropout(features))


class UPerHead(Head):
    """A feature pyramid over the four stages, with pyramid pooling on the last: logits at the size of the first."""

    def __init__(self, widths: Sequence[int], channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.pyramid = PyramidPooling(widths[-1], channels)
        self.lateral_convs = nn.ModuleList(_convolution(width, channels, 1) for width in widths[:-1])
        self.fpn_convs = nn.ModuleList(_convolution(channels, channels, 3) for _ in widths[:-1])
        self.fusion = _convolution(len(widths) * channels, channels, 3)

    def forward(self, maps: Sequence[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n k _ _"]:
        levels = [lateral(stage) for lateral, stage in zip(self.lateral_convs, maps, strict=False)]
        coarser = top = self.pyramid(maps[-1])
        for index in reversed(range(len(levels))):
            coarser = levels[index] = levels[index] + _resized(coarser, levels[index])
        levels = [convolution(level) for convolution, level in zip(self.fpn_convs, levels, strict=True)] + [top]
        fused = self.fusion(torch.cat([_resized(level, levels[0]) for level in levels], dim=1))
        return self.classify(fused)


class PSPHead(Head):
    """Pyramid pooling on the last stage: logits at its size."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.pyramid = PyramidPooling(width, channels)

    def forward(self, maps: Sequence[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n k _ _"]:
        return self.classify(self.pyramid(maps[-1]))


class FCNHead(Head):
    """One convolution on the third stage: logits at its size."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.convolution = _convolution(width, channels, 3)

    def forward(self, maps: Sequence[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n k _ _"]:
        return self.classify(self.convolution(maps[2]))


class PyramidPooling(nn.Module):
    """A map beside its averages over 1, 2x2, 3x3 and 6x6 cells, fused: each position sees the whole image."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(_Average(cells), _convolution(width, channels, 1)) for cells in POOL_SCALES
        )
        self.bottleneck = _convolution(width + len(POOL_SCALES) * channels, channels, 3)

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        pooled = [_resized(branch(maps), maps) for branch in self.branches]
        return self.bottleneck(torch.cat([maps, *pooled], dim=1))


class _Average(nn.AdaptiveAvgPool2d):
    """On an Apple GPU, which averages over cells of one size alone, by way of the processor."""

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c _ _"]:
        on_processor = maps.cpu() if maps.device.type == "mps" else maps
        return super().forward(on_processor).to(maps.device)


def _convolution(before: int, after: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    return initialised(nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)))


def _resized(maps: Float[Tensor, "n c _ _"], like: Float[Tensor, "n _ h w"]) -> Float[Tensor, "n c h w"]:
    return F.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=False)


# --- what they are built from ----------------------------------------------------------------------------------------


def _check(classes: int, channels: int) -> None:
    if classes < 2:
        raise InputError(f"classes is {classes}; a segmenter needs at least 2, the background among them.")
    if channels < 2:
        raise InputError(f"channels is {channels}; the head needs at least 2.")


def _check_stages(name: str, numbers: Sequence[int]) -> None:
    if len(numbers) != 4 or min(numbers) < 1:
        raise InputError(f"{name} is {tuple(numbers)}; wanted: one number for each of the four stages, at least 1.")
