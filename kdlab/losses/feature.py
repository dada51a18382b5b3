"""Losses on what a network sees: its feature maps."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdlab.errors import InputError
from kdlab.losses.inputs import (
    at_least_float32,
    comparable,
    has_channels,
    is_tensor,
    matched,
    positive,
    several_positions,
    usable,
)


class HintLoss(nn.Module):
    r"""Compare two feature maps, or two embeddings, element by element.

    .. math:: \mathcal L = \frac{1}{|F|} \sum_i \left(F^s_i - F^t_i\right)^2

    The paper has half the squared norm, and trains in two stages: first the layers up to the hint, then all with the
    labels. The code that the field's tables come from has this mean, in one stage, with a weight of 100. Other
    libraries normalise each sample by its l2 norm first: a published weight does not carry over between these.

    Shapes: student and teacher both (n, c, h, w), or both (n, d); a connector makes other sizes meet. Returns a scalar
    in squared units of the features: the mean over all elements. The teacher is detached. Half precision is compared
    in float32.

    Raises:
        InputError: shapes that differ, or with other dimensions.

    Source: Romero et al.: FitNets: Hints for Thin Deep Nets, 2015, arXiv:1412.6550.
    """

    def forward(self, student: Float[Tensor, "n c *hw"], teacher: Float[Tensor, "n c *hw"]) -> Float[Tensor, ""]:
        is_tensor(student, "student")
        if student.ndim not in (2, 4):
            tokens = " Tokens (n, l, d) go as (n * l, d): end both connectors with nn.Flatten(0, 1)."
            raise InputError(
                f"the student's tensor is {tuple(student.shape)}; wanted: (n, c, h, w) or (n, d)."
                + tokens * (student.ndim == 3)
            )
        return F.mse_loss(*comparable(student, teacher, "n d" if student.ndim == 2 else "n c h w"))


class ATLoss(nn.Module):
    r"""Compare where two networks look: maps of how active each position is, whatever the channels mean.

    .. math:: \mathcal L = \frac{1}{N H W} \sum_n \left\| \frac{A^s_n}{\|A^s_n\|_2} - \frac{A^t_n}{\|A^t_n\|_2}
              \right\|_2^2, \qquad A_n = \frac{1}{C} \sum_c |F_{nc}|^p

    This is the official code, usually with a weight of 1000. The paper's equation has the norm, not squared, and no
    mean over positions: a weight for that one is far smaller.

    Args:
        power: p of at least 1. The default 2 is the official one; a higher p looks at the most active positions only.

    Shapes: student (n, c_s, h_s, w_s), teacher (n, c_t, h_t, w_t); the larger map is average-pooled to the size of the
    smaller, before the power. Returns a scalar without a unit: the mean over batch and positions. It does not see the
    order of channels, nor a positive factor on a sample. The teacher is detached. Half precision is compared in
    float32, and each sample is divided by its largest value before the power, so that no activation is too large.

    Raises:
        InputError: power below 1; batches that differ; maps of a single position, which are all alike.

    Source: Zagoruyko, Komodakis: Paying More Attention to Attention: Improving the Performance of Convolutional
    Neural Networks via Attention Transfer, 2017, arXiv:1612.03928.
    """

    def __init__(self, power: float = 2) -> None:
        super().__init__()
        if not 1 <= power < float("inf"):
            raise InputError(f"power is {power}; it must be a finite number, 1 or above.")
        self.power = power

    def forward(
        self, student: Float[Tensor, "n c_s h_s w_s"], teacher: Float[Tensor, "n c_t h_t w_t"]
    ) -> Float[Tensor, ""]:
        student, teacher = _of_one_size(student, teacher)
        several_positions(student, "ATLoss")
        return F.mse_loss(self._attention(student), self._attention(teacher))

    def _attention(self, features: Tensor) -> Tensor:
        """One map for each sample, (n, h*w), of l2 norm 1; 0 where all features are 0."""
        # The norm cancels the scale, so that the gradient may take it as a constant. The norm's floor is F.normalize's.
        # The gradient divides by the scale twice; the floor makes 0 of a map of smaller numbers than this least scale.
        flat = features.detach().flatten(1)
        scale = torch.maximum(flat.amax(1), -flat.amin(1)).clamp(min=1e-18)[:, None, None, None]
        activity = _Activity.apply(features, scale, self.power).flatten(1)
        norm = torch.linalg.vector_norm(activity, dim=1, keepdim=True)
        return activity / torch.maximum(norm, 1e-12 / scale[:, :, 0, 0].pow(self.power))

    def extra_repr(self) -> str:
        return f"power={self.power}"


class _Activity(torch.autograd.Function):
    """The mean over channels of abs(features / scale) to a power, with no large tensor made that is not needed."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: Tensor, power: float) -> Tensor:
        ctx.power = power
        ctx.save_for_backward(features, scale)
        scaled = features / scale
        return (scaled.square_() if power == 2 else scaled.abs_().pow_(power)).mean(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        features, scale = ctx.saved_tensors
        slope = grad[:, None] * (ctx.power / features.shape[1]) / scale
        if ctx.power == 2:
            return features * (slope / scale), None, None
        scaled = features / scale
        return scaled.sign().mul_(scaled.abs_().pow_(ctx.power - 1)).mul_(slope), None, None


class ABLoss(nn.Module):
    r"""Compare which neurons are active: the sign of the features before the ReLU, with a margin.

    .. math:: \mathcal L = \frac{3}{1000 N} \sum_i
              \begin{cases} (s_i + m)^2 & t_i \le 0,\ s_i > -m \\ (s_i - m)^2 & t_i > 0,\ s_i \le m \\
              0 & \text{otherwise} \end{cases}

    The factor 3/1000 is that of the release's CIFAR-10 script; its module for MIT scenes has 1/1000. The official
    weights of several layers are 1, 1/2, 1/4 and so on from the last one back; they belong to the terms.

    Args:
        margin: m > 0, how far beyond zero the student is to be. The default 1 is the official one.

    Shapes: student and teacher (n, c, h, w), tapped before the ReLU; after it no feature is negative and half of the
    loss is gone. Returns a scalar: the sum over a sample, the mean over the batch, times 3/1000. It is 0 where the
    student is beyond the margin on the teacher's side of zero, however far. The teacher is detached. Half precision is
    compared in float32.

    Raises:
        InputError: margin not above 0; shapes that differ.

    Source: Heo et al.: Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons, 2019,
    arXiv:1811.03233.
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        positive(margin=margin)
        self.margin = margin

    def forward(self, student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        student, teacher = comparable(student, teacher, "n c h w")
        # The nearest features that cost nothing: to the gradient they are constants.
        free = student.detach()
        least = teacher.clamp(-self.margin, -self.margin)  # what a NaN of the teacher comes through
        free = torch.where(teacher > 0, free.clamp(min=self.margin), torch.minimum(free, least))
        return F.mse_loss(student, free, reduction="sum") / len(student) * (3 / 1000)

    def extra_repr(self) -> str:
        return f"margin={self.margin}"


class OFDLoss(nn.Module):
    r"""Compare features before the ReLU where they matter: how negative a negative one is, does not.

    .. math:: \mathcal L = \frac{1}{1000 N} \sum_i (s_i - t'_i)^2 \,[\,s_i > t'_i \text{ or } t'_i > 0\,],
              \qquad t'_i = \max(t_i, m_{c(i)})

    The official layers are weighted 1, 1/2, 1/4 and so on from the last one back; these weights belong to the terms.
    The divisor 1000 is that of the release's CIFAR code; for ImageNet it is 10000: a weight of 0.1 here.

    Args:
        margin: (c), 0 or below: for each channel of the teacher the value that stands for "not active". It is the
            expected negative feature, which :func:`ofd_margin` reads from the teacher's batch norm.

    Shapes: student and teacher (n, c, h, w), tapped before the ReLU; the official connector on the student is a 1x1
    convolution with batch norm. Returns a scalar: the sum over a sample, the mean over the batch, divided by 1000. It
    is 0 at a perfect match, and where the teacher is 0 or below an element counts nothing once the student is at most
    t'. The teacher is detached. Half precision is compared in float32.

    Raises:
        InputError: a margin above 0, not finite, not one for each channel, or no tensor; shapes that differ.

    Source: Heo et al.: A Comprehensive Overhaul of Feature Distillation, 2019, arXiv:1904.01866.
    """

    margin: Tensor

    def __init__(self, margin: Float[Tensor, " c"]) -> None:
        super().__init__()
        if not isinstance(margin, Tensor) or margin.ndim != 1 or not (margin.isfinite() & (margin <= 0)).all():
            shape = tuple(margin.shape) if isinstance(margin, Tensor) else f"a {type(margin).__name__}"
            raise InputError(
                f"margin is {shape}: {margin}; wanted: a tensor (c), for each channel a finite number, 0 or below, as "
                "ofd_margin(batch norm) gives."
            )
        self.register_buffer("margin", margin.detach().clone())

    def forward(self, student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        student, teacher = comparable(student, teacher, "n c h w")
        has_channels(teacher, "teacher", len(self.margin))
        teacher = torch.maximum(teacher, self.margin.to(teacher.dtype)[:, None, None])
        counts = (student > teacher) | (teacher > 0)
        return ((student - teacher) * counts).square().sum() / len(student) / 1000

    def extra_repr(self) -> str:
        return f"channels={len(self.margin)}"


def ofd_margin(batchnorm: nn.Module) -> Float[Tensor, " c"]:
    r"""The margins of :class:`OFDLoss`: what a channel is on average where it is negative.

    .. math:: m = E[x \mid x < 0] = \beta - \gamma\,\frac{\varphi(\beta/\gamma)}{\Phi(-\beta/\gamma)},
              \qquad x \sim \mathcal N(\beta, \gamma^2)

    A batch norm puts out about this normal distribution, with its bias as mean and the absolute value of its weight as
    standard deviation. Where a channel is negative in at most one case in a thousand, its margin is
    :math:`-3\gamma`, as in the official code.

    Args:
        batchnorm: the teacher's layer right before the tapped place, with weight and bias.

    Raises:
        InputError: not a batch norm, or one without weight and bias.
    """
    weight, bias = getattr(batchnorm, "weight", None), getattr(batchnorm, "bias", None)
    if not hasattr(batchnorm, "running_mean") or weight is None or bias is None:
        raise InputError(
            f"ofd_margin got {batchnorm}; wanted: a batch norm with weight and bias, such as the one right before the "
            "teacher's tapped place."
        )
    # On the CPU, since not every device has float64.
    mean, std = (parameter.detach().cpu().double() for parameter in (bias, weight))
    std = std.abs().clamp(min=1e-300)  # a weight of 0: the channel is always its bias
    negative = torch.special.ndtr(-mean / std)
    density = (-0.5 * (mean / std).square()).exp() / math.sqrt(2 * math.pi)
    return torch.where(negative > 0.001, mean - std * density / negative, -3 * std).to(bias)


class FTLoss(nn.Module):
    r"""Compare the directions of two factors: a teacher's feature map paraphrased, a student's translated.

    .. math:: \mathcal L = \frac{1}{N C H W} \sum_n \sum_i
              \left| \frac{f^t_{ni}}{\|f^t_n\|_2} - \frac{f^s_{ni}}{\|f^s_n\|_2} \right|^p

    The paper has the norm, a sum over the elements; the code has their mean. Each factor is flattened whole. One known
    implementation averages its squares over the channels first and so compares attention maps, not factors.

    Args:
        power: p, 1 or 2. The default 1 is the official one.

    Shapes: student and teacher factors (n, c, h, w). Returns a scalar without a unit: the mean over all elements. It
    does not see a positive factor on a sample. A sample that is all 0 has no direction and stays 0. The teacher is
    detached. Half precision is compared in float32.

    Raises:
        InputError: another power; shapes that differ.

    Source: Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer, 2018,
    arXiv:1802.04977.
    """

    def __init__(self, power: int = 1) -> None:
        super().__init__()
        if power not in (1, 2):
            raise InputError(f"power is {power}; it must be 1 (absolute differences) or 2 (squared differences).")
        self.power = power

    def forward(self, student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        student, teacher = (_Direction.apply(factor.flatten(1)) for factor in comparable(student, teacher, "n c h w"))
        return F.l1_loss(student, teacher) if self.power == 1 else F.mse_loss(student, teacher)

    def extra_repr(self) -> str:
        return f"power={self.power}"


class _Direction(torch.autograd.Function):
    """Rows over their l2 norms, with fewer passes on the way back than a quotient and a norm take."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        # Divided by a tiny constant instead, a row of zeros would have a gradient of 1e12.
        norm = torch.where(norm > 1e-12, norm, 1)
        unit = rows / norm
        ctx.save_for_backward(unit, norm)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        unit, norm = ctx.saved_tensors
        along = torch.linalg.vecdot(grad, unit, dim=1)[:, None]  # a step along the row changes its norm alone
        return torch.addcmul(grad, unit, along, value=-1).div_(norm)


class VIDLoss(nn.Module):
    r"""Ask how well the student's feature map predicts the teacher's, each channel with a variance that is learnt.

    .. math:: \mathcal L = \frac{1}{N C H W} \sum_{n,c,h,w} \frac12 \left(
              \frac{(\mu(F^s)_{nchw} - F^t_{nchw})^2}{\sigma_c^2} + \log \sigma_c^2 \right),
              \qquad \sigma_c^2 = \mathrm{softplus}(a_c) + 10^{-5}

    It is the negative log-likelihood of the teacher's features under the student's prediction, up to a constant: a
    lower bound on the information that the two share. Where both fit, a channel's variance becomes its mean squared
    error; a channel that the student cannot predict then counts for less. The loss has parameters of its own, the
    prediction mu and the variances; give them to the optimiser (a distiller does).

    Args:
        student_channels, teacher_channels: mu is three 1x1 convolutions with ReLU between them, as in the official
            code; they and the hidden ones have no bias, and the hidden ones have the teacher's channels.
        init_variance: what all variances start with. The default 5 is the official one.

    Shapes: student (n, c_s, h_s, w_s), teacher (n, c_t, h_t, w_t); the larger map is average-pooled to the size of the
    smaller. Returns a scalar in nats: the mean over all elements. Below variance 1 the logarithm is negative, and so
    can the loss be; it is not 0 at a perfect match. The teacher is detached. Half precision is compared in float32; the
    convolutions run in what their parameters, or autocast, have.

    Raises:
        InputError: init_variance not above 1e-5; other channels than announced; batches that differ.

    Source: Ahn et al.: Variational Information Distillation for Knowledge Transfer, 2019, arXiv:1904.05835.
    """

    MIN_VARIANCE = 1e-5

    def __init__(self, student_channels: int, teacher_channels: int, init_variance: float = 5.0) -> None:
        super().__init__()
        positive(student_channels=student_channels, teacher_channels=teacher_channels, init_variance=init_variance)
        above = init_variance - self.MIN_VARIANCE
        if above <= 0:
            raise InputError(f"init_variance is {init_variance}; it must be above {self.MIN_VARIANCE}.")
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.regressor = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        inverse_softplus = above + math.log(-math.expm1(-above))
        self.raw_variance = nn.Parameter(torch.full((teacher_channels,), inverse_softplus))

    @property
    def variance(self) -> Float[Tensor, " c_t"]:
        """The variance of each of the teacher's channels."""
        return F.softplus(at_least_float32(self.raw_variance)) + self.MIN_VARIANCE

    def forward(
        self, student: Float[Tensor, "n c_s h_s w_s"], teacher: Float[Tensor, "n c_t h_t w_t"]
    ) -> Float[Tensor, ""]:
        student, teacher = _of_one_size(student, teacher)
        has_channels(student, "student", self.student_channels)
        has_channels(teacher, "teacher", self.teacher_channels)
        predicted, teacher = matched(self.regressor(student.to(self.raw_variance.dtype)), teacher)
        error, variance = (predicted - teacher).square().mean((0, 2, 3)), self.variance
        return 0.5 * (error / variance + variance.log()).mean()


class ReviewKDLoss(nn.Module):
    r"""Compare stages of two networks at several sizes: as they are, and average-pooled to 4x4, 2x2 and 1x1.

    .. math:: \mathcal L = \sum_{\text{stages}} \frac{\sum_l w_l\,
              \mathrm{mean}\left(\mathrm{pool}_l(F^s) - \mathrm{pool}_l(F^t)\right)^2}{\sum_l w_l},
              \qquad w = 1, \tfrac12, \tfrac14, \tfrac18

    This is the paper's hierarchical context loss. A level that is not smaller than the map is left out; the weights
    halve over those that remain. The other half of the method, the fusion of the student's stages from the last to
    the first, is a connector on the student. The official weights are 0.6 to 8 by pair of networks, warmed up over
    20 epochs.

    Shapes: student and teacher are lists of maps (n, c, h, w), one for each stage, of the same sizes in both; a pooled
    feature is a map (n, c, 1, 1). Returns a scalar in squared units of the features: the mean over the elements of a
    level, the weighted mean over levels, the sum over stages. The teacher is detached. Half precision is compared in
    float32.

    Raises:
        InputError: not two lists of the same length; no stage; maps whose shapes differ.

    Source: Chen et al.: Distilling Knowledge via Knowledge Review, 2021, arXiv:2104.09044.
    """

    LEVELS = (4, 2, 1)

    def forward(
        self, student: Sequence[Float[Tensor, "_ _ _ _"]], teacher: Sequence[Float[Tensor, "_ _ _ _"]]
    ) -> Float[Tensor, ""]:
        for stages, who in ((student, "student"), (teacher, "teacher")):
            if isinstance(stages, Tensor):
                raise InputError(
                    f"the {who}'s stages are one tensor {tuple(stages.shape)}; wanted: a list of maps (n, c, h, w). "
                    "Put a single map into a list."
                )
        if len(student) != len(teacher) or not student:
            raise InputError(
                f"the student has {len(student)} stages and the teacher {len(teacher)}; wanted: as many of one as of "
                "the other, at least one. Tap the same stages of both."
            )
        stages = [self._stage(*comparable(s, t, "n c h w")) for s, t in zip(student, teacher, strict=True)]
        return torch.stack(stages).sum()

    def _stage(self, student: Tensor, teacher: Tensor) -> Tensor:
        gap = student - teacher  # pooling is linear: the pooled gap is the gap of the pooled
        levels = [gap, *(F.adaptive_avg_pool2d(gap, level) for level in self.LEVELS if level < min(gap.shape[2:]))]
        weights = [0.5**halvings for halvings in range(len(levels))]
        terms = [weight * level.square().mean() for weight, level in zip(weights, levels, strict=True)]
        return torch.stack(terms).sum() / sum(weights)


def _of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The two maps as :func:`matched` returns them, the larger average-pooled to the height and width of the smaller.

    Raises:
        InputError: other dimensions than (n, c, h, w), or batches that differ.
    """
    usable(student, "student", "n c h w")
    usable(teacher, "teacher", "n c h w")
    if len(student) != len(teacher):
        raise InputError(
            f"the student's batch is {len(student)} and the teacher's {len(teacher)}; give both the same images."
        )
    student, teacher = matched(student, teacher)
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    if student.shape[2:] != size:
        student = F.adaptive_avg_pool2d(student, size)
    if teacher.shape[2:] != size:
        teacher = F.adaptive_avg_pool2d(teacher, size)
    return student, teacher
