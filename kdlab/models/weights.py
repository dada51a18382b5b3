"""Where a backbone's weights come from: ImageNet's, or a random start."""

import pickle
import socket
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from torchvision.models import WeightsEnum

from kdlab.errors import InputError

Weights = Literal["auto", "imagenet", "none"]
Pretrained = TypeVar("Pretrained")
# No network, a refused or broken download; a damaged file in the cache.
UNAVAILABLE = (OSError, HTTPException, RuntimeError, EOFError, pickle.UnpicklingError)


def pretrained(name: str, weights: Weights, load: Callable[[], Pretrained]) -> tuple[Pretrained | None, str]:
    """What ``load`` gets out of the ImageNet weights, or None for a random start; and in words which of the two.

    Args:
        name: of the network whose weights they are, for the messages.
        weights: "imagenet" loads them (from torch's cache, else downloaded) and fails where they cannot be had;
            "auto" takes a random start then; "none" always does.
        load: builds from the weights; its first act is to get them.

    Raises:
        InputError: an unknown choice of weights, "imagenet" that cannot be had.
    """
    if weights not in ("auto", "imagenet", "none"):
        raise InputError(f"weights is {weights!r}; wanted: 'auto', 'imagenet' or 'none'.")
    if weights == "none":
        return None, "none: a random start"
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # a network that swallows packets would otherwise hang for minutes
    try:
        return load(), "imagenet"
    except UNAVAILABLE as error:
        if weights == "imagenet":
            raise InputError(
                f"the ImageNet weights of {name} are not in torch's cache and could not be downloaded ({error}). "
                "Connect to the internet, or choose weights 'auto' or 'none'."
            ) from error
        return None, f"none: a random start, because the ImageNet weights could not be downloaded ({error})"
    finally:
        socket.setdefaulttimeout(patience)


@runtime_checkable
class Loads(Protocol):
    """A backbone that takes its own out of a trained network's weights."""

    def load_imagenet(self, weights: dict[str, Any]) -> None: ...


Backbone = TypeVar("Backbone", bound=Loads)
Fetch = Callable[[], dict[str, Any]]  # gets a trained network's state_dict


def trained(source: WeightsEnum) -> Fetch:
    """The weights of torchvision's."""
    return partial(source.get_state_dict, progress=True, check_hash=True)


def backbone(
    name: str, build: Callable[[], Backbone], fetch: Fetch, weights: Weights, published: bool
) -> tuple[Backbone, str]:
    """The backbone, and in words what it starts from; ``published``: it has the sizes that there are weights for.

    Raises:
        InputError: an unknown choice of weights, "imagenet" that cannot be had or would not fit.
    """
    missing = f"there are no ImageNet weights for {name} in other sizes than its own"
    if not published and weights == "imagenet":
        raise InputError(
            f"{missing}. Leave its channels and blocks as they are by default, or choose weights 'auto' or 'none'."
        )
    if not published and weights == "auto":
        return build(), f"none: a random start, because {missing}"

    def load() -> Backbone:
        state = fetch()
        made = build()
        made.load_imagenet(state)
        return made

    found, used = pretrained(name, weights, load)
    return build() if found is None else found, used
