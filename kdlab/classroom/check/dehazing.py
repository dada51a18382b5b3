"""The checks of chapter 10."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.classroom.check.grading import Answer, ask, ask_also, say, uniform
from kdlab.training import SelfEnsemble

WINDOW = 5


def darkest(answer: Answer) -> bool:
    """10, exercise 1: ``answer(image (3, h, w), window)`` gives the dark channel, (1, h, w)."""
    image = 0.1 + 0.8 * uniform(3, 9, 12)
    want = _least(image.amin(dim=0, keepdim=True))
    known = {
        image.amin(dim=0, keepdim=True): "this is the darkest colour of each pixel; the window around it is missing.",
        _least(image.mean(dim=0, keepdim=True)): "the least of the three colours is wanted, not their mean.",
        -_least(-image.amin(dim=0, keepdim=True)): "this is the brightest in the window; a minimum is -max(-x).",
        _least(image.amax(dim=0, keepdim=True)): "the least of the three colours, not the greatest.",
        _least(image.amin(dim=0, keepdim=True), beyond=0.0): "beyond the border there is nothing, not black.",
        _least(image.amin(dim=0, keepdim=True), WINDOW + 2): "the window is too large: window // 2 on each side.",
        F.avg_pool2d(image.amin(dim=0, keepdim=True), WINDOW, 1, WINDOW // 2): "the least in the window, not the mean.",
    }
    problem = ask(answer, (image, WINDOW), want, known)
    but = f"right for a window of {WINDOW}, but not for one of 3"
    return say(ask_also(problem, answer, (image, 3), _least(image.amin(dim=0, keepdim=True), 3), but))


def overlaps(answer: Answer) -> bool:
    """10, exercise 2: ``answer(kernel, stride)`` gives how many kernels reach each of the ``stride`` phases."""
    for kernel, stride in ((3, 2), (5, 2), (4, 2), (5, 3), (6, 3), (2, 3)):
        reached = torch.tensor([len(range(phase, kernel, stride)) for phase in range(stride)], dtype=torch.float64)
        known = {
            torch.ones_like(reached): "kernels overlap where they are longer than the stride."
            if kernel > stride
            else "a kernel shorter than the stride leaves out phases, which none reaches.",
            torch.full_like(reached, kernel / stride): "this is their mean; some phases are reached by one more.",
            torch.full_like(reached, kernel // stride): "kernel // stride leaves out the entries that are over.",
            torch.full_like(reached, math.ceil(kernel / stride)): "the last entries do not reach every phase.",
            reached.flip(0): "the order: the first phase is a multiple of the stride, where the kernel begins.",
        }
        problem = ask(answer, (kernel, stride), reached, known)
        if problem is not None:
            return say(f"kernel {kernel}, stride {stride}: {problem}")
    return say(None)


def shuffled(answer: Answer) -> bool:
    """10, exercise 3: ``answer(x (n, c r², h, w), r)`` gives its PixelShuffle, (n, c, h r, w r)."""
    for r in (2, 3):
        n, c, h, w = 2, 3, 4, 5
        x = uniform(n, c * r**2, h, w, seed=r)
        blocks = x.view(n, c, r, r, h, w)

        def laid(*order: int, blocks: Tensor = blocks, size: tuple[int, ...] = (n, c, h * r, w * r)) -> Tensor:
            return blocks.permute(order).reshape(size)

        known = {
            x.reshape(n, c, h * r, w * r): "to reshape alone mixes the places: a row has r channels in it.",
            laid(0, 1, 4, 3, 5, 2): "rows and columns within a block are exchanged: c·r² + r·a + b is row a.",
            laid(0, 1, 2, 4, 3, 5): "a is the row within a block: each of h rows becomes r of them, side by side.",
            x.view(n, r, r, c, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c, h * r, w * r): (
                "the channel is the slow part: c·r² + r·a + b, so split into (c, r, r)."
            ),
        }
        problem = ask(answer, (x, r), F.pixel_shuffle(x, r), known)
        if problem is not None:
            return say(problem if r == 2 else f"right for r = 2, but not for 3: {problem}")
    return say(None)


def detail_loss(answer: Answer) -> bool:
    """10, exercise 4: ``answer(x, y, blur, levels)`` gives the Laplacian pyramid's loss of images (n, 3, h, w)."""
    x, y = uniform(2, 3, 32, 32), uniform(2, 3, 32, 32, seed=1)

    def total(levels: int = 3, weight: float = 0.25, blurs: bool = True, squares: bool = False) -> Tensor:
        left, parts = x - y, []
        for j in range(levels):
            low = _blur(left)
            level = left - low
            parts.append((level.square() if squares else level.abs()).mean() * weight**j)
            left = F.avg_pool2d(low if blurs else left, 2)
        return torch.stack(parts).sum()

    known = {
        total(1): "this is the finest level alone.",
        total(weight=1.0): "the weights 1 / 4**j are missing.",
        total(weight=0.5): "the weights are 1 / 4**j, not 1 / 2**j.",
        total(weight=4.0): "upside down: coarse levels weigh less, 1 / 4**j.",
        total(blurs=False): "what is halved is the blurred image, not the image.",
        total(squares=True): "these are squares; wanted: absolute differences.",
        (x - y).abs().mean(): "this is L1; a level is what the blur takes away.",
        total() / 3: "the sum of the levels is wanted, not their mean.",
    }
    problem = ask(answer, (x, y, _blur, 3), total(), known)
    but = "right, but for two images that differ in brightness alone the loss is 0"
    problem = ask_also(problem, answer, (x + 0.3, x, _blur, 3), 0.0, but)
    return say(ask_also(problem, answer, (x, y, _blur, 2), total(2), "right for 3 levels, but not for 2"))


def silenced(answer: Answer) -> bool:
    """10, exercise 5: ``answer(output (n, 3, h, w))`` gives the share without gradient where the output is clamped."""
    output = 1.6 * uniform(2, 3, 8, 10) - 0.4
    output[0, 0] = 1.5  # no tanh gives that, and a clamp is silent there too
    below, above = (output < 0).double().mean(), (output > 1).double().mean()
    known = {
        below: "where the output is above 1 the clamp is silent as well.",
        above: "where the output is below 0 the clamp is silent as well.",
        1 - below - above: "this is the share that does get one.",
        (below + above) * output.numel(): "this is their number; wanted: their share of all values.",
        100 * (below + above): "this is in percent; wanted: from 0 to 1.",
        ((output < 0) | (output > 1)).any(dim=1).double().mean(): "count values, not pixels: each colour for itself.",
        torch.tensor(0.0): "no value of this is below -1; the clamp is silent from 0 down.",
    }
    return say(ask(answer, (output,), below + above, known))


def self_ensembled(answer: Answer) -> bool:
    """10, exercise 6: ``answer(network, x (n, 3, h, w))`` gives the mean over the eight positions."""
    network = _OneSided()
    x = uniform(2, 3, 6, 6)
    flips: list[tuple[int, ...]] = [(), (3,), (2,), (2, 3)]
    upright = [network(x.flip(dims)).flip(dims) for dims in flips]
    lying = [network(x.flip(dims).mT).mT.flip(dims) for dims in flips]
    not_back = [network(x.flip(dims)) for dims in flips] + [network(x.flip(dims).mT).mT for dims in flips]
    wrong_order = [network(x.flip(dims).mT).flip(dims).mT for dims in flips]
    known = {
        upright[0]: "this is the network's answer to the image as it is.",
        torch.stack(upright[:2]).mean(dim=0): "these are two positions; wanted: eight.",
        torch.stack(not_back[:2]).mean(dim=0): "flip back what was flipped before you add; and wanted: eight.",
        torch.stack(upright).mean(dim=0): "these are the four flips; each of them transposed, too, makes eight.",
        torch.stack(lying).mean(dim=0): "these are the transposed ones alone.",
        torch.stack(not_back).mean(dim=0): "what was flipped must be flipped back before the mean.",
        torch.stack(upright + wrong_order).mean(dim=0): "undo the last change first: transpose back, then flip back.",
        torch.stack(upright + lying).sum(dim=0): "this is the sum of the eight; wanted: their mean.",
        torch.stack(upright + lying).median(dim=0).values: "this is the median; wanted: the mean.",
    }
    problem = ask(answer, (network, x), SelfEnsemble(network)(x), known)
    wide = uniform(1, 3, 4, 7, seed=1)
    but = "right for a square, but not for images that are no squares"
    return say(ask_also(problem, answer, (network, wide), SelfEnsemble(network)(wide), but))


class _OneSided(nn.Module):
    """Treats left and right, up and down, and the two diagonals, each in its own way."""

    def forward(self, x: Tensor) -> Tensor:
        sides = 0.5 * x.roll(1, dims=3) ** 2 - 0.3 * x.roll(1, dims=2) * torch.linspace(0, 1, x.shape[2]).view(-1, 1)
        return x + sides + 0.2 * x * x.roll((1, 2), dims=(2, 3))  # without it four of the eight have the mean of all


def _least(values: Tensor, window: int = WINDOW, beyond: float = math.inf) -> Tensor:
    around = F.pad(values, [window // 2] * 4, value=beyond)
    return around.unfold(1, window, 1).unfold(2, window, 1).amin(dim=(3, 4))


def _blur(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
