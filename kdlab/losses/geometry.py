"""Distances and angles between the samples of a batch, and how far two networks differ in them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class GeometryGap(torch.autograd.Function):
    """The weighted means of :class:`kdlab.losses.RKDLoss`, with their gradient to the student's embeddings.

    Value and gradient are computed in one go: autograd would keep several tensors of n cubed elements, and go over each
    of them again. A batch is small, so that the number of operations counts: each is done for both networks at once.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, student: Tensor, teacher: Tensor, distance_weight: float, angle_weight: float
    ) -> Tensor:
        n, width = student.shape
        points, distances, inverses = _geometries(student, teacher)
        total, slope = student.new_zeros(()), student.new_zeros(n, n)  # the derivative to each of its distances
        for weight, gap, terms in ((distance_weight, _distance_gap, n**2), (angle_weight, _angle_gap, n**3)):
            if weight:
                value, to_distances = gap(distances, inverses)
                total.add_(value, alpha=weight / terms)
                slope.add_(to_distances, alpha=weight / terms)
        # With d d_ij / d x_i = (x_i - x_j) / d_ij, and each pair twice in the sums, as ij and as ji.
        pull = ((slope + slope.mT) * inverses[0]).to(points.dtype)
        mine = points[0, :, :width]
        ctx.save_for_backward(torch.addmm(pull.sum(1, keepdim=True) * mine, pull, mine, alpha=-1).to(student.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad * ctx.saved_tensors[0], None, None, None


def _geometries(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's centred points, (2, n, d) with zeros at the narrower one's end; distances; inverses.

    The distances are Euclidean, (2, n, n), and 0 between points nearer than a millionth of their norms, or than 1e-12;
    the inverse of 0 is 0. They come from a product in float64, since a difference of products loses half of the digits.
    Where a device has no float64, they come from the differences of the points, which takes longer.
    """
    wide = torch.float32 if student.device.type == "mps" else torch.float64
    points = student.new_zeros(2, len(student), max(student.shape[1], teacher.shape[1]), dtype=wide)
    for place, x in zip(points, (student, teacher), strict=True):
        place[:, : x.shape[1]] = x
    near = 1e-6 * points.norm(dim=2) + 0.5e-12
    points -= points.mean(1, keepdim=True)
    if wide == torch.float64:
        products = points @ points.mT
        squares = products.diagonal(dim1=1, dim2=2)
        d = (squares[:, :, None] + squares[:, None]).sub_(products, alpha=2).clamp_(min=0).sqrt_()
    else:
        d = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    coincide = d <= near[:, :, None] + near[:, None]
    d = d.masked_fill_(coincide, 0).to(student.dtype)
    return points, d, d.reciprocal().masked_fill_(coincide, 0)


def _distance_gap(distances: Tensor, inverses: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the smooth L1 between the distances, each over its mean of the positive ones.

    Returns it and its derivative to the student's distances.
    """
    positive = inverses.count_nonzero((1, 2)).clamp_(min=1)
    means = (distances.sum((1, 2)) / positive).clamp_(min=1e-12)  # 0 if all points coincide
    relative = distances / means[:, None, None]
    mine, its = relative
    g = (mine - its).clamp_(-1, 1)
    through_the_mean = torch.dot(g.view(-1), mine.view(-1)) / positive[0]
    return F.smooth_l1_loss(mine, its, reduction="sum"), (g - through_the_mean) / means[0]


def _angle_gap(distances: Tensor, inverses: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the smooth L1 between the cosines of all triples, and its derivative to the student's distances.

    A slab of few vertices is made, gives its part of both, and is forgotten. At the vertex j, with g the derivative of
    the smooth L1, d cos / d d_ji = 1 / d_jk - cos / d_ji and d cos / d d_ik = - d_ik / (d_ji d_jk).
    """
    n = distances.shape[1]
    # What stays in a processor's cache, or fills an accelerator; at least four vertices share the calls.
    step = min(n, max(4, (2**17 if distances.device.type == "cpu" else 2**24) // n**2))
    halves = distances.square() / 2
    total, of_legs, of_opposite = halves.new_zeros(()), halves.new_empty(n, n), halves.new_zeros(n, n)
    # Made once: fresh memory costs as much as what is computed in it.
    both, slopes = halves.new_empty(2, step, n, n), halves.new_empty(step, n, n)
    for start in range(0, n, step):
        vertices = slice(start, start + step)
        cosines, gap = _cosines(halves, inverses, vertices, out=both[:, : n - start])
        torch.sub(cosines, gap, out=gap)
        g = torch.clamp(gap, -1, 1, out=slopes[: n - start])
        gap.sub_(g, alpha=0.5)
        total += torch.dot(g.view(-1), gap.view(-1))
        legs = inverses[0, vertices]
        cosines *= g
        g *= legs[:, None, :]
        of_legs[vertices] = g.sum(2) - legs * cosines.sum(2)
        g *= legs[:, :, None]
        of_opposite += g.sum(0)
    # A leg (j, i) is in the triples (j, i, k) and (j, k, i); the sums are over the first alone.
    return total, (2 * of_legs).addcmul_(of_opposite, distances[0], value=-1)


def _cosines(halves: Tensor, inverses: Tensor, vertices: slice, out: Tensor) -> Tensor:
    """Of the angles at some vertices j between all i and k, as (2, j, i, k); 0 where i or k coincides with j.

    Args:
        halves: of the squared distances, (2, n, n).
    """
    legs, ones = halves[:, vertices], inverses[:, vertices]
    torch.add(legs[..., :, None], legs[..., None, :], out=out)
    out -= halves[:, None]
    out *= ones[..., :, None]
    out *= ones[..., None, :]
    return out
