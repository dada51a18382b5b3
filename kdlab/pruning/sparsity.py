"""Push the gammas of BatchNorm to zero while training: those that give in mark the channels to prune."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from kdlab.errors import InputError


def gammas(model: nn.Module) -> dict[str, Tensor]:
    """``|gamma|`` of each BatchNorm by its name: a channel's scale, (channels,), detached.

    Raises:
        InputError: the model has no BatchNorm with gammas.
    """
    return {name: norm.weight.detach().abs() for name, norm in _scaling_norms(model).items()}


@torch.no_grad()
def add_gamma_l1(model: nn.Module, weight: float) -> None:
    """Add the gradient of ``weight`` * sum ``|gamma|``, which is ``weight`` * sign(gamma), to the gammas' gradients.

    To be called between ``backward`` and ``step``: after gradients were unscaled and clipped, or these would shrink it.
    A gamma without a gradient (frozen, or not reached by the loss) stays as it is.

    Args:
        weight: at least 0, as :func:`gamma_l1_weight` gives it.

    Raises:
        InputError: a negative weight; the model has no BatchNorm with gammas.

    Source: Liu et al.: Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, arXiv:1708.06519.
    """
    if not weight >= 0:
        raise InputError(f"weight is {weight}; wanted: 0 or above, such as 0.01.")
    for norm in _scaling_norms(model).values():
        if norm.weight.grad is not None:
            norm.weight.grad.add_(norm.weight.sign(), alpha=weight)


def gamma_l1_weight(epoch: float, epochs: int, weight: float = 1e-2) -> float:
    """The weight of the gammas' L1 over a run: falls linearly from ``weight`` to a tenth of it.

    Args:
        epoch: from 0; the part after the point is how far it has got.
        weight: at the start; 1e-2 is what the public YOLOv8 recipes take.
    """
    return weight * (1 - 0.9 * epoch / epochs)


def _scaling_norms(model: nn.Module) -> dict[str, BatchNorm]:
    norms = {name: m for name, m in model.named_modules() if isinstance(m, BatchNorm) and m.affine}
    if not norms:
        raise InputError(
            f"{type(model).__name__} has no BatchNorm with gammas, which say what a channel is worth. Wanted: a "
            "network with BatchNorm, before these are fused into the convolutions."
        )
    return norms
