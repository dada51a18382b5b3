"""Which device to compute on, and how to bring a batch there."""

from collections import UserDict
from copy import copy
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_map

from kdlab.errors import InputError, first_line
from kdlab.processes import check_gpus


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" is CUDA where there is one, else Apple's MPS, else the CPU; any other name is a torch device.

    Raises:
        InputError: a name that torch does not know, a device that is not here, or fewer GPUs than processes.
    """
    if name == "auto" and torch.cuda.is_available():
        name = "cuda"
    if name.startswith("cuda"):
        check_gpus()
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = "no Apple GPU" if name.startswith("mps") else first_line(error)
        raise InputError(f"device {name!r} cannot be used here ({reason}). Try 'auto' or 'cpu'.") from error
    return device


def to_device(batch: Any, device: torch.device) -> Any:
    """The same batch with its tensors (in tuples, lists and dictionaries) on the device, and all else as it is."""
    move = partial(to_device, device=device)
    # Of the usual kinds: at each step tree_map takes several times as long.
    if isinstance(batch, torch.Tensor):
        # To the CPU the call would return before the numbers are there.
        return batch.to(device, non_blocking=device.type == "cuda")
    if type(batch) in (tuple, list):
        return type(batch)(map(move, batch))
    if type(batch) is dict:
        return dict(zip(batch, map(move, batch.values()), strict=True))
    if isinstance(batch, UserDict):  # as tokenizers and image processors give it, to tree_map one piece
        moved = copy(batch)
        moved.data = move(batch.data)
        return moved
    return tree_map(lambda one: move(one) if isinstance(one, torch.Tensor | UserDict) else one, batch)
