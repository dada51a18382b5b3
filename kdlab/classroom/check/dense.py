"""The checks of chapter 04."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.classroom.check.grading import Answer, ask, ask_also, ask_gradient, normal, say, without_autograd
from kdlab.losses import CWDLoss, PixelCrossEntropy

Change = Callable[[Tensor], Tensor]


def effective_positions(answer: Answer) -> bool:
    """04, exercise 1: ``answer(maps (n, c, h, w), temperature)`` gives each channel's effective positions (n, c)."""
    maps = normal(2, 3, 4, 5) * 5
    p = torch.softmax(maps.flatten(2) / 2, dim=2)
    entropy = torch.special.entr(p).sum(dim=2)
    unsoftened = torch.special.entr(torch.softmax(maps.flatten(2), dim=2)).sum(dim=2).exp()
    over_channels = torch.special.entr(torch.softmax(maps / 2, dim=1)).flatten(2).sum(dim=2).exp()
    known = {
        entropy: "this is the entropy in nats; wanted: e to it.",
        2**entropy: "the entropy is in nats, so the base is e, not 2.",
        1 / p.square().sum(dim=2): "this is one over the sum of squares, another measure; wanted: e to the entropy.",
        unsoftened: "the temperature has no effect yet.",
        over_channels: "your softmax is over the channels; wanted: over each channel's positions.",
    }
    problem = ask(answer, (maps, 2.0), entropy.exp(), known)
    softer = torch.special.entr(torch.softmax(maps.flatten(2) / 6, dim=2)).sum(dim=2).exp()
    problem = ask_also(problem, answer, (maps, 6.0), softer, "at a temperature of 6")
    if problem is None:
        peak = torch.zeros(1, 1, 4, 5)
        peak[..., 0, 0] = 1000.0
        problem = ask(answer, (peak, 2.0), [[1.0]], {})
        if problem is not None and "not finite" in problem:
            problem = (
                "right, but a map with one high peak gives NaN: p is 0 elsewhere, and 0 times the logarithm of 0 is "
                "none. torch.special.entr knows its limit; log_softmax has no logarithm of 0."
            )
    return say(problem)


def cwd_loss(answer: Answer) -> bool:
    """04, exercise 2: ``answer(student (n, c, h, w), teacher (n, c, h, w), temperature)`` gives the CWD loss."""
    n, c, h, w = 2, 3, 4, 5
    T = 2.5
    student, teacher = (normal(n, c, h, w, seed=seed) * 4 for seed in (0, 1))
    teacher.requires_grad_()
    want = CWDLoss(T)(student, teacher)
    by_channel = _kl(student, teacher, T, dim=1).sum(dim=1)
    known = {
        want / T**2: "the τ² is missing.",
        want / T: "one factor τ is missing: it is τ squared.",
        want * n * c: "you summed over images and channels; wanted: their mean.",
        want * c: "you summed over the channels; wanted: the mean over images and channels.",
        want * n: "you summed over the images; wanted: the mean over images and channels.",
        want / (h * w): "you took the mean over the positions too; wanted: their sum, which makes a KL divergence.",
        F.mse_loss(student, teacher): "this compares the maps number by number; wanted: each channel's distribution "
        "over the positions.",
        CWDLoss(T)(teacher, student): "this is KL(student ‖ teacher); wanted: KL(teacher ‖ student).",
        T**2 * by_channel.mean(): "your softmax is over the channels, pixel by pixel; wanted: over the positions.",
        T**2 * by_channel.sum() / n: "your softmax is over the channels; wanted: over the positions.",
        T**2 * by_channel.sum() / (n * c): "your softmax is over the channels; wanted: over the positions.",
        T**2 * _kl(student.flatten(1), teacher.flatten(1), T, dim=1).sum(dim=1).mean(): "an image sums to 1; wanted: "
        "each of its channels.",
    }
    problem = ask(answer, (student, teacher, T), want, known)
    also = CWDLoss(6.0)(student, teacher)
    problem = ask_also(problem, answer, (student, teacher, 6.0), also, "at a temperature of 6")
    if problem is None:
        peaked = [torch.zeros(1, 1, 4, 5), torch.zeros(1, 1, 4, 5)]
        peaked[0][..., 0, 0] = peaked[1][..., 1, 1] = 1000.0
        problem = ask_also(None, answer, (*peaked, T), CWDLoss(T)(*peaked), "right, but not on peaked maps")
        if problem is not None and "not finite" in problem:
            problem = "right, but not finite on peaked maps: take log_softmax, not the logarithm of a softmax."
    return say(ask_gradient(problem, answer, (student.requires_grad_(), teacher, T), student, teacher, "maps"))


def cwd_gradient(answer: Answer) -> bool:
    """04, exercise 3: ``answer(student, teacher, temperature)`` gives CWD's gradient to the student (n, c, h, w)."""
    n, c, h, w = 2, 3, 4, 5
    T = 2.5
    student, teacher = (normal(n, c, h, w, seed=seed) * 4 for seed in (0, 1))
    p_s, p_t = (torch.softmax(maps.flatten(2) / T, dim=2).view_as(maps) for maps in (student, teacher))
    q_s, q_t = (torch.softmax(maps / T, dim=1) for maps in (student, teacher))
    want = T / (n * c) * (p_s - p_t)
    known = {
        -want: "sign: where the student has too much, the gradient is above 0, and a step against it takes some away.",
        p_s - p_t: "the factor is missing: what becomes of τ², of the 1/τ inside the softmax, and of the mean?",
        want * n * c: "the mean over images and channels divides by both numbers.",
        want * c: "the mean is over the channels too.",
        want * n: "the mean is over the images too.",
        want * T: "τ² is right for the loss; the softmax's own 1/τ takes one factor away.",
        want / T: "the loss has τ² in front: of it, one factor τ is left.",
        want / T**2: "the loss has τ² in front: of it and the softmax's 1/τ, one factor τ is left.",
        T / (n * c) * (q_s - q_t): "your softmax is over the channels; wanted: over the positions.",
    }
    problem = ask(answer, (student, teacher, T), want, known)
    s_6, t_6 = (torch.softmax(maps.flatten(2) / 6, dim=2).view_as(maps) for maps in (student, teacher))
    also = 6 / (n * c) * (s_6 - t_6)
    problem = ask_also(problem, answer, (student, teacher, 6.0), also, "at a temperature of 6")
    return say(without_autograd(problem, answer, (student, teacher, T)))


def mean_iou(answer: Answer) -> bool:
    """04, exercise 4: ``answer(answer (h, w), mask (h, w), classes)`` gives the mIoU of one image."""
    # Class 3 is answered and never true, class 4 is answered where there is no class, in the last column, alone.
    ignore = PixelCrossEntropy.IGNORE
    mask = torch.tensor([[0, 0, 0, 1, ignore], [0, 0, 1, 1, ignore], [2, 2, 1, 1, ignore], [2, 2, 0, 0, ignore]])
    said = torch.tensor([[0, 0, 1, 1, 4], [0, 3, 1, 1, 2], [2, 2, 2, 1, 1], [2, 0, 0, 0, 3]])
    known_pixels = mask != ignore
    both, truth, guess = _counted(said[known_pixels], mask[known_pixels])
    iou = both / (truth + guess - both)  # NaN for class 4
    want = iou[:4].mean()
    *counted, unknown = _counted(said, mask)
    with_unknown = counted[0] / (counted[1] + unknown - counted[0])
    one_more = (iou[:4].sum() + 1) / 5
    known = {
        iou[:4].sum() / 5: "a class that is in neither counts as 0 in yours; it has no IoU: leave it out.",
        one_more: "a 1 too many is in your mean: of a class that is in neither, or of 255 taken for one. Leave it out.",
        iou[:3].mean(): "class 3 is answered where it is not: its IoU is 0, and counts.",
        with_unknown.mean(): "pixels with 255 count in yours: leave them out before you count anything.",
        (2 * both / (truth + guess))[:4].mean(): "this is Dice; wanted: intersection over union.",
        (both / truth)[:3].mean(): "you divided by the truth alone; wanted: by the union.",
        both.sum() / truth.sum(): "this is the share of right pixels; wanted: the mean over the classes.",
        (said == mask).double().mean(): "this is the share of right pixels, with those that have no class counted as "
        "wrong; wanted: the mean over the classes, without them.",
    }
    problem = ask(answer, (said, mask, 5), want, known)
    if problem is not None and "not finite" in problem:
        problem = "NaN: a class that is in neither has a union of 0, and no IoU. Leave it out of the mean."
    two_fives, two_sixes = torch.tensor([[5, 5, 6]]), torch.tensor([[5, 6, 6]])
    return say(ask_also(problem, answer, (two_fives, two_sixes, 7), 0.5, "for classes 5 and 6 of seven"))


def unseen(answer: Any, changes: Mapping[str, Change]) -> bool:
    """04, exercise 5: the names of the changes of a map that CWD does not see."""
    if not isinstance(answer, set | frozenset | list | tuple) or not all(name in list(changes) for name in answer):
        return say(f"you gave {answer!r}; wanted: a set of names among {', '.join(changes)}.")
    maps = normal(2, 3, 4, 5) * 2
    for name, change in changes.items():
        loss = CWDLoss()(change(maps), maps).item()
        if loss < 1e-6 and name not in answer:
            return say(f"{name!r} is not seen either: each channel's softmax over the positions stays as it was.")
        if loss >= 1e-6 and name in answer:
            return say(f"{name!r} is seen: the loss between a map and what it becomes is {loss:.3f}.")
    return say(None)


def _kl(student: Tensor, teacher: Tensor, T: float, dim: int) -> Tensor:
    """The terms of KL(teacher ‖ student) of softmaxes over one dimension, before their sum."""
    log_s, log_t = (torch.log_softmax(maps / T, dim=dim) for maps in (student, teacher))
    return log_t.exp() * (log_t - log_s)


def _counted(said: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of five classes: the pixels in both, in the mask, in the answer."""
    numbers = torch.arange(5).view(-1, 1)
    is_said, is_true = said.flatten() == numbers, mask.flatten() == numbers
    return (is_said & is_true).sum(1).double(), is_true.sum(1).double(), is_said.sum(1).double()
