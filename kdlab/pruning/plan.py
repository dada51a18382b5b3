"""Decide which channels stay: by the size of their gammas, over the whole network, down to a target."""

import math
import warnings
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from kdlab.errors import InputError, unknown
from kdlab.pruning.channels import Channels, Groups, Outputs, follow_channels, is_depthwise, is_layer, weights_of, width
from kdlab.pruning.sparsity import gammas


class BeforeAfter(NamedTuple):
    """A count of the whole model, dense and pruned."""

    before: int
    after: int


@dataclass(frozen=True)
class PruningPlan:
    """Which channels stay, as plain data: ``json.dumps(asdict(plan))`` works.

    Args:
        outputs: of each convolution, linear layer and BatchNorm that the input reaches, the output channels that stay.
        inputs: of each such convolution and linear layer, the input channels that stay.
        channels: of each of them, how many output channels it has before.
        prunable: those of which channels could go; the others stay whole.
        keep: the fraction of all prunable channels that stays.
        threshold: the largest mean ``|gamma|`` of what goes; 0 where nothing goes.
        parameters: of the whole model.
        macs: multiplications of the whole model, for one input of the example's size.
    """

    outputs: dict[str, list[int]]
    inputs: dict[str, list[int]]
    channels: dict[str, int]
    prunable: list[str]
    keep: float
    threshold: float
    parameters: BeforeAfter
    macs: BeforeAfter

    def table(self) -> pd.DataFrame:
        """A row for each convolution and linear layer: layer, channels, kept, share (kept / channels), prunable."""
        rows = [
            (name, self.channels[name], len(self.outputs[name]), len(self.outputs[name]) / self.channels[name])
            for name in self.inputs
        ]
        table = pd.DataFrame(rows, columns=["layer", "channels", "kept", "share"])
        return table.assign(prunable=table["layer"].isin(self.prunable))

    def check(self, model: nn.Module) -> None:
        """Refuse a model that this is no plan for.

        Raises:
            InputError: a layer that it does not have, or of another width.
        """
        modules: dict[str, Any] = dict(model.named_modules())
        for name, channels in self.channels.items():
            if name not in modules:
                raise InputError(f"the plan is of another model: {unknown('layer', name, modules)}")
            if not is_layer(modules[name]) or width(modules[name]) != channels:
                raise InputError(
                    f"the plan is of another model: in it, {name} has {channels} channels; in {type(model).__name__} "
                    f"it is {modules[name]}. Plan with the model that is to be pruned."
                )


def plan_pruning(
    model: nn.Module,
    example: Tensor,
    *,
    keep: float | None = None,
    parameters: int | None = None,
    macs: int | None = None,
    at_least: int = 8,
    outputs: Outputs = lambda given: given,
) -> PruningPlan:
    """Choose the channels that stay: those with the largest ``|gamma|``, compared over all prunable layers at once.

    Channels that can only go together (the layers around a shortcut, a depthwise convolution and what it reads) are
    one choice, judged by the mean of their ``|gamma|``, so that a long chain of shortcuts is judged on the same scale
    as a single layer. Of the pieces of a ``chunk``, which must stay equally many, the weakest channel of one goes with
    the weakest of the other. Whole stay: the model's outputs, what has no BatchNorm, a layer that is called several
    times or has a weight in common with another one, and what passes through an operation whose effect on channels is
    not known. Squeeze-and-excitation has no BatchNorm, so that the layers whose channels it scales stay whole, too.

    Args:
        example: inputs as the model takes them; the first is used. A small one, as 64x64 pixels, is as good and quick;
            ``macs`` are counted at its size.
        keep: the fraction of the prunable channels (of their gammas) that stays, above 0 and at most 1; met to the
            nearest choice.
        parameters: the most parameters that the pruned model may have, with the biases that ``compensate`` adds to it.
        macs: the most multiplications that it may take. Exactly one of the three is wanted.
        at_least: channels that stay in each layer, whatever their gammas.
        outputs: picks, from what the model returns in eval mode, the tensors whose sizes have to stay. By default all
            that it returns.

    Warns where all gammas are equal, as before any training.

    Raises:
        InputError: not exactly one target; a target that is out of range; a model without BatchNorm, or without a
            prunable channel; an example that it does not take.
    """
    targets = {"keep": keep, "parameters": parameters, "macs": macs}
    given = [name for name, target in targets.items() if target is not None]
    if len(given) != 1:
        raise InputError(f"given: {' and '.join(given) or 'no target'}; wanted: one of keep, parameters and macs.")
    if keep is not None and not 0 < keep <= 1:
        raise InputError(f"keep is {keep}; wanted: the fraction of channels that stays, above 0 and at most 1.")
    if at_least < 1:
        raise InputError(f"at_least is {at_least}; a layer needs at least 1 channel.")
    scales = gammas(model)
    candidates = _Candidates(model, follow_channels(model, example, outputs), scales, at_least)
    candidates.warn_of_ties()
    return candidates.plan(candidates.number(keep, parameters, macs))


class _Candidates:
    """All choices, best first; a plan takes the first so many of them."""

    def __init__(self, model: nn.Module, channels: Channels, scales: dict[str, Tensor], at_least: int) -> None:
        self.modules: dict[str, Any] = dict(model.named_modules())
        self.dense = sum(parameter.numel() for parameter in model.parameters())
        scale, count = np.zeros(len(channels.prunable)), np.zeros(len(channels.prunable))
        for name, values in scales.items():
            np.add.at(scale, channels.outputs[name], values.double().cpu().numpy())
            np.add.at(count, channels.outputs[name], 1)

        choice, self.prunable = _paired(channels, scale / np.maximum(count, 1))
        self.channels = channels
        self.inputs = {name: choice[groups] for name, groups in channels.inputs.items()}
        self.outputs = {name: choice[groups] for name, groups in channels.outputs.items()}
        self.count = np.bincount(choice, count)
        self.score = np.bincount(choice, scale) / np.maximum(self.count, 1)
        if not self.prunable.any():
            raise InputError(
                f"{type(model).__name__} has no channel that could go. Wanted: layers whose output a BatchNorm reads, "
                "and whose channels are not the model's outputs."
            )
        # Those that stay in any case first, then the required ones, then by score.
        required = self._required(at_least)
        order = np.lexsort((-self.score, ~required, self.prunable))
        self.order = order[self.prunable[order]]
        self.fewest = int((required & self.prunable).sum())
        self.total = self.count[self.order].sum()

    def warn_of_ties(self) -> None:
        """Say so where no gamma stands out, as in a network that has not been trained."""
        scores = self.score[self.prunable]
        if len(scores) > 1 and scores.min() == scores.max():
            warnings.warn(
                f"all gammas are {scores[0]:g}, and say nothing about which channels matter: their order in the model "
                "decides. Train it first, with an L1 penalty on the gammas.",
                stacklevel=3,
            )

    def _required(self, at_least: int) -> np.ndarray:
        rank = np.argsort(np.lexsort((-self.score, self.prunable)))
        required = np.zeros(len(rank), dtype=bool)
        for ids in self.outputs.values():
            required[ids[np.argsort(rank[ids])][:at_least]] = True
        return required

    def number(self, keep: float | None, parameters: int | None, macs: int | None) -> int:
        """How many choices stay, to meet the one target that is given."""
        if keep is not None:
            kept = np.append(0, self.count[self.order].cumsum())[self.fewest :] / self.total
            if keep < kept[0]:
                raise InputError(
                    f"keep is {keep}, but the smallest possible is {math.ceil(1e4 * kept[0]) / 1e4:g}: with the "
                    "channels that each layer has to keep. Take more, or a smaller at_least."
                )
            return self.fewest + int(np.abs(kept - keep).argmin())
        what, target = ("parameters", parameters) if parameters is not None else ("macs", macs)

        def cost(number: int) -> int:
            return self._costs(self._stays(number))[what].after

        smallest, largest = cost(self.fewest), cost(len(self.order))
        assert target is not None
        if not smallest <= target <= largest:
            said = [
                f"{n:,}" + (f" ({2e-9 * n:.3g} GFLOPs)" if what == "macs" else "") for n in (target, smallest, largest)
            ]
            raise InputError(
                f"{what} is {said[0]}; wanted: from {said[1]}, the smallest possible with the channels that each layer "
                f"has to keep, to {said[2]}, the model as it is."
            )
        number = bisect_right(range(self.fewest, len(self.order) + 1), target, key=cost) - 1 + self.fewest
        while cost(number) > target:  # the first channels that go may cost more biases than they save weights
            number -= 1
        return number

    def _stays(self, number: int) -> np.ndarray:
        stays = ~self.prunable
        stays[self.order[:number]] = True
        return stays

    def _costs(self, stays: np.ndarray) -> dict[str, BeforeAfter]:
        """The costs of the whole model: what is there before, less what goes from each layer.

        To it comes the bias that :func:`prune` gives a layer without one, for the constants of what it no longer reads.
        """
        parameters, macs = self.dense, self.channels.macs
        for name, ids in self.outputs.items():
            module, after = self.modules[name], int(stays[ids].sum())
            gone = len(ids) - after
            if isinstance(module, BatchNorm):
                parameters -= gone * 2 * module.affine
                continue
            reads = self.inputs[name]
            weights = weights_of(module, len(ids), len(reads)) - weights_of(module, after, int(stays[reads].sum()))
            parameters -= weights + gone * (module.bias is not None)
            macs -= weights * self.channels.uses[name]
            bare = module.bias is None and name not in self.channels.norms and not is_depthwise(module)
            parameters += after * (bare and not stays[reads].all())
        return {
            "parameters": BeforeAfter(self.dense, parameters),
            "macs": BeforeAfter(self.channels.macs, macs),
        }

    def plan(self, number: int) -> PruningPlan:
        stays = self._stays(number)
        gone = self.order[number:]
        return PruningPlan(
            outputs={name: np.flatnonzero(stays[ids]).tolist() for name, ids in self.outputs.items()},
            inputs={name: np.flatnonzero(stays[ids]).tolist() for name, ids in self.inputs.items()},
            channels={name: len(ids) for name, ids in self.outputs.items()},
            prunable=[name for name, ids in self.outputs.items() if self.prunable[ids].any()],
            keep=float(self.count[self.order[:number]].sum() / self.total),
            threshold=float(self.score[gone].max(initial=0.0)),
            **self._costs(stays),
        )


def _paired(channels: Channels, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each group, the choice that it belongs to: a group by itself, or one of each piece of a chunk.

    And of each choice, whether it can go: all of its groups can, and it takes the same from each piece of a chunk.
    """
    choices = Groups(len(score))
    for pieces in channels.chunks:
        groups = np.concatenate(pieces)
        apart = len(np.unique(groups)) == len(groups) == len(pieces) * len(pieces[0])
        if apart and channels.prunable[groups].all():
            first, *others = [piece[np.argsort(-score[piece], kind="stable")] for piece in pieces]
            for other in others:
                choices.tie(first, other)
    choice = choices.numbered()
    prunable = np.bincount(choice, ~channels.prunable) == 0
    for pieces in channels.chunks:
        taken = np.stack([np.bincount(choice[piece], minlength=len(prunable)) for piece in pieces])
        prunable &= (taken == taken[0]).all(axis=0)
    return choice, prunable
