"""The checks of chapter 08."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.classroom.check.grading import Answer, ask, ask_also, called, say
from kdlab.distill import Projector


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
    for batch_size, weathers in ((3, 3), (6, 3), (8, 4), (4, 4), (9, 6)):
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
            1 - weathers * missing**batch_size + math.comb(weathers, 2) * (1 - 2 / weathers) ** batch_size: (
                "batches that lack three weathers were added back too often: go on, with alternating signs."
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
    problem = ask(answer, (anchor, positive, negative, eps), near / (far + eps), known)
    return say(ask_also(problem, answer, (anchor, positive, negative, 0.5), near / (far + 0.5), "at an eps of 0.5"))


def stratified_batches(answer: Callable[[Sequence[int], int], Any]) -> bool:
    """08, exercise 4: ``answer(weathers, batch_size)`` gives an epoch's batches: lists of indices."""
    in_order, mixed = [0] * 12 + [1] * 8 + [2] * 20, [0, 1, 1] * 15
    for weathers, batch_size, but in ((in_order, 6, ""), (mixed, 2, "for two weathers, mixed, and batches of 2: ")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            epochs, problem = called(lambda *of: [_listed(answer(*of)) for _ in range(3)], weathers, batch_size)
        if (problem := problem or _batches_fault(weathers, batch_size, *epochs)) is not None:
            return say(but + problem)
    return say(None)


def _listed(batches: Any) -> list[list[int]]:
    return [] if batches is None else [list(map(int, batch)) for batch in batches]


def _batches_fault(weathers: list[int], batch_size: int, first: list[list[int]], *later: list[list[int]]) -> str | None:
    if not first:
        return "there is no batch yet."
    kinds = sorted(set(weathers))
    each, rarest = batch_size // len(kinds), min(map(weathers.count, kinds))
    for batch in first:
        if any(not 0 <= index < len(weathers) for index in batch):
            return f"a batch is {batch}; wanted: indices from 0 to {len(weathers) - 1}."
        held = [[weathers[index] for index in batch].count(weather) for weather in kinds]
        if len(batch) != batch_size:
            return f"a batch has {len(batch)} images; wanted: {batch_size}."
        if held != [each] * len(kinds):
            return f"a batch has {held} images of the {len(kinds)} weathers; wanted: {each} of each."
    drawn = [index for batch in first for index in batch]
    if len(set(drawn)) < len(drawn):
        return "an image comes twice in one epoch."
    if len(first) != rarest // each:
        return (
            f"there are {len(first)} batches; wanted: {rarest // each}: each of the {rarest} images of the rarest "
            "weather comes once."
        )
    if all(batches == first for batches in later):
        return "all epochs are alike; wanted: a new order in each."
    epochs = [{index for batch in batches for index in batch} for batches in (first, *later)]
    for kind in kinds:
        mine = {index for index, weather in enumerate(weathers) if weather == kind}
        if not mine <= epochs[0] and all(mine & epoch == mine & epochs[0] for epoch in epochs):
            return (
                f"the same images of weather {kind} come in every epoch, and others never; shuffle each weather's list "
                "before you cut it into batches."
            )
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

    problem = ask(stacked, (near, far), want, known)
    two = (torch.tensor([2.0, 1.0]), torch.tensor([0.5, 1.0]))
    return say(ask_also(problem, stacked, two, torch.tensor([2.0, 2.5]), "for two answers"))
