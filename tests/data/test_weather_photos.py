"""Weather on the built-in photographs: split by photograph, fixed by a seed, clean where it is called clean."""

import math

import pytest
import torch
import torch.nn.functional as F

from kdlab import InputError
from kdlab.data import weather_photos
from kdlab.data.photos import SPLITS, load_depth, load_photograph
from kdlab.data.weather import HAZES, WEATHERS
from kdlab.data.weather_photos import SCALE, VARIANTS, load_haze, load_weather

GREY = {"brick", "camera", "grass", "gravel"}


@pytest.fixture(scope="module")
def splits():
    return load_weather(variants=1)


def of(splits, split):
    return getattr(splits, split).pairs


def photograph_of(pair):
    return pair.name.rsplit("_", 1)[0]


def small(image):
    size = [side // SCALE for side in image.shape[1:]]
    return F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]


def equal(left, right):
    return all(
        torch.equal(a.degraded, b.degraded) and torch.equal(a.clean, b.clean) and a[2:] == b[2:]
        for split in SPLITS
        for a, b in zip(of(left, split), of(right, split), strict=True)
    )


def test_a_seed_gives_the_same_bytes_and_torchs_own_random_numbers_have_no_part_in_it(splits):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    again = load_weather(variants=1)
    assert equal(splits, again)
    assert torch.equal(torch.rand(3), expected)


def test_another_seed_gives_another_weather_on_every_image_and_keeps_val_and_test_clean(splits):
    other = load_weather(variants=1, seed=1)
    for split in SPLITS:
        for one, another in zip(of(splits, split), of(other, split), strict=True):
            assert not torch.equal(one.degraded, another.degraded), (split, one.name, one.weather)
            assert torch.equal(one.clean, another.clean) == (split != "train")
    assert splits.name != other.name


def test_no_split_and_no_seed_has_the_random_numbers_of_another(monkeypatch):
    seen = set()
    monkeypatch.setattr(weather_photos, "load_photograph", lambda name: torch.zeros(3, 4, 4))
    monkeypatch.setattr(weather_photos, "load_depth", lambda name: torch.zeros(1, 4, 4))

    def draw(weather, clean, generator, depth):
        seen.add((split, seed, generator.initial_seed()))
        return clean

    for seed in range(4):
        for split in SPLITS:
            weather_photos._draw(split, ["rain"], draw, 1, seed)
    assert len({initial for *_, initial in seen}) == len(seen) == 4 * 3


def test_each_photograph_is_in_its_split_alone_and_in_every_weather(splits):
    for split, names in SPLITS.items():
        found = {(photograph_of(pair), pair.weather) for pair in of(splits, split)}
        assert found == {(name, weather) for name in names for weather in WEATHERS}


def test_how_many_there_are(splits):
    counts = {split: len(of(splits, split)) for split in SPLITS}
    assert counts == {"train": 8 * 3, "val": 1 * 3 * VARIANTS["val"], "test": 2 * 3 * VARIANTS["test"]}
    names = [(pair.name, pair.weather) for split in SPLITS for pair in of(splits, split)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("split", ["val", "test"])
def test_clean_images_of_val_and_test_are_the_photographs_at_half_their_size(splits, split):
    for pair in of(splits, split):
        photograph = small(load_photograph(photograph_of(pair)))
        assert pair.clean.shape == photograph.shape
        assert (pair.clean - photograph).abs().max() <= 0.5 + 1e-3


def test_training_photographs_are_recoloured_but_for_black_and_white(splits):
    """Each channel by one rising curve: what was equal stays equal, what was brighter stays no darker."""
    for pair in of(splits, "train"):
        before, after = small(load_photograph(photograph_of(pair))), pair.clean.float()
        assert not torch.equal(before.round(), after)
        for channel, recoloured in zip(before, after, strict=True):
            ordered = recoloured.flatten()[channel.flatten().argsort()]
            assert ordered.diff().min() >= 0
        if photograph_of(pair) in GREY:
            assert not torch.equal(pair.clean[0], pair.clean[2]), "a grey photograph gets a tint"


def test_each_training_image_has_colours_and_a_brightness_of_its_own():
    generator = torch.Generator().manual_seed(0)
    photograph = torch.full((3, 1, 1), 0.5)
    recoloured = torch.stack([weather_photos._recoloured(photograph, generator).flatten() for _ in range(100)])
    powers = (recoloured.log() / math.log(0.5)).log()
    assert powers.mean(dim=1).std() > 0.2  # of the colours alone it would be 0.12
    assert (powers - powers.mean(dim=1, keepdim=True)).std() > 0.1


@pytest.mark.parametrize("split", SPLITS)
def test_every_degraded_image_is_its_clean_one_in_bad_weather(splits, split):
    """Neither equal nor another scene: it differs by much, and the edges of the clean one are still in it."""
    for pair in of(splits, split):
        degraded, clean = pair.degraded.float().mean(0), pair.clean.float().mean(0)
        assert (degraded - clean).abs().mean() > 2, (pair.name, pair.weather)
        edges = [torch.cat([image.diff(dim=0).flatten(), image.diff(dim=1).flatten()]) for image in (degraded, clean)]
        assert torch.corrcoef(torch.stack(edges))[0, 1] > 0.2, (pair.name, pair.weather)


def test_rain_brightens_and_haze_takes_contrast(splits):
    for split in SPLITS:
        for pair in of(splits, split):
            degraded, clean = pair.degraded.float(), pair.clean.float()
            if pair.weather == "rain":
                assert (degraded >= clean - 1).all()
            if pair.weather == "haze":
                assert degraded.std() < clean.std(), pair.name


def test_the_motorcycles_haze_follows_its_true_depth(splits):
    """What is left of the contrast is exp(-beta depth), whatever the picture: the farther, the less."""
    depth = small(load_depth("motorcycle"))[0]
    hazy = [pair for pair in of(splits, "test") if photograph_of(pair) == "motorcycle" and pair.weather == "haze"]
    assert len(hazy) == VARIANTS["test"]
    for pair in hazy:
        difference = (pair.degraded.float() - pair.clean.float()).abs().mean(0)
        assert difference[depth < 0.02].mean() < 8
        assert difference[depth > 0.5].mean() > 30


def test_training_is_cropped_and_the_others_are_whole(splits):
    assert (splits.size, splits.classes, splits.deterministic) == (64, WEATHERS, False)
    degraded, (clean, number) = splits.train[0]
    assert degraded.shape == clean.shape == (3, 64, 64)
    assert WEATHERS[number] == of(splits, "train")[0].weather
    for split in ("val", "test"):
        for pair, (image, _) in zip(of(splits, split), getattr(splits, split), strict=True):
            assert torch.equal((image * 255).round().to(torch.uint8), pair.degraded)
            assert 150 <= image.shape[1] <= 250
            assert 225 <= image.shape[2] <= 370


@pytest.mark.parametrize("load", [load_weather, load_haze])
@pytest.mark.parametrize("options", [{"crop": 15}, {"variants": 0}])
def test_settings_out_of_range_are_refused(load, options):
    with pytest.raises(InputError, match="wanted: at least 16 pixels and at least 1 variant"):
        load(**options)


def test_both_hazes_are_on_every_photograph_of_its_split_alone():
    splits = load_haze(variants=1)
    assert (splits.classes, splits.name) == (HAZES, "haze-1-0")
    depth = small(load_depth("motorcycle"))[0]
    for split, photographs in SPLITS.items():
        pairs = of(splits, split)
        found = [(photograph_of(pair), pair.weather) for pair in pairs]
        assert set(found) == {(name, haze) for name in photographs for haze in HAZES}
        assert len(found) == 2 * len(photographs) * (1 if split == "train" else VARIANTS[split])
        for pair in pairs:
            hazy, clean = (image.float().diff(dim=-1).abs().mean() for image in (pair.degraded, pair.clean))
            assert hazy < 0.9 * clean, (pair.name, pair.weather)
            if photograph_of(pair) == "motorcycle":
                difference = (pair.degraded.float() - pair.clean.float()).abs().mean(0)
                assert difference[depth < 0.02].mean() < 12 < difference[depth > 0.5].mean()
