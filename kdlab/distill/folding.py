"""A teacher's BatchNorm folded into its convolutions: the same outputs, sooner."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from kdlab.pruning.channels import sole_norms


def fold_batchnorm(network: nn.Module, example: Tensor) -> nn.Module:
    """A frozen copy in eval mode without the BatchNorms that only scale and shift what one layer puts out.

    In eval mode such a BatchNorm multiplies and shifts each channel, which the convolution or linear layer before it
    can do as well; the outputs differ by rounding. What a pass over each map costs depends on the network: on two CPU
    cores 4% of a DenseNet121's time is saved, 6 to 11% of a ResNet's, 38% of a MobileNetV2's.

    >>> distiller = Distiller(student, fold_batchnorm(teacher, images), terms=[kd], task=CrossEntropyLoss())

    A folded layer puts out what its BatchNorm did, in whose place is an Identity; so tap neither of the two where the
    difference matters. A BatchNorm stays where it is not one layer's alone, or something else reads that layer's
    output too, and where it has no running statistics or no gamma.

    Args:
        network: stays as it is.
        example: an input as the network takes it, (1, ...) or a batch, of which the first sample is used.

    Raises:
        InputError: the network does not take the example.
    """
    norms = sole_norms(network, example)
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    gone: set[nn.Module] = set()
    for name, of in norms.items():
        layer: Any = folded.get_submodule(name)
        norm: Any = folded.get_submodule(of)
        if norm.running_mean is not None:
            fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
            fused = fuse(layer, norm)
            layer.weight, layer.bias = fused.weight, fused.bias
            gone.add(norm)
    for parent in list(folded.modules()):
        for name, child in parent._modules.items():  # under every name that it has
            if child in gone:
                parent._modules[name] = nn.Identity().eval()
    return folded
