"""Chapter 07 without a browser: weather and its widgets, pure functions first, and the checks' hints."""

import base64
import io
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from shown import pictures

from kdlab import InputError
from kdlab.classroom import check
from kdlab.classroom.pictures import photograph_html
from kdlab.classroom.weather import (
    LISTENS_TO,
    Weather,
    as_pixels,
    before_after,
    divided,
    psnr,
    show_photographs,
    weather_maker,
)
from kdlab.data.weather import add_haze, add_rain, add_snow
from kdlab.training.image_quality import image_quality, luma


@pytest.fixture
def photograph():
    return torch.rand(3, 40, 60)


@pytest.fixture
def depth():
    return torch.linspace(0, 1, 40).view(1, 40, 1).expand(1, 40, 60).contiguous()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class TestWeather:
    def test_each_weather_is_the_librarys(self, photograph, depth):
        haze = Weather("haze", beta=2.0, airlight=0.5).on(photograph, depth)
        rain = Weather("rain", density=2.0, angle=-20.0, seed=3).on(photograph, depth)
        snow = Weather("snow", density=0.5, size=2.0, seed=3).on(photograph, depth)
        assert torch.equal(haze, add_haze(photograph, depth, 2.0, 0.5))
        assert torch.equal(rain, add_rain(photograph, seeded(3), 2.0, -20.0))
        assert torch.equal(snow, add_snow(photograph, seeded(3), 0.5, 2.0))

    def test_more_drops_leave_those_that_are_there(self, photograph, depth):
        few, many = (Weather("rain", density=density).on(photograph, depth) for density in (0.5, 2.0))
        assert (many >= few - 1e-6).all()
        assert (many > few + 1e-3).any()

    @pytest.mark.parametrize("name", LISTENS_TO)
    def test_a_weather_listens_to_its_own_settings_and_to_no_others(self, name, photograph, depth):
        plain = Weather(name).on(photograph, depth)
        other = {"beta": 2.5, "airlight": 0.3, "density": 2.5, "angle": -30.0, "size": 2.5}
        for setting, value in other.items():
            same = torch.equal(Weather(name, **{setting: value}).on(photograph, depth), plain)
            assert same == (setting not in LISTENS_TO[name])

    def test_another_weather_is_refused(self):
        with pytest.raises(InputError, match="hail"):
            Weather("hail")


def test_the_divider_shows_the_left_image_left_of_it_and_the_right_one_right(photograph):
    left, right = photograph * 0.5, photograph * 0.5 + 0.2
    half = divided(left, right, 0.5)
    assert torch.equal(half[..., :30], left[..., :30])
    assert (half[..., 30] == 1).all()
    assert torch.equal(half[..., 31:], right[..., 31:])
    assert torch.equal(divided(left, right, 0.0), right)
    assert torch.equal(divided(left, right, 1.0), left)


def test_psnr_is_the_librarys(photograph):
    noisy = photograph + 0.3 * torch.randn(3, 40, 60)
    assert psnr(noisy, photograph) == pytest.approx(image_quality(noisy[None], photograph[None])["psnr"].item())
    assert psnr(photograph, photograph) == 100


def test_a_photograph_keeps_its_pixels_and_its_proportions(photograph):
    html = photograph_html(as_pixels(photograph), "a < b", width=120)
    assert 'alt="a &lt; b"' in html
    assert "height=" not in html
    assert np.array_equal(pictures(html)[0], as_pixels(photograph).numpy())


def test_pixels_beyond_the_range_are_cut():
    assert as_pixels(torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1)).flatten().tolist() == [0, 128, 255]


def test_photographs_are_shown_with_their_text(photograph, monkeypatch):
    shown = []
    monkeypatch.setattr("kdlab.classroom.figures.display", lambda html: shown.append(html.data))
    rows = {"before": [photograph] * 2, "after": [photograph] * 2}
    show_photographs(rows, "four < five", titles=["a", "b"])
    (html,) = shown
    assert 'alt="four &lt; five"' in html
    found = re.search(r'src="data:image/jpeg;base64,([^"]+)"', html)
    width, height = Image.open(io.BytesIO(base64.b64decode(found[1]))).size
    assert width > height
    with pytest.raises(InputError, match="empty text"):
        show_photographs(rows, " ")


def changed(panel, control, value):
    """Whether the picture is another one after the change."""
    before = pictures(panel.view.value)[0]
    control.value = value
    return not np.array_equal(before, pictures(panel.view.value)[0])


class TestMaker:
    @pytest.fixture
    def panel(self, photograph, depth):
        return weather_maker(photograph, depth)

    def test_each_control_changes_the_picture_in_its_own_weather(self, panel):
        new = {"beta": 2.5, "airlight": 0.3, "density": 2.5, "angle": -30.0, "size": 2.5}
        for weather, settings in LISTENS_TO.items():
            panel.weather.value = weather
            for setting, value in new.items():
                control = getattr(panel, setting)
                old = control.value
                assert control.disabled == (setting not in settings)
                assert changed(panel, control, value) == (setting in settings)
                control.value = old
            assert panel.view.value.count("<img") == 1
            assert all(f"{setting} " in panel.view.value for setting in settings)

    def test_the_sentence_says_what_was_made(self, panel):
        panel.beta.value, panel.airlight.value = 3.0, 0.5
        assert "haze with beta 3, airlight 0.5: PSNR" in panel.view.value
        assert f"{math.exp(-3):.0%} comes through" in panel.view.value
        panel.weather.value = "rain"
        panel.density.value = 0.0
        assert "PSNR 100.0 dB" in panel.view.value


class TestBeforeAfter:
    @pytest.fixture
    def panel(self, photograph):
        versions = {"degraded": photograph * 0.5, "restored": photograph * 0.9, "clean": photograph}
        return before_after({"one": versions, "two": {name: image.flip(2) for name, image in versions.items()}})

    def test_it_begins_with_the_first_two_versions(self, panel, photograph):
        assert (panel.left.value, panel.right.value) == ("degraded", "restored")
        wanted = as_pixels(divided(photograph * 0.5, photograph * 0.9, 0.5)).numpy()
        assert np.array_equal(pictures(panel.view.value)[0], wanted)

    def test_every_control_changes_the_picture(self, panel):
        assert changed(panel, panel.divider, 0.2)
        assert changed(panel, panel.photograph, "two")
        assert changed(panel, panel.left, "clean")
        assert changed(panel, panel.right, "degraded")

    def test_both_sides_have_their_psnr_and_the_clean_one_none(self, panel, photograph):
        assert f"left: degraded, {psnr(photograph * 0.5, photograph):.1f} dB" in panel.view.value
        assert f"right: restored, {psnr(photograph * 0.9, photograph):.1f} dB" in panel.view.value
        panel.right.value = "clean"
        assert "right: clean (" in panel.view.value


def haze(answer):
    return lambda: check.hazed(answer)


def clear(answer):
    return lambda: check.dehazed(answer)


def beta(value):
    return lambda: check.densest_haze(value)


def db(answer):
    return lambda: check.psnr_of_each(answer)


def y(answer):
    return lambda: check.brightness(answer)


def angle(answer):
    return lambda: check.streak_angle(answer)


def t(d, b):
    return torch.exp(-b * d)


def mse(x, c, cut=True, clean=True, dim=(1, 2, 3)):
    x, c = x.clamp(0, 1) if cut else x, c.clamp(0, 1) if clean else c
    return (x - c).square().mean(dim=dim)


def by_moments(kernel, twice=False, swapped=False, sign=1):
    pixels = torch.arange(len(kernel)) - (len(kernel) - 1) / 2
    down, right = torch.meshgrid(pixels, pixels, indexing="ij")
    both, apart = (kernel * right * down).sum().item(), (kernel * (down**2 - right**2)).sum().item()
    found = math.degrees(math.atan2(2 * both, apart)) * (1 if twice else 0.5)
    return sign * (90 - found if swapped else found)


LEAST = 0.5 / 255 / 0.02
SLIPS = {
    "one haze": (haze(lambda J, d, b, A: add_haze(J, d, 1.7, 0.8)), "for β = 0.6"),
    "dark": (haze(lambda J, d, b, A: J * t(d, b)), "light of the air is missing"),
    "air everywhere": (haze(lambda J, d, b, A: J * t(d, b) + A), "only where the image lost some"),
    "no airlight": (haze(lambda J, d, b, A: J * t(d, b) + 1 - t(d, b)), "airlight has no effect"),
    "exchanged": (haze(lambda J, d, b, A: J * (1 - t(d, b)) + A * t(d, b)), "exchanged"),
    "air with t": (haze(lambda J, d, b, A: J * t(d, b) + A * t(d, b)), "A times 1 - t"),
    "growing": (haze(lambda J, d, b, A: J * t(d, -b) + A * (1 - t(d, -b))), "falls with the depth"),
    "no beta": (haze(lambda J, d, b, A: J * t(d, 1) + A * (1 - t(d, 1))), "β has no effect"),
    "thin": (haze(lambda J, d, b, A: J * (1 - b * d) + A * b * d), "thin layer"),
    "no least": (clear(lambda H, d, b, A: ((H - A * (1 - t(d, b))) / t(d, b)).clamp(0, 1)), "divide by 0.1"),
    "neither": (clear(lambda H, d, b, A: (H - A * (1 - t(d, b))) / t(d, b)), "and clamp the answer"),
    "not cut": (clear(lambda H, d, b, A: (H - A * (1 - t(d, b))) / t(d, b).clamp(min=0.1)), "nearly: clamp"),
    "J - A not cut": (clear(lambda H, d, b, A: (H - A) / t(d, b).clamp(min=0.1) + A), "nearly: clamp"),
    "one dehazing": (
        clear(lambda H, d, b, A: ((H - 0.8 * (1 - t(d, 4.0))) / t(d, 4.0).clamp(min=0.1)).clamp(0, 1)), "for β = 0.6"
    ),
    "air left": (clear(lambda H, d, b, A: (H / t(d, b).clamp(min=0.1)).clamp(0, 1)), "take the light of the air away"),
    "not divided": (clear(lambda H, d, b, A: (H - A * (1 - t(d, b))).clamp(0, 1)), "divide by t"),
    "all of A": (clear(lambda H, d, b, A: ((H - A) / t(d, b).clamp(min=0.1)).clamp(0, 1)), "not all of A"),
    "multiplied": (clear(lambda H, d, b, A: ((H - A * (1 - t(d, b))) * t(d, b)).clamp(0, 1)), "less than there was"),
    "transmission": (beta(LEAST), "smallest transmission"),
    "growth": (beta(1 / LEAST), "how much the error may grow"),
    "negative": (beta(math.log(LEAST)), "sign"),
    "whole level": (beta(-math.log(2 * LEAST)), "half a level"),
    "decades": (beta(-math.log10(LEAST)), "not 10"),
    "bits": (beta(-math.log2(LEAST)), "not 2"),
    "no file": (beta(-math.log(0.02)), "error of the file"),
    "no tolerance": (beta(-math.log(0.5 / 255)), "0.02 is allowed"),
    "upside down": (db(lambda x, c: 10 * mse(x, c).log10()), "sign"),
    "five": (db(lambda x, c: -5 * mse(x, c).log10()), "or 20 times"),
    "twenty": (db(lambda x, c: -20 * mse(x, c).log10()), "or 20 times"),
    "bels": (db(lambda x, c: -mse(x, c).log10()), "bels"),
    "natural": (db(lambda x, c: -10 * mse(x, c).log()), "not e"),
    "beyond": (db(lambda x, c: -10 * mse(x, c, cut=False).log10()), "cut the values"),
    "summed": (db(lambda x, c: -10 * (mse(x, c) * 90).log10()), "summed the squares"),
    "peak 255": (db(lambda x, c: 20 * math.log10(255) - 10 * mse(x, c).log10()), "not 255"),
    "batch": (db(lambda x, c: -10 * mse(x, c, dim=(0, 1, 2, 3)).log10()), "shape"),
    "infinite": (db(lambda x, c: -10 * mse(x, c).log10()), "give them 100"),
    "one of several infinite": (
        db(lambda x, c: torch.full((4,), 100.0) if torch.equal(x, c) else -10 * mse(x, c).log10()), "each of them"
    ),
    "clean not cut": (db(lambda x, c: -10 * mse(x, c, clean=False).clamp(min=1e-10).log10()), "clean images have"),
    "no offset": (y(lambda x: luma(x) - 16 / 255), "black is at 16/255"),
    "full range": (y(lambda x: (luma(x) - 16 / 255) * 255 / 219), "full range"),
    "levels": (y(lambda x: luma(x) * 255), "in levels"),
    "bgr": (y(lambda x: luma(x.flip(1))), "red and blue"),
    "plain mean": (y(lambda x: x.mean(dim=1, keepdim=True)), "green"),
    "no channel": (y(lambda x: luma(x)[:, 0]), "shape"),
    "mirrored": (angle(lambda kernel: by_moments(kernel, sign=-1)), "falls to the right"),
    "radians": (angle(lambda kernel: math.radians(by_moments(kernel))), "radians"),
    "twice": (angle(lambda kernel: by_moments(kernel, twice=True)), "twice the angle"),
    "horizontal": (angle(lambda kernel: by_moments(kernel, swapped=True)), "horizontal"),
    "no quadrant": (angle(lambda kernel: (by_moments(kernel) + 45) % 90 - 45), "math.atan2 knows the quadrant"),
    "constant": (angle(lambda kernel: 7.0), "yours is 7.0° for a streak at 20°"),
    "wrong in some": (angle(lambda kernel: abs(by_moments(kernel))), "falls to the left"),
    "huge": (angle(lambda kernel: 10**400), "you gave a int"),
    "text": (angle(lambda kernel: "steep"), "you gave a str"),
    "no angle": (angle(lambda kernel: None), "no answer yet"),
    "raised": (angle(lambda kernel: kernel.nothing), "raised AttributeError"),
}  # fmt: skip


@pytest.mark.parametrize(("graded", "hint"), SLIPS.values(), ids=SLIPS)
def test_a_known_slip_gets_its_hint(graded, hint, capsys):
    assert graded() is False
    assert hint in capsys.readouterr().out


def test_right_answers_pass():
    assert haze(add_haze)()
    assert haze(lambda J, d, b, A: J.mul_(t(d, b)).add_(A * (1 - t(d, b))))()
    assert clear(lambda H, d, b, A: ((H - A * (1 - t(d, b))) / t(d, b).clamp(min=0.1)).clamp(0, 1))()
    assert clear(lambda H, d, b, A: ((H - A) / t(d, b).clamp(min=0.1) + A).clamp(0, 1))()
    assert beta(-math.log(LEAST))()
    assert db(lambda x, c: -10 * mse(x, c).clamp(min=1e-10).log10())()
    assert y(luma)()
    assert angle(by_moments)()
    assert angle(lambda kernel: np.float32(by_moments(kernel)))()
    assert angle(lambda kernel: torch.tensor(by_moments(kernel) + 1.5))()


def test_weights_to_three_places_are_right():
    assert y(lambda x: (x * torch.tensor([0.257, 0.504, 0.098]).view(3, 1, 1)).sum(dim=1, keepdim=True) + 16 / 255)()
