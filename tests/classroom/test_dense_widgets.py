"""The scenes' pictures and chapter 04's widgets without a browser, pure functions first; and the checks' hints."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shown import pictures

from kdlab.classroom import check
from kdlab.classroom.dense import channel_explorer, effective_positions, error_explorer, look, over_positions
from kdlab.classroom.pictures import coloured, picture_html
from kdlab.classroom.scenes import (
    CLASS_COLOURS,
    ERROR_COLOURS,
    error_kinds,
    errors_over,
    legend_html,
    overlaid,
    painted,
    show_pictures,
    wrong,
)
from kdlab.data import Scenes
from kdlab.losses import CWDLoss


def rgb(colour):
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]


MASK = torch.tensor([[0, 1], [6, 255]])
ANSWER = torch.tensor([[2, 0], [3, 4]])  # taken for a shape, missed, named wrongly, unknown


def test_each_class_has_its_colour_and_what_has_none_is_white():
    assert painted(MASK)[0, 0].tolist() == rgb(CLASS_COLOURS[0])
    assert painted(MASK)[1, 0].tolist() == rgb(CLASS_COLOURS[6])
    assert painted(MASK)[1, 1].tolist() == [255, 255, 255]
    assert len(set(CLASS_COLOURS)) == len(CLASS_COLOURS) == len(Scenes.classes)


def test_the_background_is_not_covered():
    image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    seen = overlaid(image, MASK)
    assert seen[0, 0].tolist() == [100, 100, 100]
    assert seen[0, 1].tolist() == [50 + part // 2 for part in rgb(CLASS_COLOURS[1])]


def test_every_mistake_has_its_kind_and_the_unknown_is_none():
    assert error_kinds(ANSWER, MASK).tolist() == [[3, 1], [2, 0]]
    assert wrong(ANSWER, MASK).tolist() == [[True, True], [True, False]]
    assert not error_kinds(MASK, MASK).any()


def test_errors_are_painted_by_kind_and_a_plain_error_is_red():
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    colours = [rgb(colour) for colour in ERROR_COLOURS.values()]
    by_kind = errors_over(image, error_kinds(ANSWER, MASK))
    assert by_kind.tolist() == [[colours[2], colours[0]], [colours[1], [128, 128, 128]]]
    assert errors_over(image, wrong(ANSWER, MASK))[0, 0].tolist() == [255, 0, 0]


def test_a_map_is_coloured_between_its_limits():
    values = torch.tensor([[0.0, 1.0]])
    dark, bright = coloured(values)[0].tolist()
    assert coloured(values, (0.0, 2.0))[0, 0].tolist() == dark
    assert coloured(values, (0.0, 2.0))[0, 1].tolist() != bright
    assert coloured(torch.zeros(2, 2)).shape == (2, 2, 3)  # a map of one value


def test_a_picture_says_what_it_is_and_loses_no_pixel():
    html = picture_html(painted(MASK), "a < b")
    assert 'alt="a &lt; b"' in html
    assert pictures(html)[0].tolist() == painted(MASK).tolist()
    assert "#333333" in legend_html({"back & ground": "#333333"})
    assert "back &amp; ground" in legend_html({"back & ground": "#333333"})


def test_pictures_are_shown_with_their_text(monkeypatch):
    shown = []
    monkeypatch.setattr("kdlab.classroom.scenes.show", lambda fig, alt, photographs: shown.append((fig, alt)))
    rows = {"image": [painted(MASK), painted(MASK[1:])], "mask": [painted(MASK)] * 2}  # of two sizes
    show_pictures(rows, "two masks", titles=["a", "b"], classes=Scenes.classes, legend=ERROR_COLOURS)
    ((fig, alt),) = shown
    assert alt == "two masks"
    assert [ax.get_ylabel() for ax in fig.axes] == ["image", "", "mask", ""]
    words = [text.get_text() for text in fig.legends[0].get_texts()]
    assert words == [*Scenes.classes, *ERROR_COLOURS]


def test_effective_positions_run_from_one_to_all():
    peak = torch.zeros(4, 5)
    peak[1, 2] = 1000.0
    assert effective_positions(over_positions(peak, 1.0)).item() == pytest.approx(1)
    assert effective_positions(over_positions(torch.ones(4, 5), 1.0)).item() == pytest.approx(20)
    maps = torch.randn(2, 3, 4, 5) * 5
    spread = [effective_positions(over_positions(maps, T)) for T in (0.5, 1.0, 4.0, 20.0)]
    assert all((a < b).all() for a, b in pairwise(spread))
    assert spread[0].shape == (2, 3)


def test_looking_at_a_channel_is_what_the_loss_looks_at():
    teacher, student = torch.randn(2, 4, 5) * 3
    seen = look(teacher, student, 2.0)
    assert seen.teacher.sum().item() == pytest.approx(1)
    assert seen.kl == pytest.approx(CWDLoss(2.0)(student[None, None], teacher[None, None]).item() / 4, rel=1e-5)
    assert look(teacher, teacher + 7, 2.0).kl == pytest.approx(0, abs=1e-6)
    assert seen.student_positions == pytest.approx(effective_positions(seen.student).item())


NAMES = ("0: disc", "1: star")


@pytest.fixture
def channels():
    images = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)
    maps = {name: torch.randn(2, 7, 4, 4) * 4 for name in ("teacher", "alone", "distilled")}
    return channel_explorer(images, maps.pop("teacher"), maps, NAMES, Scenes.classes)


def changed(panel, change):
    """Which of the pictures are others after the change."""
    before = pictures(panel.view.value)
    change()
    return [not np.array_equal(a, b) for a, b in zip(before, pictures(panel.view.value), strict=True)]


def set_to(control, value):
    return lambda: setattr(control, "value", value)


def test_each_control_of_the_channels_changes_its_pictures(channels):
    assert changed(channels, set_to(channels.channel, 3)) == [False, True, True]
    assert "Channel “triangle” at τ = 1:" in channels.view.value
    assert changed(channels, set_to(channels.temperature, 8.0)) == [False, True, True]
    assert changed(channels, set_to(channels.scene, 1)) == [True, True, True]
    assert changed(channels, set_to(channels.student, "distilled"))[2]
    assert "distilled: " in channels.view.value


def test_a_higher_temperature_speaks_of_more_positions(channels):
    found = []
    for value in (0.25, 20.0):
        channels.temperature.value = value
        found.append([float(x) for x in re.findall(r"<figcaption>\w+: ([\d.]+) of 16 positions", channels.view.value)])
    assert all(cold < 5 < 14 < hot for cold, hot in zip(*found, strict=True))


def test_the_errors_of_a_scene_are_counted_and_drawn():
    masks = torch.stack([MASK, torch.zeros_like(MASK)])
    answers = {"alone": torch.stack([ANSWER, ANSWER]), "distilled": masks}
    images = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    panel = error_explorer(images, masks, answers, NAMES, Scenes.classes)
    assert "alone: 3 pixels wrong" in panel.view.value  # of three that have a class
    assert "wrong: alone 100.0%, distilled 0.0%." in panel.view.value
    assert all(name in panel.view.value for name in (*Scenes.classes, *ERROR_COLOURS))
    # The mask over the image, both answers, then the image and both errors.
    assert changed(panel, set_to(panel.scene, 1)) == [True, False, True, False, True, False]
    assert "alone 75.0%" in panel.view.value


def test_a_mask_without_a_class_has_no_errors():
    nothing = torch.full((1, 2, 2), 255)
    panel = error_explorer(
        torch.zeros(1, 3, 2, 2, dtype=torch.uint8), nothing, {"alone": ANSWER[None]}, NAMES[:1], Scenes.classes
    )
    assert "wrong: alone 0.0%." in panel.view.value


def positions(T=1.0, dim=2, measure=lambda entropy: entropy.exp()):
    def answer(maps, tau):
        p = torch.softmax((maps if dim == 1 else maps.flatten(2)) / (tau * T), dim=dim)
        return measure(torch.special.entr(p).flatten(2).sum(2))

    return lambda: check.effective_positions(answer)


def positions_at(maps, tau):
    return effective_positions(over_positions(maps, tau))


def by_logarithm(maps, tau):
    p = torch.softmax(maps.flatten(2) / tau, dim=2)
    return (-(p * p.log()).sum(2)).exp()


def loss(answer):
    return lambda: check.cwd_loss(answer)


def kl(s, t, T, dim=2):
    log_s, log_t = (F.log_softmax((maps if dim == 1 else maps.flatten(2)) / T, dim=dim) for maps in (s, t))
    return (log_t.exp() * (log_t - log_s)).sum(dim)


def naive(s, t, T):
    p_s, p_t = (torch.softmax(maps.flatten(2) / T, dim=2) for maps in (s, t.detach()))
    return T**2 * (p_t * (p_t.log() - p_s.log())).sum(2).mean()


def a_little_more(s, t, T):
    p_s, p_t = (over_positions(maps, T) for maps in (s, t.detach()))
    return T**2 * (p_t * ((p_t + 1e-8).log() - (p_s + 1e-8).log())).sum((2, 3)).mean()


def gradient(scale, dim=2):
    def answer(s, t, T):
        n, c = s.shape[:2]
        if dim == 1:
            return scale(T, n, c) * (torch.softmax(s / T, 1) - torch.softmax(t / T, 1))
        return scale(T, n, c) * (over_positions(s, T) - over_positions(t, T))

    return lambda: check.cwd_gradient(answer)


def by_autograd(s, t, T):
    return torch.autograd.grad(CWDLoss(T)(s.requires_grad_(), t), s)[0]


def named_alone(said, mask, classes):
    """The mean over the classes that are named anywhere, also where there is no class."""
    known = mask != 255
    both = torch.stack([((said == k) & (mask == k)).sum() for k in said.unique()])
    either = torch.stack([(((said == k) | (mask == k)) & known).sum() for k in said.unique()])
    return (both / either.clamp(min=1)).mean()


def iou(absent=None, clean=True, false_alarms=True, measure=lambda both, truth, guess: both / (truth + guess - both)):
    def answer(said, mask, classes):
        kept = mask != 255 if clean else torch.ones_like(mask, dtype=torch.bool)
        values = []
        for k in range(classes):
            truth, guess = mask[kept] == k, said[kept] == k
            if not (truth.any() or guess.any()):
                values += [] if absent is None else [torch.tensor(absent)]
            elif false_alarms or truth.any():
                values.append(measure(*(x.sum() for x in (truth & guess, truth, guess))))
        return torch.stack(values).mean()

    return lambda: check.mean_iou(answer)


def five_classes(said, mask, classes):
    known = mask != 255
    confusion = torch.bincount(5 * mask[known] + said[known], minlength=25)[:25].view(5, 5)
    both = confusion.diagonal()
    either = confusion.sum(0) + confusion.sum(1) - both
    return (both[either > 0] / either[either > 0]).mean()


CHANGES = {
    "shift": lambda maps: maps + 5,
    "channel": lambda maps: maps + torch.arange(3.0).view(1, 3, 1, 1),
    "twice": lambda maps: 2 * maps,
}
SLIPS = {
    "entropy": (positions(measure=lambda entropy: entropy), "entropy in nats; wanted: e to it"),
    "base 2": (positions(measure=lambda entropy: 2**entropy), "not 2"),
    "no temperature in positions": (lambda: check.effective_positions(lambda m, T: by_logarithm(m, 1.0)), "no effect"),
    "channels in positions": (
        lambda: check.effective_positions(
            lambda m, T: torch.special.entr(torch.softmax(m / T, 1)).flatten(2).sum(2).exp()
        ),
        "over each channel's positions",
    ),
    "sum of squares": (
        lambda: check.effective_positions(lambda m, T: 1 / torch.softmax(m.flatten(2) / T, 2).square().sum(2)),
        "another measure",
    ),
    "0 log 0": (lambda: check.effective_positions(by_logarithm), "gives NaN"),
    "no tau squared": (loss(lambda s, t, T: kl(s, t, T).mean()), "τ² is missing"),
    "one tau": (loss(lambda s, t, T: T * kl(s, t, T).mean()), "τ squared"),
    "sum": (loss(lambda s, t, T: T**2 * kl(s, t, T).sum()), "summed over images and channels"),
    "channels summed": (loss(lambda s, t, T: T**2 * kl(s, t, T).sum(1).mean()), "summed over the channels"),
    "images summed": (loss(lambda s, t, T: T**2 * kl(s, t, T).mean(1).sum()), "summed over the images"),
    "positions meaned": (loss(lambda s, t, T: T**2 * kl(s, t, T).mean() / 20), "mean over the positions"),
    "reversed": (loss(lambda s, t, T: T**2 * kl(t, s, T).mean()), "this is KL"),
    "pixel by pixel": (loss(lambda s, t, T: T**2 * kl(s, t, T, dim=1).mean()), "pixel by pixel"),
    "over channels": (loss(lambda s, t, T: T**2 * kl(s, t, T, dim=1).sum() / 6), "over the channels"),
    "over channels, batchmean": (loss(lambda s, t, T: T**2 * kl(s, t, T, dim=1).sum() / 2), "over the channels"),
    "an image": (
        loss(lambda s, t, T: T**2 * kl(s.flatten(1)[:, None], t.flatten(1)[:, None], T).mean()), "an image sums to 1"
    ),
    "logarithm of a softmax": (loss(naive), "log_softmax"),
    "a little more": (loss(a_little_more), "right, but not on peaked maps: value: yours is"),
    "not detached": (loss(lambda s, t, T: T**2 * kl(s, t, T).mean()), "detach"),
    "positions at one temperature": (
        lambda: check.effective_positions(lambda m, T: positions_at(m, 2.0)), "at a temperature of 6: "
    ),
    "loss at one temperature": (loss(lambda s, t, T: CWDLoss(2.5)(s, t)), "at a temperature of 6: "),
    "gradient at one temperature": (
        lambda: check.cwd_gradient(lambda s, t, T: 2.5 / 6 * (over_positions(s, 2.5) - over_positions(t, 2.5))),
        "at a temperature of 6: ",
    ),
    "both detached": (loss(lambda s, t, T: CWDLoss(T)(s.detach(), t)), "no gradient reaches the student"),
    "no graph": (loss(torch.no_grad()(lambda s, t, T: CWDLoss(T)(s, t))), "no gradient reaches the student"),
    "a plain number": (loss(lambda s, t, T: CWDLoss(T)(s, t).item()), "no gradient reaches the student"),
    "the wrong one detached": (loss(lambda s, t, T: T**2 * kl(s.detach(), t, T).mean()), "detach the teacher's maps"),
    "uphill": (gradient(lambda T, n, c: -T / (n * c)), "sign"),
    "bare": (gradient(lambda T, n, c: 1), "factor is missing"),
    "no mean": (gradient(lambda T, n, c: T), "divides by both"),
    "channels forgotten": (gradient(lambda T, n, c: T / n), "over the channels too"),
    "images forgotten": (gradient(lambda T, n, c: T / c), "over the images too"),
    "tau squared": (gradient(lambda T, n, c: T**2 / (n * c)), "takes one factor away"),
    "no tau": (gradient(lambda T, n, c: 1 / (n * c)), "one factor τ is left"),
    "one over tau": (gradient(lambda T, n, c: 1 / (T * n * c)), "one factor τ is left"),
    "gradient by autograd": (lambda: check.cwd_gradient(by_autograd), "autograd found it"),
    "gradient over channels": (gradient(lambda T, n, c: T / (n * c), dim=1), "over the positions"),
    "absent is 0": (iou(absent=0.0), "counts as 0"),
    "absent is 1": (iou(absent=1.0), "a 1 too many is in your mean"),
    "absent is NaN": (iou(absent=float("nan")), "no IoU. Leave it out"),
    "named where there is no class": (lambda: check.mean_iou(named_alone), "a class that is in neither counts as 0"),
    "false alarm left out": (iou(false_alarms=False), "class 3"),
    "unknown counted": (iou(clean=False, false_alarms=True), "pixels with 255"),
    "dice": (iou(measure=lambda both, truth, guess: 2 * both / (truth + guess)), "this is Dice"),
    "recall": (iou(false_alarms=False, measure=lambda both, truth, guess: both / truth), "by the union"),
    "accuracy": (
        lambda: check.mean_iou(lambda said, mask, k: (said == mask)[mask != 255].float().mean()), "right pixels"
    ),
    "five classes": (lambda: check.mean_iou(five_classes), "for classes 5 and 6 of seven"),
    "one missed": (lambda: check.unseen({"shift"}, CHANGES), "'channel' is not seen either"),
    "one too many": (lambda: check.unseen({"shift", "channel", "twice"}, CHANGES), "'twice' is seen"),
    "names in lists": (lambda: check.unseen([["shift"]], CHANGES), "among shift, channel, twice"),
    "no such change": (lambda: check.unseen({"thrice"}, CHANGES), "among shift, channel, twice"),
}  # fmt: skip


@pytest.mark.parametrize(("graded", "hint"), SLIPS.values(), ids=SLIPS)
def test_a_known_slip_gets_its_hint(graded, hint, capsys):
    assert graded() is False
    assert hint in capsys.readouterr().out


def test_right_answers_pass():
    assert positions()()
    assert loss(lambda s, t, T: T**2 * kl(s, t.detach(), T).mean())()
    assert loss(lambda s, t, T: CWDLoss(T)(s, t))()
    assert gradient(lambda T, n, c: T / (n * c))()
    assert iou()()
    assert check.unseen({"shift", "channel"}, CHANGES)
