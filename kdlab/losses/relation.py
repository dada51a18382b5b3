"""Losses on how a network relates things: the layers of one image, or the images of one batch."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.geometry import GeometryGap
from kdlab.losses.inputs import is_tensor, matched, not_negative, several, usable

Maps = Sequence[Float[Tensor, "n _ _ _"]]


class FSPLoss(nn.Module):
    r"""Compare how each network gets from one layer to a later one: the flow of solution procedure.

    .. math:: \mathcal L = \frac{1}{N C_1 C_2} \sum_n \left\| G^s_n - G^t_n \right\|_F^2,
              \qquad G_n = \frac{1}{HW} F^{first}_n {F^{last}_n}^{\!\top}

    with :math:`F_n` the maps of image n as (C, HW). Of a pair of unequal height or width the larger is average-pooled
    to the smaller.

    Shapes: ``student`` and ``teacher`` are pairs of maps, (n, c1, h1, w1) and (n, c2, h2, w2). Both networks need the
    same channel counts c1 and c2; heights and widths may all differ. Returns a scalar, the mean over the batch and the
    elements of G. The teacher is detached. Half precision is compared in float32, under autocast too.

    Raises:
        InputError: no pair; not four dimensions; channel counts or batches that differ.

    Source: Yim, Joo, Bae, Kim: A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning, CVPR 2017. A published weight, with this reduction: 50.
    """

    def forward(self, student: Maps, teacher: Maps) -> Float[Tensor, ""]:
        for maps, who in ((student, "student"), (teacher, "teacher")):
            if len(maps) != 2:
                raise InputError(f"the {who} gives {len(maps)} maps to FSPLoss; wanted: two, an earlier and a later.")
            for single in maps:
                usable(single, who, "n c h w")
        shapes = [[tuple(single.shape[:2]) for single in maps] for maps in (student, teacher)]
        if shapes[0] != shapes[1] or shapes[0][0][0] != shapes[0][1][0]:
            raise InputError(
                f"the student's maps have (n, c) = {shapes[0]} and the teacher's {shapes[1]}; wanted: one batch, and "
                "the same channels in both networks. Use connectors to make them meet, or tap other layers."
            )
        pairs = [matched(s, t) for s, t in zip(student, teacher, strict=True)]
        (first_student, first_teacher), (last_student, last_teacher) = pairs
        with torch.autocast(first_student.device.type, enabled=False):
            return F.mse_loss(_flow(first_student, last_student), _flow(first_teacher, last_teacher))


class RKDLoss(nn.Module):
    r"""Compare the geometry of a batch: the distances between embeddings, and the angles of their triangles.

    .. math:: \mathcal L = \frac{\lambda_D}{N^2} \sum_{ij} \ell\!\left(d^s_{ij} / \mu^s, d^t_{ij} / \mu^t\right)
              + \frac{\lambda_A}{N^3} \sum_{ijk} \ell\!\left(\cos\angle^s_{ijk}, \cos\angle^t_{ijk}\right)

    with :math:`\ell` the smooth L1, :math:`d_{ij} = \|x_i - x_j\|`, :math:`\mu` the mean of the positive distances, and
    :math:`\cos\angle_{ijk} = \langle e_{ij}, e_{kj} \rangle` at the vertex j, of :math:`e_{ij} = (x_i - x_j) / d_{ij}`.
    It sees no rotation, translation, reflection or scale; only the angles of distances whose squares overflow, in
    float32 from 1e19, are NaN. Degenerate pairs and triples count in the means, as they do in the official code.

    The cosines come from the distances alone, by the law of cosines, a few vertices at a time: no tensor of differences
    and none of all triples is made.

    Args:
        distance_weight, angle_weight: at least 0, not both 0; a part of weight 0 is not computed. The defaults 25 and
            50 are those of the benchmarks on CIFAR-100; the official example has 1 and 2.

    Shapes: embeddings (n, d_s) and (n, d_t), whose widths may differ; n at least 2. Returns a scalar, the weighted
    means. The teacher is detached. Half precision is compared in float32, under autocast too. Two points nearer than a
    millionth of their norms, or than 1e-12, coincide: distance 0, cosine 0, no gradient, not counted in mu. The
    official code lifts a distance of 0 to 1e-6 and divides by it in the gradient.

    Raises:
        InputError: weights out of range; not two dimensions; batches that differ; a batch of one.

    Source: Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, arXiv:1904.05068.
    """

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        not_negative(distance_weight=distance_weight, angle_weight=angle_weight)
        if distance_weight == angle_weight == 0:
            raise InputError("distance_weight and angle_weight are both 0; give at least one of them a weight above 0.")
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def forward(self, student: Float[Tensor, "n d_s"], teacher: Float[Tensor, "n d_t"]) -> Float[Tensor, ""]:
        student, teacher = one_batch(student, teacher)
        several(student, "RKDLoss")
        with torch.autocast(student.device.type, enabled=False):
            return GeometryGap.apply(student, teacher, self.distance_weight, self.angle_weight)

    def extra_repr(self) -> str:
        return f"distance_weight={self.distance_weight}, angle_weight={self.angle_weight}"


class SPLoss(nn.Module):
    r"""Compare which images of a batch excite each network alike.

    .. math:: \mathcal L = \frac{1}{N^2} \left\| \hat G^s - \hat G^t \right\|_F^2, \qquad G = F F^{\top},
              \quad \hat G_{i\cdot} = G_{i\cdot} / \|G_{i\cdot}\|_2

    with F the features, flattened to (n, d). The rows of G are what is normalised, by their l2 norm, after the product;
    that order is asked about where the benchmarks are discussed. It sees no rotation of the features, and no scale as
    long as the fourth power of their length is a normal number: in float32 for lengths of 1e-9 to 1e9. Beyond these the
    similarities become 0, and the loss with them.

    Shapes: features (n, ...) with everything after n flattened; sizes beyond n may differ. n at least 2. Returns a
    scalar, the mean over the pairs of the batch. The teacher is detached. Half precision is compared in float32, under
    autocast too. An image whose features are all 0 has similarity 0 to all.

    Raises:
        InputError: fewer than two dimensions; batches that differ; a batch of one.

    Source: Tung, Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv:1907.09682. The benchmarks'
    weight is 3000, on the last stage.
    """

    def forward(self, student: Float[Tensor, "n *s"], teacher: Float[Tensor, "n *t"]) -> Float[Tensor, ""]:
        is_tensor(student, "student")
        is_tensor(teacher, "teacher")
        student, teacher = one_batch(*(x.flatten(1) if x.ndim > 1 else x for x in (student, teacher)))
        several(student, "SPLoss")
        with torch.autocast(student.device.type, enabled=False):
            return F.mse_loss(_unit_rows(_Gram.apply(student)), _unit_rows(_Gram.apply(teacher)))


class PKTLoss(nn.Module):
    r"""Compare, for each image of a batch, the probabilities with which the others would be its neighbours.

    .. math:: \mathcal L = \frac{1}{N^2} \sum_{ij} p^t_{ij} \log \frac{p^t_{ij} + \epsilon}{p^s_{ij} + \epsilon},
              \qquad p_{ij} = \frac{\cos(x_i, x_j) + 1}{\sum_l \left(\cos(x_i, x_l) + 1\right)}

    with :math:`\epsilon = 10^{-7}`, also added to the norms inside the cosine, as in the official code. It sees no
    rotation of the embeddings and no length of any of them.

    Shapes: embeddings (n, d_s) and (n, d_t), whose widths may differ; n at least 2. Returns a scalar in nats, the mean
    over all n squared pairs. The teacher is detached. Half precision is compared in float32, under autocast too. An
    embedding of zeros has cosine 0 to all, and no gradient.

    Raises:
        InputError: not two dimensions; batches that differ; a batch of one.

    Source: Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018. The
    benchmarks' weight is 30000.
    """

    EPS = 1e-7

    def forward(self, student: Float[Tensor, "n d_s"], teacher: Float[Tensor, "n d_t"]) -> Float[Tensor, ""]:
        student, teacher = one_batch(student, teacher)
        several(student, "PKTLoss")
        with torch.autocast(student.device.type, enabled=False):
            p_student, p_teacher = self._neighbours(student), self._neighbours(teacher)
            # What divides is the teacher's, which needs no gradient.
            return -(p_teacher * ((p_student + self.EPS) / (p_teacher + self.EPS)).log()).mean()

    def _neighbours(self, x: Tensor) -> Tensor:
        x = _unit_rows(x, self.EPS)
        kernel = (_Gram.apply(x) + 1) / 2
        return kernel / kernel.sum(1, keepdim=True)


def one_batch(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two (n, d) of one n and any widths, ready to be compared: at least 32 bits wide, the teacher detached.

    Raises:
        InputError: not two dimensions, batches that differ, no element, no floating point numbers, two devices.
    """
    usable(student, "student", "n d")
    usable(teacher, "teacher", "n d")
    if len(student) != len(teacher):
        raise InputError(
            f"the student's tensor has {len(student)} samples and the teacher's {len(teacher)}; wanted: the same "
            "samples, in the same order."
        )
    return matched(student, teacher)


def _flow(first: Tensor, last: Tensor) -> Tensor:
    h, w = (min(sizes) for sizes in zip(first.shape[2:], last.shape[2:], strict=True))
    # Pooling to the size that a map has already would copy it, and take most of the time.
    first, last = (x if x.shape[2:] == (h, w) else F.adaptive_avg_pool2d(x, (h, w)) for x in (first, last))
    return first.flatten(2) @ last.flatten(2).to(first.dtype).mT / (h * w)


class _Gram(torch.autograd.Function):
    """All inner products of the rows, (n, n): ``x @ x.mT``, whose gradient autograd would make of two such products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (grad + grad.mT) @ x


def _unit_rows(x: Tensor, eps: float = 0.0) -> Tensor:
    """Each row over its l2 norm plus eps. A row of zeros stays, without the gradient of 1 / eps that it would have."""
    norm = x.norm(dim=1, keepdim=True)
    there = norm >= torch.finfo(x.dtype).tiny  # the inverse of a smaller one is infinite
    return x * torch.where(there, 1 / torch.where(there, norm + eps, 1), 0)
