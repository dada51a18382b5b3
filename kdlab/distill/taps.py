"""Read the layers of a network by name, without editing it."""

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from kdlab.errors import InputError, unknown


@dataclass(frozen=True)
class Tap:
    """What to read of a network, where the plain name of a layer does not say enough.

    Args:
        layer: dotted name as ``model.named_modules()`` gives it, "" for the model itself; for a parameter as
            ``model.named_parameters()`` gives it.
        what: "output" or "input" of the layer, or "parameter".
        call: which of its calls, from 0, where one forward pass calls the layer several times.
        item: which tensor, where the layer puts out several: the index in a tuple or list, the key of a dict, the
            attribute of any other object. For an input the position (by default the first) or the keyword.

    Raises:
        InputError: another ``what``; a negative call; call or item of a parameter.
    """

    layer: str
    what: Literal["output", "input", "parameter"] = "output"
    call: int | None = None
    item: int | str | None = None

    def __post_init__(self) -> None:
        if self.what not in ("output", "input", "parameter"):
            raise InputError(unknown("kind of tap", str(self.what), ("output", "input", "parameter")))
        if self.call is not None and self.call < 0:
            raise InputError(f"tap {self.layer!r} asks for call {self.call}; calls are counted from 0.")
        if self.what == "parameter" and (self.call, self.item) != (None, None):
            raise InputError(f"tap {self.layer!r} is a parameter: it has neither calls nor items.")

    def __str__(self) -> str:
        """The layer's name alone for its output; otherwise with what is special about it, such as "block:input"."""
        what = "" if self.what == "output" else f":{self.what}"
        call = "" if self.call is None else f" call {self.call}"
        item = "" if self.item is None else f"[{self.item!r}]"
        return self.layer + what + item + call


def as_tap(tap: str | Tap) -> Tap:
    """A plain name is the output of that layer."""
    return tap if isinstance(tap, Tap) else Tap(tap)


class Taps:
    """Record what the named layers put out in the forward pass inside a ``with`` block.

    >>> with Taps(model, ["features.denseblock4", "classifier"]) as taps:
    ...     model(images)
    >>> taps["classifier"]

    The hooks leave with the block; the records stay until the block is entered again. A record is a copy, so that a
    layer that works in place afterwards (``nn.ReLU(inplace=True)``, ``x += y``) does not write into it; the gradient
    flows through it.

    Args:
        model: any module.
        taps: names of layers, or :class:`Tap` for inputs, parameters, one of several calls or tensors.
        copied: the taps that need a copy; all of them if None. ``overwritten`` says which do.
        calls: how many calls each layer gets in one forward pass, where that is known: the pass is then stopped as
            soon as each layer has had that many, and leaves the block. What ``calls`` said after a whole pass.

    Raises:
        InputError: a name that the model does not have, with near names; reading a layer that no forward reached, one
            of several calls without saying which, or an item that is not there.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Iterable[str | Tap],
        *,
        copied: Collection[str] | None = None,
        calls: Mapping[str, int] | None = None,
    ) -> None:
        if isinstance(taps, str):
            raise InputError(f"taps is {taps!r}; wanted: a list of names, [{taps!r}].")
        # torch.compile(model) wraps; its layers keep the names that they have in the model.
        if "_orig_mod" in model._modules:  # getattr with a default would look, and fail, in many places at each step
            model = model.get_submodule("_orig_mod")
        self._taps = {str(tap): tap for tap in map(as_tap, taps)}
        self._found: dict[str, Any] = {name: _find(model, tap) for name, tap in self._taps.items()}
        self._copied = copied
        self._calls = calls
        self._records: dict[str, list[Any]] = {}
        self._own: dict[str, list[Any]] = {}
        self._originals: list[tuple[str, Tensor, int | None]] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Taps":
        hooked = {name: tap for name, tap in self._taps.items() if tap.what != "parameter"}
        self._records = {name: [] for name in hooked}
        self._own, self._originals = {}, []
        for name, tap in hooked.items():
            module = self._found[name]
            if tap.what == "input":
                handle = module.register_forward_pre_hook(partial(self._record_input, name), with_kwargs=True)
            else:
                handle = module.register_forward_hook(partial(self._record_output, name))
            self._handles.append(handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return kind is _Stopped

    def __getitem__(self, tap: str | Tap) -> Any:
        name = str(tap)
        if name not in self._taps:
            raise InputError(unknown("tap", name, self._taps))
        wanted = self._taps[name]
        if wanted.what == "parameter":
            return self._found[name]
        records = self._records.get(name, [])
        if not records:
            raise InputError(
                f"layer {wanted.layer!r} was not reached: no forward pass inside the `with` block called it. Tap a "
                "layer that the forward pass calls, or a layer inside it."
            )
        if wanted.call is None and len(records) > 1:
            raise InputError(
                f"layer {wanted.layer!r} was called {len(records)} times inside the `with` block. Say which call you "
                f"mean, as in Tap({wanted.layer!r}, call=0), or enter the block anew for each forward pass."
            )
        if (wanted.call or 0) >= len(records):
            raise InputError(f"tap {name!r}: the layer was called {len(records)} times; wanted: call {wanted.call}.")
        return _item(records[wanted.call or 0], wanted)

    @property
    def calls(self) -> dict[str, int]:
        """How many calls of each layer are recorded."""
        return {name: len(records) for name, records in self._records.items()}

    @property
    def overwritten(self) -> set[str]:
        """The taps whose layer's tensor was changed in place after it had been recorded, or of which nobody can tell.

        Nobody can under ``torch.inference_mode()``, whose tensors count no changes, and inside a compiled network.
        """
        return {name for name, tensor, version in self._originals if version is None or tensor._version != version}

    @property
    def spoilt(self) -> set[str]:
        """The taps without a copy whose records are no longer what they were, so that they need one."""
        bare = [one for one in self._originals if self._copied is not None and one[0] not in self._copied]
        return {name for name, tensor, version in bare if version is not None and tensor._version != version}

    def drop_copies(self) -> None:
        """Hold the layers' own tensors instead of copies, where nothing has overwritten these."""
        for name in self._own.keys() - self.overwritten:
            self._records[name] = self._own[name]

    def _record_output(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._record(name, output)

    def _record_input(self, name: str, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._record(name, {**dict(enumerate(inputs)), **keywords})

    def _record(self, name: str, value: Any) -> None:
        value = in_own_containers(value)  # the network may go on writing into the layer's own list
        self._originals += [(name, leaf, version(leaf)) for leaf in tensors_in([value])]
        if self._copied is None or name in self._copied:
            self._own.setdefault(name, []).append(value)
            value = _with_tensors(Tensor.clone, value)
        self._records[name].append(value)
        if self._calls is not None and all(len(had) >= self._calls[tap] for tap, had in self._records.items()):
            raise _Stopped


class _Stopped(BaseException):
    """Ends a forward pass after its last tap. No Exception: a model that catches those must not catch this."""


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """All tensors, those inside tuples, lists, dictionaries and dataclasses too."""
    values = list(values)
    if all(isinstance(value, Tensor) for value in values):  # mostly, and at each step
        return values
    leaves = chain.from_iterable(map(tree_leaves, values))
    inside = ([leaf] if isinstance(leaf, Tensor) else tensors_in(_fields(leaf).values()) for leaf in leaves)
    return list(chain.from_iterable(inside))


def in_own_containers(value: Any) -> Any:
    """The same tensors in tuples, lists, dictionaries and dataclasses that nobody else has."""
    return value if isinstance(value, Tensor) else _with_tensors(lambda tensor: tensor, value)


def _with_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with each of its tensors changed, in containers of its own."""

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if fields := _fields(leaf):
            leaf = copy(leaf)
            leaf.__dict__.update({name: _with_tensors(change, one) for name, one in fields.items()})
        return leaf

    return tree_map(changed, value)


def _fields(value: Any) -> dict[str, Any]:
    """Those of a dataclass, as models have them for their output; none of anything else."""
    return vars(value) if is_dataclass(value) and hasattr(value, "__dict__") and not isinstance(value, type) else {}


def version(tensor: Tensor) -> int | None:
    """How often the tensor was changed in place; None where that is not counted."""
    return None if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version


def _find(model: nn.Module, tap: Tap) -> nn.Module | nn.Parameter:
    if tap.what == "parameter":
        parameters = dict(model.named_parameters())
        if tap.layer not in parameters:
            raise InputError(unknown(f"parameter of {type(model).__name__}", tap.layer, parameters))
        return parameters[tap.layer]
    try:
        return model.get_submodule(tap.layer)
    except AttributeError:
        names = [known for known, _ in model.named_modules() if known]
        if not names:
            what = f"{type(model).__name__} has no layers inside, and so none that is called {tap.layer!r}"
            raise InputError(f'{what}; wanted: "", the network itself.') from None
        if not get_close_matches(tap.layer, names):  # all of them would fill a page, and the end of it is what is read
            names = [known for known, _ in model.named_children()]
        raise InputError(unknown(f"layer of {type(model).__name__}", tap.layer, names)) from None


def _item(record: Any, tap: Tap) -> Any:
    item = 0 if tap.item is None and tap.what == "input" else tap.item
    if item is None:
        return record
    if isinstance(record, Mapping):
        known = list(record)
    elif isinstance(record, tuple | list):
        known = list(range(len(record)))
        if isinstance(item, str) and item in getattr(record, "_fields", ()):
            return getattr(record, item)
    elif not isinstance(record, Tensor) and hasattr(record, "__dict__"):
        known = list(vars(record))
        record = vars(record)
    else:
        raise InputError(f"tap {str(tap)!r}: the layer puts out one {type(record).__name__}, which has no items.")
    if item not in known:
        raise InputError(f"tap {str(tap)!r}: there is no item {item!r}. Known: {', '.join(map(repr, known))}.")
    return record[item]
