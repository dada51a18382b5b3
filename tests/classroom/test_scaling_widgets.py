"""Chapter 11 without a browser: the measures, the cost model and its widget, pure functions first, and the hints."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlab.classroom import check, scaling
from kdlab.classroom.scaling import (
    LongRun,
    Step,
    break_even,
    finish,
    hours_explorer,
    hours_table,
    in_turns,
    in_words,
    kept_for_backward,
    pieces_that_fit,
)
from kdlab.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


class TestMeasures:
    def test_runs_take_turns_and_the_median_leaves_the_first_round_out(self, monkeypatch):
        now, called = 0.0, []
        monkeypatch.setattr(scaling, "perf_counter", lambda: now)
        taken = {"a": iter([90.0, 1.0, 7.0, 2.0]), "b": iter([0.0, 3.0, 3.0, 80.0])}

        def run(name):
            nonlocal now
            called.append(name)
            now += next(taken[name])

        seconds = in_turns({name: lambda name=name: run(name) for name in taken}, CPU, repeats=3)
        assert "".join(called) == "abababab"
        assert seconds == {"a": 2.0, "b": 3.0}

    def test_the_clock_is_read_when_the_device_has_finished(self, monkeypatch):
        seen = []
        monkeypatch.setattr(scaling, "finish", lambda device: seen.append("finished"))
        monkeypatch.setattr(scaling, "perf_counter", lambda: seen.append("looked") or 0.0)
        in_turns({"one": lambda: seen.append("ran")}, CPU, repeats=1)
        assert seen == ["finished", "looked", "ran", "finished", "looked"] * 2

    def test_without_repeats_there_is_no_median(self):
        with pytest.raises(InputError, match="repeats is 0; wanted: at least 1"):
            in_turns({"nothing": lambda: None}, CPU, repeats=0)

    def test_every_device_can_be_waited_for(self):
        finish(CPU)
        if torch.cuda.is_available():
            finish(torch.device("cuda"))

    def test_what_is_kept_is_counted_once_and_without_weights(self):
        x = torch.randn(8, 16, requires_grad=True)
        nothing = nn.Identity()
        assert kept_for_backward(lambda: x + 1, nothing) == 0  # its gradient needs no number of it
        assert kept_for_backward(lambda: x.exp(), nothing) == 4 * 8 * 16  # the result
        assert kept_for_backward(lambda: x * x, nothing) == 4 * 8 * 16  # both factors are one
        layer = nn.Linear(16, 4)
        images = torch.randn(8, 16)
        assert kept_for_backward(lambda: layer(images), layer) == 4 * 8 * 16  # the input, not the weights
        with torch.no_grad():
            assert kept_for_backward(lambda: layer(images), layer) == 0

    def test_what_is_kept_grows_with_the_batch(self):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh())
        small, large = (kept_for_backward(lambda n=n: network(torch.zeros(n, 3, 8, 8)), network) for n in (2, 6))
        assert large == 3 * small > 0


class TestDecisions:
    @pytest.mark.parametrize(("start", "before", "after"), [(30.0, 0.5, 0.2), (1.0, 3.0, 2.9), (7.0, 0.75, 0.25)])
    def test_break_even_is_the_first_step_at_which_the_start_is_paid(self, start, before, after):
        steps = break_even(start, before, after)
        assert start + steps * after <= steps * before + 1e-9
        assert start + (steps - 1) * after > (steps - 1) * before

    def test_nothing_to_pay_is_paid_at_once_and_no_gain_never(self):
        assert break_even(0.0, 2.0, 1.0) == 0
        assert break_even(1.0, 1.0, 1.0) == break_even(1.0, 1.0, 2.0) == math.inf

    @pytest.mark.parametrize(("batch_size", "limit"), [(64, 6.0), (64, 5.0), (48, 9.0), (60, 3.3), (7, 2.5)])
    def test_the_pieces_fit_and_fewer_equal_ones_do_not(self, batch_size, limit):
        fixed, each = 2.0, 0.25
        pieces = pieces_that_fit(batch_size, fixed, each, limit)
        equal = [k for k in range(1, batch_size + 1) if batch_size % k == 0]
        assert pieces == min(k for k in equal if fixed + each * (batch_size // k) <= limit)

    def test_not_even_one_image_is_said(self):
        with pytest.raises(InputError, match="one image needs 2.25, and the limit is 2"):
            pieces_that_fit(8, 2.0, 0.25, 2.0)


class TestStep:
    def test_one_process_sends_nothing(self):
        step = Step(compute=0.4, serial=0.1, gradient_bytes=1e9)
        assert step.seconds(1, link=1.0) == step.seconds() == 0.5
        assert step.speed_up(1, link=1.0) == 1

    def test_without_serial_part_and_with_a_free_link_it_is_linear(self):
        assert [Step(0.4).speed_up(n) for n in (1, 2, 8)] == pytest.approx([1, 2, 8])

    def test_a_free_link_leaves_amdahls_law(self):
        step = Step(compute=0.9, serial=0.1)
        assert [step.speed_up(n) for n in (2, 16)] == pytest.approx([1 / (0.1 + 0.9 / n) for n in (2, 16)])

    def test_two_are_faster_than_one_if_half_the_computing_is_more_than_the_gradient_takes(self):
        assert Step(0.4, 0.1, gradient_bytes=0.19e9).speed_up(2, 1e9) > 1
        assert Step(0.4, 0.1, gradient_bytes=0.21e9).speed_up(2, 1e9) < 1

    def test_the_ring_sends_what_a_ring_sends(self):
        """Rounds in which each process hands an n-th on: n - 1 to add up, n - 1 to tell."""
        n, size, link = 5, 100.0, 10.0
        assert Step(1.0, gradient_bytes=size).communication(n, link) == pytest.approx(2 * (n - 1) * (size / n) / link)

    def test_the_limit_is_that_of_the_chapter(self):
        step = Step(0.4, 0.02, 1e8)
        assert step.speed_up(10**7, 1e9) == pytest.approx((0.02 + 0.4) / (0.02 + 2 * 1e8 / 1e9), rel=1e-4)


RUNS = {
    "many parameters": LongRun(steps=1000, batch_size=32, flops=1e9, parameters=10**8),
    "few": LongRun(steps=500, batch_size=64, flops=2e9, parameters=10**5),
}


class TestHours:
    def test_alone_the_hours_are_work_over_rate(self):
        table = hours_table(RUNS, rate=1e12)
        for row, run in zip(table.to_dict("records"), RUNS.values(), strict=True):
            assert row["PFLOP"] == pytest.approx(run.steps * run.batch_size * run.flops / 1e15)
            assert row["computing, h"] == row["together, h"] == pytest.approx(run.work / 1e12 / 3600)
            assert (row["comparing gradients, h"], row["speed-up"]) == (0, 1)

    def test_together_they_are_the_seconds_of_all_steps(self):
        table = hours_table(RUNS, rate=1e12, processes=4, link=1e9)
        for row, run in zip(table.to_dict("records"), RUNS.values(), strict=True):
            seconds = run.steps * run.step(1e12).seconds(4, 1e9)
            assert row["together, h"] == pytest.approx(seconds / 3600)
            assert row["computing, h"] + row["comparing gradients, h"] == pytest.approx(row["together, h"])
            assert row["speed-up"] == pytest.approx(run.work / 1e12 / seconds)

    def test_few_flops_for_its_parameters_is_far_from_linear(self):
        many, few = hours_table(RUNS, 1e12, processes=8, link=1e9)["speed-up"]
        assert many < 1 < 7 < few < 8

    @pytest.mark.parametrize(
        ("hours", "words"),
        [(0.25, "15.0 minutes"), (1.4, "84.0 minutes"), (2, "2.0 hours"), (48, "2.0 days"), (24 * 730, "2.0 years")],
    )
    def test_a_duration_has_the_unit_that_suits_it(self, hours, words):
        assert in_words(hours) == words


class TestExplorer:
    @pytest.fixture
    def panel(self):
        return hours_explorer(RUNS, rate=2e12)

    def test_it_begins_at_the_given_rate_and_shows_the_table(self, panel):
        assert panel.rate.value == pytest.approx(2)
        self.shows(panel, hours_table(RUNS, 2e12, 1, 1.25e9))

    def test_a_step_of_each_slider_ends_where_it_begins(self, panel):
        for control in (panel.rate, panel.link):
            steps = (math.log10(control.value) - control.min) / control.step
            assert steps == pytest.approx(round(steps), abs=1e-6)

    def test_every_slider_changes_the_table(self, panel):
        panel.rate.value, panel.processes.value, panel.link.value = 10.0, 8, 0.1
        assert "10 TFLOP/s, 8 processes, 0.1 GB/s" in panel.view.value
        self.shows(panel, hours_table(RUNS, 1e13, 8, 1e8))

    def test_the_lines_begin_at_one_and_the_linear_one_is_straight(self, panel):
        lines = [
            [tuple(map(float, point.split(","))) for point in points.split()]
            for points in re.findall(r'<polyline points="([^"]+)"', panel.view.value)
        ]
        assert len(lines) == 1 + len(RUNS)
        assert len({line[0] for line in lines}) == 1
        slopes = [(y - y0) / (x - x0) for (x0, y0), (x, y) in zip(lines[0], lines[0][1:], strict=False)]
        assert slopes == pytest.approx([slopes[0]] * len(slopes), rel=0.1)
        assert all(y >= linear - 1e-6 for line in lines for (_, y), (_, linear) in zip(line, lines[0], strict=True))

    def test_a_rate_beyond_the_slider_is_cut_there(self):
        assert hours_explorer(RUNS, rate=1.0).rate.value == pytest.approx(1e-3)

    def shows(self, panel, table):
        for row in table.itertuples(index=False):
            numbers = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in row[1:]]
            cells = "".join(rf"\s*<td>{re.escape(number)}</td>" for number in numbers)
            assert re.search(rf"<td>{row[0]}</td>{cells}", panel.view.value)
            assert f"{row[0]} {in_words(row[4])}" in panel.view.value


class TestArithmetic:
    """What the chapter derives by hand."""

    def test_the_mean_of_the_pieces_gradients_is_the_wholes(self):
        torch.manual_seed(0)
        layer, images, labels = nn.Linear(6, 3), torch.randn(12, 6), torch.arange(12) % 3
        F.cross_entropy(layer(images), labels).backward()
        whole = layer.weight.grad.clone()
        layer.zero_grad()
        for some, their in zip(images.chunk(4), labels.chunk(4), strict=True):
            (F.cross_entropy(layer(some), their) / 4).backward()
        torch.testing.assert_close(layer.weight.grad, whole)


# --- exercises -------------------------------------------------------------------------------------------------------


def paid(answer):
    return lambda: check.break_even(answer)


def divided(answer):
    return lambda: check.pieces(answer)


def faster(answer):
    return lambda: check.speed_up(answer)


def never(start, before, after):
    return math.inf if after >= before else math.ceil(start / (before - after))


def sent(n, size, link):
    return 2 * (n - 1) / n * size / link


SLIPS = {
    "not rounded": (paid(lambda s, b, a: s / (b - a)), "round up"),
    "rounded down": (paid(lambda s, b, a: s // (b - a)), "one step too early"),
    "one too many": (paid(lambda s, b, a: s // (b - a) + 1), "one step too late"),
    "start over before": (paid(lambda s, b, a: s / b), "not free"),
    "start over after": (paid(lambda s, b, a: s / a), "what a step gains"),
    "exchanged": (paid(lambda s, b, a: s / (a - b)), "exchanged"),
    "times": (paid(lambda s, b, a: s * (b - a)), "divide"),
    "ratio": (paid(lambda s, b, a: s / (b / a)), "not their ratio"),
    "never is negative": (paid(lambda s, b, a: math.ceil(s / (b - a)) if b != a else 0), "never pays: wanted math.inf"),
    "paid where nothing is gained": (
        paid(lambda s, b, a: math.inf if a > b else math.ceil(s / max(b - a, 1e-9))),
        "0.5 s after 0.5 s never pays",
    ),
    "never is an error": (paid(lambda s, b, a: math.ceil(s / (b - a))), "never pays"),
    "one piece": (divided(lambda b, f, e, m: 1), "does not fit"),
    "single images": (divided(lambda b, f, e, m: b), "larger pieces are faster"),
    "images of a piece": (divided(lambda b, f, e, m: b // 4), "how many images a piece has"),
    "no divisor": (divided(lambda b, f, e, m: math.ceil(b * e / (m - f))), "must divide the batch"),
    "no weights": (divided(lambda b, f, e, m: pieces_that_fit(b, 0, e, m)), "what is there beside the images"),
    "a fraction": (divided(lambda b, f, e, m: b * e / (m - f)), "must divide|whole"),
    "linear": (faster(lambda n, s, c, g, link: float(n)), "linear"),
    "no link": (faster(lambda n, s, c, g, link: (s + c) / (s + c / n)), "the gradient's bytes"),
    "no serial part": (faster(lambda n, s, c, g, link: c / (c / n + sent(n, g, link))), "in every process"),
    "sent once": (faster(lambda n, s, c, g, link: (s + c) / (s + c / n + g / link)), "in a ring"),
    "half a ring": (faster(lambda n, s, c, g, link: (s + c) / (s + c / n + sent(n, g, link) / 2)), "round twice"),
    "no parts": (faster(lambda n, s, c, g, link: (s + c) / (s + c / n + n * sent(n, g, link))), "pieces of an n-th"),
    "seconds": (faster(lambda n, s, c, g, link: s + c / n + sent(n, g, link)), "seconds of a step"),
    "upside down": (faster(lambda n, s, c, g, link: (s + c / n + sent(n, g, link)) / (s + c)), "upside down"),
    "all shared": (faster(lambda n, s, c, g, link: (s + c) / ((s + c) / n + sent(n, g, link))), "not divided by n"),
}


@pytest.mark.parametrize(("graded", "hint"), SLIPS.values(), ids=SLIPS)
def test_a_known_slip_gets_its_hint(graded, hint, capsys):
    assert graded() is False
    assert re.search(hint, capsys.readouterr().out)


def test_an_answer_that_fails_where_nothing_is_gained_is_told_so(capsys):
    assert check.break_even(lambda s, b, a: math.ceil(s / (b - a)) if b > a else 1 / 0) is False
    assert "raised ZeroDivisionError" in capsys.readouterr().out


def test_right_answers_pass():
    assert paid(never)()
    assert paid(break_even)()
    assert divided(pieces_that_fit)()
    assert faster(lambda n, s, c, g, link: (s + c) / (s + c / n + sent(n, g, link)))()
