"""Cut a network down to a plan or to a given structure, and check that it still computes what it should."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils._pytree import tree_leaves

from kdlab.errors import InputError
from kdlab.pruning.channels import Outputs, follow_channels, is_depthwise, is_layer, replica, run, width
from kdlab.pruning.plan import PruningPlan


def prune(
    model: nn.Module,
    example: Tensor,
    plan: PruningPlan,
    *,
    compensate: bool = True,
    outputs: Outputs = lambda given: given,
) -> nn.Module:
    """A copy of the model without the channels that the plan takes away, verified by :func:`verify`.

    The copy keeps the model's device, its training modes and what of it is frozen; the model stays as it is.

    Args:
        example, outputs: as in :func:`plan_pruning`.
        compensate: a channel with gamma 0 still puts out a constant, the activation of its beta. Fold what the next
            layers make of it into their BatchNorm's running mean, else into their bias, which is added where there is
            none. Exact but for what a zero-padded convolution sees at the border.

    Raises:
        InputError: a plan of another model; an example that it does not take; a model whose forward does more with its
            channels than could be followed.
    """
    plan.check(model)
    pruned = copy.deepcopy(model)
    for name in plan.outputs:
        _cut(pruned.get_submodule(name), plan.outputs[name], plan.inputs.get(name))
    if compensate:
        _fold_constants(pruned, model, example, plan, outputs)
    verify(pruned, model, example, plan, compensated=compensate, outputs=outputs)
    return pruned


def masked(model: nn.Module, plan: PruningPlan, *, betas: bool = True) -> nn.Module:
    """A dense copy of the model in which the gammas and betas of what the plan takes away are 0.

    It computes what the pruned model computes, where the activations map 0 to 0, as ReLU and SiLU do.

    Args:
        betas: False leaves the betas. The pruned model then needs its ``compensate``.

    Raises:
        InputError: a plan of another model.
    """
    plan.check(model)
    dense = copy.deepcopy(model)
    for name, stays in plan.outputs.items():
        norm: Any = dense.get_submodule(name)
        if isinstance(norm, BatchNorm) and norm.affine:
            gone = _others(stays, norm.num_features)
            norm.weight.data[gone] = 0
            if betas:
                norm.bias.data[gone] = 0
    return dense


def verify(
    pruned: nn.Module,
    model: nn.Module,
    example: Tensor,
    plan: PruningPlan,
    *,
    compensated: bool = True,
    outputs: Outputs = lambda given: given,
) -> None:
    """Refuse a pruned model that does not compute, in eval mode, what the :func:`masked` model computes.

    Both compute in float64 on the CPU. A compensated one is compared with the masked one that has its betas, both with
    convolutions that repeat the border in place of padding with zeros: there the compensation is exact everywhere.

    Args:
        example, outputs: as in :func:`plan_pruning`.

    Raises:
        InputError: it computes something else, or nothing; a plan of another model.
    """
    dense, small = replica(masked(model, plan, betas=not compensated)), replica(pruned)
    if compensated:
        _repeat_borders(dense)
        _repeat_borders(small)
    # The sums are in another order; what was folded is rounded to the model's own precision, too.
    tolerance = 1e2 * max(torch.finfo(p.dtype).eps for p in pruned.parameters()) if compensated else 1e-9
    advice = (
        "Either one of them was changed, or the network's forward states a number of channels (a split(16), a "
        "view(-1, 256)) that no longer holds."
    )
    wanted = tree_leaves(run(dense, example, outputs))
    try:
        given = tree_leaves(run(small, example, outputs))
    except InputError as error:
        raise InputError(f"the pruned model and the plan do not fit: {error} {advice}") from error
    for want, give in zip(wanted, given, strict=True):
        if isinstance(want, Tensor) and want.numel() > 0:
            difference = (want - give).abs().max().item() if want.shape == give.shape else float("inf")
            if not difference <= tolerance * want.abs().max().item():
                raise InputError(
                    f"the pruned model does not compute what the masked model does: an output of shape "
                    f"{tuple(want.shape)} differs by up to {difference:.2g}. {advice}"
                )


def structure(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The widths of each convolution, linear layer and BatchNorm, as data for JSON: what :func:`rebuild` needs."""
    return {
        name: {"outputs": width(layer), "inputs": _read_width(layer), "bias": layer.bias is not None}
        for name, layer in _layers(model).items()
    }


def rebuild(dense: nn.Module, structure: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """A copy of a dense model, cut to the structure of a pruned one, into which its ``state_dict`` loads strictly.

    >>> model = rebuild(build_the_dense_model(), structure(pruned))
    >>> model.load_state_dict(pruned.state_dict())

    Until then its weights mean nothing.

    Raises:
        InputError: a structure of another model.
    """
    model = copy.deepcopy(dense)
    layers = _layers(model)
    foreign = sorted(structure.keys() ^ layers.keys())
    if foreign:
        raise InputError(
            f"the structure is of another model than {type(dense).__name__}: only one of them has the layer "
            f"{foreign[0]!r}."
        )
    for name, wanted in structure.items():
        layer = layers[name]
        outputs, inputs = wanted["outputs"], wanted["inputs"]
        if outputs > width(layer) or (inputs or 0) > (_read_width(layer) or 0):
            raise InputError(f"the structure is of another model: {name} is {dict(wanted)} in it, here it is {layer}.")
        _cut(layer, range(outputs), None if inputs is None else range(inputs))
        if wanted["bias"] and layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(outputs))
    return model


def _layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if is_layer(module)}


def _read_width(layer: Any) -> int | None:
    """Its input channels; None for a BatchNorm, which has but one width."""
    if isinstance(layer, BatchNorm):
        return None
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _others(stays: Any, count: int) -> list[int]:
    return sorted(set(range(count)) - set(stays))


@torch.no_grad()
def _cut(layer: Any, outputs: Any, inputs: Any) -> None:
    """Leave a layer these output and input channels."""
    outputs = torch.as_tensor(list(outputs))
    if isinstance(layer, BatchNorm):
        layer.num_features = len(outputs)
        for name in ("weight", "bias", "running_mean", "running_var"):
            _keep_rows(layer, name, outputs)
        return
    inputs = torch.as_tensor(list(inputs))
    _keep_rows(layer, "weight", outputs)
    _keep_rows(layer, "bias", outputs)
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = len(inputs), len(outputs)
        _keep_rows(layer, "weight", inputs, dim=1)
        return
    if is_depthwise(layer):
        layer.groups = len(inputs)
    elif layer.groups == 1:
        _keep_rows(layer, "weight", inputs, dim=1)
    layer.in_channels, layer.out_channels = len(inputs), len(outputs)


def _keep_rows(layer: nn.Module, name: str, rows: Tensor, dim: int = 0) -> None:
    values = getattr(layer, name)
    if values is None or len(rows) == values.shape[dim]:  # what stays whole may be another layer's, too
        return
    left = values.index_select(dim, rows.to(values.device))
    setattr(layer, name, nn.Parameter(left, values.requires_grad) if isinstance(values, nn.Parameter) else left)


def _repeat_borders(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.padding_mode == "zeros":
            module.padding_mode = "replicate"


@torch.no_grad()
def _fold_constants(pruned: nn.Module, model: nn.Module, example: Tensor, plan: PruningPlan, outputs: Outputs) -> None:
    """Give each layer, as a constant, what the channels that it no longer reads would have given it at gamma 0."""
    norms = follow_channels(model, example, outputs).norms
    dense = replica(masked(model, plan, betas=False))
    _repeat_borders(dense)
    shifts: dict[str, Tensor] = {}

    def measure(name: str, gone: list[int], layer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        (read,) = (*args, *kwargs.values())
        channels = read.flatten(0, -2).T if isinstance(layer, nn.Linear) else read.movedim(1, 0).flatten(1)
        constants = channels[gone, 0]  # the same everywhere
        weight = layer.weight.flatten(2).sum(dim=2) if layer.weight.ndim > 2 else layer.weight
        shifts[name] = weight[:, gone] @ constants

    for name, stays in plan.inputs.items():
        layer: Any = dense.get_submodule(name)
        gone = _others(stays, _read_width(layer) or 0)
        if gone and not is_depthwise(layer):
            layer.register_forward_pre_hook(partial(measure, name, gone), with_kwargs=True)
    run(dense, example, outputs)

    for name, shift in shifts.items():
        layer = pruned.get_submodule(name)
        shift = shift[plan.outputs[name]]
        norm: Any = pruned.get_submodule(norms[name]) if name in norms else None
        if norm is not None:
            if norm.running_mean is not None:  # else it takes the mean of the batch, and the constant with it
                norm.running_mean -= shift.to(norm.running_mean)
        elif layer.bias is not None:
            layer.bias += shift.to(layer.bias)
        else:
            layer.bias = nn.Parameter(shift.to(layer.weight), layer.weight.requires_grad)
