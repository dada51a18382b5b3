"""Which channels of a network stand and fall together, followed through one forward pass.

Every convolution and linear layer gives its output channels new numbers; these are followed through all that
happens to the tensor until the next layers read them. Where two channels meet in an elementwise operation, as in a
shortcut, they can only go together. What cannot be followed stays whole, so that the worst case is a layer that could
have been pruned and is not.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from kdlab.errors import InputError

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Outputs = Callable[[Any], Any]
ATEN = torch.ops.aten
POINTWISE = {ATEN.gelu.default, ATEN.hardswish.default, ATEN.hardswish_.default}  # which PyTorch forgot to tag
# What takes but type and device from a tensor.
UNRELATED = {ATEN.new_empty.default, ATEN.new_full.default, ATEN.new_ones.default, ATEN.new_zeros.default}


@dataclass(frozen=True)
class Channels:
    """What one forward pass says about the channels.

    Args:
        inputs: of each convolution and linear layer that is reached, the group of each input channel.
        outputs: of each such layer and each BatchNorm, the group of each output channel. A group is a set of channels
            that stand and fall together.
        prunable: of each group, whether it can go.
        chunks: groups of the pieces that a tensor was cut into; the same number has to stay in each piece.
        norms: of a layer, the BatchNorm that alone reads its output.
        uses: how often each weight of a layer is multiplied, for one sample.
        macs: multiplications of the whole model for one sample of the example's size.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    prunable: np.ndarray
    chunks: list[list[np.ndarray]]
    norms: dict[str, str]
    uses: dict[str, int]
    macs: int


def follow_channels(model: nn.Module, example: Tensor, outputs: Outputs) -> Channels:
    """Run a copy of the model in eval mode, and follow its channels.

    Raises:
        InputError: the model does not take the example; layers that eval mode does not reach.
    """
    with FlopCounterMode(display=False) as counter:
        follower = _followed(model, example, outputs)
    unreached = [name for name in follower.layers if name not in follower.outputs]
    if unreached:
        raise InputError(
            f"{type(model).__name__} does not reach {', '.join(unreached[:5])}{', ...' * (len(unreached) > 5)} in eval "
            "mode, so what these need cannot be known. Remove them, or put nn.Identity in their place."
        )
    return follower.result(counter.get_total_flops() // 2)


def sole_norms(model: nn.Module, example: Tensor) -> dict[str, str]:
    """Of each layer the BatchNorm that alone reads its output, channel by channel, and reads nothing else.

    Raises:
        InputError: the model does not take the example.
    """
    follower = _followed(model, example, lambda given: given)
    layers, shared, outputs = Counter(follower.norms.values()), follower.shared, follower.outputs
    alone = {name: norm for name, norm in follower.norms.items() if layers[norm] == 1 and norm not in shared}
    return {
        name: norm
        for name, norm in alone.items()
        if name not in follower.bare and np.array_equal(outputs[name], outputs[norm])
    }


def _followed(model: nn.Module, example: Tensor, outputs: Outputs) -> "_Follower":
    follower = _Follower(replica(model))
    with follower.following(example):
        given = run(follower.model, example, outputs)
    follower.give(tree_leaves(given))
    return follower


def replica(model: nn.Module) -> nn.Module:
    """A copy to compute with: in eval mode, in float64, on the CPU, without gradients."""
    return copy.deepcopy(model).cpu().double().eval().requires_grad_(False)


@torch.no_grad()
def run(replica: nn.Module, example: Tensor, outputs: Outputs) -> Any:
    """What the replica makes of the example's first sample.

    Raises:
        InputError: it does not take it.
    """
    try:
        return outputs(replica(example[:1].cpu().double()))
    except Exception as error:
        raise InputError(
            f"{type(replica).__name__} cannot be run on an example of shape {tuple(example.shape)}: {error}. "
            "Wanted: a batch of inputs as the model takes them, such as torch.rand(1, 3, 64, 64)."
        ) from error


def is_layer(module: nn.Module) -> bool:
    """Whether its channels can be cut: a plain convolution, linear layer or BatchNorm."""
    plain = isinstance(module._parameters.get("weight"), nn.Parameter)  # not computed by a parametrization
    held = isinstance(module, NonDynamicallyQuantizableLinear)  # by nn.MultiheadAttention, which never calls it
    return isinstance(module, BatchNorm) or (isinstance(module, LAYERS) and plain and not held)


def width(layer: Any) -> int:
    """Its output channels."""
    if isinstance(layer, BatchNorm):
        return layer.num_features
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def is_depthwise(layer: Any) -> bool:
    return not isinstance(layer, nn.Linear | BatchNorm) and 1 < layer.groups == layer.in_channels


class Groups:
    """Numbers that are merged into groups, step by step."""

    def __init__(self, count: int = 0) -> None:
        self._above = list(range(count))

    def new(self, count: int) -> np.ndarray:
        start = len(self._above)
        self._above += range(start, start + count)
        return np.arange(start, start + count)

    def tie(self, one: np.ndarray, other: np.ndarray) -> None:
        """Merge the two groups at each position."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            self._above[self._top(b)] = self._top(a)

    def numbered(self) -> np.ndarray:
        """The group of each number, groups counted from 0."""
        return np.unique([self._top(number) for number in range(len(self._above))], return_inverse=True)[1]

    def _top(self, number: int) -> int:
        while self._above[number] != number:
            self._above[number] = self._above[self._above[number]]
            number = self._above[number]
        return number


class _Follower(TorchDispatchMode):
    """Sees every operation between the layers. Of a tensor it knows the channel dimension and the channels along it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.layers = {name: module for name, module in model.named_modules() if is_layer(module)}
        owned = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
        self.tied = {parameter for parameter, owners in owned.items() if owners > 1}
        self.groups = Groups()
        self.whole: set[int] = set()  # never pruned
        self.scaled: set[int] = set()  # under a gamma
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: dict[str, np.ndarray] = {}
        self.chunks: list[list[np.ndarray]] = []
        self.norms: dict[str, str] = {}
        self.bare: set[str] = set()  # layers whose output is read without BatchNorm, too
        self.shared: set[str] = set()  # BatchNorms that read something else than what a layer puts out for them
        self.uses: dict[str, int] = {}
        self.known: dict[tuple, tuple[int, np.ndarray]] = {}
        self.raw: dict[tuple, str] = {}  # outputs of layers, which only a BatchNorm may read
        self.alive: list[Tensor] = []  # a freed tensor's place in memory would be another's
        self.in_layer = self.in_chunk = False

    @contextmanager
    def following(self, example: Tensor) -> Iterator[None]:
        hooks = []
        for name, layer in self.layers.items():
            hooks.append(layer.register_forward_pre_hook(self._enter))
            hooks.append(layer.register_forward_hook(partial(self._leave, name), with_kwargs=True))
        try:
            with self, _ChunksSeen(self):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def result(self, macs: int) -> Channels:
        groups = self.groups.numbered()
        prunable = np.ones(groups.max() + 1, dtype=bool)
        unscaled = set(range(len(groups))) - self.scaled
        prunable[groups[list(self.whole | unscaled)]] = False
        return Channels(
            {name: groups[ids] for name, ids in self.inputs.items()},
            {name: groups[ids] for name, ids in self.outputs.items()},
            prunable,
            [[groups[ids] for ids in pieces] for pieces in self.chunks],
            {name: norm for name, norm in self.norms.items() if name not in self.bare},
            self.uses,
            macs,
        )

    def give(self, outputs: list[Any]) -> None:
        """The model's outputs: what is behind reads all their channels."""
        tensors = [output for output in outputs if isinstance(output, Tensor)]
        self._read_bare(tensors)
        self._keep(tensors)

    def _keep(self, tensors: list[Tensor]) -> None:
        """Leave their channels whole."""
        for tensor in tensors:
            if _place(tensor) in self.known:
                self.whole.update(self.known[_place(tensor)][1].tolist())

    def _read_bare(self, tensors: list[Tensor]) -> None:
        """Something else than a BatchNorm reads them: where a layer put them out, a gamma of 0 does not silence it."""
        bare = [tensor for tensor in tensors if _place(tensor) in self.raw]
        self._keep(bare)
        self.bare.update(self.raw[_place(tensor)] for tensor in bare)

    def _learn(self, tensor: Tensor, dim: int, ids: np.ndarray) -> None:
        self.known[_place(tensor)] = dim, ids
        self.alive.append(tensor)

    def _read(self, tensor: Tensor, dim: int) -> np.ndarray:
        """The channels along that dimension; channels of an unknown kind, which stay, where they are not known."""
        known = self.known.get(_place(tensor))
        if known is not None and known[0] == dim:
            return known[1]
        self._keep([tensor])
        unknown = self.groups.new(tensor.shape[dim])
        self.whole.update(unknown.tolist())
        return unknown

    # Layers

    def _enter(self, layer: nn.Module, args: Any) -> None:
        self.in_layer = True

    def _leave(self, name: str, layer: Any, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        self.in_layer = False
        (source,) = (*args, *kwargs.values())
        dim = output.ndim - 1 if isinstance(layer, nn.Linear) else 1
        read = self._read(source, dim)
        if isinstance(layer, BatchNorm):
            written = read
            self._scale(name, layer, source, read)
        else:
            self._read_bare([source])
            if is_depthwise(layer):
                written = np.repeat(read, layer.out_channels // layer.in_channels)
            else:
                written = self.groups.new(output.shape[dim])
                if getattr(layer, "groups", 1) > 1:
                    self.whole.update(read.tolist(), written.tolist())
            self.inputs[name] = read
            self.raw[_place(output)] = name
            self.uses[name] = self.uses.get(name, 0) + output.numel() // output.shape[dim]
        # One layer, or one weight, in two places: what fits the one need not fit the other.
        if name in self.outputs or not self.tied.isdisjoint(layer.parameters(recurse=False)):
            self.whole.update(read.tolist(), written.tolist(), self.outputs.get(name, written).tolist())
        self.outputs[name] = written
        self._learn(output, dim, written)

    def _scale(self, name: str, norm: Any, source: Tensor, ids: np.ndarray) -> None:
        layer = self.raw.get(_place(source))
        if layer is not None and layer not in self.norms and norm.affine:
            self.norms[layer] = name
            self.scaled.update(ids.tolist())
        else:
            self._read_bare([source])
            self.shared.add(name)

    # Operations between layers

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.in_layer and func not in UNRELATED:
            operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if any(_place(operand) in self.known for operand in operands):
                self._read_bare(operands)
                self._follow(func, args, kwargs or {}, operands, output)
        return output

    def _follow(self, func: Any, args: tuple, kwargs: dict[str, Any], operands: list[Tensor], output: Any) -> None:
        if torch.Tag.pointwise in func.tags or func in POINTWISE:
            self._tie(operands, output)
        elif func is ATEN.cat.default:
            dim = (kwargs.get("dim", args[1] if len(args) > 1 else 0)) % output.ndim
            if any(self.known.get(_place(operand), (dim,))[0] != dim for operand in operands):
                self._tie(operands, output)
            else:
                self._learn(output, dim, np.concatenate([self._read(operand, dim) for operand in operands]))
        elif len(operands) == 1:
            self._move(func, args, kwargs, operands[0], output)
        else:
            self._keep(operands)

    def _tie(self, operands: list[Tensor], output: Tensor) -> None:
        """Channels that meet at the same place of the output can only go together."""
        found = [(operand.ndim, *self.known.get(_place(operand), (0, np.empty(0)))) for operand in operands]
        if len({(dims - dim, len(ids)) for dims, dim, ids in found}) > 1:
            self._keep(operands)
            return
        dims, dim, ids = found[0]
        for *_, others in found[1:]:
            self.groups.tie(ids, others)
        self._learn(output, output.ndim - dims + dim, ids)

    def _move(self, func: Any, args: tuple, kwargs: dict[str, Any], source: Tensor, output: Any) -> None:
        """See where the operation takes channels by letting it take their numbers, up and down.

        If what comes out is again these numbers along one dimension, for both, then it moves channels (a view, a
        pooling, a change of size) and neither mixes nor changes them.
        """
        dim, ids = self.known[_place(source)]
        shape = [-1 if place == dim else 1 for place in range(source.ndim)]

        def take(numbers: Tensor) -> list[Tensor]:
            carrier = torch.empty_like(source).copy_(numbers.view(shape))
            swap = partial(_swapped, source, carrier)
            return _floats(func(*tree_map(swap, args), **tree_map(swap, kwargs)))

        try:
            up = torch.arange(1, len(ids) + 1, dtype=source.dtype)
            taken = [_along(u, d, len(ids)) for u, d in zip(take(up), take(up.flip(0)), strict=True)]
        except RuntimeError:  # no numbers go this way: a view that the carrier's memory does not allow, a mask
            taken = []
        places = [place for place in taken if place is not None]
        whole = all(len(np.unique(numbers)) == len(ids) for _, numbers in places)
        if not places or len(places) < len(taken) or not (whole or self.in_chunk):
            self._keep([source])
            return
        for tensor, (along, numbers) in zip(_floats(output), places, strict=True):
            self._learn(tensor, along, ids[numbers])
        if not whole:
            self.chunks.append([ids[numbers] for _, numbers in places])


class _ChunksSeen(TorchFunctionMode):
    """Tells ``chunk(2)``, which follows the channels that are left, from ``split(16)``, which does not."""

    def __init__(self, follower: _Follower) -> None:
        super().__init__()
        self.follower = follower

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.follower.in_chunk = func in (torch.chunk, Tensor.chunk)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.follower.in_chunk = False


def _place(tensor: Tensor) -> tuple:
    """Where its values are: the same for every view of the same values, and for what works in place on them."""
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _swapped(source: Tensor, carrier: Tensor, leaf: Any) -> Any:
    return carrier if leaf is source else leaf


def _floats(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _along(up: Tensor, down: Tensor, count: int) -> tuple[int, np.ndarray] | None:
    """The dimension along which the numbers 1 to ``count`` lie, and these from 0; None where there is none."""
    if not torch.allclose(up + down, torch.full_like(up, count + 1)):
        return None
    for dim in range(up.ndim):
        line = up.movedim(dim, 0).flatten(1)[:, 0].round()
        laid = line.view([-1 if place == dim else 1 for place in range(up.ndim)]).expand_as(up)
        if torch.allclose(laid, up) and line.min() >= 1 and line.max() <= count:
            return dim, line.numpy().astype(int) - 1
    return None


def weights_of(layer: Any, outputs: int, inputs: int) -> int:
    """How many weights such a layer has with so many output and input channels, without its bias."""
    if isinstance(layer, nn.Linear):
        return outputs * inputs
    groups = inputs if is_depthwise(layer) else layer.groups
    return outputs * (inputs // groups) * math.prod(layer.kernel_size)
