"""What distils a YOLO detector: its own loss and a term for each layer, in the form that ultralytics trains."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.detection.settings import LAYERS, STRIDE, Distillation
from kdlab.distill import Distiller, Taps, Term
from kdlab.errors import InputError
from kdlab.modes import evaluating

Detector = Any  # ultralytics' DetectionModel, which kdlab.yolo alone imports


class DetectionDistiller(Distiller):
    """A distiller that a trainer of ultralytics takes for a model: from a batch to its loss and the loss's parts.

    To the trainer it is a wrapper such as DistributedDataParallel: behind ``module`` it finds the student, which alone
    it averages, validates and saves.
    """

    def __init__(
        self,
        student: Detector,
        teacher: Detector,
        distillation: Distillation,
        channels: Mapping[int, tuple[int, int]],
        device: torch.device,
    ) -> None:
        terms = []
        for layer, pair in channels.items():
            loss, connector = distillation.loss(*pair).to(device), distillation.connector(*pair)
            tap = f"model.{layer}"
            terms.append(
                Term(
                    f"layer_{layer}", _TimesBatch(loss), tap, tap, distillation.schedule,
                    student_connector=connector and connector.to(device),
                )
            )  # fmt: skip
        super().__init__(student, teacher, terms, _DetectionLoss(student.loss))
        self.name = f"{distillation.method}_loss"
        own = {id(parameter) for parameter in student.parameters()}
        self.learnt = [parameter for parameter in self.parameters() if id(parameter) not in own]

    @property
    def module(self) -> Detector:
        return self.student

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Of a batch whose first ``labelled`` images have labels, else all; the others have the distillation loss."""
        losses = super().forward(batch["img"], batch)
        distilled = torch.stack([losses[term.name].detach() for term in self.terms]).sum() / len(batch["img"])
        task: Any = self.task
        return losses["total"], task.parts | {self.name: distilled}


class _DetectionLoss(nn.Module):
    """The detector's own loss: a sum over the images that have labels."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss
        self.parts: dict[str, Tensor] = {}

    def forward(self, predictions: Any, batch: dict[str, Any]) -> Tensor:
        loss, self.parts = self.loss(batch, _first(batch.get("labelled"), predictions))
        return loss.sum()


def _first(images: int | None, predictions: Any) -> Any:
    """What is predicted for the first images, else all: a tensor, or lists and dictionaries of tensors."""
    if isinstance(predictions, Tensor):
        return predictions[:images]
    if isinstance(predictions, dict):
        return {name: _first(images, one) for name, one in predictions.items()}
    return [_first(images, one) for one in predictions]


class _TimesBatch(nn.Module):
    """A loss that is a mean over the batch, as a sum over it."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return len(student) * self.loss(student, teacher)


def tapped_channels(student: Detector, teacher: Detector, layers: Sequence[int]) -> dict[int, tuple[int, int]]:
    """How many channels the layers put out, in the student and in the teacher.

    Raises:
        InputError: a network does not have the layer, or the two maps have other sizes; the default layers, which are
            YOLOv8's blocks, are not the same blocks in both networks.
    """
    shapes: dict[int, list[torch.Size]] = {layer: [] for layer in layers}
    for who, model in (("student", student), ("teacher", teacher)):
        last = len(model.model) - 2  # then comes the head
        for layer in layers:
            if not 0 <= layer <= last:
                raise InputError(f"the {who} has no layer {layer} to distil; wanted: 0 to {last}.")
        device = next(model.parameters()).device
        image = torch.zeros(1, model.yaml.get("channels", 3), 2 * STRIDE, 2 * STRIDE, device=device)
        with torch.no_grad(), evaluating(model), Taps(model, [f"model.{layer}" for layer in layers]) as taps:
            model(image)
        for layer in layers:
            shapes[layer].append(taps[f"model.{layer}"].shape)
    for layer, (own, other) in shapes.items():
        kinds = [type(model.model[layer]).__name__ for model in (student, teacher)]
        if tuple(layers) == LAYERS and (kinds[0] != kinds[1] or kinds[0] in ("Concat", "Upsample")):
            raise InputError(
                f"layer {layer} is a {kinds[0]} in the student and a {kinds[1]} in the teacher; the default layers are "
                "the blocks of YOLOv8. Choose layers of these networks, or other networks."
            )
        if own[2:] != other[2:]:
            raise InputError(
                f"for an image of {2 * STRIDE}x{2 * STRIDE} layer {layer} puts out {tuple(own)} in the student and "
                f"{tuple(other)} in the teacher: networks of different architecture. Choose layers of equal height and "
                "width, or another teacher."
            )
    return {layer: (own[1], other[1]) for layer, (own, other) in shapes.items()}
