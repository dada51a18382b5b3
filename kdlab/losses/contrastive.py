"""Losses that tell a sample's own teacher embedding from those of other samples."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.inputs import at_least_float32, positive, whole_numbers
from kdlab.losses.relation import one_batch
from kdlab.processes import joined


class CRDLoss(nn.Module):
    r"""Compare by contrast: a student's embedding should be near the teacher's of the same image, far from others'.

    .. math:: \mathcal L = \sum_{(v, B)} -\frac1N \sum_n \Big[ \log\frac{P(v_n, B_n)}{P(v_n, B_n) + c + \epsilon}
              + \sum_{m=1}^{K} \log\frac{c}{P(v_n, B_{i_{nm}}) + c + \epsilon} \Big],
              \qquad P(v, b) = \frac{e^{v \cdot b / \tau}}{Z}, \quad c = \frac KM, \quad \epsilon = 10^{-7}

    over two directions (v, B): the student's embeddings against a bank of the teacher's, and the teacher's against a
    bank of the student's. Embeddings are l2-normalised linear maps of the features. A bank has a row for each of the M
    samples of the training set; the K negatives i are drawn from all of them with replacement, the same for both
    directions. The official code draws them from the samples of the other classes only, without replacement where
    there are enough. Z, one a direction, is M times the mean of the exponentials at the first batch of training, and
    fixed from there.

    After the loss of a batch, the rows of its samples move towards its embeddings: momentum times the row and
    1 - momentum times the embedding, l2-normalised. This happens in training mode only; in evaluation mode neither
    banks nor Z change. Both are buffers (Z as its logarithm), so that a checkpoint has them. Several processes keep the
    same banks: each moves the rows of all their samples.

    Both linear maps learn, as in the official code, so the parameters of this module belong to the optimiser. On the
    teacher's side the gradient ends there; the teacher is detached.

    Args:
        student_dim, teacher_dim: widths of the features.
        samples: M, the size of the training set that ``index`` counts in.
        dim: width of the embeddings; the official 128.
        negatives: K for each sample; the official 16384. May be more than M.
        temperature: tau > 0; the official 0.07.
        momentum: of the banks, 0 to 1; the official 0.5. At 1 they are only normalised.

    Shapes: features (n, student_dim) and (n, teacher_dim), such as pooled maps, and index (n), the samples' places in
    the training set; n may be 1. Returns a scalar in nats, a sum over directions and negatives and a mean over the
    batch; the published weight is 0.8. Half precision is compared in float32, under autocast too. The similarities of
    the batch with a whole bank are one product (n, M), of which the drawn are taken: the rows themselves, as the
    official code gathers them, are (n, K, dim).

    Raises:
        InputError: hyper-parameters out of range; features of other widths; an index outside the training set.

    Source: Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, arXiv:1910.10699.
    """

    EPS = 1e-7
    student_bank: Tensor
    teacher_bank: Tensor
    log_z: Tensor

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        samples: int,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        positive(
            student_dim=student_dim,
            teacher_dim=teacher_dim,
            samples=samples,
            dim=dim,
            negatives=negatives,
            temperature=temperature,
        )
        if not 0 <= momentum <= 1:
            raise InputError(f"momentum is {momentum}; it must be a number of 0 to 1.")
        self.samples, self.negatives, self.temperature, self.momentum = samples, negatives, temperature, momentum
        self.student_embed = nn.Linear(student_dim, dim)
        self.teacher_embed = nn.Linear(teacher_dim, dim)
        bound = 1 / math.sqrt(dim / 3)
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_bank", torch.empty(samples, dim).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.full((2,), math.inf))  # infinite: not yet set

    def forward(
        self, student: Float[Tensor, "n d_s"], teacher: Float[Tensor, "n d_t"], index: Integer[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        student, teacher = one_batch(student, teacher)
        for x, embed, who in ((student, self.student_embed, "student"), (teacher, self.teacher_embed, "teacher")):
            if x.shape[1] != embed.in_features:
                raise InputError(
                    f"the {who}'s features have width {x.shape[1]}, and CRDLoss was built with {who}_dim="
                    f"{embed.in_features}. Give it the width of the layer that is tapped."
                )
        index = whole_numbers(index, "index", len(student), self.samples, student.device)
        with torch.autocast(student.device.type, enabled=False):
            v_student, v_teacher = _embedded(self.student_embed, student), _embedded(self.teacher_embed, teacher)
            drawn = torch.randint(self.samples, (len(index), self.negatives), device=index.device)
            drawn = torch.cat([index[:, None], drawn], dim=1)
            of_student = self._similarities(v_student, self.teacher_bank, drawn)
            of_teacher = self._similarities(v_teacher, self.student_bank, drawn)
            with torch.no_grad():
                log_means = torch.stack(
                    [x.flatten().logsumexp(0) - math.log(x.numel()) for x in (of_student, of_teacher)]
                )
                if self.training:  # of all processes, and each has as many
                    each = joined(log_means).view(-1, 2)
                    log_means = each.logsumexp(0) - math.log(len(each))
                log_z = torch.where(self.log_z.isfinite(), self.log_z, log_means + math.log(self.samples))
                if self.training:
                    self.log_z = log_z.to(self.log_z.dtype)
                    # New tensors, not changed ones: the graph still needs the old banks for the backward pass.
                    index = joined(index)
                    self.student_bank = self._moved(self.student_bank, index, joined(v_student))
                    self.teacher_bank = self._moved(self.teacher_bank, index, joined(v_teacher))
            return self._contrast(of_student - log_z[0]) + self._contrast(of_teacher - log_z[1])

    def extra_repr(self) -> str:
        return (
            f"samples={self.samples}, negatives={self.negatives}, temperature={self.temperature}, "
            f"momentum={self.momentum}"
        )

    def _similarities(self, v: Tensor, bank: Tensor, drawn: Tensor) -> Tensor:
        return (v @ bank.to(v.dtype).mT).gather(1, drawn) / self.temperature

    def _contrast(self, log_p: Tensor) -> Tensor:
        """The loss of one direction from log P, the own sample's first. In logarithms, where nothing overflows."""
        c = self.negatives / self.samples
        log_c = math.log(c + self.EPS)
        own, others = F.logsigmoid(log_p[:, 0] - log_c), F.logsigmoid(log_c - log_p[:, 1:]) + (math.log(c) - log_c)
        return -(own.sum() + others.sum()) / len(log_p)

    def _moved(self, bank: Tensor, index: Tensor, v: Tensor) -> Tensor:
        rows = F.normalize(bank[index] * self.momentum + v.to(bank.dtype) * (1 - self.momentum))
        return bank.index_copy(0, index, rows)


def _embedded(embed: nn.Linear, features: Tensor) -> Tensor:
    return F.normalize(at_least_float32(embed(features.to(embed.weight.dtype))))
