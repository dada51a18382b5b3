"""The widget of chapter 02 without a browser: pure functions first, then the thin view; and the checks' hints."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlab.classroom import check
from kdlab.classroom.taps import (
    BOTH,
    CHANNELS,
    CONNECTORS,
    NEIGHBOURS,
    NONE,
    SIZE,
    mean_absolute,
    meet,
    smallest,
    taps_explorer,
)
from kdlab.distill import ConvConnector, Resize, Tap

SMALL, LARGE = (16, 8, 8), (128, 4, 4)


@pytest.mark.parametrize(
    ("connector", "shape", "parameters", "differs"),
    [
        (NONE, (16, 8, 8), 0, ("channels", "size")),
        (CHANNELS, (128, 8, 8), 16 * 128 + 128, ("size",)),
        (NEIGHBOURS, (128, 8, 8), 9 * 16 * 128 + 128, ("size",)),
        (SIZE, (16, 4, 4), 0, ("channels",)),
        (BOTH, (128, 4, 4), 16 * 128 + 128, ()),
    ],
)
def test_a_connector_is_what_the_library_builds(connector, shape, parameters, differs):
    made = meet(SMALL, LARGE, connector)
    assert (made.shape, made.parameters, made.differs) == (shape, parameters, differs)
    built = CONNECTORS[connector](SMALL, LARGE)
    assert built(torch.zeros(2, *SMALL)).shape[1:] == shape


@pytest.mark.parametrize("student", [(16, 8, 8), (16, 4, 4), (128, 8, 8), (128, 4, 4), (8, 1, 1)])
def test_the_smallest_connector_meets_and_no_smaller_one_does(student):
    best = smallest(student, LARGE)
    chosen = meet(student, LARGE, best)
    assert not chosen.differs
    meetings = [meet(student, LARGE, name) for name in CONNECTORS]
    assert chosen.parameters == min(made.parameters for made in meetings if not made.differs)


def test_activity_is_the_mean_absolute_value_over_the_channels():
    maps = torch.tensor([[[1.0, -2.0]], [[-3.0, 0.0]]])
    assert mean_absolute(maps).tolist() == [[2.0, 1.0]]


@pytest.fixture
def panel():
    student = {"features.1": torch.randn(2, 16, 8, 8), "features.2": torch.randn(2, 32, 4, 4)}
    teacher = {"block": torch.randn(2, 64, 8, 8), "last": torch.randn(2, 32, 4, 4)}
    return taps_explorer(torch.randn(2, 3, 32, 32), ["a 3", "a 7"], student, teacher)


def pictures(panel):
    return re.findall(r'src="data:image/png;base64,([^"]+)"', panel.view.value)


def test_the_connector_decides_whether_the_layers_meet(panel):
    assert "do not meet</b>: channels differ. Needed at least: 1x1 convolution, 1,088 parameters" in panel.view.value
    panel.connector.value = NEIGHBOURS
    assert "They meet</b>; enough would be: 1x1 convolution" in panel.view.value
    panel.connector.value = CHANNELS
    assert "They meet</b>." in panel.view.value
    assert "student 16 × 8 × 8 → 1x1 convolution, 1,088 parameters → 64 × 8 × 8; teacher 64 × 8 × 8" in panel.view.value


def test_layers_that_are_alike_need_no_connector(panel):
    panel.student.value, panel.teacher.value = "features.2", "last"
    assert "none, 0 parameters" in panel.view.value
    assert "They meet</b>." in panel.view.value


def test_each_control_changes_its_own_picture(panel):
    image, student, teacher = pictures(panel)
    panel.student.value = "features.2"
    assert [a == b for a, b in zip(pictures(panel), (image, student, teacher), strict=True)] == [True, False, True]
    panel.student.value, panel.teacher.value = "features.1", "last"
    assert [a == b for a, b in zip(pictures(panel), (image, student, teacher), strict=True)] == [True, True, False]
    panel.teacher.value, panel.image.value = "block", 1
    assert not set(pictures(panel)) & {image, student, teacher}
    assert "student, features.1, 16 × 8 × 8" in panel.view.value


def test_a_map_of_one_value_is_drawn_too(panel):
    flat = {"last": torch.zeros(1, 4, 1, 1)}
    assert len(pictures(taps_explorer(torch.zeros(1, 3, 8, 8), ["a 0"], flat, flat))) == 3


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)

    def forward(self, x):
        return self.shared(self.shared(x))


class Thrice(Shared):
    def forward(self, x):
        return self.shared(super().forward(x))


def hooked(keep=lambda output: output.clone(), remove=True, what=lambda inputs, output: output):
    def record(model, layer, images):
        records = []
        handle = layer.register_forward_hook(lambda module, inputs, output: records.append(keep(what(inputs, output))))
        model(images)
        if remove:
            handle.remove()
        return records[0]

    return record


def second(tap):
    return check.second_call(tap, Shared(), torch.ones(2, 4))


def counted(weights, rest):
    return lambda: check.connector_parameters(lambda a, b, k, norm: weights(a, b, k) + rest(a, b, norm))


def shrunk(answer):
    return lambda: check.shrunk(answer)


SIDES = {"resize": Resize(4), "norm": nn.BatchNorm2d(8), "frozen": ConvConnector(8, 8).requires_grad_(False)}
SLIPS = {
    "no copy": (lambda: check.recorded(hooked(keep=lambda output: output)), "works in place. Record a copy"),
    "hook left": (lambda: check.recorded(hooked(remove=False)), "still there"),
    "the input": (lambda: check.recorded(hooked(what=lambda inputs, output: inputs[0])), "shape: yours is"),
    "1x1 kernel": (counted(lambda a, b, k: a * b, lambda a, b, norm: 2 * b if norm else b), "nine weights"),
    "k once": (counted(lambda a, b, k: a * b * k, lambda a, b, norm: 2 * b if norm else b), "kernel is square"),
    "weights alone": (counted(lambda a, b, k: a * b * k * k, lambda a, b, norm: 0), "what else is learnt"),
    "a bias for each input": (counted(lambda a, b, k: a * b * k * k, lambda a, b, norm: a), "comes out"),
    "no scale": (counted(lambda a, b, k: a * b * k * k, lambda a, b, norm: b), "norm=True: with BatchNorm there is no"),
    "bias and norm": (
        counted(lambda a, b, k: a * b * k * k, lambda a, b, norm: 3 * b if norm else b), "the shift would undo it"
    ),
    "the first convolution's kernel": (
        counted(lambda a, b, k: a * b * 9, lambda a, b, norm: 2 * b if norm else b), "with a 1x1 kernel: "
    ),
    "an input": (lambda: check.second_call(Tap("shared", "input", call=2), Thrice(), torch.ones(2, 4)), "is given"),
    "first call": (lambda: second(Tap("shared", call=0)), "counted from 0"),
    "call not said": (lambda: second(Tap("shared")), "was called 2 times"),
    "unknown layer": (lambda: second(Tap("share", call=1)), "kdlab says: unknown layer"),
    "a name": (lambda: second("shared"), "you gave a str"),
    "bilinear": (shrunk(lambda m, size: F.interpolate(m, size, mode="bilinear")), "four nearest"),
    "another size": (shrunk(lambda m, size: F.avg_pool2d(m, 4)), "for size 4"),
    "square": (shrunk(lambda m, size: F.avg_pool2d(m, m.shape[2] // size)), "for maps of 8 x 16"),
    "strided": (shrunk(lambda m, size: m[:, :, :: m.shape[2] // size, :: m.shape[3] // size]), "every fourth"),
    "largest": (shrunk(F.adaptive_max_pool2d), "largest of each area"),
    "sum": (shrunk(lambda m, size: 16 * F.adaptive_avg_pool2d(m, size)), "summed each area"),
    "missed one": (lambda: check.dangerous(set(), SIDES), "'norm' can learn, its 'weight'"),
    "safe one named": (lambda: check.dangerous({"norm", "frozen"}, SIDES), "'frozen' has nothing that learns"),
    "no such name": (lambda: check.dangerous({"conv"}, SIDES), "a set of names among resize, norm, frozen"),
    "names in lists": (lambda: check.dangerous([["norm"]], SIDES), "a set of names among resize, norm, frozen"),
    "no set": (lambda: check.dangerous("norm", SIDES), "a set of names"),
}  # fmt: skip


@pytest.mark.parametrize(("graded", "hint"), SLIPS.values(), ids=SLIPS)
def test_a_known_slip_gets_its_hint(graded, hint, capsys):
    assert graded() is False
    assert hint in capsys.readouterr().out


def test_right_answers_pass_and_leave_the_random_numbers_alone():
    state = torch.get_rng_state()
    assert check.recorded(hooked())
    assert torch.equal(state, torch.get_rng_state())
    assert second(Tap("shared", call=1))
    assert check.dangerous({"norm"}, SIDES)
