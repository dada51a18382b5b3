"""Losses on what a network says: its logits."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.inputs import (
    at_least_float32,
    comparable,
    is_tensor,
    not_negative,
    positive,
    several,
    usable,
    whole_numbers,
)


class KDLoss(nn.Module):
    r"""Compare two networks' class probabilities, softened by a temperature.

    .. math:: \mathcal L = \frac{T^2}{N} \sum_n \mathrm{KL}\!\left(p^t_n \,\|\, p^s_n\right),
              \qquad p = \mathrm{softmax}(z / T)

    The factor :math:`T^2` keeps the size of the gradient about the same at every temperature, so that the weight
    beside another loss need not change with it. The gradient to the student's logits is
    :math:`\frac{T}{N}(p^s - p^t)`; as T grows it tends to :math:`\frac{1}{NK}(z^s - z^t)` of centred logits: logit
    matching.

    Args:
        temperature: T > 0. The default 4 is the field's usual choice on CIFAR; 1 compares the plain probabilities.

    Shapes: student and teacher logits (n, k). Returns a scalar in nats: the sum over classes and the mean over the
    batch, times T squared. The teacher is detached. Half-precision logits are compared in float32, and all in float64
    where T is above 100. For logits at every position, flatten the positions on both sides:
    :class:`kdlab.distill.Pixels` for maps (n, k, h, w), ``nn.Flatten(0, 1)`` for sequences (n, tokens, k). Answers
    that are independent of each other, one sigmoid each, are no distribution over classes: compare these by a module
    of your own, whose forward returns ``F.binary_cross_entropy_with_logits(student, teacher.sigmoid())``.

    Raises:
        InputError: temperature not above 0 or not finite; shapes that differ; fewer than two classes.

    Source: Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        positive(temperature=temperature)
        self.temperature = temperature

    def forward(self, student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
        student, teacher = _comparable_logits(student, teacher, type(self).__name__)
        T, dtype = self.temperature, student.dtype
        if T > 100 and student.device.type != "mps":  # T squared magnifies what is rounded off; mps has no float64
            student, teacher = student.double(), teacher.double()
        teacher = teacher / T
        gap = F.log_softmax(teacher, dim=1) - F.log_softmax(student / T, dim=1)
        # A product has one factor to multiply with in its backward pass, where kl_div has more to do. Not torch.dot,
        # which adds one number to the next: over a million pixels its value is off by 1e-4.
        divergence = gap.mul_(F.softmax(teacher, dim=1)).sum()
        return (divergence * (T**2 / len(student))).to(dtype)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class LabelledCrossEntropy(nn.Module):
    """Cross-entropy over the images of a batch that have a label; 0 where none has.

    An image without a label carries the target -100. PyTorch's own mean over no image at all is NaN, which would end
    a training on mostly unlabelled images at its first batch without a label.

    Shapes: logits (n, k), targets (n). Returns a scalar in nats, the mean over the labelled images.

    Raises:
        InputError: other dimensions; a target that is no class.
    """

    UNLABELLED = -100

    def forward(self, logits: Float[Tensor, "n k"], target: Integer[Tensor, " n"]) -> Float[Tensor, ""]:
        usable(logits, "network", "n k")
        labelled, _ = _classes(target, logits)
        target = target.long()
        total = F.cross_entropy(at_least_float32(logits), target, ignore_index=self.UNLABELLED, reduction="sum")
        return total / labelled.sum().clamp(min=1)


class DKDLoss(nn.Module):
    r"""Compare apart what KD compares at once: how sure both networks are of the target, and how they rank the rest.

    .. math:: \mathcal L = \frac{T^2}{N} \sum_n
              \alpha\, \mathrm{KL}\!\left((p^t_y, 1 - p^t_y) \,\|\, (p^s_y, 1 - p^s_y)\right)
              + \beta\, \mathrm{KL}\!\left(\hat p^t \,\|\, \hat p^s\right),
              \qquad p = \mathrm{softmax}(z / T),\quad \hat p = \mathrm{softmax}(z_{\setminus y} / T)

    The first divergence is of target and rest (TCKD), the second among the other classes (NCKD). KD weighs the second
    by :math:`1 - p^t_y`, little for a teacher that is sure; here the weight is the same for every sample.

    Args:
        alpha: weight of the target's part, at least 0; the official 1.
        beta: weight of the others' part, at least 0. Published on CIFAR-100: 8 for resnet32x4 to resnet8x4 (the
            default), 6 for the WRN and VGG pairs, 2 for resnet56 and resnet110; on ImageNet 0.5 for ResNet-34 to
            ResNet-18 and 2 for ResNet-50 to MobileNet.
        temperature: T > 0; the official 4 on CIFAR-100, 1 on ImageNet.

    The official runs have weight 1 on both cross-entropy and this loss, which warms up over 20 epochs on CIFAR-100 and
    1 on ImageNet; both belong to the term.

    Shapes: student and teacher logits (n, k) with k at least 2, target (n). Returns a scalar in nats, the mean over the
    batch, times T squared. A sample without a label (target -100) has no target class: the mean is over the others, and
    0 where there are none. The teacher is detached. Half-precision logits are compared in float32.

    The official code takes the logarithm of a sum of probabilities, which is infinite for sure and opposite networks,
    and leaves the target out by subtracting 1000 from its logit. Here both are exact and finite.

    Raises:
        InputError: hyper-parameters out of range; shapes that differ; a target that is no class; fewer than 2 classes.

    Source: Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR 2022, arXiv:2203.08679.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        not_negative(alpha=alpha, beta=beta)
        positive(temperature=temperature)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def forward(
        self, student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], target: Integer[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        student, teacher = _comparable_logits(student, teacher, "DKDLoss")
        labelled, target = _classes(target, student)
        target_student, others_student = _apart(student / self.temperature, target)
        target_teacher, others_teacher = _apart(teacher / self.temperature, target)
        # Of two classes only the difference of the logits counts, and that of target against rest is z_y - lse(others).
        odds_student = target_student - others_student.logsumexp(1)
        odds_teacher = target_teacher - others_teacher.logsumexp(1)
        tckd = odds_teacher.sigmoid() * (F.logsigmoid(odds_teacher) - F.logsigmoid(odds_student))
        tckd = tckd + (-odds_teacher).sigmoid() * (F.logsigmoid(-odds_teacher) - F.logsigmoid(-odds_student))
        log_p_student, log_p_teacher = others_student.log_softmax(1), others_teacher.log_softmax(1)
        nckd = F.kl_div(log_p_student, log_p_teacher, reduction="none", log_target=True).sum(1)
        each = torch.where(labelled, self.alpha * tckd + self.beta * nckd, 0)
        return each.sum() / labelled.sum().clamp(min=1) * self.temperature**2

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}"


class DISTLoss(nn.Module):
    r"""Compare how two networks order classes and samples: the correlation of their probabilities, not the values.

    .. math:: \mathcal L = \tau^2 \Big[ \beta \big(1 - \tfrac1N \sum_n \rho(p^s_{n\cdot}, p^t_{n\cdot})\big)
              + \gamma \big(1 - \tfrac1K \sum_k \rho(p^s_{\cdot k}, p^t_{\cdot k})\big) \Big],
              \qquad p = \mathrm{softmax}(z / \tau)

    with Pearson's :math:`\rho` over the classes of a sample, and over the samples of a class. A student whose
    probabilities are any positive affine map of the teacher's scores 0.

    Args:
        beta: weight of the relation among the classes of one sample, at least 0; the official 1.
        gamma: weight of the relation among the samples of one class, at least 0; the official 1.
        temperature: tau > 0. The default 4 is what the author gives for CIFAR-100; the code's own default is 1. The
            official segmentation version has no tau: there it is 1.

    Shapes: student and teacher logits (n, k), or (n, k, h, w), where each pixel is a sample; at least 2 samples and 2
    classes. Returns a scalar of 0 to 2 (beta + gamma) tau squared, the means over samples and over classes. The teacher
    is detached. Half-precision logits are compared in float32. As in the official code 1e-8 is added to the denominator
    of the correlation. A row or column that does not vary has correlation 0, and no gradient.

    Raises:
        InputError: hyper-parameters out of range; shapes that differ; one sample or one class only.

    Source: Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, arXiv:2205.10536.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0) -> None:
        super().__init__()
        not_negative(beta=beta, gamma=gamma)
        positive(temperature=temperature)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(self, student: Float[Tensor, "n k *hw"], teacher: Float[Tensor, "n k *hw"]) -> Float[Tensor, ""]:
        is_tensor(student, "student")
        student, teacher = _comparable_logits(student, teacher, "DISTLoss", "n k h w" if student.ndim > 2 else "n k")
        p_student, p_teacher = (
            F.softmax(z.movedim(1, -1).flatten(0, -2) / self.temperature, dim=1) for z in (student, teacher)
        )
        several(p_student, "DISTLoss")
        among_classes = 1 - _pearson(p_student, p_teacher, dim=1).mean()
        among_samples = 1 - _pearson(p_student, p_teacher, dim=0).mean()
        return (self.beta * among_classes + self.gamma * among_samples) * self.temperature**2

    def extra_repr(self) -> str:
        return f"beta={self.beta}, gamma={self.gamma}, temperature={self.temperature}"


class DMLLoss(KDLoss):
    r"""Compare a student with a peer that learns beside it: KD without softening, of one pair of networks.

    .. math:: \mathcal L = \frac{T^2}{N} \sum_n \mathrm{KL}\!\left(p^{peer}_n \,\|\, p^s_n\right)

    With several peers each is one such loss. The paper averages over them, the official code sums: give each the weight
    1 / (number of peers) for the paper's. The peer (``teacher``) is detached; what it learns from this student is a
    loss of its own, with the two exchanged.

    Args:
        temperature: T > 0; the paper's 1.

    Shapes: student and teacher logits (n, k). Returns a scalar in nats: the sum over classes and the mean over the
    batch, times T squared. Half-precision logits are compared in float32.

    Raises:
        InputError: temperature not above 0 or not finite; shapes that differ; fewer than two classes.

    Source: Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, CVPR 2018, arXiv:1706.00384.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__(temperature)


def _comparable_logits(student: Tensor, teacher: Tensor, loss: str, dims: str = "n k") -> tuple[Tensor, Tensor]:
    student, teacher = comparable(student, teacher, dims)
    if student.shape[1] < 2:
        raise InputError(
            f"{loss} compares classes with each other and got logits of 1; wanted: at least 2. For one sigmoid compare "
            "by F.binary_cross_entropy_with_logits(student, teacher.sigmoid()), in a module of your own."
        )
    return student, teacher


def _classes(target: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Which samples have a label, and the class of each; 0 where there is none."""
    labelled = target.long() != LabelledCrossEntropy.UNLABELLED  # in uint8, -100 would be class 156
    n, k = logits.shape
    return labelled, whole_numbers(target.masked_fill(~labelled, 0), "target", n, k, logits.device)


def _apart(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The target's logit (n), and the logits of the other classes (n, k - 1) in order."""
    target = target[:, None]
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, target).squeeze(1), logits.gather(1, others + (others >= target))


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Correlations along ``dim``; 0, without gradient, where a side varies no more than by its rounding."""
    centred = [x - x.mean(dim, keepdim=True) for x in (a, b)]
    norms = [x.norm(dim=dim) for x in centred]
    rounding = [4 * torch.finfo(x.dtype).eps * x.detach().norm(dim=dim) for x in (a, b)]
    correlation = (centred[0] * centred[1]).sum(dim) / (norms[0] * norms[1] + 1e-8)
    return torch.where((norms[0] <= rounding[0]) | (norms[1] <= rounding[1]), 0, correlation)  # NaN stays NaN
