"""Weather by its physics: what it must do to an image, and that a seed fixes it."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from kdlab import InputError
from kdlab.data import weather
from kdlab.data.weather import (
    HAZES,
    WEATHERS,
    _disc,
    _line,
    _stamped,
    add_haze,
    add_rain,
    add_snow,
    draw_haze,
    draw_weather,
    smooth_noise,
    synthetic_depth,
)

BLACK, WHITE = torch.zeros(3, 64, 80), torch.ones(3, 64, 80)
IMAGE = torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", WEATHERS)
def test_a_seed_gives_the_same_bytes_and_another_one_others(name):
    first, again, other = (draw_weather(name, IMAGE, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == IMAGE.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.equal(first, IMAGE)


@pytest.mark.parametrize("kind", HAZES)
def test_a_haze_is_fixed_by_its_seed_and_stays_an_image(kind):
    first, again, other = (draw_haze(kind, IMAGE, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.std() < IMAGE.std()


def test_a_homogeneous_haze_knows_depth_alone_and_the_other_one_the_place_too():
    """On black, equal depths are equally bright in the one, and in the other anything from clear to dense."""
    depth = torch.linspace(0, 1, 64).view(1, 64, 1).expand(1, 64, 80)
    even, patchy = (draw_haze(kind, BLACK, seeded(), depth)[0] for kind in HAZES)
    assert (even.amax(dim=1) - even.amin(dim=1)).max() < 1e-6
    assert (even.mean(dim=1).diff() > 0).all()
    assert (patchy.amax(dim=1) - patchy.amin(dim=1))[1:].min() > 0.005
    assert (patchy[-16:].amax() - patchy[-16:].amin()) > 0.2


def densities(draw, seed):
    """What is left of black and white says how dense a haze is at depth 1, and how bright its air."""
    black, white = (draw(image, seeded(seed), torch.ones(1, 64, 80))[0] for image in (BLACK, WHITE))
    left = white - black
    return -left.log(), (black / (1 - left)).nanmedian()


@pytest.mark.parametrize(
    ("draw", "least", "most"),
    [(partial(draw_haze, "homogeneous"), 1, 3), (partial(draw_weather, "haze"), 0.5, 1.5)],
    ids=["dehazing", "restoration"],
)
def test_a_haze_is_of_any_density_and_brightness_within_bounds(draw, least, most):
    drawn = [densities(draw, seed) for seed in range(30)]
    beta = torch.stack([density.mean() for density, _ in drawn]) / (most - least) - least / (most - least)
    air = torch.stack([bright for _, bright in drawn])
    for values, low, high in ((beta, 0, 1), (air, 0.7, 0.95)):
        assert low - 1e-3 <= values.min() < low + 0.2 * (high - low)
        assert high - 0.2 * (high - low) < values.max() <= high + 1e-3


def test_patches_are_from_none_at_all_to_twice_as_dense():
    for seed in range(3):
        even, patchy = (densities(partial(draw_haze, kind), seed)[0] for kind in HAZES)
        assert patchy.min() == pytest.approx(0, abs=1e-4)
        assert patchy.max() == pytest.approx(2 * even.mean().item(), rel=1e-3)


RANDOM = {
    "rain": {"density": (0.5, 2), "angle": (-25, 25), "strength": (0.4, 0.8)},
    "snow": {"density": (0.7, 2), "size": (0.7, 1.5), "veil": (0.02, 0.08)},
}


@pytest.mark.parametrize("name", RANDOM)
def test_rain_and_snow_are_of_any_density_within_bounds(name, monkeypatch):
    drawn = []
    monkeypatch.setattr(weather, f"add_{name}", lambda image, generator, *settings: drawn.append(settings) or image)
    for seed in range(30):
        draw_weather(name, IMAGE, seeded(seed))
    for values, (least, most) in zip(zip(*drawn, strict=True), RANDOM[name].values(), strict=True):
        assert least <= min(values) < least + 0.2 * (most - least)
        assert most - 0.2 * (most - least) < max(values) <= most


def test_another_kind_of_haze_is_refused():
    with pytest.raises(InputError, match="thick"):
        draw_haze("thick", IMAGE, seeded())


def test_haze_is_the_scattering_model_pixel_by_pixel():
    depth = synthetic_depth(64, 80, seeded())
    hazy = add_haze(IMAGE, depth, beta=1.5, airlight=0.8)
    t = math.exp(-1.5 * depth[0, 10, 20])
    torch.testing.assert_close(hazy[:, 10, 20], IMAGE[:, 10, 20] * t + 0.8 * (1 - t))


def test_haze_leaves_what_is_near_and_hides_what_is_far():
    assert torch.equal(add_haze(IMAGE, torch.zeros(1, 64, 80), beta=9.0), IMAGE)
    assert torch.equal(add_haze(IMAGE, torch.ones(1, 64, 80), beta=0.0), IMAGE)
    hidden = add_haze(IMAGE, torch.ones(1, 64, 80), beta=50.0, airlight=0.7)
    torch.testing.assert_close(hidden, torch.full_like(IMAGE, 0.7))
    thin, dense = (add_haze(IMAGE, torch.ones(1, 64, 80), beta).std() for beta in (0.5, 2.0))
    assert dense < thin < IMAGE.std()


def test_patchy_haze_is_denser_where_the_patches_say():
    patches = torch.ones(1, 64, 80)
    patches[:, :, 40:] = 3
    hazy = add_haze(BLACK, torch.ones(1, 64, 80), patches=patches)
    assert hazy[:, :, 40:].min() > hazy[:, :, :40].max()


@pytest.mark.parametrize("stamp", [_line(21, 20.0, 1.4), _line(3, 0.0, 0.6), _disc(4.0)], ids=["long", "short", "disc"])
def test_a_stamp_is_set_down_as_a_convolution_would(stamp):
    places = (torch.rand(1, 40, 50, generator=seeded()) < 0.02).float()
    expected = F.conv2d(places[None], stamp.flip(0, 1)[None, None], padding="same")[0]
    torch.testing.assert_close(_stamped(places, stamp), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("add", [add_rain, add_snow])
def test_drops_and_flakes_brighten_and_more_of_them_more(add):
    none, some, many = (add(BLACK, seeded(), density=density) for density in (0, 1, 4))
    assert torch.equal(none, BLACK)
    assert 0 < some.mean() < many.mean()
    assert (some >= BLACK).all()
    assert add(WHITE, seeded()).mean() > 0.9


def test_a_streak_is_longer_than_wide_and_leans_with_the_angle():
    def alike(rain, down, right):
        """How much the rain resembles itself, moved."""
        here = rain[0, : 64 - down, max(0, -right) : 80 - max(0, right)]
        there = rain[0, down:, max(0, right) : 80 + min(0, right)]
        return torch.corrcoef(torch.stack([here.flatten(), there.flatten()]))[0, 1]

    straight = add_rain(BLACK, seeded(), angle=0)
    assert alike(straight, 3, 0) > alike(straight, 0, 3) + 0.2
    leaning = add_rain(BLACK, seeded(), angle=45)
    assert alike(leaning, 3, 3) > alike(leaning, 3, -3) + 0.2  # to the right as it falls


def test_larger_flakes_are_larger():
    small, large = (add_snow(BLACK, seeded(), size=size, veil=0.0) for size in (1.0, 4.0))
    changes = [(flakes[0, :, 1:] - flakes[0, :, :-1]).abs().sum() / flakes.sum() for flakes in (small, large)]
    assert changes[1] < 0.7 * changes[0]  # less outline for the same area


def test_the_thickest_veil_hides_an_image_and_does_not_invert_it():
    dark, bright = (add_snow(image, seeded(), density=9, veil=1.0) for image in (BLACK, WHITE))
    torch.testing.assert_close(dark, bright)


def test_noise_and_depth_are_smooth_and_of_the_asked_size():
    for made in (smooth_noise(50, 70, seeded()), synthetic_depth(50, 70, seeded())):
        assert made.shape == (1, 50, 70)
        assert made.min() >= 0
        assert made.max() <= 1
        assert (made[:, 1:] - made[:, :-1]).abs().max() < 0.15
    depth = torch.stack([synthetic_depth(50, 70, seeded(seed)) for seed in range(20)]).mean(dim=0)
    assert depth[0, 0].mean() > depth[0, -1].mean() + 0.3  # the sky is far


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: add_haze(IMAGE, torch.ones(1, 5, 5)), r"depth is \(1, 5, 5\).*wanted: one size"),
        (lambda: add_haze(IMAGE, torch.ones(1, 64, 80), beta=-1), "beta is -1; wanted: at least 0"),
        (lambda: add_haze(IMAGE, torch.ones(1, 64, 80), airlight=2), "airlight is 2; wanted: from 0 to 1"),
        (lambda: add_rain(IMAGE, seeded(), angle=90), "angle is 90; wanted: from -60 to 60"),
        (lambda: add_snow(IMAGE, seeded(), size=0), "size is 0"),
        (lambda: draw_weather("hail", IMAGE, seeded()), "'hail'"),
    ],
)
def test_impossible_weather_is_named(call, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        call()
