"""Chapter 06 without a browser: the keep explorer, pure functions first, and the checks' hints."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_iou

from kdlab import InputError
from kdlab.classroom import check
from kdlab.classroom.pruning import between, keep_explorer, look
from kdlab.pruning import plan_pruning

MEASURED = {"fine-tuned": {0.4: 0.2, 0.8: 0.4}, "as cut": {0.4: 0.0, 0.8: 0.1}}


class Blocks(nn.Module):
    """Convolutions named as a YOLO detector's are."""

    def __init__(self):
        super().__init__()
        layers = [self.block(3, 16), self.block(16, 32), nn.Conv2d(32, 4, 1)]
        self.model = nn.Sequential(*layers[:2], nn.Sequential(layers[2]))

    def block(self, before, after):
        norm = nn.BatchNorm2d(after)
        nn.init.uniform_(norm.weight)
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), norm, nn.SiLU())

    def forward(self, image):
        return self.model(image)


@pytest.fixture
def plans():
    torch.manual_seed(0)
    model, example = Blocks(), torch.rand(1, 3, 16, 16)
    return {keep: plan_pruning(model, example, keep=keep, at_least=2) for keep in (0.25, 0.5, 0.75, 1.0)}


def test_between_two_points_is_a_straight_line_and_beyond_them_nothing():
    points = {0.8: 0.4, 0.4: 0.2}
    assert between(points, 0.6) == pytest.approx(0.3)
    assert between(points, 0.5) == pytest.approx(0.25)
    assert [between(points, keep) for keep in points] == [0.4, 0.2]
    assert between(points, 0.3) is None
    assert between(points, 0.9) is None
    assert between({}, 0.5) is None


def test_a_plan_is_summed_by_block(plans):
    kept = look(0.5, plans[0.5], MEASURED)
    assert list(kept.channels) == ["0", "1", "2"]
    assert [before for before, _ in kept.channels.values()] == [16, 32, 4]
    assert sum(after for _, after in kept.channels.values()) == 24 + 4  # half of 48, and the outputs
    assert kept.parameters == plans[0.5].parameters
    assert kept.gflops == pytest.approx([2e-9 * macs for macs in plans[0.5].macs])
    assert kept.promised == pytest.approx({"fine-tuned": 0.25, "as cut": 0.025})
    assert look(1.0, plans[1.0], MEASURED).promised == {"fine-tuned": None, "as cut": None}


class TestExplorer:
    @pytest.fixture
    def panel(self, plans):
        return keep_explorer(plans, MEASURED)

    def test_it_begins_with_all_that_there_is(self, panel, plans):
        total = plans[1.0].parameters.before
        assert panel.keep.value == 1.0
        assert f"keep 1.00: {total:,} of {total:,} parameters (100%)" in panel.view.value
        assert "fine-tuned beyond what was measured" in panel.view.value

    def test_keeping_less_costs_less_and_promises_what_lies_between_the_points(self, panel, plans):
        shares = []
        for keep in (1.0, 0.75, 0.5, 0.25):
            panel.keep.value = keep
            assert f"{plans[keep].parameters.after:,} of" in panel.view.value
            shares += [tuple(map(int, re.findall(r"\((\d+)%\)", panel.view.value)))]
        assert shares == sorted(shares, reverse=True)
        assert len(set(shares)) == 4
        panel.keep.value = 0.5
        assert "fine-tuned 0.250, as cut 0.025" in panel.view.value

    def test_it_draws_the_channels_of_each_block_and_the_measured_points(self, panel):
        panel.keep.value = 0.5
        bars, lines = re.findall(r"<svg.*?</svg>", panel.view.value)
        assert bars.count("<title>") == 2 * 3
        assert lines.count("<circle") == 2 * 2 + 2
        panel.keep.value = 1.0
        assert panel.view.value.count("<circle") == 2 * 2

    def test_between_two_plans_it_shows_the_nearest(self, panel):
        panel.keep.value = 0.55
        assert "keep 0.50:" in panel.view.value

    def test_detectors_that_find_nothing_are_drawn(self, plans):
        panel = keep_explorer(plans, {"as cut": {0.4: 0.0, 0.8: 0.0}})
        panel.keep.value = 0.5
        assert "as cut 0.000" in panel.view.value

    def test_one_plan_is_nothing_to_drag(self, plans):
        with pytest.raises(InputError, match="got 1 plans; wanted: at least two"):
            keep_explorer({0.5: plans[0.5]}, MEASURED)


# --- exercises -------------------------------------------------------------------------------------------------------


def pull(answer):
    return lambda: check.sparse_gradient(answer)


def counts(answer):
    return lambda: check.kept_channels(answer)


def size(answer):
    return lambda: check.c2f_parameters(answer)


def constant(answer):
    return lambda: check.folded_constant(answer)


def one_clamped(a, b, side):
    sides = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    sides[..., side].clamp_(min=0)
    return sides.prod(dim=2) / (sum(areas(a, b)) - sides.prod(dim=2))


def iou(answer):
    return lambda: check.box_iou(answer)


def ap(answer):
    return lambda: check.average_precision(answer)


def clip(g, most):
    return g * min(1.0, most / g.norm().item())


def by_threshold(gammas, keep, least=0, sizes=torch.abs):
    every = torch.cat([sizes(layer) for layer in gammas]).sort(descending=True).values
    threshold = every[int(keep * len(every)) - 1]
    return [max(least, int((sizes(layer) >= threshold).sum())) for layer in gammas]


def quantile(gammas, share):
    return torch.cat(gammas).abs().quantile(share)


def c2f(c1, c2, n, *, norm=2, inside=2, kernel=9, reads=None):
    c = c2 // 2
    convolutions = 2 * c * c1 + n * inside * kernel * c * c + c2 * (2 + n if reads is None else reads) * c
    return convolutions + norm * (2 * c + n * inside * c + c2)


def summed(w, b, gone, value=F.silu):
    return w.sum(dim=(2, 3))[:, gone] @ value(b[gone])


def corners(a, b, more=0.0, clamp=True):
    sides = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2]) + more
    return (sides.clamp(min=0) if clamp else sides).prod(dim=2)


def areas(a, b, more=0.0):
    (first, second) = ((boxes[:, 2:] - boxes[:, :2] + more).prod(dim=1) for boxes in (a, b))
    return first[:, None], second


def over(a, b, clamp=True, more=0.0):
    both = corners(a, b, more, clamp)
    return both / (sum(areas(a, b, more)) - both)


def curve(hits, objects, envelope=True, divide=None):
    right = hits.double()
    precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
    if envelope:
        precision = precision.flip(0).cummax(0).values.flip(0)
    return (precision * right).sum() / (divide or objects)


SLIPS = {
    "no penalty": (pull(lambda g, y, s, m: clip(g, m)), "penalty is missing"),
    "no clip": (pull(lambda g, y, s, m: g + s * y.sign()), "not clipped yet"),
    "clip last": (pull(lambda g, y, s, m: clip(g + s * y.sign(), m)), "clipped after adding"),
    "squared": (pull(lambda g, y, s, m: clip(g, m) + s * y), "squared penalty"),
    "size": (pull(lambda g, y, s, m: clip(g, m) + s * y.abs()), "penalty itself"),
    "always down": (pull(lambda g, y, s, m: clip(g, m) + s), "pushed away from 0"),
    "upwards": (pull(lambda g, y, s, m: clip(g, m) - s * y.sign()), "sign: an optimiser"),
    "clamped": (pull(lambda g, y, s, m: g.clamp(-m, m) + s * y.sign()), "each number by itself"),
    "always clipped": (pull(lambda g, y, s, m: g * m / g.norm() + s * y.sign()), "short enough must stay"),
    "one norm": (pull(lambda g, y, s, m: (g if m > 50 else clip(g, 2.0)) + s * y.sign()), "norm of 5"),
    "over its own size": (pull(lambda g, y, s, m: clip(g, m) + s * y / y.abs()), "where a gamma is 0 already: "),
    "up or down": (pull(lambda g, y, s, m: clip(g, m) + s * (2.0 * (y > 0) - 1)), "where a gamma is 0 already: "),
    "emptied": (counts(lambda y, k, least: by_threshold(y, k)), "fewer channels than at_least"),
    "those that go": (
        counts(lambda y, k, least: [len(a) - b for a, b in zip(y, by_threshold(y, k), strict=True)]), "that go",
    ),
    "per layer": (counts(lambda y, k, least: [round(k * len(a)) for a in y]), "one threshold for all"),
    "signed": (counts(lambda y, k, least: by_threshold(y, k, least, torch.relu)), "counts by its size"),
    "relative": (
        counts(lambda y, k, least: by_threshold([a / a.abs().max() for a in y], k, least)), "largest of its layer",
    ),
    "half by chance": (counts(lambda y, k, least: by_threshold(y, 0.5, least)), "not for 0.9"),
    "rounded": (counts(lambda y, k, least: by_threshold(y, round(k * 40) / 40, least)), "25.6, of which 25 stay"),
    "by a quantile": (
        counts(lambda y, k, least: [max(least, int((a.abs() >= quantile(y, 1 - k)).sum())) for a in y]),
        "9.6, of which 9 stay",
    ),
    "at least two": (counts(lambda y, k, least: by_threshold(y, k, 2)), "not for 4"),
    "fractions": (counts(lambda y, k, least: [n + 0.5 for n in by_threshold(y, k, least)]), "value: number 1 of"),
    "no count": (counts(lambda y, k, least: [None] * len(y)), "raised TypeError"),
    "no norm": (size(lambda *of: c2f(*of, norm=0)), "BatchNorm is missing"),
    "bias": (size(lambda *of: c2f(*of, norm=1)), "bias would be one number"),
    "running": (size(lambda *of: c2f(*of, norm=4)), "not learnt"),
    "halves alone": (size(lambda *of: c2f(*of, reads=2)), "(2 + n) c"),
    "last half": (size(lambda *of: c2f(*of, reads=1 + of[2])), "(2 + n) c"),
    "one bottleneck": (size(lambda c1, c2, n: c2f(c1, c2, 1)), "for C2f(48, 32, n=2): "),
    "one inside": (size(lambda *of: c2f(*of, inside=1)), "two convolutions"),
    "pointwise": (size(lambda *of: c2f(*of, kernel=1)), "are 3x3"),
    "taken off": (constant(lambda w, b, gone: -summed(w, b, gone)), "sign"),
    "no activation": (constant(lambda w, b, gone: summed(w, b, gone, lambda x: x)), "SiLU(β)"),
    "centre": (constant(lambda w, b, gone: w[:, gone, 1, 1] @ F.silu(b[gone])), "nine times"),
    "mean": (constant(lambda w, b, gone: summed(w, b, gone) / 9), "this is its mean"),
    "nine places": (constant(lambda w, b, gone: 9 * w[:, gone].mean(dim=(2, 3)) @ F.silu(b[gone])), "for a 1x1 kernel"),
    "stays": (constant(lambda w, b, gone: summed(w, b, [0, 3, 4])), "channels that stay"),
    "all": (constant(lambda w, b, gone: summed(w, b, list(range(6)))), "all channels"),
    "sigmoid": (constant(lambda w, b, gone: summed(w, b, gone, torch.sigmoid)), "times its sigmoid"),
    "relu": (constant(lambda w, b, gone: summed(w, b, gone, torch.relu)), "not ReLU"),
    "turned": (iou(lambda a, b: box_iou(b, a)), "shape"),
    "intersection": (iou(corners), "divide by the union"),
    "twice": (iou(lambda a, b: corners(a, b) / sum(areas(a, b))), "counted twice"),
    "dice": (iou(lambda a, b: 2 * corners(a, b) / sum(areas(a, b))), "Dice"),
    "not clamped": (iou(lambda a, b: over(a, b, clamp=False)), "neither fall below 0"),
    "width alone clamped": (iou(lambda a, b: one_clamped(a, b, 0)), "from top to bottom"),
    "height alone clamped": (iou(lambda a, b: one_clamped(a, b, 1)), "from left to right"),
    "smaller": (iou(lambda a, b: corners(a, b) / torch.minimum(*areas(a, b))), "smaller box"),
    "with 1": (iou(lambda a, b: over(a, b, more=1.0)), "without the 1"),
    "saw": (ap(lambda h, n: curve(h, n, envelope=False)), "running maximum"),
    "found alone": (ap(lambda h, n: curve(h, n, divide=int(h.sum()))), "found or not"),
    "mean precision": (ap(lambda h, n: (h.double().cumsum(0) / torch.arange(1, len(h) + 1)).mean()), "add no area"),
    "last precision": (ap(lambda h, n: h.double().mean()), "precision at the end"),
    "mean over the hits": (ap(lambda h, n: curve(h, h.sum()) * h.sum() / n), "[0, 0] of 2 objects: your answer is not"),
    "recall": (ap(lambda h, n: h.double().sum() / n), "recall at the end"),
}  # fmt: skip


@pytest.mark.parametrize(("graded", "hint"), SLIPS.values(), ids=SLIPS)
def test_a_known_slip_gets_its_hint(graded, hint, capsys):
    assert graded() is False
    assert hint in capsys.readouterr().out


def test_right_answers_pass():
    assert pull(lambda g, y, s, m: clip(g, m) + s * y.sign())()
    assert counts(by_threshold)()
    assert counts(lambda *of: torch.tensor(by_threshold(*of)))()
    assert size(c2f)()
    assert constant(summed)()
    assert iou(box_iou)()
    assert ap(curve)()
