"""Run a network and read its tapped layers, with no more copies and no more layers than that takes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.distill.taps import Tap, Taps, in_own_containers, tensors_in
from kdlab.errors import InputError

OUTPUT = (Tap(""),)


class Reader:
    """Reads the same taps at each step; the first pass shows what the next can leave out.

    A tapped tensor is copied only where the network overwrites it in place, or where that cannot be seen: in a network
    that is compiled as a whole or in part, and under ``torch.inference_mode()``, where nothing is learnt for later
    passes. The output alone is never copied. Where ``stops``, the forward pass ends after its last tap.

    Args:
        taps: what to read.
        stops: for a network whose output nobody needs. A tap on the output itself ("") and a compiled network, whose
            forward cannot be left half-way, run to the end.
    """

    def __init__(self, taps: Iterable[Tap], stops: bool = False) -> None:
        self.taps = tuple(dict.fromkeys(taps))
        self.stops = stops
        # By training mode: in another mode a network may take another way.
        self._learnt: dict[bool, tuple[set[str] | None, dict[str, int] | None]] = {}

    def forget(self) -> None:
        """Make the next pass a first one."""
        self._learnt = {}

    def __call__(self, network: nn.Module, images: Any) -> tuple[Any, dict[str, Any]]:
        """The network's output (None if it was stopped) and what was read, by ``str(tap)``.

        Raises:
            InputError: a tap that the pass did not reach, or that holds a number that is not finite in the first pass;
                a layer whose tensor is overwritten in a later pass and was not in the first.
        """
        first = network.training not in self._learnt
        if self.taps == OUTPUT:  # nothing in the network comes after it, so it takes neither hook nor copy
            output = network(images)
            if first:
                _refuse_non_finite(network, "", output)
            if first and not torch.is_inference_mode_enabled():
                self._learnt[network.training] = (None, None)
            return output, {"": in_own_containers(output)}
        compiled = first and _is_compiled(network)
        copied, calls = self._learnt.get(network.training, (None, None))
        output = None
        with Taps(network, self.taps, copied=copied, calls=calls) as taps:
            output = network(images)
        if first and not compiled:
            taps.drop_copies()  # the gradient goes the same way as in all later passes: a resumed run has the same bits
        if taps.spoilt:
            raise InputError(
                f"layer {', '.join(sorted(map(repr, taps.spoilt)))} of {type(network).__name__}: what it puts out is "
                "overwritten in place in this pass and was not in the first one, by which it was judged. Make that "
                "operation give a new tensor (x = x * y instead of x *= y), or tap a layer behind it."
            )
        read = {str(tap): taps[tap] for tap in self.taps}
        if first:
            for name, value in read.items():
                _refuse_non_finite(network, name, value)
        if first and not torch.is_inference_mode_enabled():
            stops = self.stops and not compiled
            self._learnt[network.training] = (
                None if compiled else taps.overwritten, taps.calls if stops else None
            )  # fmt: skip
        return output, read


@contextmanager
def enough_samples() -> Iterator[None]:
    """Say what to do where a BatchNorm cannot train.

    Raises:
        InputError: a batch of one sample, of a single value per channel.
    """
    try:
        yield
    except ValueError as error:
        refuse_too_few_samples(error)
        raise


def refuse_too_few_samples(error: Exception) -> None:
    """What :func:`enough_samples` says, for an error that is caught already.

    Raises:
        InputError: it was a BatchNorm that cannot train.
    """
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        raise InputError(
            "BatchNorm cannot train on a batch of one sample. Raise the batch size, accumulate fewer pieces of a batch "
            "(--accumulate), or give the data loader drop_last=True."
        ) from error


def _is_compiled(network: nn.Module) -> bool:
    """Whether it is, or a part of it, or what is running it now."""
    if torch.compiler.is_compiling():
        return True
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in network.modules())


def _refuse_non_finite(network: nn.Module, name: str, value: Any) -> None:
    what = f"layer {name!r} of {type(network).__name__}" if name else f"the output of {type(network).__name__}"
    for leaf in tensors_in([value]):
        if leaf.is_nested:
            raise InputError(
                f"{what} holds a nested tensor, as PyTorch's transformer makes them in eval mode for a padded batch. "
                "Build its nn.TransformerEncoder with enable_nested_tensor=False."
            )
        if not leaf.is_meta and not _is_finite(leaf):
            raise InputError(
                f"{what} holds numbers that are not finite. Check its weights, and that the images are "
                "normalised as it was trained with; in half precision, try float32."
            )


@torch.no_grad()
def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
