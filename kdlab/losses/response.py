"""Losses on what a network says: its logits."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from kdlab.losses.inputs import at_least_float32, comparable, positive


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
    batch, times T squared. The teacher is detached. Half-precision logits are compared in float32.

    Raises:
        InputError: temperature not above 0 or not finite; shapes that differ.

    Source: Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        positive(temperature=temperature)
        self.temperature = temperature

    def forward(self, student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
        student, teacher = comparable(student, teacher, "n k")
        T = self.temperature
        log_p_student = F.log_softmax(student / T, dim=1)
        log_p_teacher = F.log_softmax(teacher / T, dim=1)
        return F.kl_div(log_p_student, log_p_teacher, reduction="batchmean", log_target=True) * T**2

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class LabelledCrossEntropy(nn.Module):
    """Cross-entropy over the images of a batch that have a label; 0 where none has.

    An image without a label carries the target -100. PyTorch's own mean over no image at all is NaN, which would end
    a training on mostly unlabelled images at its first batch without a label.

    Shapes: logits (n, k), targets (n). Returns a scalar in nats, the mean over the labelled images.
    """

    UNLABELLED = -100

    def forward(self, logits: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        total = F.cross_entropy(at_least_float32(logits), target, ignore_index=self.UNLABELLED, reduction="sum")
        return total / (target != self.UNLABELLED).sum().clamp(min=1)
