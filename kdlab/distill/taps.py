"""Read the layers of a network by name, without editing it."""

from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from kdlab.errors import InputError, unknown


class Taps:
    """Record what the named layers put out in the forward passes inside a ``with`` block.

    >>> with Taps(model, ["features.denseblock4", "classifier"]) as taps:
    ...     model(images)
    >>> taps["classifier"]

    The hooks leave with the block; the records stay until the block is entered again. A layer that is called several
    times keeps its last output.

    Args:
        model: any module.
        names: dotted names as ``model.named_modules()`` gives them; "" is the model itself.

    Raises:
        InputError: a name that the model does not have, with near names; reading a layer that no forward reached.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._modules = {name: _layer(model, name) for name in names}
        self._records: dict[str, Any] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Taps":
        self._records.clear()
        self._handles = [
            module.register_forward_hook(partial(self._record, name)) for name, module in self._modules.items()
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __getitem__(self, name: str) -> Any:
        if name not in self._modules:
            raise InputError(unknown("tap", name, self._modules))
        if name not in self._records:
            raise InputError(f"layer {name!r} was not reached: no forward pass inside the `with` block called it.")
        return self._records[name]

    def _record(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._records[name] = output


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        names = [known for known, _ in model.named_modules() if known]
        raise InputError(unknown(f"layer of {type(model).__name__}", name, names)) from None
