"""A device beside the CPU on any machine: what stays behind on the CPU is an error here, as it is on a GPU.

A tensor of this device wraps one of the CPU, which computes for it. An operation on tensors of both devices is refused;
what a GPU allows is allowed: copies, single numbers and indices from the CPU. It wants a process of its own: torch
cannot forget a device, and autograd must know of it before its first backward pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "second_device"  # becomes a method of every module, too, and so must be the name of nothing else
COPIES = ("aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense")  # between devices
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class OnSecond(Tensor):
    """A tensor of the second device; ``here`` is the one of the CPU that holds its numbers."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> "OnSecond":
        made = Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _compute(op, args, kwargs or {})

    def tolist(self) -> Any:
        return self.here.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """For the place in memory, and the size of it."""
        return self.here.untyped_storage()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{NAME}: {self.here}"


class _Everywhere(TorchDispatchMode):
    """What has no tensor of the second device among its arguments, too: what makes one, or brings one there."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _compute(op, args, kwargs or {})


@contextmanager
def second_device() -> Iterator[torch.device]:
    """In here ``torch.device(NAME)`` is a device, as "cuda" would be."""
    _register()
    # As `parameter.data = ...` changes a tensor without telling the wrapper: a converted module gets its parameters so.
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Everywhere():
            yield torch.device(NAME, 0)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def _compute(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name, device = op._schema.name, kwargs.get("device")
    given = tree_leaves((args, kwargs))
    mine = [one for one in given if isinstance(one, OnSecond)]
    to_second = bool(mine) if device is None else torch.device(device).type == NAME
    if name == "aten::copy_":
        to_second = isinstance(args[0], OnSecond)
    if mine and name not in COPIES:
        _refuse_both(name, args[0] if name in INDEXING else None, given)
    if to_second and any(isinstance(one, torch.Generator) for one in given):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' ({name}).")
    if to_second and device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    here_args, here_kwargs = tree_map(lambda one: one.here if isinstance(one, OnSecond) else one, (args, dict(kwargs)))
    known = {id(one.here): one for one in mine}  # what works in place gives back what it got

    def brought(one: Any) -> Any:
        if id(one) in known:
            return known[id(one)]
        return OnSecond(one) if to_second and isinstance(one, Tensor) else one

    return tree_map(brought, op(*here_args, **here_kwargs))


def _refuse_both(name: str, indexed: Any, given: Sequence[Any]) -> None:
    if indexed is not None:
        wrong = not isinstance(indexed, OnSecond)
    else:
        wrong = any(isinstance(one, Tensor) and not isinstance(one, OnSecond) and one.dim() for one in given)
    if wrong:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME}:0 and cpu ({name}).")


@cache
def _register() -> list[torch.library.Library]:
    """Tell torch of the device; what comes back must live as long as it is used."""

    class Module(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())

    def empty(size: Any, dtype: Any = None, **how: Any) -> Tensor:
        return OnSecond(torch.empty(size, dtype=dtype))

    def empty_strided(size: Any, stride: Any, dtype: Any = None, **how: Any) -> Tensor:
        return OnSecond(torch.empty_strided(size, stride, dtype=dtype))

    def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        mine, its = (one.here if isinstance(one, OnSecond) else one for one in (target, source))
        mine.copy_(its)
        return target

    # torch.tensor(numbers, device=...) passes by every mode.
    aten, autocast = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    for name, kernel in {"empty.memory_format": empty, "empty_strided": empty_strided, "_copy_from": copy_from}.items():
        aten.impl(name, kernel, "PrivateUse1")
    autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return [aten, autocast]
