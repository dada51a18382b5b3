"""Training without a teacher, in the form that the loop takes: the baseline of every comparison."""

from typing import Any

from torch import Tensor, nn

from kdlab.distill.reader import enough_samples


class Supervised(nn.Module):
    """A network and its task loss: ``objective(images, labels) -> {"task": ..., "total": ...}``.

    Raises:
        InputError: in forward, a batch of one where a BatchNorm trains.
    """

    def __init__(self, student: nn.Module, task: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.task = task

    @enough_samples()
    def forward(self, images: Tensor, labels: Any) -> dict[str, Any]:
        loss = self.task(self.student(images), labels)
        return {"task": loss, "total": loss}
