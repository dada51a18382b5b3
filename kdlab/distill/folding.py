"""A teacher's BatchNorm folded into its convolutions: the same outputs, sooner."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from kdlab.distill.taps import tensors_in
from kdlab.errors import InputError

# Not what is derived from them, whose forward may do more.
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
ROUNDING = 1e-6  # of the largest value, in float64


def fold_batchnorm(network: nn.Module, example: Tensor) -> nn.Module:
    """A frozen copy in eval mode without the BatchNorms that only scale and shift what one layer puts out.

    In eval mode such a BatchNorm multiplies and shifts each channel, which the convolution or linear layer before it
    can do as well. The outputs differ by rounding, and come sooner: by how much depends on the network.

    >>> distiller = Distiller(student, fold_batchnorm(teacher, images), terms=[kd], task=CrossEntropyLoss())

    A folded layer puts out what its BatchNorm did, in whose place is an Identity; so tap neither of the two where the
    difference matters. A BatchNorm stays where it is not one layer's alone or something else reads that layer's output
    too; where either of the two is of another class than PyTorch's own, or has hooks; and where the BatchNorm has no
    running statistics or no gamma.

    Args:
        network: stays as it is. It is followed in float64 on the CPU, and has to take the same way for one sample as
            for a batch.
        example: an input as the network takes it, (1, ...) or a batch, of which the first sample is used.

    Raises:
        InputError: the network does not take the example; without its BatchNorms it puts out something else.
    """
    from kdlab.pruning.channels import replica, sole_norms  # not above: it brings pandas, which takes long to import

    norms = sole_norms(network, example)
    wide = replica(network)
    _check_alike(wide, _folded(wide, norms), example[:1].cpu().double())
    return _folded(network, norms)


def _folded(network: nn.Module, norms: Mapping[str, str]) -> nn.Module:
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    gone: set[nn.Module] = set()
    for name, of in norms.items():
        layer: Any = folded.get_submodule(name)
        norm: Any = folded.get_submodule(of)
        if _is_plain(layer, LAYERS) and _is_plain(norm, NORMS) and norm.running_mean is not None:
            fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
            fused = fuse(layer, norm)
            layer.weight, layer.bias = fused.weight, fused.bias
            gone.add(norm)
    for parent in list(folded.modules()):
        for name, child in parent._modules.items():  # under every name that it has
            if child in gone:
                parent._modules[name] = nn.Identity().eval()
    return folded


def _is_plain(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    return type(module) in kinds and not module._forward_hooks and not module._forward_pre_hooks


@torch.no_grad()
def _check_alike(network: nn.Module, folded: nn.Module, example: Tensor) -> None:
    """Refuse a network that uses its layers in a way that cannot be seen, as by their weights or from a plain list."""
    try:
        before, after = (tensors_in([one(example)]) for one in (network, folded))
        apart = [float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in zip(after, before, strict=True)]
        why = f"its output would differ by {max(apart):.1g} of the largest value"
    except Exception as error:
        apart, why = [math.inf], str(error)
    if not max(apart) <= ROUNDING:
        raise InputError(
            f"{type(network).__name__} cannot do without the BatchNorms that seem to be one layer's alone: {why}. It "
            "must use its layers in a way of its own. Take it as it is."
        )
