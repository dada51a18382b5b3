"""Where a backbone's weights come from: ImageNet's, or a random start."""

import pickle
import socket
from collections.abc import Callable
from http.client import HTTPException
from typing import Literal, TypeVar

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
