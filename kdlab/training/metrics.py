"""What a classifier is judged by."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from kdlab.training.device import to_device


@torch.no_grad()
def predict_logits(model: nn.Module, loader: Iterable) -> tuple[Float[Tensor, "n k"], Int[Tensor, " n"]]:
    """Logits (n, k) and labels (n) of everything that the loader yields, on the CPU.

    The model computes in eval mode, in float32, on its own device, and is left in the mode that it was in.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    logits, labels = [], []
    for images, targets, *_ in loader:
        logits.append(model(to_device(images, device)).float().cpu())
        labels.append(torch.as_tensor(targets))
    model.train(training)
    return torch.cat(logits), torch.cat(labels)


def classification_metrics(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """Accuracy (0 to 1), cross-entropy in nats, and expected calibration error (0 to 1, 15 bins)."""
    probabilities = logits.softmax(dim=1)
    return {
        "accuracy": (logits.argmax(dim=1) == labels).float().mean().item(),
        "loss": F.cross_entropy(logits, labels).item(),
        "calibration_error": multiclass_calibration_error(
            probabilities, labels, num_classes=logits.shape[1], n_bins=15
        ).item(),
    }
