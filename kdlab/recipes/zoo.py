"""The small trained checkpoints that come with the course, in ``data_scripts/zoo``, for what takes long to train."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

import kdlab
from kdlab.training import ModelCard, load_model

ZOO = Path(kdlab.__file__).parents[1] / "data_scripts" / "zoo"
Network = TypeVar("Network", bound=nn.Module)


def load_from_zoo(
    name: str, load: Callable[[Path], tuple[nn.Module, ModelCard]] = load_model
) -> tuple[nn.Module, ModelCard] | None:
    """The model, in float32 on the CPU, and its card; None where it is to be trained instead.

    That is where kdlab was installed without the course, and where the environment has this name in ``KDLAB_RETRAIN``,
    or a 1 for every name. The card's recipe says which command made the checkpoint, when, and with which seed; its
    metrics are those on the test split.

    Args:
        load: reads the file.
    """
    path = ZOO / f"{name}.safetensors"
    if os.environ.get("KDLAB_RETRAIN") in ("1", name) or not path.exists():
        return None
    return load(path)


def course_model(
    name: str, train: Callable[[], Path], kind: type[Network], device: torch.device
) -> tuple[Network, ModelCard]:
    """The model that comes with the course, else the one that ``train`` has kept, on the device, and its card.

    Args:
        train: trains it, where that has not been done yet, and says where it is.
        kind: its class.
    """
    model, card = load_from_zoo(name) or load_model(train())
    assert isinstance(model, kind)
    return model.to(device), card
