"""What every loss asks of its two inputs."""

from typing import Any

import torch
from torch import Tensor

from kdlab.errors import InputError


def comparable(student: Tensor, teacher: Tensor, dims: str) -> tuple[Tensor, Tensor]:
    """The two tensors ready to be compared: at least 32 bits wide, the teacher detached.

    Args:
        dims: the names of the dimensions, such as "n c h w"; both tensors must have these, of the same sizes.

    Raises:
        InputError: no tensors, other dimensions, sizes that differ, no element, no floating point numbers, two devices.
    """
    for tensor, who in ((student, "student"), (teacher, "teacher")):
        usable(tensor, who, dims)
    if student.shape != teacher.shape:
        raise InputError(
            f"the student's tensor is {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}; both must be "
            f"({dims.replace(' ', ', ')}) of the same sizes. Use a connector to make them meet, or tap other layers."
        )
    return matched(student, teacher)


def matched(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The two at least 32 bits wide and of one dtype, the teacher detached.

    Raises:
        InputError: they are on two devices.
    """
    if student.device != teacher.device:
        raise InputError(
            f"the student's tensor is on {student.device} and the teacher's on {teacher.device}; bring both networks "
            "to one device."
        )
    student = at_least_float32(student)
    return student, teacher.detach().to(student.dtype)


def is_tensor(value: Any, who: str) -> None:
    """Refuse what is no tensor, such as the tuple of a layer that puts out several.

    Raises:
        InputError: naming its type.
    """
    if not isinstance(value, Tensor):
        raise InputError(
            f"the {who} gives a {type(value).__name__}; wanted: one tensor. Of a layer that puts out several, name the "
            "one that is meant: Tap(layer, item=...). Of several layers, give each a term of its own."
        )


def usable(tensor: Tensor, who: str, dims: str) -> None:
    """Refuse what a loss cannot take.

    Raises:
        InputError: no tensor, other dimensions than ``dims``, no element, no floating point numbers.
    """
    is_tensor(tensor, who)
    names = dims.split()
    if tensor.ndim != len(names):
        raise InputError(
            f"the {who}'s tensor is {tuple(tensor.shape)}; wanted: {len(names)} dimensions ({', '.join(names)}). "
            "Tap a layer that puts out these, or bring it there with a connector."
        )
    if tensor.numel() == 0:
        raise InputError(f"the {who}'s tensor is {tuple(tensor.shape)}: there is nothing in it to compare.")
    if not tensor.is_floating_point():
        raise InputError(f"the {who}'s tensor has dtype {tensor.dtype}; wanted: floating point numbers.")


def several(batch: Tensor, loss: str) -> None:
    """Refuse a batch of one where a loss compares the samples of a batch with each other.

    Raises:
        InputError: fewer than two samples.
    """
    if len(batch) < 2:
        raise InputError(
            f"{loss} compares the samples of a batch with each other and got {len(batch)}; wanted: at least 2. "
            "Raise the batch size, accumulate fewer pieces of a batch (--accumulate), or give the data loader "
            "drop_last=True."
        )


def has_channels(maps: Tensor, who: str, channels: int) -> None:
    """Refuse maps with other channels than a loss was made for.

    Raises:
        InputError: naming both numbers.
    """
    if maps.shape[1] != channels:
        raise InputError(
            f"the {who}'s tensor is {tuple(maps.shape)}, with {maps.shape[1]} channels; this loss was made for "
            f"{channels}. Make it with the channels of the tapped layers."
        )


def several_positions(maps: Tensor, loss: str) -> None:
    """Refuse maps of one position where a loss compares the positions of a map with each other.

    Raises:
        InputError: the map is 1x1.
    """
    if maps.shape[2:].numel() < 2:
        raise InputError(
            f"{loss} compares the positions of a map with each other and got 1 x 1; wanted: at least 2 positions. "
            "Tap a layer before the pooling, or use larger images."
        )


def positive(**values: float) -> None:
    """Refuse hyper-parameters that are not finite numbers above 0.

    Raises:
        InputError: naming the first of them.
    """
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise InputError(f"{name} is {value}; it must be a finite number above 0.")


def not_negative(**values: float) -> None:
    """Refuse hyper-parameters that are not finite numbers of 0 or above.

    Raises:
        InputError: naming the first of them.
    """
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise InputError(f"{name} is {value}; it must be a finite number, 0 or above.")


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision widened; anything wider as it is."""
    return tensor.float() if tensor.itemsize < 4 else tensor


def whole_numbers(values: Tensor, name: str, n: int, below: int, device: torch.device) -> Tensor:
    """One number a sample, of 0 to ``below`` - 1, as int64: class indices, or places in a data set.

    Raises:
        InputError: another device, another shape than (n), no integers, a number outside.
    """
    if values.device != device:
        raise InputError(
            f"{name} is on {values.device} and the network's output on {device}; bring it there: "
            f"{name}.to({str(device)!r})."
        )
    if values.shape != (n,):
        raise InputError(f"{name} is {tuple(values.shape)}; wanted: ({n}), one number for each sample of the batch.")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise InputError(f"{name} has dtype {values.dtype}; wanted: integers, such as torch.int64.")
    least, greatest = torch.stack(values.aminmax()).tolist()  # a GPU is waited for once
    if least < 0 or greatest >= below:
        raise InputError(f"{name} has numbers from {least} to {greatest}; all must be of 0 to {below - 1}.")
    return values.long()
