"""Chapter 09's widget without a browser, pure functions first; and the checks' hints."""

import math
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from kdlab.classroom import check
from kdlab.classroom.examination import (
    BACK,
    CLEAN,
    HARD,
    IMAGES,
    PARTS,
    SOFT,
    SPACE,
    parts_of,
    stage_explorer,
    stages_svg,
    total_at,
    weights_at,
)
from kdlab.data.weather import WEATHERS
from kdlab.losses.restoration import SLICE_WEIGHTS, mean_distance_of_all_pairs
from kdlab.models import MSBDN
from kdlab.models.vgg import VGGSlices
from kdlab.recipes.restoration import TwoStage, learning_rate

PLAN = TwoStage(detach=True, reconstruction=1.0)
EPOCHS = 4


def recorded(plan=PLAN, epochs=EPOCHS):
    """A history with the columns of a real run, and numbers that tell them apart."""
    rows = []
    for epoch in range(epochs):
        row = {"epoch": epoch + 1, "lr": 1e-3 * (epochs - epoch), "task": 0.5 - 0.1 * epoch}
        first, weight = epoch < plan.switch(epochs), weights_at(plan, epochs, epoch)
        total = weight[CLEAN] * row["task"]
        for number, weather in enumerate(WEATHERS):
            row[f"image_{weather}"] = first * (0.1 + number)
            total += weight[IMAGES] * row[f"image_{weather}"] / 3
            for place, tap in enumerate(MSBDN.TAPS):
                name = f"ckt_{weather}_{tap.replace('.', '_')}"
                row |= {name: first * (1.0 + place), f"{name}_reconstruction": first * (2.0 + number)}
                total += (weight[SPACE] * row[name] + weight[BACK] * row[f"{name}_reconstruction"]) / 3
        row |= {"scr": first * 1.7, "hcr": (not first) * (1.2 - 0.1 * epoch)}
        total += weight[SOFT] * row["scr"] + weight[HARD] * row["hcr"]
        rows.append(row | {"total": total, "val_psnr": 20.0})
    return pd.DataFrame(rows)


def test_parts_are_means_over_weathers_and_sums_over_taps():
    parts = parts_of(recorded())
    assert list(parts) == list(PARTS)
    first = parts.iloc[0]
    assert first[IMAGES] == pytest.approx(1.1)
    assert first[SOFT] == pytest.approx(1.7)
    assert first[SPACE] == pytest.approx(1 + 2 + 3 + 4)
    assert first[BACK] == pytest.approx(4 * 3)
    assert math.isnan(first[HARD])
    assert parts.iloc[-1][[IMAGES, SPACE, BACK, SOFT]].isna().all()
    assert parts[CLEAN].notna().all()


def test_a_run_without_ckt_has_no_such_parts():
    history = recorded()
    parts = parts_of(history[[name for name in history if not name.startswith("ckt")]])
    assert parts[[SPACE, BACK]].isna().all(axis=None)
    assert total_at(parts, replace(PLAN, ckt=0.0), 0) == pytest.approx(1.1 + 0.1 * 1.7)


def test_the_parts_add_up_to_the_recorded_total():
    history = recorded()
    totals = [total_at(parts_of(history), PLAN, epoch) for epoch in range(EPOCHS)]
    assert totals == pytest.approx(history.total.tolist())


def test_what_was_not_computed_has_no_total():
    parts = parts_of(recorded())
    assert math.isnan(total_at(parts, replace(PLAN, collation=1.0), EPOCHS - 1))
    assert math.isnan(total_at(parts, replace(PLAN, collation=0.0), 0))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_weights_are_those_of_the_distiller(share):
    plan = replace(PLAN, collation=share)
    torch.manual_seed(0)
    teachers = {weather: MSBDN(2) for weather in WEATHERS}
    distiller = plan.objective(MSBDN(2), teachers, VGGSlices("none", width=2), WEATHERS, EPOCHS)
    starts = {IMAGES: "image_", SPACE: "ckt_", SOFT: "scr", HARD: "hcr"}
    for epoch in range(EPOCHS):
        found = {
            part: sum(term.weight_at(epoch, EPOCHS) for term in distiller.terms if term.name.startswith(start))
            for part, start in starts.items()
        }
        found[SPACE] /= len(MSBDN.TAPS)
        task = distiller.task_weight
        found[CLEAN] = task(epoch, EPOCHS) if callable(task) else task
        back = [term.reconstruction_weight for term in distiller.terms if term.reconstruction is not None]
        found[BACK] = sum(back) / len(MSBDN.TAPS) if found[SPACE] else 0.0
        assert weights_at(plan, EPOCHS, epoch) == pytest.approx(found)


def lanes(svg):
    """How many cells of each colour there are."""
    colours = re.findall(r'<rect [^>]*fill="(#\w+)"', svg)
    return [colours.count(colour) for colour in dict.fromkeys(colours)]


def test_a_lane_is_coloured_where_its_part_weighs_something():
    history = recorded()
    parts, rates = parts_of(history), history.lr.tolist()
    assert lanes(stages_svg(parts, rates, PLAN, 0)) == [2, 2, 2, 2, 2, 2]
    assert lanes(stages_svg(parts, rates, replace(PLAN, collation=1.0), 0)) == [4, 4, 4, 4]
    assert lanes(stages_svg(parts, rates, replace(PLAN, collation=0.25, scr=0.0), 0)) == [1, 1, 1, 3, 3]


def test_a_curve_has_a_point_for_each_epoch_that_was_recorded():
    history = recorded()
    svg = stages_svg(parts_of(history), history.lr.tolist(), PLAN, 1)
    assert svg.count("<circle") == 4 * 2 + 4 + 2 + 4  # four of the first stage, L1, HCR, the learning rate
    assert "in epoch 2 of 4" in svg
    assert svg.count('stroke-dasharray="4 3"') == 1


def test_the_controls_of_the_panel_change_what_it_says():
    panel = stage_explorer(recorded(), PLAN)
    assert "Epoch 1 of 4, first stage; the total is " in panel.view.value
    assert "0.1 × 1.7000" in panel.view.value  # SCR
    assert "2.00e-03" not in panel.view.value
    panel.epoch.value = 3
    assert "Epoch 3 of 4, second stage; the total is 0.5000" in panel.view.value  # 0.3 + 0.2 × 1.0
    assert "0.2 × 1.0000" in panel.view.value
    assert "2.00e-03" in panel.view.value
    panel.collation.value = 1.0
    assert "Epoch 3 of 4, first stage; the total is not known" in panel.view.value
    assert "0.1 × not computed" in panel.view.value
    assert "2.00e-03" in panel.view.value


def distance(measure):
    return lambda: check.all_pairs_distance(measure)


def pairs(a, n):
    return (a[:, None] - n).abs()


def slope(scale, sign=1):
    def answer(a, n):
        signs = torch.zeros_like(a)
        for one in n:
            signs += (a - one).sign()
        return sign * signs / scale(a, n)

    return lambda: check.all_pairs_gradient(answer)


def memory(answer):
    return lambda: check.naive_gibibytes(answer)


def by_autograd(anchors, negatives):
    anchors.requires_grad_()
    for negative in negatives:
        ((anchors - negative).abs().sum() / (anchors.numel() * len(negatives))).backward()
    return anchors.grad


def rate(way=lambda e, epochs: (e - 4) / (epochs - 3), low=lambda end: end, warm_up=True):
    def answer(epoch, epochs, base, end):
        if warm_up and epoch <= 3:
            return base * epoch / 3
        floor = low(end)
        return floor + (base - floor) * (1 + math.cos(math.pi * way(epoch, epochs))) / 2

    return lambda: check.rate_at(answer)


def restart(epoch, epochs, base, end):
    epoch, epochs = (epoch - 1) % (epochs // 2) + 1, epochs // 2
    if epoch <= 3:
        return base * epoch / 3
    return end + (base - end) * (1 + math.cos(math.pi * (epoch - 4) / (epochs - 3))) / 2


def contrast(near=lambda a, p: (a - p).abs().mean(), far=lambda a, n: pairs(a, n).mean(), weigh=lambda w: w):
    def answer(restored, clean, degraded, weights):
        maps = zip(weights, restored, clean, degraded, strict=True)
        return sum(weigh(w) * (near(a, p) / far(a, n)).mean() for w, a, p, n in maps)

    return lambda: check.hard_contrast(answer)


def hcr(restored, clean, degraded, weights):
    maps = zip(weights, restored, clean, degraded, strict=True)
    return sum(w * (a - p).abs().mean() / pairs(a, n).mean() for w, a, p, n in maps)


def summed_first(restored, clean, degraded, weights):
    near = sum(w * (a - p).abs().mean() for w, a, p in zip(weights, restored, clean, strict=True))
    return near / sum(w * pairs(a, n).mean() for w, a, n in zip(weights, restored, degraded, strict=True))


def each(a, b):
    return (a - b).abs().mean(dim=(1, 2, 3))


def restored(mode="reflect", crop=True):
    def answer(network, image):
        height, width = image.shape[1:]
        larger = F.pad(image[None], (0, -width % 16, 0, -height % 16), mode=mode)
        return network(larger)[0][:, :height, :width] if crop else network(larger)[0]

    return lambda: check.padded_restoration(answer)


def cropped_by_what_was_added(network, image):
    below, right = (-side % 16 for side in image.shape[1:])
    return network(F.pad(image[None], (0, right, 0, below), mode="reflect"))[0, :, :-below, :-right]


def resized(up, back=True):
    def answer(network, image):
        size = [-(-side // 16) * 16 if up else side // 16 * 16 for side in image.shape[1:]]
        out = network(F.interpolate(image[None], size, mode="bilinear"))
        return F.interpolate(out, image.shape[1:], mode="bilinear")[0] if back else out[0]

    return lambda: check.padded_restoration(answer)


SLIPS = {
    "own input": (distance(lambda a, n: (a - n[: len(a)]).abs().mean()), "own input alone"),
    "sum": (distance(lambda a, n: pairs(a, n).mean(dim=(2, 3, 4)).sum()), "summed over the pairs"),
    "without the own input": (
        distance(lambda a, n: pairs(a, n).mean(dim=(2, 3, 4))[~torch.eye(len(a), dtype=torch.bool)].mean()), "diagonal"
    ),
    "squares": (distance(lambda a, n: (a[:, None] - n).square().mean()), "squares"),
    "mean image": (distance(lambda a, n: (a.mean(0) - n.mean(0)).abs().mean()), "mean image first"),
    "absolute value last": (distance(lambda a, n: (a[:, None] - n).mean().abs()), "before the mean"),
    "a square batch alone": (
        distance(lambda a, n: torch.stack([(a - n.roll(k, 0)).abs().mean() for k in range(len(a))]).mean()),
        "not for 5 negatives",
    ),
    "downhill": (slope(lambda a, n: a.numel() * len(n), -1), "sign"),
    "no mean": (slope(lambda a, n: 1), "number of all differences"),
    "negatives alone": (slope(lambda a, n: len(n)), "images and positions too"),
    "no negatives": (slope(lambda a, n: a.numel()), "over the negatives too"),
    "one image": (slope(lambda a, n: a[0].numel() * len(n)), "restored images too"),
    "all at once": (
        lambda: check.all_pairs_gradient(lambda a, n: (a[:, None] - n).sign().sum(1) / (a.numel() * len(n))),
        "one by one",
    ),
    "by autograd": (lambda: check.all_pairs_gradient(by_autograd), "autograd found it"),
    "one batch": (memory(lambda b, c, h, w: 4 * b * c * h * w / 2**30), "counts twice"),
    "bytes": (memory(lambda b, c, h, w: 4 * b**2 * c * h * w), "these are bytes"),
    "numbers": (memory(lambda b, c, h, w: b**2 * c * h * w), "these are numbers"),
    "a byte each": (memory(lambda b, c, h, w: b**2 * c * h * w / 2**30), "takes 4 bytes"),
    "half precision": (memory(lambda b, c, h, w: 2 * b**2 * c * h * w / 2**30), "not 2"),
    "double precision": (memory(lambda b, c, h, w: 8 * b**2 * c * h * w / 2**30), "not 8"),
    "bits": (memory(lambda b, c, h, w: 32 * b**2 * c * h * w / 2**30), "gibibits"),
    "GB": (memory(lambda b, c, h, w: 4 * b**2 * c * h * w / 1e9), "this is GB"),
    "MiB": (memory(lambda b, c, h, w: 4 * b**2 * c * h * w / 2**20), "MiB"),
    "a square": (memory(lambda b, c, h, w: 4 * b**2 * c * h**2 / 2**30), "maps of (128, 96, 160)"),
    "no rate": (lambda: check.rate_at(lambda *of: None), "there is a None"),
    "of 250 epochs": (rate(lambda e, epochs: (e - 4) / 247), "for 20 epochs"),
    "of a base of 1": (lambda: check.rate_at(lambda e, n, base, end: learning_rate(e, n, 1.0, end=end)), "base of 0.4"),
    "no warm-up": (rate(lambda e, epochs: (e - 1) / epochs, warm_up=False), "first three epochs rise"),
    "to zero": (rate(low=lambda end: 0.0), "ends at `end`"),
    "from the first epoch": (rate(lambda e, epochs: e / epochs), "begins after the warm-up"),
    "from epoch 3": (rate(lambda e, epochs: (e - 3) / (epochs - 3)), "0 at epoch 4"),
    "as long as the run": (rate(lambda e, epochs: (e - 4) / epochs), "247"),
    "restart": (lambda: check.rate_at(restart), "no restart"),
    "own input in HCR": (contrast(far=lambda a, n: (a - n).abs().mean()), "as in SCR"),
    "mean of ratios": (contrast(near=each, far=lambda a, n: pairs(a, n).mean(dim=(1, 2, 3, 4))), "each image's ratio"),
    "mean of own ratios": (contrast(near=each, far=each), "ratio to its own input"),
    "no weights": (contrast(weigh=lambda w: 1.0), "weights are missing"),
    "weights of its own": (
        lambda: check.hard_contrast(lambda a, p, n, w: hcr(a, p, n, SLICE_WEIGHTS)), "for weights of (3.0"
    ),
    "divided by the weights": (contrast(weigh=lambda w: w / 1.46875), "sum of the weights"),
    "summed first": (lambda: check.hard_contrast(summed_first), "you summed first"),
    "upside down": (
        contrast(near=lambda a, p: 1 / (a - p).abs().mean(), far=lambda a, n: 1 / pairs(a, n).mean()), "upside down"
    ),
    "resized down": (resized(up=False), "you resized"),
    "resized up": (resized(up=True), "you resized"),
    "resized and left": (resized(up=False, back=False), "cropped again, and nothing resized"),
    "black border": (restored("constant"), "zeros"),
    "last row": (restored("replicate"), "repeated"),
    "not cropped": (restored(crop=False), "cropped again"),
    "one size": (
        lambda: check.padded_restoration(
            lambda network, image: network(F.pad(image[None], (0, 5, 0, 11), mode="reflect"))[0, :, :-11, :-5]
        ),
        "not for 50 x 21",
    ),
    "cropped by nothing": (lambda: check.padded_restoration(cropped_by_what_was_added), "not for 32 x 48"),
    "not padded": (lambda: check.padded_restoration(lambda network, image: network(image[None])[0]), "multiples of 16"),
}  # fmt: skip


@pytest.mark.parametrize(("graded", "hint"), SLIPS.values(), ids=SLIPS)
def test_a_known_slip_gets_its_hint(graded, hint, capsys):
    assert graded() is False
    assert hint in capsys.readouterr().out


def split_padding(network, image):
    """The same amount, on all four sides."""
    height, width = image.shape[1:]
    below, right = -height % 16, -width % 16
    top, left = below // 2, right // 2
    larger = F.pad(image[None], (left, right - left, top, below - top), mode="reflect")
    return network(larger)[0, :, top : top + height, left : left + width]


def test_right_answers_pass():
    assert distance(mean_distance_of_all_pairs)()
    assert distance(lambda a, n: torch.cdist(a.flatten(1), n.flatten(1), p=1).mean() / a[0].numel())()
    assert slope(lambda a, n: a.numel() * len(n))()
    assert memory(lambda b, c, h, w: 4 * b**2 * c * h * w / 2**30)()
    assert rate()()
    assert contrast()()
    assert check.hard_contrast(hcr)
    assert contrast(far=mean_distance_of_all_pairs)()
    assert restored()()
    assert check.padded_restoration(split_padding)
