"""The checks of chapter 05."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.classroom.check.grading import Answer, ask, ask_also, ask_gradient, called, compare, say, unrounded
from kdlab.losses import MGDLoss

RATIOS = (0.75, 0.3)
OWNERS = {"A": "two-stage detection", "B": "classification", "C": "segmentation"}


def spatial_mask(answer: Answer) -> bool:
    """05, exercise 1: ``answer(maps (n, c, h, w), mask_ratio)`` gives 1 where a position is kept, (n, 1, h, w)."""
    maps = torch.randn(6, 5, 40, 50, generator=torch.Generator().manual_seed(0))
    for ratio in RATIOS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            masks, problem = called(lambda ratio=ratio: [answer(maps, ratio) for _ in range(2)])
        if (problem := problem or _mask_fault(maps, ratio, *masks)) is not None:
            return say(problem)
    return say(None)


def _mask_fault(maps: Tensor, ratio: float, first: Any, second: Any) -> str | None:
    for mask in (first, second):
        if mask is None or mask is ...:
            return "no answer yet."
        if not isinstance(mask, Tensor):
            return f"you gave a {type(mask).__name__}; wanted: a tensor."
    n, c, h, w = maps.shape
    shapes = {
        (n, c, h, w): "each channel has a mask of its own, so that no position is wholly hidden; wanted: ",
        (1, 1, h, w): "the whole batch has one mask; wanted: ",
        (h, w): "the whole batch has one mask; wanted: ",
        (n, c, 1, 1): "this masks channels, as for classification; wanted: ",
        (n, h, w): "the dimension of the channels is missing, and must be 1; wanted: ",
    }
    if first.shape != (n, 1, h, w):
        known = shapes.get(tuple(first.shape), f"shape: yours is {tuple(first.shape)}, wanted ")
        return f"{known}({n}, 1, {h}, {w}), for maps of {tuple(maps.shape)}."
    first, second = first.double(), second.double()
    if not ((first == 0) | (first == 1)).all():
        return f"there are other numbers than 0 and 1, such as {first[(first != 0) & (first != 1)][0]:.3g}."
    kept = first.mean().item()
    if abs(kept - ratio) < 0.03:
        return f"you keep {kept:.0%}: mask_ratio is the share that is masked, so {1 - ratio:.0%} is to be kept."
    if abs(kept - (1 - ratio)) > 0.03:
        return f"you keep {kept:.1%} of the positions; wanted: about {1 - ratio:.0%} at a mask_ratio of {ratio}."
    if torch.equal(first, second):
        return "two calls gave the same mask; wanted: a new one at every call."
    if all(torch.equal(first[0], other) for other in first[1:]):
        return "all images have the same mask; wanted: one for each."
    return None


def mgd_loss(answer: Answer) -> bool:
    """05, exercise 2: ``answer(generator, aligned, kept, teacher)`` gives the MGD loss, a scalar."""
    drawn = torch.Generator().manual_seed(0)
    aligned, teacher = (torch.randn(4, 3, 5, 5, generator=drawn) for _ in range(2))
    kept = (torch.rand(4, 1, 5, 5, generator=drawn) < 0.5).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)
    apart = (generator(aligned * kept) - teacher).square()
    want = apart.sum() / 4
    known = {
        apart.mean(): "this is the mean over all elements; wanted: the sum over each image, the mean over the batch.",
        apart.sum(): "you summed over the images; wanted: their mean.",
        (generator(aligned) - teacher).square().sum() / 4: "nothing is masked yet.",
        (generator(aligned) - teacher).square().mean(): "nothing is masked yet, and the mean is over all elements.",
        (generator(aligned * (1 - kept)) - teacher).square().sum() / 4: "kept is 1 where the map stays.",
        (generator(aligned) * kept - teacher).square().sum() / 4: "mask first, generate then.",
        (apart * (1 - kept)).sum() / 4: "you count the masked positions only; wanted: the whole map.",
        (apart * kept).sum() / 4: "you count the kept positions only; wanted: the whole map.",
        (generator(aligned * kept) - teacher * kept).square().sum() / 4: "the teacher's map is not masked.",
        apart.sum().sqrt() / 4: "this is a length; wanted: its square.",
        want / 2: "there is no factor of one half.",
    }
    teacher.requires_grad_()
    problem = ask(answer, (generator, aligned, kept, teacher), want, known)
    two = (generator, aligned[:2], kept[:2], teacher[:2])
    problem = ask_also(problem, answer, two, apart[:2].sum() / 2, "for a batch of two")
    arguments = (generator, aligned.requires_grad_(), kept, teacher)
    return say(ask_gradient(problem, answer, arguments, aligned, teacher, "map"))


def carried_alpha(answer: Any) -> bool:
    """05, exercise 3: 2e-5 on maps (2048, 64, 64), carried to maps (64, 8, 8) with the same weight an element."""
    alpha, channels, positions = 2e-5, 2048 / 64, 64 * 64 / (8 * 8)
    known = {
        alpha: "then the loss would weigh less than it did: it is a sum, and this map is smaller.",
        alpha / channels / positions: "the smaller map has the smaller sum: it needs the larger weight.",
        alpha * positions: "the maps have fewer channels too.",
        alpha * channels: "the maps have fewer positions too.",
        alpha * channels * 8: "a map of 64 x 64 has 64 times as many positions as one of 8 x 8, not 8 times.",
        alpha * 8: "a map has two sides, and channels.",
    }
    want = alpha * channels * positions
    return say(compare(unrounded(answer, want), want, known))


def generator_parameters(answer: Answer) -> bool:
    """05, exercise 4: ``answer(student_channels, teacher_channels)`` gives how much MGD has to learn by itself."""
    for a, b in ((3, 5), (4, 4), (5, 3)):  # small, so that a bias is more than the tolerance
        align, one = (a * b + b if a != b else 0), 9 * b * b + b
        known: dict[Any, str] = {
            float(9 * b * b): "these are the weights of one convolution: there are two, with biases, and an alignment.",
            float(align + one): "the generator has two convolutions.",
            float(2 * one): "the 1x1 convolution that aligns the channels learns too.",
            float(align + 18 * b * b): "the generator's convolutions have biases: one for each channel.",
            float(align + 2 * one - b): "the alignment has a bias too.",
            float(a * b + 18 * b * b): "each convolution has a bias: one for each channel that comes out.",
            float(align + 2 * (b * b + b)): "the generator's kernels are 3x3: nine weights for each pair of channels.",
            float(align + 2 * (9 * a * a + a)): "the generator works in the teacher's channels.",
        }
        if a == b:
            known[float(a * b + b + 2 * one)] = "where the channels agree nothing needs to be aligned."
        with torch.device("meta"):
            want = sum(p.numel() for p in MGDLoss(a, b).parameters())
        if (problem := ask(answer, (a, b), want, known)) is not None:
            return say(f"for {a} and {b} channels: {problem}")
    return say(None)


def drawn_masks() -> dict[str, Tensor]:
    """05, exercise 5: three masks, each with the shape and the ratio that the official code has for a task."""
    drawn = torch.Generator().manual_seed(0)
    shapes = {"A": ((8, 1, 32, 32), 0.45), "B": ((8, 512, 1, 1), 0.15), "C": ((8, 1, 32, 32), 0.75)}
    return {name: (torch.rand(shape, generator=drawn) < 1 - ratio).float() for name, (shape, ratio) in shapes.items()}


def mask_owners(answer: Any) -> bool:
    """05, exercise 5: whose the masks of :func:`drawn_masks` are, from name to task."""
    tasks = set(OWNERS.values())
    named = isinstance(answer, Mapping) and all(isinstance(task, str) for task in answer.values())
    if not named or set(answer) != set(OWNERS) or not set(answer.values()) <= tasks:
        return say(f"you gave {answer!r}; wanted: for each of A, B and C one of {', '.join(sorted(tasks))}.")
    if len(set(answer.values())) < len(OWNERS):
        return say("each task has one of the three masks.")
    if answer["B"] != "classification":
        return say("one of them masks whole channels: look at the shapes. Which task has no use for positions?")
    if answer != OWNERS:
        return say("A and C are exchanged: count what is kept, and remember that the ratio is what is masked.")
    return say(None)
