"""Training mode and eval mode of networks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """The model is in eval mode in here, and every module of it in its own mode again after it, also after an error.

    Yields:
        The device that the model is on; the CPU for a model without parameters.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    finally:
        for module in training:
            module.training = True
