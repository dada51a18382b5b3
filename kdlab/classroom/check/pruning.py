"""The checks of chapter 06."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou as torchvision_iou

from kdlab.classroom.check.grading import Answer, ask, ask_also, say


def sparse_gradient(answer: Answer) -> bool:
    """06, exercise 1: ``answer(gradient (c), gamma (c), strength, max_norm)`` gives what the optimiser gets, (c)."""
    gradient = torch.tensor([3.0, -4.0, 12.0, 0.0, 0.5])
    gamma = torch.tensor([0.5, -0.2, 1.5, 0.1, -2.0])
    strength, largest = 0.3, 2.0
    norm = gradient.norm()
    clipped = gradient * (largest / norm)
    penalised = gradient + strength * gamma.sign()
    known = {
        gradient: "this is the task's gradient as it came: clip it, then add the penalty's.",
        clipped: "the penalty is missing.",
        penalised: "the gradient is not clipped yet.",
        penalised * (largest / penalised.norm()): (
            "you clipped after adding, so that the penalty shrank with the rest; add it to the clipped gradient."
        ),
        clipped + strength * gamma: "this is a squared penalty's; the gradient of |gamma| is its sign, however large.",
        clipped + strength * gamma.abs(): "this is the penalty itself; wanted: its gradient, the sign of gamma.",
        clipped + strength: "a gamma below 0 is pushed away from 0 here: the sign of each says which way.",
        clipped - strength * gamma.sign(): "sign: an optimiser steps against the gradient, and gamma is to go to 0.",
        gradient.clamp(-largest, largest) + strength * gamma.sign(): (
            "you clipped each number by itself; wanted: the whole gradient shortened to that norm."
        ),
    }
    problem = ask(answer, (gradient, gamma, strength, largest), clipped + strength * gamma.sign(), known)
    if problem is None:
        problem = ask(answer, (gradient, gamma, strength, 100.0), penalised, {})
        if problem is not None:
            problem = "right where the gradient is too long, but one that is short enough must stay as it is."
    other = gradient * (5.0 / norm) + 0.01 * gamma.sign()
    but = "for a strength of 0.01 and a norm of 5"
    problem = ask_also(problem, answer, (gradient, gamma, 0.01, 5.0), other, but)
    silent = torch.tensor([0.0, -0.2, 1.5, 0.0, -2.0])
    also = clipped + strength * silent.sign()
    return say(ask_also(problem, answer, (gradient, silent, strength, largest), also, "where a gamma is 0 already"))


def kept_channels(answer: Answer) -> bool:
    """06, exercise 2: ``answer(gammas, keep, at_least)`` gives how many channels stay in each layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gammas = [torch.rand(6), torch.rand(10) * 0.3, 0.4 - torch.rand(14), torch.rand(10) * 0.05]
    keep, least = 0.5, 2
    counts = _counts(gammas, keep)
    want = counts.clamp(min=least)
    local = torch.tensor([round(keep * len(layer)) for layer in gammas])
    known = {
        counts: "a layer has fewer channels than at_least.",
        torch.tensor([len(layer) for layer in gammas]) - counts: "these are the channels that go.",
        _counts(gammas, 1 - keep).clamp(min=least): "keep is the fraction that stays.",
        local: "you took the same fraction of every layer; wanted: one threshold for all of them.",
        _counts([layer.relu() for layer in gammas], keep).clamp(min=least): "a gamma below 0 counts by its size, too.",
        _counts([layer / layer.abs().max() for layer in gammas], keep).clamp(min=least): (
            "you compared gamma with the largest of its layer; wanted: with those of all layers."
        ),
    }
    asked = _as_tensor(answer)
    problem = ask(asked, (gammas, keep, least), want, known)
    more = _counts(gammas, 0.9).clamp(min=least)
    problem = ask_also(problem, asked, (gammas, 0.9, least), more, "right for keep = 0.5, but not for 0.9")
    for part, whole in ((0.64, "25.6, of which 25 stay"), (0.24, "9.6, of which 9 stay")):
        down = _counts(gammas, part).clamp(min=least)
        but = f"right where keep is a whole number of channels, but {part} of 40 is {whole}"
        problem = ask_also(problem, asked, (gammas, part, least), down, but)
    but = "right for at_least = 2, but not for 4"
    return say(ask_also(problem, asked, (gammas, keep, 4), counts.clamp(min=4), but))


def c2f_parameters(answer: Answer) -> bool:
    """06, exercise 3: ``answer(inputs, outputs, bottlenecks)`` gives the parameters of a C2f block."""
    for inputs, outputs, n in ((32, 64, 1), (48, 32, 2)):
        c = outputs // 2
        first, inside, last = 2 * c * inputs, n * 2 * 9 * c * c, outputs * (2 + n) * c
        norms = 2 * (2 * c + n * 2 * c + outputs)
        want = first + inside + last + norms
        known = {
            want - norms: "BatchNorm is missing: a gamma and a β for each channel that comes out of a convolution.",
            want + norms // 2: "BatchNorm learns two numbers a channel; the running mean and variance are not learnt.",
            want + norms: "BatchNorm learns two numbers a channel; the running mean and variance are not learnt.",
            want - norms // 2: "a convolution's bias would be one number a channel; BatchNorm has gamma and β.",
            want - outputs * n * c: "the last convolution reads both halves and what each bottleneck adds: (2 + n) c.",
            want - outputs * c: "the last convolution reads both halves and what each bottleneck adds: (2 + n) c.",
            want - inside // 2 - 2 * n * c: "a bottleneck has two convolutions.",
            want - 8 * inside // 9: "a bottleneck's convolutions are 3x3.",
        }
        problem = ask(answer, (inputs, outputs, n), want, known)
        if problem is not None:
            return say(f"for C2f({inputs}, {outputs}, n={n}): {problem}")
    return say(None)


def folded_constant(answer: Answer) -> bool:
    """06, exercise 4: ``answer(weight (o, i, k, k), beta (i), gone)`` gives what the removed channels add, (o)."""
    generator = torch.Generator().manual_seed(0)
    weight, beta = torch.randn(5, 6, 3, 3, generator=generator), torch.randn(6, generator=generator)
    gone = [1, 2, 5]
    stays = [0, 3, 4]
    sums = weight.sum(dim=(2, 3))
    want = sums[:, gone] @ F.silu(beta[gone])
    known = {
        -want: "sign: wanted is what they add; that it is then taken off the running mean is the next step.",
        sums[:, gone] @ beta[gone]: "the activation comes between: at gamma = 0 a channel puts out SiLU(β).",
        weight[:, gone, 1, 1] @ F.silu(beta[gone]): "a 3x3 kernel sees the constant nine times: sum over all of it.",
        weight[:, gone].mean(dim=(2, 3)) @ F.silu(beta[gone]): "sum over the kernel; this is its mean.",
        sums[:, stays] @ F.silu(beta[stays]): "these are the channels that stay; wanted: those that go.",
        sums @ F.silu(beta): "these are all channels; wanted: those that go.",
        sums[:, gone] @ torch.sigmoid(beta[gone]): "SiLU(β) is β times its sigmoid.",
        sums[:, gone] @ F.relu(beta[gone]): "YOLOv8's activation is SiLU, not ReLU.",
    }
    problem = ask(answer, (weight, beta, gone), want, known)
    pointwise = weight[:, :, :1, :1]
    also = pointwise[:, [0, 4], 0, 0] @ F.silu(beta[[0, 4]])
    return say(ask_also(problem, answer, (pointwise, beta, [0, 4]), also, "for a 1x1 kernel and other channels"))


def box_iou(answer: Answer) -> bool:
    """06, exercise 5: ``answer(a (n, 4), b (m, 4))`` gives the IoU of each pair, (n, m)."""
    # Some pairs are apart in one direction alone, some in both.
    a = torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 1.0, 6.0, 3.0], [8.0, 8.0, 9.0, 11.0], [1.0, 6.0, 3.0, 7.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 5.0], [2.0, 1.0, 6.0, 3.0], [7.0, 2.0, 9.0, 4.0]])
    want = torchvision_iou(a, b)
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    sides = high - low
    both, unclamped = sides.clamp(min=0).prod(dim=2), sides.prod(dim=2)
    width, height = sides.unbind(dim=2)
    width_clamped, height_clamped = width.clamp(min=0) * height, width * height.clamp(min=0)
    areas = _area(a)[:, None] + _area(b)
    more = (sides + 1).clamp(min=0).prod(dim=2)
    larger = (a[:, 2:] - a[:, :2] + 1).prod(dim=1)[:, None] + (b[:, 2:] - b[:, :2] + 1).prod(dim=1)
    known = {
        want.T: "rows are the boxes of a, columns those of b.",
        both: "this is the intersection; divide by the union.",
        both / areas: "what both cover is counted twice below: take it away once.",
        2 * both / areas: "this is Dice; wanted: the intersection over the union.",
        unclamped / (areas - unclamped): (
            "boxes that are apart in both directions get a width and a height below 0, whose product is above it; "
            "let neither fall below 0."
        ),
        width_clamped / (areas - width_clamped): (
            "boxes that are apart from top to bottom get a height below 0; let neither fall below 0."
        ),
        height_clamped / (areas - height_clamped): (
            "boxes that are apart from left to right get a width below 0; let neither fall below 0."
        ),
        both / torch.minimum(_area(a)[:, None], _area(b)): "below is the smaller box; wanted: the union.",
        more / (larger - more): "right and bottom are where a box ends, so a width is right minus left, without the 1.",
    }
    return say(ask(answer, (a, b), want, known))


def average_precision(answer: Answer) -> bool:
    """06, exercise 6: ``answer(hits (n), objects)`` gives the area under the precision that is still to be had."""
    for hits, objects in (([1, 0, 1, 1, 0], 4), ([0, 1], 3), ([1, 1], 2), ([0, 0], 2)):
        right = torch.tensor(hits, dtype=torch.float64)
        found, seen = right.cumsum(dim=0), torch.arange(1, len(right) + 1)
        precision = found / seen
        envelope = precision.flip(0).cummax(dim=0).values.flip(0)
        want = (envelope * right).sum() / objects
        known = {
            (precision * right).sum() / objects: (
                "at each recall the best precision counts that this recall or a higher one has: a running maximum "
                "from the end."
            ),
            (envelope * right).sum() / right.sum(): "divide by all objects, found or not.",
            (precision * right).sum() / right.sum(): "divide by all objects, found or not.",
            envelope.mean(): "only where an object is found does the recall grow; the others add no area.",
            precision.mean(): "only where an object is found does the recall grow; the others add no area.",
            precision[-1]: "this is the precision at the end; wanted: the area under the curve.",
            found[-1] / objects: "this is the recall at the end; wanted: the area under the curve.",
        }
        problem = ask(answer, (right.long(), objects), want, known)
        if problem is not None:
            return say(f"for hits {hits} of {objects} objects: {problem}")
    return say(None)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)


def _counts(gammas: Sequence[Tensor], keep: float) -> Tensor:
    sizes = torch.cat(list(gammas)).abs()
    threshold = sizes.sort(descending=True).values[math.floor(keep * len(sizes)) - 1]
    return torch.tensor([int((layer.abs() >= threshold).sum()) for layer in gammas])


def _as_tensor(answer: Answer) -> Answer:
    """Also for an answer that gives a list of tensors of one number each."""

    def asked(*arguments: object) -> object:
        got = answer(*arguments)
        return [float(count) for count in got] if isinstance(got, list | tuple) else got

    return asked
