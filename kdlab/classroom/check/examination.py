"""The checks of chapter 09."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kdlab.classroom.check.grading import Answer, ask, ask_also, say, uniform, without_autograd
from kdlab.errors import InputError
from kdlab.losses.restoration import SLICE_WEIGHTS
from kdlab.models.restoration import STRIDE, padded
from kdlab.recipes.restoration import learning_rate


def all_pairs_distance(answer: Answer) -> bool:
    """09, exercise 1: ``answer(restored (n, c, h, w), degraded (m, c, h, w))`` gives D, the mean over all pairs."""
    restored, degraded = _maps(3, 1), _maps(3, 2)
    each = _each_pair(restored, degraded)
    n = len(each)
    known = {
        each.diagonal().mean(): "each image met its own input alone, as in SCR; wanted: every one.",
        each.sum(): "you summed over the pairs; wanted: their mean.",
        (each.sum() - each.trace()) / (n * (n - 1)): "its own input is a negative of an image too: keep the diagonal.",
        (restored[:, None] - degraded).square().mean(): "these are squares; wanted: absolute differences.",
        (restored.mean(0) - degraded.mean(0)).abs().mean(): "you took the mean image first; then differences cancel.",
        (restored[:, None] - degraded).mean().abs(): "the absolute value comes before the mean.",
    }
    problem = ask(answer, (restored, degraded), each.mean(), known)
    other = _maps(5, 3)
    but = "right for as many negatives as images, but not for 5 negatives and 3 images"
    return say(ask_also(problem, answer, (restored, other), _each_pair(restored, other).mean(), but))


def all_pairs_gradient(answer: Answer) -> bool:
    """09, exercise 2: ``answer(restored, degraded)`` gives D's gradient to restored (n, c, h, w), a map at a time."""
    restored, degraded = _maps(4, 1), _maps(6, 2)
    signs = (restored[:, None] - degraded).sign()
    want = signs.sum(dim=1) / signs.numel()
    known = {
        -want: "sign: where the restored map is above a negative, more of it means more distance.",
        signs.sum(dim=1): "the mean divides by the number of all differences: n m c h w.",
        signs.mean(dim=1): "you divided by the negatives alone; D is a mean over images and positions too.",
        signs.sum(dim=1) / restored.numel(): "D is a mean over the negatives too.",
        signs.mean(dim=1) / restored[0].numel(): "D is a mean over the restored images too.",
    }
    with _Largest() as seen:
        problem = ask(answer, (restored, degraded), want, known)
    if problem is None and seen.numel >= signs.numel():
        problem = (
            f"right, but on the way there is a tensor of {seen.numel:,} numbers, all pairs at once. Go through the "
            "negatives one by one, and add up their signs."
        )
    return say(without_autograd(problem, answer, (restored, degraded)))


def naive_gibibytes(answer: Answer) -> bool:
    """09, exercise 3: ``answer(batch, channels, height, width)`` gives the GiB of all pairs' differences in float32."""
    batch, numbers = 32, 64 * 224 * 224
    want = 4 * batch**2 * numbers / 2**30
    known = {
        want / batch: "each restored image meets every degraded one: the batch counts twice.",
        want * 2**30: "these are bytes; a GiB is 2**30 of them.",
        want * 2**30 / 4: "these are numbers; each takes 4 bytes.",
        want / 4: "each number takes 4 bytes.",
        want / 2: "float32 takes 4 bytes a number, not 2.",
        want * 2: "float32 takes 4 bytes a number, not 8.",
        want * 8: "these are gibibits.",
        want * 2**30 / 1e9: "this is GB, of 10**9 bytes; wanted: GiB, of 2**30.",
        want * 2**10: "these are MiB.",
    }
    problem = ask(answer, (batch, 64, 224, 224), want, known)
    other = 4 * 8**2 * 128 * 96 * 160 / 2**30
    return say(ask_also(problem, answer, (8, 128, 96, 160), other, "for a batch of 8 maps of (128, 96, 160)"))


def rate_at(answer: Answer) -> bool:
    """09, exercise 4: ``answer(epoch, epochs, base, end)`` gives the learning rate of an epoch, counted from 1."""
    epochs, base, end = 250, 1.0, 0.01
    asked = (1, 2, 3, 4, 50, 125, 126, 200, 250)

    def at(*epochs_asked: int) -> Answer:
        return lambda *settings: [answer(epoch, *settings) for epoch in epochs_asked]

    def half_cosine(way: float, low: float = end) -> float:
        return low + (base - low) * (1 + torch.cos(torch.tensor(torch.pi * way)).item()) / 2

    def after_warm_up(way: Answer, low: float = end) -> Tensor:
        return torch.tensor([e / 3 if e <= 3 else half_cosine(way(e), low) for e in asked])

    switched = torch.tensor([learning_rate(e if e <= 125 else e - 125, 125, base, end=end) for e in asked])
    known = {
        torch.tensor([half_cosine((e - 1) / epochs) for e in asked]): "the first three epochs rise: e/3 of the base.",
        after_warm_up(lambda e: (e - 4) / 247, 0.0): "the cosine ends at `end`, not at 0.",
        after_warm_up(lambda e: e / epochs): "the cosine begins after the warm-up: epoch 4 has the whole base.",
        after_warm_up(lambda e: (e - 3) / 247): "the cosine's way is 0 at epoch 4.",
        after_warm_up(lambda e: (e - 4) / 250): "the way is as long as the epochs that are left: 247.",
        switched: "there is no restart at the second stage: one cosine for all epochs.",
    }
    want = [learning_rate(epoch, epochs, base, end=end) for epoch in asked]
    problem = ask(at(*asked), (epochs, base, end), want, known)
    few = (2, 5, 9, 20)
    other = [learning_rate(epoch, 20, 0.4, end=0.1) for epoch in few]
    return say(ask_also(problem, at(*few), (20, 0.4, 0.1), other, "for 20 epochs, from a base of 0.4 to 0.1"))


def hard_contrast(answer: Answer) -> bool:
    """09, exercise 5: ``answer(restored, wanted, degraded, weights)``, three lists of maps, gives HCR."""
    sizes = (8, 4, 4, 2, 2)
    restored, wanted, degraded = ([_maps(3, 10 * k + i, size) for i, size in enumerate(sizes)] for k in range(3))
    # Three scenes of their own, and restored images nearer to the clean ones than to any degraded one.
    wanted = [maps * torch.tensor([0.2, 1.0, 3.0]).view(3, 1, 1, 1) for maps in wanted]
    restored = [clean + 0.3 * noise for clean, noise in zip(wanted, restored, strict=True)]
    triples = list(zip(restored, wanted, degraded, strict=True))

    def total(near: Answer, far: Answer, weights: Sequence[float] = SLICE_WEIGHTS) -> Tensor:
        slices = [w * (near(a, p) / far(a, n)).mean() for w, (a, p, n) in zip(weights, triples, strict=True)]
        return torch.stack(slices).sum()

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean()

    def pairs(a: Tensor, n: Tensor) -> Tensor:
        return _each_pair(a, n).mean()

    def an_image(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean(dim=(1, 2, 3))

    def an_image_to_all(a: Tensor, n: Tensor) -> Tensor:
        return _each_pair(a, n).mean(dim=1)

    near, far = (
        sum(w * distance(a, b) for w, a, b in zip(SLICE_WEIGHTS, *sides, strict=True))
        for distance, sides in ((mean, (restored, wanted)), (pairs, (restored, degraded)))
    )
    want = total(mean, pairs)
    known = {
        total(mean, mean): "each image meets its own input alone, as in SCR; wanted: all pairs.",
        total(an_image, an_image_to_all): "this is the mean of each image's ratio; wanted: the ratio of the means.",
        total(an_image, an_image): "this is the mean of each image's ratio to its own input; wanted: of all pairs.",
        total(mean, pairs, [1.0] * 5): "the slices' weights are missing.",
        want / sum(SLICE_WEIGHTS): "you divided by the sum of the weights; wanted: the weighted sum.",
        near / far: "a ratio for each slice, then the weighted sum; you summed first.",
        total(
            lambda a, p: 1 / mean(a, p), lambda a, n: 1 / pairs(a, n)
        ): "upside down: what shall be small stands above.",
    }
    problem = ask(answer, (restored, wanted, degraded, SLICE_WEIGHTS), want, known)
    weights = (3.0, 0.5, 2.0, 0.0, 1.0)
    other = total(mean, pairs, weights)
    return say(ask_also(problem, answer, (restored, wanted, degraded, weights), other, f"for weights of {weights}"))


def padded_restoration(answer: Answer) -> bool:
    """09, exercise 6: ``answer(network, image (3, h, w))`` restores an image of any size at its own size."""
    image = torch.rand(3, 37, 43, generator=torch.Generator().manual_seed(0))
    known = {
        _resized(image, [32, 32]): "you resized: the network saw another image than the one that is measured.",
        _resized(image, [48, 48]): "you resized: the network saw another image than the one that is measured.",
        _blurred_after(image, "constant"): "you padded with zeros: a black border is nothing that a photograph has.",
        _blurred_after(image, "replicate"): "you repeated the last row and column; wanted: reflection.",
    }
    problem = ask(answer, (_blur, image), _blur(padded(image[None]))[0, :, :37, :43], known)
    if problem is not None and problem.startswith("shape"):
        problem += " What was added has to be cropped again, and nothing resized."
    tall = uniform(3, 50, 21)
    also = _blur(padded(tall[None]))[0, :, :50, :21]
    problem = ask_also(problem, answer, (_blur, tall), also, "right for an image of 37 x 43, but not for 50 x 21")
    fits = uniform(3, 32, 48)
    but = "right for other sizes, but not for 32 x 48, where nothing is missing"
    return say(ask_also(problem, answer, (_blur, fits), _blur(fits[None])[0], but))


class _Largest(TorchFunctionMode):
    """Remembers how many numbers the largest tensor had that any function gave."""

    numel = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, Tensor.numel(result))
        return result


def _each_pair(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None] - b).abs().flatten(2).mean(dim=2)


def _maps(n: int, seed: int, size: int = 4) -> Tensor:
    return torch.randn(n, 2, size, size, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, n + 1).view(
        n, 1, 1, 1
    )


def _blur(images: Tensor) -> Tensor:
    """A network for multiples of 16 alone; away from the border it does the same everywhere."""
    if images.dim() != 4 or any(side % STRIDE for side in images.shape[2:]):
        raise InputError(f"the images are {tuple(images.shape)}; wanted: (n, 3, h, w), h and w multiples of {STRIDE}.")
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)


def _resized(image: Tensor, size: list[int]) -> Tensor:
    """There and back."""
    restored = _blur(F.interpolate(image[None], size, mode="bilinear"))
    return F.interpolate(restored, image.shape[1:], mode="bilinear")[0]


def _blurred_after(image: Tensor, mode: str) -> Tensor:
    height, width = image.shape[1:]
    return _blur(F.pad(image[None], (0, 48 - width, 0, 48 - height), mode=mode))[0, :, :height, :width]
