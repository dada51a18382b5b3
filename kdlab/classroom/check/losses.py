"""The checks of chapter 03."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.classroom.check.grading import Answer, ask, ask_also, compare, normal, say, unrounded
from kdlab.losses import ATLoss, SPLoss


def attention_loss(answer: Answer) -> bool:
    """03, exercise 1: ``answer(student (n, c_s, h, w), teacher (n, c_t, h, w))`` gives the AT loss, a scalar."""
    student, teacher = normal(4, 3, 5, 5, seed=17), normal(4, 6, 5, 5, seed=20)
    want = ATLoss()(student, teacher)

    def gap(power: int, normalised: bool) -> Tensor:
        mine, its = (x.abs().pow(power).mean(1).flatten(1) for x in (student, teacher))
        return F.mse_loss(F.normalize(mine), F.normalize(its)) if normalised else F.mse_loss(mine, its)

    mine, its = (F.normalize(x.square().mean(1).flatten(), dim=0) for x in (student, teacher))
    known = {
        gap(2, False): "the maps are not normalised yet: divide each by its l2 norm.",
        gap(1, True): "this is the mean of |F|; wanted: of its square.",
        want * 25: "you summed over the positions; wanted: the mean over images and positions.",
        want * 4: "you summed over the images; wanted: their mean.",
        want * 100: "you summed over images and positions; wanted: the mean over both.",
        F.mse_loss(mine, its): "you normalised the whole batch; wanted: the map of each image by itself.",
    }
    problem = ask(answer, (student, teacher), want, known)
    wide = (normal(2, 3, 4, 6, seed=1), normal(2, 5, 4, 6, seed=2))
    return say(ask_also(problem, answer, wide, ATLoss()(*wide), "for two images whose maps are 4 x 6"))


def similarity_loss(answer: Answer) -> bool:
    """03, exercise 2: ``answer(student (n, d_s), teacher (n, d_t))`` gives the SP loss, a scalar."""
    student, teacher = normal(5, 3, seed=8), normal(5, 7, seed=12)
    want = SPLoss()(student, teacher)
    mine, its = (x @ x.mT for x in (student, teacher))
    cosines, its_cosines = (F.normalize(x) @ F.normalize(x).mT for x in (student, teacher))
    known = {
        F.mse_loss(mine, its): "the rows of G are not normalised yet.",
        F.mse_loss(
            cosines, its_cosines
        ): "you normalised the features; wanted: the product first, then the rows of the product.",
        F.mse_loss(
            F.normalize(mine, 1), F.normalize(its, 1)
        ): "normalize(G, 1) is the l1 norm: its second argument is p.",
        want * 25: "you summed over the pairs; wanted: the sum divided by n².",
        want * 5: "you divided by n; wanted: by n².",
    }
    problem = ask(answer, (student, teacher), want, known)
    three = (normal(3, 4, seed=1), normal(3, 6, seed=2))
    return say(ask_also(problem, answer, three, SPLoss()(*three), "for a batch of three"))


def channel_distribution(answer: Answer) -> bool:
    """03, exercise 3: ``answer(maps (n, c, h, w), temperature)`` gives CWD's distributions (n, c, h, w)."""
    maps = normal(2, 3, 4, 5, seed=14) * 3
    over_positions = torch.softmax(maps.flatten(2) / 4, dim=2)
    known = {
        torch.softmax(maps / 4, dim=1): "you softened over the channels; wanted: over each channel's positions.",
        torch.softmax(maps / 4, dim=3): "each row of a map sums to 1; wanted: the whole map.",
        torch.softmax(maps.flatten(1) / 4, dim=1).view_as(maps): "an image sums to 1; wanted: each of its channels.",
        torch.softmax(maps.flatten(2), dim=2).view_as(maps): "the temperature has no effect yet.",
        torch.softmax(maps.flatten(2) * 4, dim=2).view_as(maps): "you multiplied by the temperature; divide by it.",
    }
    problem = ask(answer, (maps, 4.0), over_positions.view_as(maps), known)
    softer = torch.softmax(maps.flatten(2) / 9, dim=2).view_as(maps)
    return say(ask_also(problem, answer, (maps, 9.0), softer, "at a temperature of 9"))


def relative_distances(answer: Answer) -> bool:
    """03, exercise 4: ``answer(points (n, d))`` gives RKD's distances (n, n), over the mean of the positive ones."""
    points = normal(5, 3, seed=8)
    apart = torch.cdist(points, points)
    squares = apart.square()
    mean = apart[apart > 0].mean()
    known = {
        apart: "the distances are not divided by their mean yet.",
        apart / apart.mean(): "the zeros of the diagonal count in your mean; wanted: the mean of the positive ones.",
        squares / squares[squares > 0].mean(): "these are squared distances: take the square root.",
        squares: "these are squared distances, and not divided by their mean yet.",
        apart / apart.max(): "you divided by the largest; wanted: by the mean of the positive ones.",
    }
    problem = ask(answer, (points,), apart / mean, known)
    twice = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])
    also = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    problem = ask_also(problem, answer, (twice,), also, "for three points, two of them in the same place")
    many = normal(40, 64, seed=1).relu()
    far = torch.cdist(many, many, compute_mode="donot_use_mm_for_euclid_dist")
    where = "for 40 points, where torch.cdist leaves rounding on the diagonal without the compute_mode of hint 1"
    return say(ask_also(problem, answer, (many,), far / far[far > 0].mean(), where))


def carried_weight(answer: Any) -> bool:
    """03, exercise 5: the weight of a sum over (c, h, w) that trains as 100 does on the mean over all elements."""
    size = 128 * 4 * 4
    known = {
        100.0: "then the sum would pull 2,048 times as hard as the mean.",
        100 * size: "the sum is the larger of the two: its weight must be the smaller one.",
        100 / (size * 64): "both losses are means over the batch: its size does not matter.",
        100 * 64 / size: "both losses are means over the batch: its size does not matter.",
        100 / 128: "a map has 4 x 4 positions too.",
        100 / 16: "a map has 128 channels too.",
    }
    return say(compare(unrounded(answer, 100 / size), 100 / size, known))
