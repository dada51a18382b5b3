"""Classifiers: the large teacher and the small student of response distillation."""

from collections.abc import Sequence

import torchvision
from jaxtyping import Float
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.weights import Weights, pretrained

FEATURES = 1024  # channels of DenseNet121's last map


class StudentCNN(nn.Module):
    """Four blocks of convolution, BatchNorm and ReLU, then two linear layers: 422,530 parameters for two classes.

    Each of the first three blocks halves the size (2x2 max pooling); the fourth is averaged over its positions, so
    that any image of at least 8x8 fits. Taps: ``features.0`` to ``features.3`` are the blocks, ``classifier`` the
    logits.

    Args:
        classes: number of classes, at least 2.
        widths: channels of the four blocks; the hidden linear layer has half of the last.
        drop_rate: dropout before the last layer, from 0 to below 1.

    Shapes: images (n, 3, h, w) to logits (n, k).

    Raises:
        InputError: fewer than two classes, not four positive widths, a drop rate outside [0, 1).
    """

    def __init__(self, classes: int = 2, widths: Sequence[int] = (32, 64, 128, 256), drop_rate: float = 0.2) -> None:
        super().__init__()
        if classes < 2:
            raise InputError(f"classes is {classes}; a classifier needs at least 2.")
        if len(widths) != 4 or min(widths) < 2:
            raise InputError(f"widths is {tuple(widths)}; wanted: the channels of four blocks, each at least 2.")
        if not 0 <= drop_rate < 1:
            raise InputError(f"drop_rate is {drop_rate}; wanted: from 0 to below 1.")
        self.architecture = {
            "name": "StudentCNN", "classes": classes, "widths": list(widths), "drop_rate": drop_rate,
        }  # fmt: skip
        blocks: list[nn.Module] = []
        for before, width in zip([3, *widths], widths, strict=False):
            pool = nn.AdaptiveAvgPool2d(1) if len(blocks) == 3 else nn.MaxPool2d(2)
            convolution = nn.Conv2d(before, width, kernel_size=3, padding=1)
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), pool))
        self.features = nn.Sequential(*blocks)
        hidden = widths[-1] // 2
        self.classifier = nn.Sequential(
            nn.Linear(widths[-1], hidden), nn.ReLU(), nn.Dropout(drop_rate), nn.Linear(hidden, classes)
        )

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        return self.classifier(self.features(images).flatten(1))


def densenet121(classes: int = 1000, weights: Weights = "none") -> nn.Module:
    """torchvision's DenseNet121 with a classifier of its own: 6,955,906 parameters for two classes.

    Taps: ``features.denseblock1`` to ``features.denseblock4``, ``classifier`` for the logits. The attribute
    ``weights_used`` says in words what the features started from.

    Args:
        classes: number of classes, at least 2.
        weights: "imagenet" loads the ImageNet features (from torch's cache, else downloaded) and fails where they
            cannot be had; "auto" takes a random start then; "none" always does.

    Shapes: images (n, 3, h, w) of at least 32x32 to logits (n, k).

    Raises:
        InputError: fewer than two classes, an unknown choice of weights, "imagenet" that cannot be had.

    Source: Huang et al.: Densely Connected Convolutional Networks, CVPR 2017, arXiv:1608.06993.
    """
    if classes < 2:
        raise InputError(f"classes is {classes}; a classifier needs at least 2.")
    model, used = pretrained("DenseNet121", weights, _imagenet_densenet121)
    if model is None:
        model = torchvision.models.densenet121(num_classes=classes)
    else:
        model.classifier = nn.Linear(FEATURES, classes)
    model.architecture = {"name": "densenet121", "classes": classes}
    model.weights_used = used
    return model


def _imagenet_densenet121() -> nn.Module:
    return torchvision.models.densenet121(weights=torchvision.models.DenseNet121_Weights.IMAGENET1K_V1)
