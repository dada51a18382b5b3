"""Losses for networks that say something about every pixel: on feature maps, or on maps of logits."""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from kdlab.errors import InputError, unknown
from kdlab.losses.inputs import (
    at_least_float32,
    comparable,
    has_channels,
    matched,
    positive,
    several_positions,
    usable,
)

Mask = Literal["spatial", "channel"]


class PixelCrossEntropy(nn.Module):
    """Cross-entropy over the pixels that have a class; 0 where none has.

    A pixel without a class, in a mask's uncertain outline or in an image without a mask, carries the number 255.
    PyTorch's own mean over no pixel at all is NaN, which would end a training at the first batch without a mask.

    Shapes: logits (n, k, h, w), masks (n, h, w). Returns a scalar in nats, the mean over the pixels with a class.

    Raises:
        InputError: other dimensions; a mask of another size; a number that is neither a class nor 255.
    """

    IGNORE = 255

    def forward(self, logits: Float[Tensor, "n k h w"], mask: Integer[Tensor, "n h w"]) -> Float[Tensor, ""]:
        usable(logits, "network", "n k h w")
        n, k, h, w = logits.shape
        if mask.shape != (n, h, w):
            raise InputError(
                f"the masks are {tuple(mask.shape)} and the logits {tuple(logits.shape)}; wanted: masks of ({n}, {h}, "
                f"{w}), a class number for every pixel."
            )
        if mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
            raise InputError(f"the masks have dtype {mask.dtype}; wanted: integers, such as torch.int64.")
        mask = mask.long()  # in int8, 255 would be -1
        known = self._known(mask, k)
        total = F.cross_entropy(at_least_float32(logits), mask, ignore_index=self.IGNORE, reduction="sum")
        return total / max(known, 1)

    def _known(self, mask: Tensor, classes: int) -> int:
        """How many pixels have a class. A number that is neither a class nor 255 is an error."""
        least, most = torch.stack(mask.aminmax()).tolist()
        if least >= 0 and most < min(classes, self.IGNORE):  # nearly always, and two numbers have told
            return mask.numel()
        known = mask != self.IGNORE
        beyond = known & ((mask < 0) | (mask >= classes))
        pixels, wrong = torch.stack([known.sum(), beyond.sum()]).tolist()
        if wrong:
            raise InputError(
                f"a mask has the number {mask[beyond][0].item()}; all must be of 0 to {classes - 1}, or {self.IGNORE} "
                "for a pixel without a class."
            )
        return pixels


class CWDLoss(nn.Module):
    r"""Compare where each channel is active: its map as a probability distribution over the positions.

    .. math:: \mathcal L = \frac{\tau^2}{N C} \sum_{n,c} \mathrm{KL}\!\left(p^t_{nc} \,\|\, p^s_{nc}\right),
              \qquad p_{nc} = \mathrm{softmax}_{hw}(F_{nc} / \tau)

    The gradient to the student's map is :math:`\frac{\tau}{N C}(p^s - p^t)`. The official weights are 3 on logits and
    50 on features, with :math:`\tau = 4`.

    Args:
        temperature: tau > 0. The default 1 compares the plain distributions; the official runs have 4. A higher one
            looks at more of each map.

    Shapes: student and teacher (n, c, h, w), logits or features; a connector makes other sizes meet. C is the number
    of channels of these compared maps; one known implementation divides by the student's before its connector.
    Returns a scalar in nats: the sum over positions, the mean over batch and channels, times tau squared. It does not
    see a constant on a channel. The teacher is detached. Half precision is compared in float32.

    Raises:
        InputError: temperature not above 0 or not finite; shapes that differ; maps of a single position, whose
            distributions are all alike.

    Source: Shu et al.: Channel-wise Knowledge Distillation for Dense Prediction, 2021, arXiv:2011.13256.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        positive(temperature=temperature)
        self.temperature = temperature

    def forward(self, student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        student, teacher = comparable(student, teacher, "n c h w")
        several_positions(student, "CWDLoss")
        return _PositionKL.apply(student.flatten(2), teacher.flatten(2), self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class _PositionKL(torch.autograd.Function):
    """The KL divergence over the last dimension, mean over the others, times T squared, in few passes over memory.

    With each map's maximum taken off, log p = z / T - log Z, Z the sum of exp(z / T). So KL is the mean gap of these
    logits under p_teacher, plus the log of a ratio of sums: no logarithm of a probability that can be 0.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, T: float) -> Tensor:
        # In place: on a CPU a fresh large tensor costs as much as what is done to it.
        exp_student, exp_teacher = (x - x.amax(-1, keepdim=True) for x in (student, teacher))
        gap = exp_teacher - exp_student
        exp_student.div_(T).exp_()
        exp_teacher.div_(T).exp_()
        z_student, z_teacher = (x.sum(-1, keepdim=True) for x in (exp_student, exp_teacher))
        kl = gap.mul_(exp_teacher).sum(-1, keepdim=True) / (T * z_teacher) + (z_student / z_teacher).log()
        ctx.T, ctx.maps = T, kl.numel()
        p_gap = exp_student.div_(z_student).addcdiv_(exp_teacher, z_teacher, value=-1)
        ctx.save_for_backward(student, teacher, p_gap)
        return kl.clamp(min=0).mean() * T**2  # below 0 by rounding only

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        student, teacher, p_gap = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted, which a stored gap does not have
            p_gap = F.softmax(student / ctx.T, dim=-1) - F.softmax(teacher / ctx.T, dim=-1)
        return p_gap * (gradients[0] * ctx.T / ctx.maps), None, None


class MGDLoss(nn.Module):
    r"""Ask whether the student's feature map, with parts of it masked, is enough to generate the teacher's.

    .. math:: \mathcal L = \frac1N \sum_n \left\| G\!\left(M_n \odot \mathrm{align}(F^s_n)\right) - F^t_n \right\|_2^2

    The official code multiplies by alpha, which is the term's weight here: 2e-5 for one-stage detectors and for
    segmentation, 5e-7 for two-stage detectors, 7e-5 for classification. Being a sum, the loss grows with the size of
    the map. It has parameters of its own, the generator G and the alignment; give them to the optimiser (a distiller
    does).

    Args:
        student_channels, teacher_channels: where they differ a 1x1 convolution aligns the student. G is a 3x3
            convolution, a ReLU and another 3x3 convolution, all with the teacher's channels.
        mask_ratio: 0 to 1, the share that is masked: 0 keeps all, 1 removes all. The default 0.65 is the official one
            for one-stage detectors; 0.45 for two-stage ones, 0.75 for segmentation, 0.15 for classification.
        mask: "spatial" masks positions, in all channels alike, as for detection and segmentation; "channel" masks
            whole channels, as for classification.

    Shapes: student (n, c_s, h, w), teacher (n, c_t, h, w). Returns a scalar in squared units of the features: the sum
    over a sample, the mean over the batch. The mask is new at every call, in evaluation too, from PyTorch's global
    generator. The teacher is detached. Half precision is compared in float32; the convolutions run in what their
    parameters, or autocast, have.

    Raises:
        InputError: mask_ratio outside 0 to 1; another mask; other channels than announced; batches, heights or widths
            that differ.

    Source: Yang et al.: Masked Generative Distillation, 2022, arXiv:2205.01529.
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, mask_ratio: float = 0.65, mask: Mask = "spatial"
    ) -> None:
        super().__init__()
        positive(student_channels=student_channels, teacher_channels=teacher_channels)
        if not 0 <= mask_ratio <= 1:
            raise InputError(f"mask_ratio is {mask_ratio}; it must be 0 (keep all) to 1 (mask all).")
        if mask not in get_args(Mask):
            raise InputError(unknown("mask", mask, get_args(Mask)))
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.mask_ratio = mask_ratio
        self.mask = mask
        self.align = (
            nn.Identity() if student_channels == teacher_channels else nn.Conv2d(student_channels, teacher_channels, 1)
        )
        self.generator = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def forward(self, student: Float[Tensor, "n c_s h w"], teacher: Float[Tensor, "n c_t h w"]) -> Float[Tensor, ""]:
        usable(student, "student", "n c h w")
        usable(teacher, "teacher", "n c h w")
        has_channels(student, "student", self.student_channels)
        has_channels(teacher, "teacher", self.teacher_channels)
        if student[:, 0].shape != teacher[:, 0].shape:
            raise InputError(
                f"the student's tensor is {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}; batch, "
                "height and width must be the same. Give both the same images, or resize one with a connector."
            )
        aligned = self.align(student.to(next(self.generator.parameters()).dtype))
        generated, teacher = matched(self.generator(aligned * self._kept(aligned)), teacher)
        return F.mse_loss(generated, teacher, reduction="sum") / len(teacher)

    def _kept(self, maps: Tensor) -> Tensor:
        """1 where the student's map is kept, 0 where it is masked: (n, 1, h, w) or (n, c, 1, 1)."""
        n, c, h, w = maps.shape
        drawn = torch.rand((n, 1, h, w) if self.mask == "spatial" else (n, c, 1, 1), device=maps.device)
        return (drawn < 1 - self.mask_ratio).to(maps.dtype)

    def extra_repr(self) -> str:
        return f"mask_ratio={self.mask_ratio}, mask={self.mask!r}"
