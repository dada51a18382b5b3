"""The losses of the two-stage restoration: a common space with the teachers, and contrast with the degraded images."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdlab.errors import InputError, unknown
from kdlab.losses import inputs
from kdlab.losses.inputs import at_least_float32, comparable, usable

SLICE_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)  # of VGG19's relu1_1 to relu5_1
Negatives = Literal["paired", "same_weather"]
Images = Float[Tensor, "n 3 h w"]


class CKTLoss(nn.Module):
    r"""Compare student and teacher in a space that both are projected to: collaborative knowledge transfer.

    .. math:: \mathcal L_{PFE} = \frac{1}{NCHW} \left\| P_s(F^s) - P_k(F^t_k) \right\|_1

    The projections are a term's connectors, and so is what brings the teacher's back, whose error PFV keeps the space
    from shrinking to nothing; its published weight is 0.05.

    Args:
        detach: whether the gradient stops at the teacher's projection, which then learns from PFV alone. Released code
            does not stop it; at small layers and high rates the common space then shrinks in spite of PFV, and the loss
            with it, which teaches nothing.

    :attr:`shrunk_to` says what has become of the space: far below 1, it has collapsed.

    Shapes: projected maps (n, c, h, w) of one size. Returns a scalar in the units of the maps, the mean over all
    elements. Half precision is compared in float32, under autocast too.

    Raises:
        InputError: shapes that differ; no floating point numbers; two devices.

    Source: Chen et al.: Learning Multiple Adverse Weather Removal via Two-stage Knowledge Learning and
    Multi-contrastive Regularization, CVPR 2022. The published weight is 1.
    """

    first: Tensor
    last: Tensor

    def __init__(self, detach: bool = False) -> None:
        super().__init__()
        self.detach = detach
        self.register_buffer("first", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    @property
    def shrunk_to(self) -> float:
        """The mean size of the teacher's projections at the last training step, as a share of that at the first one."""
        return (self.last / self.first).item() if self.first else 1.0

    def forward(self, student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        mine, its = comparable(student, teacher, "n c h w")
        if not self.detach:
            its = at_least_float32(teacher).to(mine.dtype)
        if self.training:
            with torch.no_grad():  # on the device: nobody waits for the numbers
                self.last.copy_(its.abs().mean())
                self.first.copy_(torch.where(self.first > 0, self.first, self.last))
        return F.l1_loss(mine, its)

    def extra_repr(self) -> str:
        return f"detach={self.detach}"


class _Contrast(nn.Module):
    """What SCR and HCR share. The features are frozen, move along with the loss, and are no part of its state."""

    features: nn.Module

    def __init__(self, features: nn.Module, weights: Sequence[float], eps: float) -> None:
        super().__init__()
        inputs.positive(eps=eps)
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise InputError(f"weights is {tuple(weights)}; wanted: one for each map, finite, at least 0, not all 0.")
        self.__dict__["features"] = features.requires_grad_(False).eval()
        self.weights, self.eps = tuple(weights), eps

    def _apply(self, fn: Any, recurse: bool = True) -> "_Contrast":
        self.features._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _contrast(self, restored: Tensor, wanted: Tensor, degraded: Tensor, all_pairs: bool) -> Tensor:
        comparable(restored, wanted, "n c h w")
        comparable(restored, degraded, "n c h w")
        with torch.no_grad():  # one pass for both
            fixed = self.features(torch.cat([wanted, degraded]).to(restored.dtype))
        maps = self.features(restored)
        if len(maps) != len(self.weights):
            raise InputError(
                f"the features are {len(maps)} maps and there are {len(self.weights)} weights; wanted: one for each."
            )
        total = restored.new_zeros((), dtype=torch.float32)
        for weight, mine, others in zip(self.weights, maps, fixed, strict=True):
            anchor = at_least_float32(mine)
            positives, negatives = others.to(anchor.dtype).chunk(2)
            away = mean_distance_of_all_pairs(anchor, negatives) if all_pairs else F.l1_loss(anchor, negatives)
            total = total + weight * F.l1_loss(anchor, positives) / (away + self.eps)
        return total


class SCRLoss(_Contrast):
    r"""Compare a restored image with what it should be, in relation to what it was: soft contrastive regularisation.

    .. math:: \mathcal L = \sum_i w_i \frac{d(\phi_i(a), \phi_i(p))}{d(\phi_i(a), \phi_i(n)) + \epsilon}

    with :math:`\phi_i` the i-th map of a frozen network, d the mean absolute difference, a the student's image, p the
    positive and n the degraded input. Only the student's image gets a gradient.

    Args:
        features: a module from images to a sequence of maps, one for each weight; it is frozen, in eval mode. Several
            losses may share it.
        weights: of the maps; those of VGG19's relu1_1 to relu5_1 by default.
        negatives: "paired" compares each image with its own input; "same_weather" with all inputs of the batch, which
            for a term of one teacher are those of its weather, as the paper draws it.
        eps: in the denominator; the official 1e-7. A student that starts as the identity has a distance of 0 to its
            input, and the ratio explodes; 1e-2 is mild.

    Shapes: ``student`` is the pair of restored and degraded images, (n, 3, h, w) in 0 to 1; a term taps both as
    ``[Tap(""), Tap("", "input")]``. ``teacher`` is the positive, of the same shape: the teacher's
    restored images, as the paper draws it, or the clean ones, as the released code has it. Returns a scalar without
    unit. All images take the restored ones' type. The distances are computed in float32; the network runs in what its
    parameters, or autocast, have.

    It is a ratio of means over the batch. Where a batch is computed in parts, in several processes or by ``accumulate``
    of :func:`kdlab.training.fit`, it is the mean of the parts' ratios, which is another loss.

    Raises:
        InputError: no pair; shapes that differ; another number of maps than weights.

    Source: as :class:`CKTLoss`. The published weight is 0.1.
    """

    def __init__(
        self,
        features: nn.Module,
        weights: Sequence[float] = SLICE_WEIGHTS,
        negatives: Negatives = "paired",
        eps: float = 1e-7,
    ) -> None:
        super().__init__(features, weights, eps)
        if negatives not in get_args(Negatives):
            raise InputError(unknown("kind of negatives", str(negatives), get_args(Negatives)))
        self.negatives = negatives

    def forward(self, student: Sequence[Images], teacher: Images) -> Float[Tensor, ""]:
        restored, degraded = _two(student, "SCRLoss")
        return self._contrast(restored, teacher, degraded, all_pairs=self.negatives == "same_weather")

    def extra_repr(self) -> str:
        return f"negatives={self.negatives!r}, eps={self.eps}"


class HCRLoss(_Contrast):
    r"""Compare restored images with the clean ones, in relation to every degraded one: hard contrastive regularisation.

    .. math:: \mathcal L = \sum_i w_i \frac{d(\phi_i(a), \phi_i(p))}{D_i + \epsilon},
              \qquad D_i = \frac{1}{B^2} \sum_{jk} d(\phi_i(a_j), \phi_i(n_k))

    as :class:`SCRLoss`, but every degraded image of the batch, of whatever weather, is a negative of every restored
    one; it is the ratio of the batch's means. No tensor of B squared maps is made for it. Where a batch is computed in
    parts, each image meets its own part's alone: another loss, as with :class:`SCRLoss`.

    Args:
        features, weights, eps: as in :class:`SCRLoss`.

    Shapes: ``student`` is the pair of restored and degraded images, ``teacher`` the clean ones, (n, 3, h, w) in 0 to 1.
    Returns a scalar without unit. All images take the restored ones' type; the distances are computed in float32.

    Raises:
        InputError: no pair; shapes that differ; another number of maps than weights.

    Source: as :class:`CKTLoss`. The published weight is 0.2.
    """

    def __init__(self, features: nn.Module, weights: Sequence[float] = SLICE_WEIGHTS, eps: float = 1e-7) -> None:
        super().__init__(features, weights, eps)

    def forward(self, student: Sequence[Images], teacher: Images) -> Float[Tensor, ""]:
        restored, degraded = _two(student, "HCRLoss")
        return self._contrast(restored, teacher, degraded, all_pairs=True)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


def mean_distance_of_all_pairs(a: Float[Tensor, "n c h w"], b: Float[Tensor, "m c h w"]) -> Float[Tensor, ""]:
    """The mean absolute difference between each of ``a`` and each of ``b``; only ``a`` gets a gradient.

    In the memory of a few times ``a``, where a tensor of all differences would take m times ``a``.
    """
    return _AllPairs.apply(a, b)


class _AllPairs(torch.autograd.Function):
    """The running sum of differences and of their signs, one of ``b`` at a time."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        total, signs = a.new_zeros(()), torch.zeros_like(a, memory_format=torch.contiguous_format)
        # Slabs that stay in a processor's cache while all of b pass, or that fill an accelerator.
        columns = max(1, (2**17 if a.device.type == "cpu" else 2**24) // len(a))
        slabs = (maps.flatten(1).split(columns, dim=1) for maps in (a, b, signs))
        for mine, others, sums in zip(*slabs, strict=True):
            gaps, sign = torch.empty_like(mine), torch.empty_like(mine)
            for negative in others:
                torch.sub(mine, negative, out=gaps)
                torch.sign(gaps, out=sign)
                total += torch.dot(gaps.flatten(), sign.flatten())  # several times faster here than the norm
                sums += sign
        ctx.save_for_backward(signs)
        ctx.pairs = a.numel() * len(b)
        return total / ctx.pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * (grad / ctx.pairs), None


def _two(images: Sequence[Tensor], loss: str) -> Sequence[Tensor]:
    if isinstance(images, Tensor) or len(images) != 2:
        raise InputError(
            f"the student gives {1 if isinstance(images, Tensor) else len(images)} tensors to {loss}; wanted: two, the "
            'restored images and the degraded ones, as a term taps them by student=[Tap(""), Tap("", "input")].'
        )
    for single in images:
        usable(single, "student", "n c h w")
    return images
