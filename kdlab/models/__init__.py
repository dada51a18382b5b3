"""Teachers and students."""

from collections.abc import Callable
from typing import Any

from torch import nn

from kdlab.errors import InputError, unknown
from kdlab.models.cifar import CIFARVGG, CIFARResNet, WideResNet, cifar_network
from kdlab.models.classification import StudentCNN, densenet121
from kdlab.models.dehazing import KTDN, SRKTDN, DehazingTeacher
from kdlab.models.restoration import MSBDN, Restorer
from kdlab.models.segmentation import PSPNet, UPerNet
from kdlab.models.vgg import VGGReader, VGGSlices

__all__ = [
    "CIFARVGG",
    "KTDN",
    "MSBDN",
    "SRKTDN",
    "CIFARResNet",
    "DehazingTeacher",
    "PSPNet",
    "Restorer",
    "StudentCNN",
    "UPerNet",
    "VGGReader",
    "VGGSlices",
    "WideResNet",
    "build_model",
    "cifar_network",
    "densenet121",
]

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "CIFARResNet": CIFARResNet, "CIFARVGG": CIFARVGG, "DehazingTeacher": DehazingTeacher, "KTDN": KTDN,
    "MSBDN": MSBDN, "PSPNet": PSPNet, "SRKTDN": SRKTDN, "StudentCNN": StudentCNN, "UPerNet": UPerNet,
    "VGGReader": VGGReader, "WideResNet": WideResNet, "densenet121": densenet121,
}  # fmt: skip


def build_model(architecture: dict[str, Any]) -> nn.Module:
    """The untrained model that ``model.architecture`` describes: {"name": ..., and the builder's arguments}.

    Raises:
        InputError: an unknown name, or arguments that its builder does not take.
    """
    arguments = dict(architecture)
    name = arguments.pop("name", None)
    if name not in BUILDERS:
        raise InputError(unknown("architecture", str(name), BUILDERS))
    try:
        return BUILDERS[name](**arguments)
    except TypeError as error:
        raise InputError(f"architecture {name!r} cannot be built from {arguments}: {error}.") from error
