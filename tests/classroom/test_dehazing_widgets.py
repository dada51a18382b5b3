"""Chapter 10 without a browser: the dark channel, haze and the widgets, pure functions first, and the checks' hints."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shown import pictures
from torch import nn

from kdlab.classroom import check
from kdlab.classroom.check.dehazing import _OneSided
from kdlab.classroom.dehazing import (
    CELL,
    LEAST,
    OMEGA,
    WINDOW,
    Haze,
    at_pixel,
    attention_explorer,
    attention_maps,
    by_dark_channel,
    dark_channel,
    ensemble_viewer,
    guided,
    haze_maker,
    restored_in_each_position,
)
from kdlab.classroom.weather import as_pixels, psnr
from kdlab.data.weather import add_haze, smooth_noise
from kdlab.models import SRKTDN
from kdlab.recipes.dehazing import NARROW
from kdlab.training import SelfEnsemble

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def photograph():
    return torch.rand(3, 40, 60, generator=seeded())


@pytest.fixture
def depth():
    return torch.linspace(0.1, 1, 40).view(1, 40, 1).expand(1, 40, 60).contiguous()


class TestDarkChannel:
    def test_it_is_the_least_of_all_colours_in_the_window(self, photograph):
        found = dark_channel(photograph)
        half = WINDOW // 2
        for row, column in ((0, 0), (20, 30), (39, 59), (3, 57)):
            window = photograph[:, max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
            assert found[0, row, column] == window.min()

    def test_the_error_of_its_transmission_is_the_formulas_where_the_haze_is_even(self, photograph, depth):
        airlight, haze = 0.8, Haze(beta=1.0, airlight=0.8, relief=0.0)
        t = haze.transmission(depth)
        estimate = 1 - OMEGA * dark_channel(haze.on(photograph, depth) / airlight)
        expected = (1 - OMEGA) * (1 - t) - OMEGA * t * dark_channel(photograph) / airlight
        torch.testing.assert_close(estimate - t, expected, rtol=1e-4, atol=1e-5)

    def test_where_the_prior_holds_haze_goes_away(self, depth):
        """Every window has a black pixel, and the farthest end is nothing but air."""
        clear = torch.rand(3, 40, 60, generator=seeded(1))
        clear[:, ::3, ::3] = 0
        hazy = Haze(beta=1.0, airlight=0.9).on(clear, depth)
        hazy[:, -2:] = 0.9
        made = by_dark_channel(hazy)
        torch.testing.assert_close(made.airlight, torch.full((3, 1, 1), 0.9))
        assert psnr(made.dehazed[:, :30], clear[:, :30]) > psnr(hazy[:, :30], clear[:, :30]) + 5

    def test_the_clear_image_is_the_scattering_models_solved_for_it(self, photograph, depth):
        hazy = Haze(beta=4.0).on(photograph, depth)
        made = by_dark_channel(hazy)
        t = made.transmission.clamp(min=LEAST)
        expected = ((hazy - made.airlight * (1 - t)) / t).clamp(0, 1)
        torch.testing.assert_close(made.dehazed, expected, rtol=1e-4, atol=1e-5)

    def test_the_guided_filter_keeps_what_is_a_line_of_the_guide(self, photograph):
        guide = F.avg_pool2d(photograph[:1], 5, 1, 2)
        torch.testing.assert_close(guided(0.3 + 0 * guide, guide), 0.3 + 0 * guide, atol=1e-4, rtol=0)
        step = (torch.arange(60) >= 30).float().expand(1, 40, 60).contiguous()
        noisy = step + 0.1 * torch.randn(1, 40, 60, generator=seeded(2))
        smoothed = guided(noisy, step)
        assert (smoothed - step).abs().mean() < 0.3 * (noisy - step).abs().mean()
        assert (smoothed[..., 30] - smoothed[..., 29]).mean() > 0.9  # the guide's edge stays


class TestHaze:
    def test_without_patches_it_is_the_librarys(self, photograph, depth):
        made = Haze(beta=1.3, airlight=0.7).on(photograph, depth)
        torch.testing.assert_close(made, add_haze(photograph, depth, 1.3, 0.7), rtol=1e-4, atol=1e-5)

    def test_with_patches_it_is_the_librarys_from_none_to_twice_as_dense(self, photograph, depth):
        patches = 2 * smooth_noise(40, 60, seeded(3))
        made = Haze(beta=1.3, airlight=0.7, patchiness=1.0, seed=3).on(photograph, depth)
        torch.testing.assert_close(made, add_haze(photograph, depth, 1.3, 0.7, patches), rtol=1e-4, atol=1e-5)

    def test_without_relief_all_is_at_the_mean_distance(self, depth):
        t = Haze(beta=2.0, relief=0.0).transmission(depth)
        torch.testing.assert_close(t, (-2 * depth.mean()).exp().expand_as(t))

    def test_patchiness_spreads_what_comes_through(self, depth):
        spreads = [Haze(relief=0.0, patchiness=value).transmission(depth).std() for value in (0.0, 0.5, 1.0)]
        assert spreads[0] < 1e-6 < spreads[1] < spreads[2]


class TestMaker:
    @pytest.fixture
    def panel(self, photograph, depth):
        return haze_maker(photograph, depth)

    def test_the_first_picture_is_the_hazy_photograph_and_the_second_the_priors(self, panel, photograph, depth):
        panel.beta.value, panel.patchiness.value = 2.0, 0.5
        hazy = Haze(beta=2.0, patchiness=0.5).on(photograph, depth)
        shown = pictures(panel.view.value)
        assert len(shown) == 4
        assert np.array_equal(shown[0], as_pixels(hazy).numpy())
        assert np.array_equal(shown[1], as_pixels(by_dark_channel(hazy).dehazed).numpy())
        assert f"hazy: PSNR {psnr(hazy, photograph):.1f} dB" in panel.view.value

    @pytest.mark.parametrize("name", ["beta", "airlight", "relief", "patchiness"])
    def test_every_slider_changes_the_haze(self, panel, name):
        before = pictures(panel.view.value)[0]
        getattr(panel, name).value = 0.6
        assert not np.array_equal(pictures(panel.view.value)[0], before)
        assert f"{name} 0.6" in panel.view.value


class TestEnsemble:
    @pytest.fixture
    def panel(self, photograph):
        each = restored_in_each_position(_OneSided(), photograph)
        return ensemble_viewer({"one": (each, photograph), "two": (each.flip(3), photograph.flip(2))})

    def test_the_eight_answers_are_turned_back_and_their_mean_is_the_ensemble(self, photograph):
        each = restored_in_each_position(_OneSided(), photograph)
        assert each.shape == (8, 3, 40, 60)
        torch.testing.assert_close(each.mean(dim=0), SelfEnsemble(_OneSided())(photograph[None])[0])
        same = restored_in_each_position(nn.Sigmoid(), photograph)
        torch.testing.assert_close(same, photograph.sigmoid().expand(8, -1, -1, -1))

    def test_off_shows_a_position_and_on_the_mean(self, panel, photograph):
        each = restored_in_each_position(_OneSided(), photograph)
        panel.position.value = 3
        assert np.array_equal(pictures(panel.view.value)[0], as_pixels(each[2]).numpy())
        assert not panel.position.disabled
        panel.ensemble.value = "on"
        assert np.array_equal(pictures(panel.view.value)[0], as_pixels(each.mean(dim=0)).numpy())
        assert panel.position.disabled
        assert f"PSNR {psnr(each.mean(dim=0), photograph):.2f} dB" in panel.view.value
        panel.ensemble.value = "off"
        assert not panel.position.disabled

    def test_another_photograph_is_another_picture(self, panel):
        before = pictures(panel.view.value)[0]
        panel.photograph.value = "two"
        assert not np.array_equal(pictures(panel.view.value)[0], before)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SRKTDN(**NARROW).eval()


class TestAttention:
    @torch.no_grad()
    def test_the_maps_are_the_pixel_weights_of_the_three_blocks(self, network, photograph):
        seen = {}
        blocks = {"1/16 of the size": network.middle, "1/8": network.up[0][1], "1/4": network.up[1][1]}
        for name, block in blocks.items():
            gate = block.attention[1]
            gate.register_forward_hook(
                lambda module, given, made, name=name: seen.update({name: (made / given[0]).nanmedian(dim=1).values})
            )
        maps = attention_maps(network, photograph)
        assert {name: tuple(values.shape) for name, values in maps.items()} == {
            "1/16 of the size": (1, 3, 4), "1/8": (1, 6, 8), "1/4": (1, 12, 16),
        }  # fmt: skip
        for name, values in maps.items():
            torch.testing.assert_close(values, seen[name], rtol=1e-3, atol=1e-4)

    def test_a_pixel_is_looked_up_at_its_own_place_in_a_map_of_any_size(self):
        values = torch.arange(12.0).view(1, 3, 4)  # of 40x60 pixels, padded to 48x64
        looked_up = [at_pixel(values, *pixel, 40) for pixel in ((0, 0), (15, 15), (16, 15), (39, 59))]
        assert looked_up == [0, 0, 4, 11]
        finer = torch.arange(48.0).view(1, 6, 8)
        assert at_pixel(finer, 39, 59, 40) == finer[0, 4, 7]

    @pytest.fixture
    def panel(self, network, photograph, depth):
        hazes = {"even": Haze(), "patchy": Haze(patchiness=1.0)}
        hazy = {name: haze.on(photograph, depth) for name, haze in hazes.items()}
        return attention_explorer(network, hazy, {name: haze.transmission(depth) for name, haze in hazes.items()})

    def test_a_click_chooses_a_place(self, panel, network, photograph, depth):
        assert len(panel.cells) == 3 * 4
        panel.cells[4 * 1 + 3].click()
        assert "Row 25, column 57" in panel.view.value
        light = Haze().transmission(depth)[0, 24, 56].item()
        assert f"{light:.0%} of the light comes through" in panel.view.value
        maps = attention_maps(network, Haze().on(photograph, depth))
        for name, values in maps.items():
            assert f"{name}: {at_pixel(values, 24, 56, 40):.3f}" in panel.view.value
        assert [cell.description for cell in panel.cells] == ["×" if place == 7 else " " for place in range(12)]

    def test_a_place_at_the_edge_is_within_the_photograph(self, panel):
        panel.cells[-1].click()
        assert "Row 40, column 57" in panel.view.value

    def test_the_place_stays_when_the_photograph_changes(self, panel):
        panel.cells[0].click()
        before = panel.view.value
        panel.photograph.value = "patchy"
        assert "Row 9, column 9" in panel.view.value
        assert panel.view.value != before

    def test_the_buttons_lie_on_the_picture(self, panel):
        picture, grid = panel.children[1].children
        assert picture.layout.grid_area == grid.layout.grid_area
        assert f'width="{CELL * 60 // 16}"' in picture.value
        assert grid.layout.grid_template_columns == f"repeat(4, {CELL}px)"
        assert panel.cells[5].tooltip == "row 2, column 2"


def darkest(answer):
    return lambda: check.darkest(answer)


def overlaps(answer):
    return lambda: check.overlaps(answer)


def shuffle(answer):
    return lambda: check.shuffled(answer)


def details(answer):
    return lambda: check.detail_loss(answer)


def silent(answer):
    return lambda: check.silenced(answer)


def eight(answer):
    return lambda: check.self_ensembled(answer)


def least(image, window, colour=lambda image: image.amin(dim=0, keepdim=True), more=0):
    return -F.max_pool2d(-colour(image), window + more, stride=1, padding=(window + more) // 2)


def phases(kernel, stride):
    return [len(range(phase, kernel, stride)) for phase in range(stride)]


def by_blocks(x, r, order):
    n, c, h, w = x.shape
    return x.view(n, c // r**2, r, r, h, w).permute(order).reshape(n, c // r**2, h * r, w * r)


def pyramid(x, y, blur, levels, weight=0.25, blurred=True, size=torch.abs):
    left, total = x - y, 0
    for j in range(levels):
        low = blur(left)
        total = total + size(left - low).mean() * weight**j
        left = F.avg_pool2d(low if blurred else left, 2)
    return total


FLIPS = ((), (3,), (2,), (2, 3))


def ensemble(network, x, back=True, transposed=True, mean=lambda answers: answers.mean(dim=0), swap=False):
    answers = []
    for dims in FLIPS:
        turned = x.flip(dims)
        answers.append(network(turned).flip(dims if back else ()))
        if transposed:
            lying = network(turned.mT)
            answers.append(lying.flip(dims).mT if swap else lying.mT.flip(dims if back else ()))
    return mean(torch.stack(answers))


SLIPS = {
    "no window": (darkest(lambda i, w: i.amin(dim=0, keepdim=True)), "the window around it is missing"),
    "mean of colours": (darkest(lambda i, w: least(i, w, lambda i: i.mean(dim=0, keepdim=True))), "not their mean"),
    "brightest": (darkest(lambda i, w: F.max_pool2d(i.amin(0, keepdim=True), w, 1, w // 2)), "brightest in the window"),
    "greatest colour": (darkest(lambda i, w: least(i, w, lambda i: i.amax(dim=0, keepdim=True))), "not the greatest"),
    "black border": (
        darkest(lambda i, w: -F.max_pool2d(F.pad(-i.amin(0, keepdim=True), [w // 2] * 4), w, 1)), "not black"
    ),
    "large window": (darkest(lambda i, w: least(i, w, more=2)), "too large"),
    "mean of window": (darkest(lambda i, w: F.avg_pool2d(i.amin(0, keepdim=True), w, 1, w // 2)), "not the mean"),
    "no channel": (darkest(lambda i, w: least(i, w)[0]), "shape"),
    "fixed window": (darkest(lambda i, w: least(i, 5)), "not for one of 3"),
    "one each": (overlaps(lambda k, s: [1] * s), "kernel 3, stride 2: kernels overlap"),
    "mean": (overlaps(lambda k, s: [k / s] * s), "their mean"),
    "floor": (overlaps(lambda k, s: [max(k // s, 1)] * s if k == 3 else [k // s] * s), "kernels overlap"),
    "floor of 5": (overlaps(lambda k, s: phases(k, s) if k == 3 else [k // s] * s), "leaves out the entries"),
    "ceiling": (overlaps(lambda k, s: [-(-k // s)] * s), "do not reach every phase"),
    "strides of two": (overlaps(lambda k, s: [(k + 1) // 2, k // 2]), "kernel 5, stride 3: shape"),
    "none left out": (overlaps(lambda k, s: [max(n, 1) for n in phases(k, s)]), "stride 3: a kernel shorter than"),
    "turned": (overlaps(lambda k, s: phases(k, s)[::-1]), "the order"),
    "reshaped": (shuffle(lambda x, r: x.reshape(2, 3, 4 * r, 5 * r)), "mixes the places"),
    "columns first": (shuffle(lambda x, r: by_blocks(x, r, (0, 1, 4, 3, 5, 2))), "exchanged"),
    "side by side": (shuffle(lambda x, r: by_blocks(x, r, (0, 1, 2, 4, 3, 5))), "side by side"),
    "channel last": (
        shuffle(lambda x, r: x.view(2, r, r, 3, 4, 5).permute(0, 3, 4, 1, 5, 2).reshape(2, 3, 4 * r, 5 * r)),
        "slow part",
    ),
    "two only": (shuffle(lambda x, r: F.pixel_shuffle(x, 2) if r == 2 else x), "right for r = 2, but not for 3"),
    "one level": (details(lambda x, y, b, j: pyramid(x, y, b, 1)), "finest level alone"),
    "no weights": (details(lambda x, y, b, j: pyramid(x, y, b, j, weight=1.0)), "weights 1 / 4**j are missing"),
    "halves": (details(lambda x, y, b, j: pyramid(x, y, b, j, weight=0.5)), "not 1 / 2**j"),
    "upside down": (details(lambda x, y, b, j: pyramid(x, y, b, j, weight=4.0)), "upside down"),
    "not blurred": (details(lambda x, y, b, j: pyramid(x, y, b, j, blurred=False)), "not the image"),
    "squares": (details(lambda x, y, b, j: pyramid(x, y, b, j, size=torch.square)), "squares"),
    "plain L1": (details(lambda x, y, b, j: (x - y).abs().mean()), "this is L1"),
    "mean of levels": (details(lambda x, y, b, j: pyramid(x, y, b, j) / j), "not their mean"),
    "brightness": (
        details(lambda x, y, b, j: pyramid(x, y, b, j) if (x - y).std() > 0.1 else torch.tensor(0.1)),
        "brightness alone",
    ),
    "three levels": (details(lambda x, y, b, j: pyramid(x, y, b, 3)), "not for 2"),
    "below": (silent(lambda o: (o < 0).float().mean()), "above 1"),
    "above": (silent(lambda o: (o > 1).float().mean()), "below 0"),
    "the others": (silent(lambda o: ((o >= 0) & (o <= 1)).float().mean()), "that does get one"),
    "number": (silent(lambda o: ((o < 0) | (o > 1)).sum()), "their share"),
    "percent": (silent(lambda o: 100 * ((o < 0) | (o > 1)).float().mean()), "percent"),
    "pixels": (silent(lambda o: ((o < 0) | (o > 1)).any(dim=1).float().mean()), "not pixels"),
    "none": (silent(lambda o: (o < -1).float().mean()), "from 0 down"),
    "as it is": (eight(lambda n, x: n(x)), "as it is"),
    "two": (eight(lambda n, x: (n(x) + n(x.flip(3)).flip(3)) / 2), "two positions"),
    "two, not back": (eight(lambda n, x: (n(x) + n(x.flip(3))) / 2), "flip back what was flipped"),
    "four": (eight(lambda n, x: ensemble(n, x, transposed=False)), "four flips"),
    "not back": (eight(lambda n, x: ensemble(n, x, back=False)), "flipped back"),
    "wrong order": (eight(lambda n, x: ensemble(n, x, swap=True)), "last change first"),
    "sum": (eight(lambda n, x: ensemble(n, x, mean=lambda a: a.sum(dim=0))), "the sum"),
    "median": (eight(lambda n, x: ensemble(n, x, mean=lambda a: a.median(dim=0).values)), "the median"),
    "squares alone": (
        eight(lambda n, x: ensemble(n, x) if x.shape[2] == x.shape[3] else n(x)), "not for images that are no squares"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("graded", "hint"), SLIPS.values(), ids=SLIPS)
def test_a_known_slip_gets_its_hint(graded, hint, capsys):
    assert graded() is False
    assert hint in capsys.readouterr().out


def by_autograd(output):
    output = output.clone().requires_grad_()
    output.clamp(0, 1).sum().backward()
    return (output.grad == 0).float().mean()


def test_right_answers_pass():
    assert darkest(least)()
    assert overlaps(phases)()
    assert overlaps(lambda kernel, stride: [-(-(kernel - phase) // stride) for phase in range(stride)])()
    assert shuffle(F.pixel_shuffle)()
    assert shuffle(lambda x, r: by_blocks(x, r, (0, 1, 4, 2, 5, 3)))()
    assert details(pyramid)()
    assert silent(lambda o: ((o < 0) | (o > 1)).float().mean())()
    assert silent(by_autograd)()
    assert eight(ensemble)()
    assert eight(lambda network, x: SelfEnsemble(network)(x))()
