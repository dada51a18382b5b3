"""Make shapes meet: what stands between a tapped layer and a loss.

A connector is any module from a tensor to a tensor (for :class:`ReviewFusion`, from a list of maps to a list of maps).
torch's own serve wherever they can: ``nn.Linear``, ``nn.AdaptiveAvgPool2d``, ``nn.Sequential``; ``nn.Flatten(0, 1)`` on
both sides makes each token of a sequence (n, tokens, c) a sample of its own.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdlab.errors import InputError


class ConvConnector(nn.Sequential):
    """A convolution that keeps the size, then BatchNorm and an activation where they are wanted.

    No activation by default: one that clips would take the sign from logits, and flatten what a softmax compares.

    Args:
        student_channels, teacher_channels: from, to.
        kernel_size: 1 or 3.
        norm: BatchNorm after the convolution (which then has no bias of its own).
        activation: a module after that, such as ``nn.ReLU()``.

    Shapes: (n, c, h, w) to (n, teacher_channels, h, w).

    Raises:
        InputError: another kernel size; channels below 1.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        kernel_size: Literal[1, 3] = 1,
        norm: bool = False,
        activation: nn.Module | None = None,
    ) -> None:
        _channels(student_channels=student_channels, teacher_channels=teacher_channels)
        if kernel_size not in (1, 3):
            raise InputError(f"kernel_size is {kernel_size}; wanted: 1 or 3.")
        layers: list[nn.Module] = [
            nn.Conv2d(student_channels, teacher_channels, kernel_size, padding=kernel_size // 2, bias=not norm)
        ]
        if norm:
            layers.append(nn.BatchNorm2d(teacher_channels))
        if activation is not None:
            layers.append(activation)
        super().__init__(*layers)


class Resize(nn.Module):
    """Bring maps to one size, without anything to learn: safe on the teacher's side.

    Args:
        size: height and width, or one number for both.
        mode: "bilinear", "nearest", or "area", which averages and so suits shrinking.

    Shapes: (n, c, h, w) to ``(n, c, *size)``.

    Raises:
        InputError: another mode; a size below 1.
    """

    def __init__(self, size: int | tuple[int, int], mode: Literal["bilinear", "nearest", "area"] = "bilinear") -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"size is {size}; wanted: height and width, each at least 1.")
        if mode not in ("bilinear", "nearest", "area"):
            raise InputError(f"mode is {mode!r}; wanted: 'bilinear', 'nearest' or 'area'.")
        self.mode = mode

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        corners = False if self.mode == "bilinear" else None
        return F.interpolate(maps, self.size, mode=self.mode, align_corners=corners)

    def extra_repr(self) -> str:
        return f"{self.size}, mode={self.mode!r}"


class Pixels(nn.Module):
    """Take every position for a sample of its own: a loss on logits then compares pixel by pixel.

    For losses without a target, which would still have its height and width.

    Shapes: (n, c, h, w) to (n * h * w, c).
    """

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "m c"]:
        return maps.permute(0, 2, 3, 1).flatten(0, 2)


class Pooled(nn.Sequential):
    """Average a map over its positions, and bring the result to another width where one is given.

    Args:
        channels, out: from, to: a linear layer between them; without ``out``, none.

    Shapes: (n, c, h, w) to (n, c) or (n, out).
    """

    def __init__(self, channels: int | None = None, out: int | None = None) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if out is not None:
            if channels is None:
                raise InputError("Pooled needs the channels of the map to bring them to another width.")
            _channels(channels=channels, out=out)
            self.append(nn.Linear(channels, out))


class Normalize(nn.Module):
    """Divide each sample, as one vector, by its Euclidean length. Zero stays zero.

    Shapes: (n, ...) to the same.
    """

    def forward(self, features: Float[Tensor, "n *rest"]) -> Float[Tensor, "n *rest"]:
        return F.normalize(features.flatten(1), dim=1).view_as(features)


class Paraphraser(nn.Module):
    """Factor transfer's teacher side: squeeze a map to its factors, learnt as an auto-encoder before distilling.

    Train ``reconstruct`` to give back the map (:func:`kdlab.recipes.loss_zoo.train_paraphraser`), freeze it, and use
    it as a connector on the teacher's side.

    Args:
        channels: of the teacher's map.
        rate: factors per channel; the paper's 0.5.
        norm: BatchNorm after each convolution (which then has no bias of its own).

    Shapes: (n, channels, h, w) to factors (n, channels * rate, h, w).

    Source: Kim, Park, Kwak: Paraphrasing Complex Network, NeurIPS 2018, arXiv:1802.04977.
    """

    def __init__(self, channels: int, rate: float = 0.5, norm: bool = True) -> None:
        super().__init__()
        _channels(channels=channels)
        if not 0 < rate <= 1:
            raise InputError(f"rate is {rate}; wanted: above 0 and at most 1.")
        self.factors = max(1, int(channels * rate))
        self.encoder = _factor_layers([channels, channels, self.factors, self.factors], norm)
        self.decoder = _factor_layers([self.factors, self.factors, channels, channels], norm)

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f h w"]:
        return self.encoder(maps)

    def reconstruct(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.decoder(self.encoder(maps))


class Translator(nn.Sequential):
    """Factor transfer's student side: from the student's map to as many factors as the paraphraser has.

    Shapes: (n, student_channels, h, w) to (n, factors, h, w).

    Source: Kim, Park, Kwak: Paraphrasing Complex Network, NeurIPS 2018, arXiv:1802.04977.
    """

    def __init__(self, student_channels: int, factors: int) -> None:
        _channels(student_channels=student_channels, factors=factors)
        super().__init__(*_factor_layers([student_channels, student_channels, factors, factors]))


class Projector(nn.Sequential):
    """Collaborative knowledge transfer's way into the space that student and teachers share, and the way back.

    ``Projector(c, h)`` brings a network's map into the space of h channels, h being half of the teacher's; one is the
    student's for all teachers, and each teacher has its own. ``Projector(h, c)`` is the inverse: a term's
    reconstruction, which keeps the space from shrinking to nothing.

    Args:
        before, after: channels; the second convolution has as many on both sides.

    Shapes: (n, before, h, w) to (n, after, h, w). Neither convolution has a bias.

    Source: Chen et al.: Learning Multiple Adverse Weather Removal via Two-stage Knowledge Learning and
    Multi-contrastive Regularization, CVPR 2022.
    """

    def __init__(self, before: int, after: int) -> None:
        _channels(before=before, after=after)
        layers = [nn.Conv2d(c, after, 3, padding=1, bias=False) for c in (before, after)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        super().__init__(layers[0], nn.ReLU(), layers[1])


class ReviewFusion(nn.Module):
    """Knowledge review's student side: each stage is fused with what the deeper stages have become, by attention.

    From the deepest stage up: a 1x1 convolution brings the stage to ``mid`` channels; two attention maps, computed from
    this and from the fused map of the next deeper stage (resized), weigh the sum of both; a 3x3 convolution brings
    that to the teacher's channels.

    Args:
        student_channels, teacher_channels: of the stages, from the first (largest) to the last.
        mid: channels of the fused maps; the paper's 512 is for large networks.

    Shapes: a list of maps (n, student_channels[i], h_i, w_i) to a list of (n, teacher_channels[i], h_i, w_i): bring the
    teacher's maps to the student's sizes where these differ.

    Raises:
        InputError: numbers of stages that differ; another number of maps than stages.

    Source: Chen et al.: Distilling Knowledge via Knowledge Review, CVPR 2021, arXiv:2104.09044.
    """

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int], mid: int = 64) -> None:
        super().__init__()
        if len(student_channels) != len(teacher_channels) or not student_channels:
            raise InputError(
                f"student_channels names {len(student_channels)} stages and teacher_channels {len(teacher_channels)}; "
                "wanted: the same number, at least 1."
            )
        for pair in zip(student_channels, teacher_channels, strict=True):
            _channels(student_channels=pair[0], teacher_channels=pair[1], mid=mid)
        self.narrow = nn.ModuleList(ConvConnector(channels, mid, norm=True) for channels in student_channels)
        self.attention = nn.ModuleList(nn.Conv2d(2 * mid, 2, 1) for _ in student_channels[1:])
        self.widen = nn.ModuleList(ConvConnector(mid, channels, 3, norm=True) for channels in teacher_channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        if len(maps) != len(self.narrow):
            raise InputError(f"{len(maps)} maps were given to a fusion of {len(self.narrow)} stages.")
        fused = self.narrow[-1](maps[-1])
        out = [self.widen[-1](fused)]
        for stage in reversed(range(len(maps) - 1)):
            own = self.narrow[stage](maps[stage])
            deeper = F.interpolate(fused, own.shape[2:], mode="nearest")
            weights = self.attention[stage](torch.cat([own, deeper], dim=1)).sigmoid()
            fused = own * weights[:, :1] + deeper * weights[:, 1:]
            out.append(self.widen[stage](fused))
        return out[::-1]


class Each(nn.Module):
    """One connector for each tensor of a list, such as a :class:`Resize` for each map of a :class:`ReviewFusion`.

    Shapes: a list of tensors to a list of what the connectors make of them.

    Raises:
        InputError: another number of tensors than connectors.
    """

    def __init__(self, *connectors: nn.Module) -> None:
        super().__init__()
        self.connectors = nn.ModuleList(connectors)

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if len(tensors) != len(self.connectors):
            raise InputError(f"{len(tensors)} tensors were given to {len(self.connectors)} connectors.")
        return [connector(tensor) for connector, tensor in zip(self.connectors, tensors, strict=True)]


def _factor_layers(channels: Sequence[int], norm: bool = True) -> nn.Sequential:
    """3x3 convolutions through these channels, each with leaky ReLU and, where it is wanted, BatchNorm before that."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += ConvConnector(before, after, 3, norm, nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)


def _channels(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name} is {number}; wanted: a whole number from 1 up.")
