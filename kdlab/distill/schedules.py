"""Weights that change during a run: called with where the run is, they return the weight there."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

from kdlab.errors import InputError

Schedule = Callable[[float, int], float]
"""From the epoch (from 0; the part after the point is how far it has got) and the number of epochs to the weight."""


@dataclass(frozen=True)
class WarmUp:
    """Rise linearly from 0 to the weight over the first epochs, then stay.

    Args:
        weight: at least 0.
        epochs: how long the rise takes; 20 is DKD's and ReviewKD's on CIFAR-100.
    """

    weight: float
    epochs: float = 20.0

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)
        if not 0 < self.epochs < math.inf:
            raise InputError(f"epochs is {self.epochs}; wanted: a finite number above 0.")

    def __call__(self, epoch: float, epochs: int) -> float:
        return self.weight * min(1.0, epoch / self.epochs)


@dataclass(frozen=True)
class Cosine:
    """Go from the weight to ``end`` along half a cosine, over the whole run.

    Args:
        weight, end: at least 0.
    """

    weight: float
    end: float = 0.0

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)
        check_weight("end", self.end)

    def __call__(self, epoch: float, epochs: int) -> float:
        return self.end + (self.weight - self.end) * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))


@dataclass(frozen=True)
class Until:
    """Keep the weight up to an epoch, then stop: the term is no longer computed.

    Args:
        weight: at least 0.
        epoch: the first epoch without the term, counted from 0.
    """

    weight: float
    epoch: int

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)
        if self.epoch < 1:
            raise InputError(f"epoch is {self.epoch}; wanted: at least 1, or leave the term out.")

    def __call__(self, epoch: float, epochs: int) -> float:
        return self.weight if epoch < self.epoch else 0.0


@dataclass(frozen=True)
class From:
    """Nothing up to an epoch, then the weight: until then the term is not computed.

    Args:
        weight: at least 0.
        epoch: the first epoch with the term, counted from 0.
    """

    weight: float
    epoch: int

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)
        if self.epoch < 1:
            raise InputError(f"epoch is {self.epoch}; wanted: at least 1, or the weight itself in place of a schedule.")

    def __call__(self, epoch: float, epochs: int) -> float:
        return self.weight if epoch >= self.epoch else 0.0


def weight_at(name: str, weight: float | Schedule, epoch: float, epochs: int) -> float:
    """The weight there, of a schedule or constant.

    Raises:
        InputError: the schedule gives a weight that is negative or not finite.
    """
    if not callable(weight):
        return weight
    now = weight(epoch, epochs)
    check_weight(f"{name} at epoch {epoch:g} of {epochs}", now)
    return now


def check_weight(name: str, weight: float) -> None:
    """Refuse a weight that is negative or not finite, or a tensor, such as a parameter, which nothing would train.

    Raises:
        InputError: naming it.
    """
    if not isinstance(weight, Real) or not (math.isfinite(weight) and weight >= 0):
        raise InputError(f"{name} is {weight!r}; wanted: a finite number, 0 or above, and no tensor.")
