"""Chapter 08's widget without a browser: pure functions first, then the thin view; and the checks' hints."""

import math
import re
from functools import partial
from itertools import cycle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlab.classroom import check
from kdlab.classroom.collation import (
    Snapshot,
    common_space_explorer,
    fit_plane,
    plane_of,
    scatter,
    snapshot,
)
from kdlab.distill import Distiller, Projector, Teacher, Term
from kdlab.losses.restoration import CKTLoss

NAMES = ("haze", "rain")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.early, self.late = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, images):
        return self.late(self.early(images).relu())


@pytest.fixture
def distiller():
    torch.manual_seed(0)
    mine = {"early": Projector(4, 2), "late": Projector(6, 3)}
    terms = [
        Term(
            f"ckt_{name}_{tap}", CKTLoss(), tap, tap, of=name, student_connector=mine[tap],
            teacher_connector=Projector(c, c // 2), reconstruction=Projector(c // 2, c),
        )
        for name in NAMES
        for tap, c in (("early", 4), ("late", 6))
    ]  # fmt: skip
    sides = {name: Teacher(Net(), part=partial(of, number)) for number, name in enumerate(NAMES)}
    return Distiller(Net(), sides, terms, task=nn.Identity(), task_weight=0.0)


def of(number, images, labels):
    return labels[1] == number


def test_a_snapshot_is_where_the_connectors_put_the_images(distiller):
    images, weather = torch.rand(5, 3, 8, 8), torch.tensor([0, 0, 1, 1, 1])
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    seen = snapshot(7, distiller, images, [images, weather])
    assert seen.step == 7
    assert {tap: tuple(points.shape) for tap, points in seen.student.items()} == {"early": (5, 2), "late": (5, 3)}
    connectors, teacher = distiller.teacher_connectors, distiller.teachers["rain"].model
    early = teacher.early(images[2:])
    assert torch.allclose(seen.teachers["early"][2:], connectors["ckt_rain_early"](early).mean(dim=(2, 3)), atol=1e-6)
    late = distiller.student_connectors["ckt_haze_late"](distiller.student(images))
    assert torch.allclose(seen.student["late"], late.mean(dim=(2, 3)), atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in distiller.state_dict().items())
    assert not seen.student["late"].requires_grad


def test_apart_is_in_the_units_of_the_space_and_spread_knows_its_size():
    teachers = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    seen = Snapshot(0, {"tap": teachers + torch.tensor([0.0, 3.0])}, {"tap": teachers})
    assert seen.apart("tap") == (3.0, 1.0)
    small = Snapshot(0, {"tap": 0.01 * seen.student["tap"]}, {"tap": 0.01 * teachers})
    assert small.apart("tap") == pytest.approx((0.03, 0.01))


def test_the_plane_holds_the_directions_of_most_variance():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(200, 5, generator=generator) * torch.tensor([0.1, 5.0, 0.1, 2.0, 0.1]) + 3
    plane = fit_plane(points)
    assert plane.axes[[1, 3], [0, 1]].min() > 0.9  # the sign is not left to chance
    assert torch.allclose(plane.axes.T @ plane.axes, torch.eye(2), atol=1e-5)
    assert torch.allclose((plane.of(points) * plane.reach).var(dim=0), points.var(dim=0)[[1, 3]], rtol=0.05)
    assert torch.allclose(fit_plane(points.flip(0)).axes, plane.axes, atol=1e-4)


def test_the_plane_is_as_wide_as_the_points_on_both_sides():
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [10.0, 1.0]])
    placed = fit_plane(points).of(points)
    assert placed.amax(dim=0).tolist() == pytest.approx([0.8, 0.8])
    assert placed.amin(dim=0).tolist() == pytest.approx([-0.8, -0.8])


def test_the_plane_has_a_margin_and_puts_what_is_outside_on_its_edge():
    points = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    plane = fit_plane(points)
    assert plane.of(points).abs().amax(dim=0).tolist() == pytest.approx([0.8, 0.8])
    far = plane.of((plane.centre + 100 * plane.axes[:, 0])[None])[0]
    assert far.tolist() == pytest.approx([1.0, 0.0], abs=1e-4)
    assert plane.of(plane.centre[None]).abs().max() < 1e-5


def test_a_plane_of_points_that_are_all_one_is_finite():
    assert fit_plane(torch.zeros(6, 3)).of(torch.zeros(2, 3)).isfinite().all()


@pytest.fixture
def runs():
    """Two runs of three steps, of six images: one in which the points come together, one in which all shrink."""
    generator = torch.Generator().manual_seed(0)
    its, off = (torch.randn(6, 4, generator=generator) for _ in range(2))

    def seen(step, share, size):
        return Snapshot(step, *({"early": size * side, "late": 2 * size * side} for side in (its + share * off, its)))

    together = [seen(step, 1 - step / 12, 1.0) for step in (0, 6, 12)]
    return {"together": together, "shrinking": [seen(step, 1.0, 1 - step / 13) for step in (0, 6, 12)]}


def test_one_plane_serves_all_snapshots_of_a_run(runs):
    plane = plane_of(runs["shrinking"], "late")
    first, last = (plane.of(runs["shrinking"][k].teachers["late"]) for k in (0, -1))
    assert (last.std(dim=0) < 0.2 * first.std(dim=0)).all()


def test_a_student_that_begins_elsewhere_is_elsewhere_in_the_plane():
    its = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.0, 0.01])
    far = Snapshot(0, {"tap": its + torch.tensor([0.0, 0.0, 4.0])}, {"tap": its})
    run = [far, Snapshot(6, {"tap": its}, {"tap": its})]
    plane = plane_of(run, "tap")
    apart = [(plane.of(seen.student["tap"]) - plane.of(seen.teachers["tap"])).norm(dim=1).mean() for seen in run]
    assert apart[0] > 1
    assert apart[1] == 0


def test_the_student_is_drawn_over_its_teachers():
    drawn = scatter(torch.zeros(3, 2), torch.zeros(3, 2), [0, 1, 0], NAMES, "points")
    picture = drawn[: drawn.index("<text")]
    circles = re.findall(r'<circle [^>]*r="(\d)" fill="(none)?', picture)
    assert circles[:4] == [("4", ""), ("4", ""), ("6", "none"), ("6", "none")]


def test_each_image_is_drawn_twice_and_joined():
    mine, its = torch.zeros(3, 2), torch.ones(3, 2)
    drawn = scatter(mine, its, [0, 1, 2], ("haze", "rain", "<snow>"), "what & why")
    assert drawn.count("<line ") == 3
    assert [drawn.count(mark) for mark in ("<circle ", "<path ")] == [4, 4]  # each twice, and twice in the legend
    assert "&lt;snow&gt;, student" in drawn
    assert 'aria-label="what &amp; why"' in drawn
    places = [float(x) for x in re.findall(r'cx="([\d.]+)"', drawn)]
    assert all(0 < x < 520 for x in places)
    assert places[0] > places[1]  # the teacher is at 1, the student in the middle


def test_a_space_in_which_nothing_is_left_is_drawn_and_said(runs):
    gone = Snapshot(12, *({tap: torch.zeros_like(points) for tap, points in runs["shrinking"][0].student.items()},) * 2)
    panel = common_space_explorer({"gone": [*runs["shrinking"][:2], gone]}, torch.tensor([0, 0, 0, 1, 1, 1]), NAMES)
    panel.step.value = 12
    assert "nothing is left to compare" in panel.view.value
    assert "nan" not in panel.view.value


@pytest.fixture
def panel(runs):
    return common_space_explorer(runs, torch.tensor([0, 0, 0, 1, 1, 1]), NAMES)


def numbers(panel):
    found = re.search(r"<p>step (\d+), (\w+): .*? are ([\d.]+) from .*? ([\d.]+) from their mean", panel.view.value)
    return int(found[1]), found[2], float(found[3]), float(found[4])


def test_dragging_the_step_brings_student_and_teachers_together(panel):
    step, tap, far, spread = numbers(panel)
    assert (step, tap) == (0, "early")
    panel.step.value = 12
    step, _, near, same = numbers(panel)
    assert (step, near, same) == (12, 0.0, spread)
    assert far > 0.5


def test_a_step_without_a_snapshot_shows_the_nearest(panel):
    panel.step.value = 10  # as one can type it
    assert numbers(panel)[0] == 12
    panel.step.value = 8
    assert numbers(panel)[0] == 6


def test_in_the_shrinking_run_distance_and_spread_fall_alike(panel):
    panel.run.value = "shrinking"
    _, _, far, wide = numbers(panel)
    panel.step.value = 12
    _, _, near, narrow = numbers(panel)
    assert near / far == pytest.approx(narrow / wide, rel=0.05)
    assert near < 0.1 * far


def test_the_tap_changes_points_and_words(panel):
    before = panel.view.value
    panel.tap.value = "late"
    assert panel.view.value != before
    assert numbers(panel)[1] == "late"


# The checks of the exercises: each known slip and its hint.


def complement(B, K):
    return 1 - sum((-1) ** k * math.comb(K, k) * (1 - k / K) ** B for k in range(K + 1))


def stratified(shuffle=True, each=None, many=None):
    def batches(weathers, batch_size):
        strata = [[i for i, kind in enumerate(weathers) if kind == wanted] for wanted in sorted(set(weathers))]
        if shuffle:
            strata = [[found[k] for k in torch.randperm(len(found)).tolist()] for found in strata]
        some = each or batch_size // len(strata)
        most = many or min(map(len, strata)) // some
        return [[i for found in strata for i in (found * 9)[k * some : (k + 1) * some]] for k in range(most)]

    return batches


def l1(a, b, dim=None):
    return (a - b).abs().mean(dim=dim)


IMAGE = (1, 2, 3)


def one_shuffled(weathers, size):
    strata = [[i for i, weather in enumerate(weathers) if weather == kind] for kind in sorted(set(weathers))]
    strata[-1] = [strata[-1][i] for i in torch.randperm(len(strata[-1]))]
    each = size // len(strata)
    return [
        [i for found in strata for i in found[k * each : (k + 1) * each]] for k in range(min(map(len, strata)) // each)
    ]


TURNS = cycle((1, -1))
SLIPS = {
    "mean of the parts' means": (
        check.pfe,
        lambda s, ts, p, ps: torch.stack(
            [l1(p(mine), own(its)) for mine, own, its in zip(s.split([len(t) for t in ts]), ps, ts, strict=True)]
        ).mean(),
        "mean of the teachers' means",
    ),
    "squared": (
        check.pfe,
        lambda s, ts, p, ps: (p(s) - torch.cat([own(t) for own, t in zip(ps, ts, strict=True)])).square().mean(),
        "you squared",
    ),
    "summed": (
        check.pfe,
        lambda s, ts, p, ps: (p(s) - torch.cat([own(t) for own, t in zip(ps, ts, strict=True)])).abs().sum(),
        "this is a sum",
    ),
    "one projector": (check.pfe, lambda s, ts, p, ps: l1(p(s), p(torch.cat(ts))), "each has its own"),
    "no projector": (check.pfe, lambda s, ts, p, ps: l1(s, torch.cat(ts)), "compared the maps themselves"),
    "one is missing": (check.all_present, complement, "probability that one is missing"),
    "one is there": (check.all_present, lambda B, K: 1 - (1 - 1 / K) ** B, "one certain weather"),
    "independent": (check.all_present, lambda B, K: (1 - (1 - 1 / K) ** B) ** K, "as if the weathers came"),
    "subtracted twice": (check.all_present, lambda B, K: 1 - K * (1 - 1 / K) ** B, "subtracted twice"),
    "three alone": (
        check.all_present, lambda B, K: 1 - 3 * (2 / 3) ** B + 3 * (1 / 3) ** B, "for a batch of 8 and 4 weathers"
    ),
    "two terms": (
        check.all_present,
        lambda B, K: 1 - K * (1 - 1 / K) ** B + math.comb(K, 2) * (1 - 2 / K) ** B,
        "lack three weathers were added back too often",
    ),
    "no eps": (check.soft_contrast, lambda a, p, n, eps: l1(a, p) / l1(a, n), "eps is missing"),
    "upside down": (check.soft_contrast, lambda a, p, n, eps: l1(a, n) / (l1(a, p) + eps), "upside down"),
    "each image's ratio": (
        check.soft_contrast,
        lambda a, p, n, eps: (l1(a, p, IMAGE) / (l1(a, n, IMAGE) + eps)).mean(),
        "mean of each image's ratio",
    ),
    "positive below": (check.soft_contrast, lambda a, p, n, eps: l1(a, p) / (l1(p, n) + eps), "nothing can be learnt"),
    "squares": (check.soft_contrast, lambda a, p, n, eps: F.mse_loss(a, p) / (F.mse_loss(a, n) + eps), "you squared"),
    "difference": (check.soft_contrast, lambda a, p, n, eps: l1(a, p) - l1(a, n), "wanted: a ratio"),
    "three terms": (
        check.all_present,
        lambda B, K: sum((-1) ** k * math.comb(K, k) * (1 - k / K) ** B for k in range(4)),
        "for a batch of 9 and 6 weathers: ",
    ),
    "no batches": (check.stratified_batches, lambda weathers, size: [], "no batch yet"),
    "too small": (check.stratified_batches, stratified(each=1), "a batch has 3 images"),
    "random": (
        check.stratified_batches, lambda weathers, size: torch.randperm(len(weathers)).split(size), "wanted: 2 of each"
    ),
    "twice": (check.stratified_batches, stratified(many=6), "an image comes twice"),
    "too few": (check.stratified_batches, stratified(many=2), "there are 2 batches"),
    "in order": (check.stratified_batches, stratified(shuffle=False), "all epochs are alike"),
    "only the batches shuffled": (
        check.stratified_batches,
        lambda weathers, size: stratified(shuffle=False)(weathers, size)[:: next(TURNS)],
        "come in every epoch, and others never",
    ),
    "one weather shuffled": (check.stratified_batches, one_shuffled, "weather 0 come in every epoch"),
    "three weathers in order": (
        check.stratified_batches,
        lambda weathers, size: stratified()([0] * 12 + [1] * 8 + [2] * 20, 6),
        "for two weathers, mixed, and batches of 2: ",
    ),
    "beyond the data": (check.stratified_batches, lambda weathers, size: [[99] * 6], "wanted: indices from 0 to 39"),
    "no epoch": (check.stratified_batches, lambda weathers, size: None, "no batch yet"),
    "one eps": (check.soft_contrast, lambda a, p, n, eps: l1(a, p) / (l1(a, n) + 0.05), "at an eps of 0.5"),
    "four answers": (check.two_ratios, lambda n, f: (n.sum() / f.sum(), (n / f).sum() / 4), "for two answers"),
    "raises": (check.stratified_batches, lambda weathers, size: weathers.shuffled(), "raised AttributeError"),
    "exchanged": (check.two_ratios, lambda n, f: ((n / f).mean(), n.mean() / f.mean()), "exchanged"),
    "both upside down": (check.two_ratios, lambda n, f: (f.mean() / n.mean(), 1 / (n / f).mean()), "upside down"),
    "first twice": (check.two_ratios, lambda n, f: (n.mean() / f.mean(), n.mean() / f.mean()), "the first again"),
    "second twice": (check.two_ratios, lambda n, f: ((n / f).mean(), (n / f).mean()), "the second again"),
    "sum": (check.two_ratios, lambda n, f: (n.mean() / f.mean(), (n / f).sum()), "the second is a sum"),
    "one number": (check.two_ratios, lambda n, f: n.mean() / f.mean(), "shape: yours is ()"),
}  # fmt: skip


@pytest.mark.parametrize(("graded", "answer", "hint"), SLIPS.values(), ids=SLIPS)
def test_a_known_slip_gets_its_hint(graded, answer, hint, capsys):
    assert graded(answer) is False
    assert hint in capsys.readouterr().out


def test_right_answers_pass_and_leave_the_random_numbers_alone():
    state = torch.get_rng_state()
    assert check.stratified_batches(stratified())
    assert check.two_ratios(lambda near, far: [near.mean() / far.mean(), (near / far).mean()])
    assert check.soft_contrast(lambda a, p, n, eps: l1(a, p) / (l1(a, n) + eps))
    assert torch.equal(state, torch.get_rng_state())
