"""The checks of chapter 08."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.classroom.check.grading import Answer, ask, called, say
from kdlab.distill import Projector

WEATHERS = (0, 1, 2)


def pfe(answer: Answer) -> bool:
    """08, exercise 1: ``answer(student, teachers, project, projects)`` gives PFE at one tap, a scalar.

    ``student`` has the maps of the whole batch (n, c, h, w), ``teachers`` those of each teacher's part, in that order.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [torch.randn(many, 8, 5, 5) * 3 / many for many in (1, 2, 3)]
        student, project = torch.randn(6, 8, 5, 5), Projector(8, 4)
        projects = [Projector(8, 4) for _ in parts]
    mine = project(student)
    its = torch.cat([own(maps) for own, maps in zip(projects, parts, strict=True)])
    apart = (mine - its).abs()
    all_by_one = torch.cat([project(maps) for maps in parts])
    known = {
        torch.stack([part.mean() for part in apart.split([1, 2, 3])]).mean(): (
            "this is the mean of the teachers' means, in which an image of the smaller part counts more; wanted: the "
            "mean over all elements of the batch."
        ),
        apart.square().mean(): "you squared the differences; wanted: their absolute values.",
        apart.sum(): "this is a sum; wanted: the mean over all elements.",
        (mine - all_by_one).abs().mean(): "you projected the teachers by the student's projector; each has its own.",
        (student - torch.cat(parts)).abs().mean(): "you compared the maps themselves; wanted: their projections.",
    }
    return say(ask(answer, (student, parts, project, projects), apart.mean(), known))


def all_present(answer: Answer) -> bool:
    """08, exercise 2: ``answer(batch_size, weathers)`` gives the probability that a random batch holds all of them."""
    for batch_size, weathers in ((3, 3), (6, 3), (8, 4)):
        missing = (weathers - 1) / weathers
        signed = ((-1) ** k * math.comb(weathers, k) * (1 - k / weathers) ** batch_size for k in range(weathers))
        want = sum(signed)
        known = {
            1 - want: "this is the probability that one is missing.",
            1 - missing**batch_size: "this is the probability that one certain weather is there.",
            (1 - missing**batch_size) ** weathers: (
                "you multiplied as if the weathers came independently; but an image of one is none of another."
            ),
            1 - weathers * missing**batch_size: (
                "batches that lack two weathers were subtracted twice; add them back, and so on."
            ),
        }
        problem = ask(answer, (batch_size, weathers), want, known)
        if problem is not None:
            return say(f"for a batch of {batch_size} and {weathers} weathers: {problem}")
    return say(None)


def soft_contrast(answer: Answer) -> bool:
    """08, exercise 3: ``answer(anchor, positive, negative, eps)`` gives SCR at one map, a scalar."""
    generator = torch.Generator().manual_seed(0)
    anchor, positive, noise = (torch.randn(4, 3, 6, 6, generator=generator) for _ in range(3))
    negative = anchor + torch.tensor([0.02, 0.3, 0.6, 0.9]).view(4, 1, 1, 1) * noise
    eps = 0.05
    near, far = F.l1_loss(anchor, positive), F.l1_loss(anchor, negative)
    each = [(anchor - other).abs().mean(dim=(1, 2, 3)) for other in (positive, negative)]
    known = {
        near / far: "eps is missing: without it a student that repeats its input divides by 0.",
        far / (near + eps): "it is upside down: what should become small stands above.",
        (each[0] / (each[1] + eps)).mean(): (
            "this is the mean of each image's ratio; wanted: the ratio of the batch's means."
        ),
        near / (F.l1_loss(positive, negative) + eps): (
            "below stands the distance of the positive from the negative, in which nothing can be learnt; wanted: that "
            "of the anchor from the negative."
        ),
        F.mse_loss(anchor, positive) / (F.mse_loss(anchor, negative) + eps): (
            "you squared the differences; wanted: their absolute values."
        ),
        near - far: "this is a difference; wanted: a ratio.",
    }
    return say(ask(answer, (anchor, positive, negative, eps), near / (far + eps), known))


def stratified_batches(answer: Callable[[Sequence[int], int], Any]) -> bool:
    """08, exercise 4: ``answer(weathers, batch_size)`` gives an epoch's batches: lists of indices."""
    weathers = [0] * 12 + [1] * 8 + [2] * 20
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        epochs, problem = called(lambda: [[list(map(int, batch)) for batch in answer(weathers, 6)] for _ in range(2)])
    return say(problem or _batches_fault(weathers, *epochs))


def _batches_fault(weathers: list[int], first: list[list[int]], second: list[list[int]]) -> str | None:
    if not first:
        return "there is no batch yet."
    for batch in first:
        held = [[weathers[index] for index in batch].count(weather) for weather in WEATHERS]
        if len(batch) != 6:
            return f"a batch has {len(batch)} images; wanted: 6."
        if held != [2, 2, 2]:
            return f"a batch has {held} images of the three weathers; wanted: 2 of each."
    drawn = [index for batch in first for index in batch]
    if len(set(drawn)) < len(drawn):
        return "an image comes twice in one epoch."
    if len(first) != 4:
        return f"there are {len(first)} batches; wanted: 4: each of the 8 images of the rarest weather comes once."
    if first == second:
        return "two epochs are alike; wanted: a new order in each."
    if set(drawn) == {index for batch in second for index in batch}:
        return "the same images come in both epochs; shuffle each weather's list before you cut it into batches."
    return None


def two_ratios(answer: Answer) -> bool:
    """08, exercise 5: ``answer(near, far)`` gives the ratio of the means and the mean of the ratios, (2,)."""
    near, far = torch.tensor([0.2, 0.4, 0.6, 0.8]), torch.tensor([0.01, 0.5, 0.4, 1.0])
    want = torch.stack([near.mean() / far.mean(), (near / far).mean()])
    known: dict[Tensor, str] = {
        want.flip(0): "you exchanged them: the ratio of the means comes first.",
        1 / want: "both are upside down: near stands above.",
        torch.stack([want[0], want[0]]): "the second is the first again; wanted: each image's ratio, then the mean.",
        torch.stack([want[1], want[1]]): "the first is the second again; wanted: two means, then their ratio.",
        torch.stack([near.sum() / far.sum(), (near / far).sum()]): "the second is a sum; wanted: a mean.",
    }

    def stacked(one: Tensor, other: Tensor) -> Any:
        got = answer(one, other)
        return torch.stack([torch.as_tensor(value) for value in got]) if isinstance(got, tuple | list) else got

    return say(ask(stacked, (near, far), want, known))
