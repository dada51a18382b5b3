"""The value of every loss from its literal formula in float64, and the size of what is summed on the way to it.

The formulas are those of the tests of each loss. A value in another precision is off by some roundings of what it is
made of, which may be far larger than the value itself: that is the second number.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import test_ab
import test_at
import test_crd
import test_cwd
import test_dist
import test_dkd
import test_fsp
import test_ft
import test_hint
import test_kd
import test_mgd
import test_ofd
import test_pkt
import test_reviewkd
import test_rkd
import test_sp
import test_vid
import torch
import torch.nn.functional as F
from skimage.color import rgb2lab
from test_dehazing_losses import pyramid
from torch import Tensor, nn

Answer = tuple[Any, Any]


def squares(*sides: Tensor) -> Tensor:
    return sum(side.square().mean() for side in sides)


def logit_size(T: float, *sides: Tensor) -> Any:
    return T**2 + T * max(side.abs().max() for side in sides)


def below_zero(z: Tensor) -> Tensor:
    """The same distribution, whose exponentials do not overflow."""
    return z - z.amax(1, keepdim=True)


def pooled(student: Tensor, teacher: Tensor) -> list[Tensor]:
    size = [min(sizes) for sizes in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return [F.adaptive_avg_pool2d(maps, size) for maps in (student, teacher)]


def kd(loss, student, teacher) -> Answer:
    T = loss.temperature
    return test_kd.literal(below_zero(student), below_zero(teacher), T), logit_size(T, student, teacher)


def dkd(loss, student, teacher, target) -> Answer:
    there = target != -100
    sides = [below_zero(z[there]) for z in (student, teacher)]
    size = (loss.alpha + loss.beta) * logit_size(loss.temperature, student, teacher)
    if not there.any():
        return 0.0, size
    return test_dkd.literal(*sides, target[there], loss.alpha, loss.beta, loss.temperature), size


def dist(loss, student, teacher) -> Answer:
    T = loss.temperature
    rows = [below_zero(z.movedim(1, -1).flatten(0, -2)) for z in (student, teacher)]
    size = 1.0
    for z in rows:
        p = (z / T).softmax(1)
        for dim in (0, 1):
            size = max(size, (p.norm(dim=dim) / (p - p.mean(dim, keepdim=True)).norm(dim=dim)).max())
    if size > 1e12:
        return math.nan, 1.0  # what varies by its rounding alone; the tests of DIST have it
    return test_dist.literal(*rows, loss.beta, loss.gamma, T), T**2 * (loss.beta + loss.gamma) * size**2


def at(loss, student, teacher) -> Answer:
    sides = pooled(student, teacher)
    least = min(side.flatten(1).abs().amax(1).min() for side in sides)
    if least**loss.power < 1e-9:
        return math.nan, 1.0  # the floor of the norm counts
    return test_at.literal(*sides, loss.power), loss.power * max(student.abs().max(), teacher.abs().max()) / least


def ab(loss, student, teacher) -> Answer:
    sizes = (student.square() + loss.margin**2).sum() / len(student) * 3 / 1000
    return test_ab.literal(student, teacher, loss.margin), sizes


def ofd(loss, student, teacher) -> Answer:
    margin = loss.margin.double()
    replaced = torch.maximum(teacher, margin[:, None, None])
    size = (student.square() + replaced.square()).sum() / len(student) / 1000
    return test_ofd.literal(student, teacher, margin), size


def ft(loss, student, teacher) -> Answer:
    norms = [side.flatten(1).norm(dim=1).min() for side in (student, teacher)]
    return (test_ft.literal(student, teacher, loss.power) if min(norms) > 1e-12 else math.nan), 1.0


def positive_part(loss: nn.Module) -> nn.Module:
    """The network of a loss with the sizes of its weights: what it makes of sizes bounds what is summed in it."""
    loss = copy.deepcopy(loss)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.abs_()
    return loss


def vid(loss, student, teacher) -> Answer:
    student, teacher = pooled(student, teacher)
    size = positive_part(loss).regressor(student.abs()).square() + teacher.square()
    return test_vid.literal(loss, student, teacher), (size.mean((0, 2, 3)) / loss.variance).mean() + 12


def mgd(loss, student, teacher) -> Answer:
    sizes = positive_part(loss)
    size = sizes.generator(sizes.align(student.abs())).square().sum() + teacher.square().sum()
    return test_mgd.literal(loss, student, teacher, 0), size / len(student)


def fsp(loss, student, teacher) -> Answer:
    sides = [pooled(*side) for side in (student, teacher)]
    sizes = [(first.abs().amax((1, 2, 3)) * last.abs().amax((1, 2, 3))) for first, last in (student, teacher)]
    return test_fsp.literal(*sides), squares(*sizes)


def rkd(loss, student, teacher) -> Answer:
    size = 1.0
    for x in (student, teacher):
        gaps = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")[~torch.eye(len(x)).bool()]
        size = max(size, x.norm(dim=1).max() / gaps.min())
        if gaps.min() < max(1e-11, 1e-5 * x.norm(dim=1).max()):
            return math.nan, 1.0  # points that coincide; the tests of RKD have them
    value = test_rkd.literal(student, teacher, loss.distance_weight, loss.angle_weight)
    return value, (loss.distance_weight + loss.angle_weight) * size**2


def sp(loss, student, teacher) -> Answer:
    sides = [side.flatten(1) for side in (student, teacher)]
    lengths = torch.stack([side.norm(dim=1) for side in sides])
    if lengths.min() < 1e-8:
        return math.nan, 1.0  # outside of the lengths whose fourth power is a normal number
    return test_sp.literal(*sides), lengths.max() / lengths.min()


def pkt(loss, student, teacher) -> Answer:
    kernels = [(F.normalize(x) @ F.normalize(x).T + 1).clamp(min=0) for x in (student, teacher)]
    p_student, p_teacher = (kernel / kernel.sum(1, keepdim=True) for kernel in kernels)
    return test_pkt.literal(student, teacher), 1 + (p_teacher / (p_student + loss.EPS)).mean()


def contrast(loss, student, clean) -> Answer:
    restored, degraded = student
    total = size = 0.0
    all_pairs = getattr(loss, "negatives", "same_weather") == "same_weather"
    for weight, a, n, p in zip(loss.weights, *map(loss.features, (restored, degraded, clean)), strict=True):
        away = ((a[:, None] - n[None]) if all_pairs else a - n).abs().mean() + loss.eps
        ratio = (a - p).abs().mean() / away
        total = total + weight * ratio
        size = size + weight * (a.abs().mean() * (1 + ratio) + p.abs().mean() + n.abs().mean() * ratio) / away
    return total, size


def laplacian(loss, student, teacher) -> Answer:
    total, channels = 0.0, (student - teacher).flatten(0, 1)
    for channel in channels:
        total += sum(abs(level).mean() / 4**j for j, level in enumerate(pyramid(channel.numpy(), loss.levels)))
    return total / len(channels), student.abs().mean() + teacher.abs().mean()


def lab(loss, student, teacher) -> Answer:
    sides = [torch.from_numpy(rgb2lab(side.movedim(1, -1).numpy())) for side in (student, teacher)]
    scaled = [side / torch.tensor([100.0, 255.0, 255.0]) for side in sides]
    linear = max(((side.abs() + 1) ** 2.4).max() for side in (student, teacher))
    return (scaled[0] - scaled[1]).square().mean(), squares(*scaled) + linear


def cross_entropy(ignored: int) -> Callable[..., Answer]:
    def literal(loss, logits, target) -> Answer:
        rows = logits.movedim(1, -1).flatten(0, -2)
        costs = [row.logsumexp(0) - row[y] for row, y in zip(rows, target.flatten().tolist(), strict=True)
                 if y != ignored]  # fmt: skip
        return (sum(costs) / len(costs) if costs else 0.0), 1 + logits.abs().max()

    return literal


def crd(loss, student, teacher, index) -> Answer:
    value, *_ = test_crd.literal(loss, student, teacher, index)
    return value, (1 + loss.negatives) * (1 + 1 / loss.temperature)


LITERALS: dict[str, Callable[..., Answer]] = {
    "KDLoss": kd,
    "DMLLoss": kd,
    "LabelledCrossEntropy": cross_entropy(-100),
    "PixelCrossEntropy": cross_entropy(255),
    "DKDLoss": dkd,
    "DISTLoss": dist,
    "HintLoss": lambda loss, s, t: (test_hint.literal(s, t), squares(s, t)),
    "ATLoss": at,
    "ABLoss": ab,
    "OFDLoss": ofd,
    "FTLoss": ft,
    "VIDLoss": vid,
    "ReviewKDLoss": lambda loss, s, t: (test_reviewkd.literal(s, t), squares(*s, *t)),
    "CWDLoss": lambda loss, s, t: (test_cwd.by_log_softmax(s, t, loss.temperature), logit_size(loss.temperature, s, t)),
    "MGDLoss": mgd,
    "FSPLoss": fsp,
    "RKDLoss": rkd,
    "SPLoss": sp,
    "PKTLoss": pkt,
    "CKTLoss": lambda loss, s, t: ((s - t).abs().mean(), s.abs().mean() + t.abs().mean()),
    "SCRLoss": contrast,
    "HCRLoss": contrast,
    "KTLoss": lambda loss, s, t: ((s - t).abs().mean(), s.abs().mean() + t.abs().mean()),
    "LaplacianLoss": laplacian,
    "LabLoss": lab,
    "CRDLoss": crd,
}


def literal(name: str, loss: nn.Module, *sides: Any) -> tuple[float, float]:
    """The loss of float64 inputs and the size of its parts; NaN where the formula has no value, or another one."""
    try:
        with torch.no_grad():
            value, size = LITERALS[name](loss, *sides)
    except (ArithmeticError, ValueError):  # divided by zero, overflown, or a logarithm of 0
        return math.nan, 1.0
    return float(value), float(size)
