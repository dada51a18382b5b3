"""What a classifier is judged by, and what a segmenter; and how sure a mean over several runs is."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.special import stdtrit
from torch import Tensor, nn

from kdlab import processes
from kdlab.errors import InputError
from kdlab.losses import PixelCrossEntropy
from kdlab.modes import evaluating
from kdlab.training.device import to_device


@torch.no_grad()
def predict_logits(model: nn.Module, loader: Iterable) -> tuple[Float[Tensor, "n k"], Int[Tensor, " n"]]:
    """Logits (n, k) and labels (n) of everything that the loader yields, on the CPU.

    The model computes in eval mode, in float32, on its own device, and is left in the modes that it was in.

    Raises:
        InputError: the loader yields nothing.
    """
    logits, labels = [], []
    with evaluating(model) as device:
        for images, targets, *_ in loader:
            logits.append(model(to_device(images, device)).float().cpu())
            labels.append(torch.as_tensor(targets).long().cpu())
    if not logits:
        raise InputError("the loader yields no batch to predict; wanted: at least one, of (images, labels).")
    return torch.cat(logits), torch.cat(labels)


def classification_metrics(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """Accuracy (0 to 1), cross-entropy in nats, and expected calibration error (0 to 1, 15 bins)."""
    from torchmetrics.functional.classification import multiclass_calibration_error  # takes a second: not at the top

    probabilities = logits.softmax(dim=1)
    return {
        "accuracy": (logits.argmax(dim=1) == labels).float().mean().item(),
        "loss": F.cross_entropy(logits, labels).item(),
        "calibration_error": multiclass_calibration_error(
            probabilities, labels, num_classes=logits.shape[1], n_bins=15
        ).item(),
    }


@torch.no_grad()
def segmentation_metrics(
    model: nn.Module, loader: Iterable, classes: int
) -> tuple[dict[str, float], Float[Tensor, " k"]]:
    """Means over the classes, and the IoU of each class, of a segmenter on everything that the loader yields.

    "miou" and "mdice", 0 to 1, are means over the classes that are in a mask or in an answer, each counted over all
    pixels of all images; "pixel_accuracy" is the share of right pixels, "loss" the cross-entropy in nats. Pixels that
    carry 255 count for nothing. The IoU of a class that is nowhere is 0 in the second. Several processes count
    together: each gives its :func:`kdlab.processes.own_share` to its loader.

    The model computes in eval mode, in float32, on its own device, and is left in the modes that it was in.
    """
    from torchmetrics import MetricCollection  # takes a second: not at the top
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex

    ignore = PixelCrossEntropy.IGNORE
    measured = MetricCollection(
        {
            "miou": MulticlassJaccardIndex(classes, average="macro", ignore_index=ignore, validate_args=False),
            "mdice": MulticlassF1Score(classes, average="macro", ignore_index=ignore, validate_args=False),
            "pixel_accuracy": MulticlassAccuracy(classes, average="micro", ignore_index=ignore, validate_args=False),
            "by_class": MulticlassJaccardIndex(classes, average="none", ignore_index=ignore, validate_args=False),
        },
        compute_groups=[["miou", "by_class"], ["mdice"], ["pixel_accuracy"]],
    )
    loss, pixels = 0.0, 0
    with evaluating(model) as device:
        measured.to(device)
        for images, masks, *_ in loader:
            logits, masks = model(to_device(images, device)).float(), to_device(masks, device)
            measured.update(logits.argmax(dim=1), masks)
            known = int((masks != ignore).sum())
            loss += PixelCrossEntropy()(logits, masks).item() * known
            pixels += known
    values = measured.compute()  # over all processes
    by_class = values.pop("by_class").cpu()
    loss, pixels = processes.mean(torch.tensor([loss, pixels], dtype=torch.float64)).tolist()
    return {name: value.item() for name, value in values.items()} | {"loss": loss / max(pixels, 1)}, by_class


def half_interval(values: np.ndarray) -> float:
    """Half the width of the 95% confidence interval of the mean, by Student's t; NaN of a single value."""
    if len(values) < 2:
        return float("nan")
    return float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values)))
