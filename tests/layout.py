"""The order in memory of a network's convolutions."""

import torch
from torch import nn


def is_channels_last(network: nn.Module) -> bool:
    """Whether all lie channel by channel at each place, or none does. Of one channel or place both orders are one."""
    kernels = [one for one in network.parameters() if one.ndim == 4 and one.shape[1] > 1 and one.shape[2:].numel() > 1]
    (order,) = {one.is_contiguous(memory_format=torch.channels_last) for one in kernels}
    return order
