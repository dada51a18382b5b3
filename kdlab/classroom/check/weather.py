"""The checks of chapter 07."""

import math
from typing import Any

import torch
from torch import Tensor

from kdlab.classroom.check.grading import Answer, ask, ask_also, called, compare, number, say, uniform, unrounded
from kdlab.data.weather import add_haze
from kdlab.training.image_quality import luma

BETA, AIRLIGHT = 1.7, 0.8
LEAST = 0.1  # what the transmission is at least divided by
OFF, ALLOWED = 0.5 / 255, 0.02  # of a value in a file, and of the recovered image
DEGREES = 2.0


def hazed(answer: Answer) -> bool:
    """07, exercise 1: ``answer(image (3, h, w), depth (1, h, w), beta, airlight)`` gives the hazy image (3, h, w)."""
    image, depth = uniform(3, 5, 6), uniform(1, 5, 6, seed=1)
    t, want = (-BETA * depth).exp(), add_haze(image, depth, BETA, AIRLIGHT)
    known = {
        image * t: "the light of the air is missing: far things get dark in yours.",
        image * t + AIRLIGHT: "the air adds its light only where the image lost some: A times 1 - t.",
        image * t + (1 - t): "the airlight has no effect yet.",
        image * (1 - t) + AIRLIGHT * t: "the shares are exchanged: t is what comes through.",
        image * t + AIRLIGHT * t: "what is lost of the image is filled with air: A times 1 - t.",
        image / t + AIRLIGHT * (1 - 1 / t): "sign: the transmission falls with the depth, exp(-β d).",
        image * (-depth).exp() + AIRLIGHT * (1 - (-depth).exp()): "β has no effect yet.",
        image * (1 - BETA * depth) + AIRLIGHT * BETA * depth: "1 - β d is right for a thin layer only: exp(-β d).",
    }
    problem = ask(answer, (image, depth, BETA, AIRLIGHT), want, known)
    other = add_haze(image, depth, 0.6, 0.95)
    return say(ask_also(problem, answer, (image, depth, 0.6, 0.95), other, "for β = 0.6 and an airlight of 0.95"))


def dehazed(answer: Answer) -> bool:
    """07, exercise 2: ``answer(hazy (3, h, w), depth (1, h, w), beta, airlight)`` gives the clear image (3, h, w)."""
    image, depth = (1.6 * uniform(3, 5, 6) - 0.3).clamp(0, 1), uniform(1, 5, 6, seed=1)
    # Not a hazy image to the last bit, as no file is: else dividing by less would show nowhere.
    beta = 4.0
    hazy = (add_haze(image, depth, beta, AIRLIGHT) * 255).round() / 255
    t = (-beta * depth).exp()
    least = t.clamp(min=LEAST)
    lost = hazy - AIRLIGHT * (1 - t)
    same = (hazy - AIRLIGHT) / least + AIRLIGHT  # what lost / least is where t is not below 0.1
    known = {
        (lost / t).clamp(0, 1): "right where t is large; where it is below 0.1, divide by 0.1.",
        lost / t: "divide by 0.1 where t is below that, and clamp the answer to 0 to 1.",
        lost / least: "nearly: clamp the answer to 0 to 1.",
        same: "nearly: clamp the answer to 0 to 1.",
        (hazy / least).clamp(0, 1): "first take the light of the air away.",
        (hazy - AIRLIGHT * (1 - t)).clamp(0, 1): "what is left is J t: divide by t.",
        ((hazy - AIRLIGHT) / least).clamp(0, 1): "the air added A times 1 - t, not all of A.",
        (lost * t).clamp(0, 1): "divide by t: what came through was less than there was.",
    }
    problem = ask(answer, (hazy, depth, beta, AIRLIGHT), (lost / least).clamp(0, 1), known)
    if problem is not None and ask(answer, (hazy, depth, beta, AIRLIGHT), same.clamp(0, 1), {}) is None:
        problem = None
    other = add_haze(image, depth, 0.6, 0.95)  # so thin that both forms are one
    return say(ask_also(problem, answer, (other, depth, 0.6, 0.95), image, "for β = 0.6 and an airlight of 0.95"))


def densest_haze(answer: Any) -> bool:
    """07, exercise 3: the largest β for which half a level of error becomes at most 0.02 at depth 1."""
    least = OFF / ALLOWED
    known = {
        least: "this is the smallest transmission; which β leaves so much at depth 1?",
        1 / least: "this is how much the error may grow: 1/t. Which β has that t at depth 1?",
        math.log(least): "sign: t = exp(-β), so β is minus the logarithm.",
        -math.log(2 * least): "an image is off by up to half a level, not a whole one.",
        -math.log10(least): "the base is e, not 10.",
        -math.log2(least): "the base is e, not 2.",
        -math.log(ALLOWED): "the error of the file counts: t is at least 0.5 / 255 / 0.02.",
        -math.log(OFF): "an error of 0.02 is allowed: t is at least 0.5 / 255 / 0.02.",
    }
    want = -math.log(least)
    found = number(answer)
    if found is not None and abs(found + math.log(LEAST)) < 1e-3:  # as near as a rounded answer, and another thing
        return say("0.1 was the floor of exercise 2: t is at least 0.5 / 255 / 0.02.")
    return say(compare(unrounded(answer, want), want, known))


def psnr_of_each(answer: Answer) -> bool:
    """07, exercise 4: ``answer(restored (n, 3, h, w), clean (n, 3, h, w))`` gives each image's PSNR, (n)."""
    clean = uniform(4, 3, 5, 6)
    restored = clean + 0.6 * torch.tensor([0.1, 0.5, 1.0, 0.2]).view(4, 1, 1, 1) * (uniform(4, 3, 5, 6, seed=1) - 0.5)
    cut = restored.clamp(0, 1)
    mse = (cut - clean).square().mean(dim=(1, 2, 3))
    want = -10 * mse.log10()
    uncut = (restored - clean).square().mean(dim=(1, 2, 3))
    summed = (cut - clean).square().sum(dim=(1, 2, 3))
    known = {
        -want: "sign: a small error has a large PSNR.",
        want / 2: "10 times the logarithm of the MSE, or 20 times that of its root.",
        want * 2: "10 times the logarithm of the MSE, or 20 times that of its root.",
        want / 10: "these are bels; wanted: decibels, ten times as many.",
        -10 * mse.log(): "the base is 10, not e.",
        -10 * uncut.log10(): "cut the values to 0 to 1 first.",
        -10 * summed.log10(): "you summed the squares; wanted: their mean.",
        want + 20 * math.log10(255): "values are from 0 to 1, so the peak is 1, not 255.",
        want.mean(): "this is one number for the batch; wanted: one for each image.",
        -10 * mse.mean().log10(): "this is one number for the batch; wanted: one for each image.",
    }
    problem = ask(answer, (restored, clean), want, known)
    if problem is None:
        some = torch.cat([clean[:2], restored[2:]])
        alike = torch.tensor([True, True, False, False])
        problem = ask(answer, (some, clean), want.where(~alike, 100.0), {})
        if problem is not None:
            problem = "right, but identical images have an MSE of 0: give them 100, not infinity, each of them."
    beyond = 1.4 * uniform(3, 3, 5, 6, seed=2) - 0.2
    also = -10 * (0.5 - beyond.clamp(0, 1)).square().mean(dim=(1, 2, 3)).log10()
    half = torch.full_like(beyond, 0.5)
    return say(ask_also(problem, answer, (half, beyond), also, "where the clean images have values beyond 0 to 1"))


def brightness(answer: Answer) -> bool:
    """07, exercise 5: ``answer(images (n, 3, h, w))`` gives Y, (n, 1, h, w)."""
    images = uniform(2, 3, 4, 5)
    want = luma(images)
    full = (want - 16 / 255) * 255 / 219
    known = {
        want - 16 / 255: "black is at 16/255, not at 0.",
        full: "this has the full range; on Y black is 16/255 and white 235/255.",
        want * 255: "this is in levels, 0 to 255; wanted: 0 to 1.",
        want - 16 / 255 + 16: "16 is in levels as well: divide it by 255.",
        luma(images.flip(1)): "red and blue are exchanged.",
        want[:, 0]: "keep the channel's dimension: (n, 1, h, w).",
        images.mean(dim=1, keepdim=True): "this is the plain mean; the eye sees green as brighter than blue.",
        want.expand_as(images): "one channel is wanted, not three.",
    }
    return say(ask(answer, (images,), want, known))


def streak_angle(answer: Answer) -> bool:
    """07, exercise 6: ``answer(kernel (h, h))`` gives the angle of a streak from the vertical in degrees."""
    for angle in (20.0, -35.0, 0.0, 58.0):
        got, problem = called(answer, _streak(angle))
        found = number(got)
        problem = problem or (compare(got, angle, {}) if found is None else _angle_fault(found, angle))
        if problem is not None:
            return say(problem)
    return say(None)


def _angle_fault(got: float, angle: float) -> str | None:
    if abs(got - angle) <= DEGREES:
        return None
    slips = {
        -angle: f"sign: this one falls to the {'right' if angle > 0 else 'left'}; y grows downwards.",
        2 * angle: "this is twice the angle: halve what atan2 gives.",
        90 - angle: "this is the angle from the horizontal.",
        angle - 90: "this is the angle from the horizontal."
        if angle < 45
        else "an arctangent of a ratio is right up to 45° alone; math.atan2 knows the quadrant.",
    }
    if abs(got - math.radians(angle)) <= math.radians(DEGREES):
        return "this is in radians; wanted: degrees."
    for slip, hint in slips.items():
        if abs(got - slip) <= DEGREES:
            return hint
    return f"value: yours is {got:.1f}° for a streak at {angle:g}°."


def _streak(angle: float) -> Tensor:
    """A soft line through the middle of a square, x to the right and y down."""
    pixels = torch.arange(31) - 15.0
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")
    turn = math.radians(angle)
    across, along = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
    return (1.2 - across.abs()).clamp(0, 1) * (13 - along.abs()).clamp(0, 1)
