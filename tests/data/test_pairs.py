"""Pairs of images: never exchanged, never apart; and batches in which no weather is missing."""

from collections import Counter
from itertools import chain, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Subset

from kdlab import InputError
from kdlab.data.pairs import Pair, PairedImages, StratifiedBatches

WEATHERS = ("haze", "rain", "snow")
SIDES = st.integers(1, 40)
some = settings(max_examples=50, deadline=None)


def flat(level, height=20, width=24):
    return torch.full((3, height, width), level, dtype=torch.uint8)


def places(height, width):
    """A picture in which every pixel is another one: its row, its column and both."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([row, column, (7 * row + 3 * column) % 256]).to(torch.uint8)


def one(degraded, clean, crop=None):
    return PairedImages([Pair(degraded, clean, "rain", "street_1")], WEATHERS, crop)


def levels(image):
    return (image * 255).round().to(torch.uint8)


# --- one pair ---------------------------------------------------------------------------------------------------------


@some
@given(height=SIDES, width=SIDES, crop=st.integers(1, 32))
def test_input_and_target_are_never_exchanged_however_small_the_image(height, width, crop):
    """The published loader gave the clean image as input wherever a side was shorter than the crop."""
    data = one(flat(10, height, width), flat(200, height, width), crop)
    for _ in range(5):
        degraded, (clean, _) = data[0]
        assert degraded.shape == clean.shape == (3, crop, crop)
        assert (levels(degraded) == 10).all()
        assert (levels(clean) == 200).all()


def test_nor_are_they_exchanged_where_the_whole_image_is_taken():
    degraded, (clean, weather) = one(flat(10), flat(200))[0]
    assert (levels(degraded).unique().item(), levels(clean).unique().item(), weather) == (10, 200, 1)


@some
@given(height=SIDES, width=SIDES, crop=st.integers(1, 32))
def test_both_are_the_same_place_in_the_same_mirror(height, width, crop):
    data = one(places(height, width), places(height, width), crop)
    for _ in range(5):
        degraded, (clean, _) = data[0]
        assert torch.equal(degraded, clean)


def test_every_place_and_both_mirrors_come():
    data = one(places(6, 7), places(6, 7), crop=5)
    draws = Counter(tuple(levels(data[0][0])[:2, 0, [0, -1]].flatten().tolist()) for _ in range(600))
    corners = {(top, top, left, left + 4) for top, left in product(range(2), range(3))}
    assert draws.keys() == corners | {(top, top, last, first) for top, _, first, last in corners}
    assert min(draws.values()) > 20  # of 50 each


def test_all_eight_positions_come_where_asked_for_and_to_both_images_alike():
    data = PairedImages([Pair(places(5, 5), places(5, 5), "snow", "one")], WEATHERS, 5, turned=True)
    positions = {
        tuple(turned.flip(dims).flatten().tolist())
        for turned in (places(5, 5), places(5, 5).transpose(1, 2))
        for dims in ((), (1,), (2,), (1, 2))
    }
    draws = Counter()
    for _ in range(400):
        degraded, (clean, _) = data.only(["snow"])[0]
        assert torch.equal(degraded, clean)
        draws[tuple(levels(degraded).flatten().tolist())] += 1
    assert draws.keys() == positions
    assert len(positions) == 8
    assert min(draws.values()) > 20  # of 50 each


@some
@given(height=st.integers(2, 40), width=st.integers(2, 40))
def test_a_larger_image_is_cropped_and_nothing_else(height, width):
    crop = min(height, width)
    picture = places(height, width)
    found = levels(one(picture, picture, crop)[0][0])
    unmirrored = found if found[1, 0, 0] <= found[1, 0, -1] else found.flip(-1)
    top, left = unmirrored[:2, 0, 0].tolist()
    assert torch.equal(unmirrored, picture[:, top : top + crop, left : left + crop])


@some
@given(height=SIDES, width=SIDES, crop=st.integers(1, 90))
def test_a_smaller_image_goes_on_by_reflection(height, width, crop):
    """As numpy reflects it, which also knows images of one row and of less than half the crop."""
    picture = places(height, width)
    pads = [(0, max(crop - side, 0)) for side in (height, width)]
    whole = torch.from_numpy(np.pad(picture.numpy(), [(0, 0), *pads], mode="reflect"))
    found = levels(one(picture, picture, crop)[0][0])
    parts = whole.unfold(1, crop, 1).unfold(2, crop, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    assert any(torch.equal(part, found) or torch.equal(part, found.flip(-1)) for part in parts)


def test_the_draw_follows_torchs_seed():
    data = one(places(40, 40), places(40, 40), crop=8)
    torch.manual_seed(3)
    first = [data[0][0] for _ in range(5)]
    torch.manual_seed(3)
    again = [data[0][0] for _ in range(5)]
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], first[1])


def test_without_a_crop_it_is_the_image_as_it_is():
    picture = places(31, 17)
    degraded, (clean, _) = one(picture, flat(3, 31, 17))[0]
    assert degraded.dtype == clean.dtype == torch.float32
    assert torch.equal(degraded, picture.float() / 255)


def test_workers_and_batches_keep_the_order_of_an_item():
    data = PairedImages([Pair(flat(10), flat(200), weather, weather) for weather in WEATHERS], WEATHERS, crop=8)
    degraded, (clean, weather) = next(iter(DataLoader(data, batch_size=3, num_workers=1)))
    assert degraded.shape == clean.shape == (3, 3, 8, 8)
    assert degraded.max() < clean.min()
    assert weather.tolist() == [0, 1, 2]


# --- files and sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "levels_on_disk"), [("L", (10, 200)), ("I;16", (2570, 51400)), ("1", (0, 255))])
def test_grey_files_become_three_equal_channels(tmp_path, mode, levels_on_disk):
    for name, level in zip(("degraded", "clean"), levels_on_disk, strict=True):
        Image.new(mode, (20, 18), level).save(tmp_path / f"{name}.png")
    degraded, (clean, _) = one(tmp_path / "degraded.png", tmp_path / "clean.png", crop=16)[0]
    expected = (0, 255) if mode == "1" else (10, 200)
    assert torch.equal(levels(degraded), flat(expected[0], 16, 16))
    assert torch.equal(levels(clean), flat(expected[1], 16, 16))


def test_one_image_may_be_grey_and_one_in_memory(tmp_path):
    Image.new("L", (20, 18), 10).save(tmp_path / "degraded.png")
    degraded, (clean, _) = one(tmp_path / "degraded.png", flat(200, 18, 20))[0]
    assert degraded.shape == clean.shape == (3, 18, 20)


@pytest.mark.parametrize("crop", [None, 8])
@pytest.mark.parametrize(("margin", "width"), [(False, 44), (False, 22), (True, 22)])
def test_two_sizes_are_refused(crop, margin, width):
    """A larger clean image too, unless it is said to have a margin; and that must be one in height and width."""
    pair = Pair(flat(10, 20, 24), flat(200, 30, width), "rain", "street_1", margin)
    with pytest.raises(InputError, match=f"street_1 is 24x20 in rain and {width}x30 clean; wanted: one size."):
        PairedImages([pair], WEATHERS, crop)[0]


@pytest.mark.parametrize(("inner", "outer"), [((20, 24), (30, 44)), ((6, 4), (8, 4)), ((5, 5), (5, 5))])
def test_a_margin_is_cut_from_the_clean_image_alike_on_opposite_sides(inner, outer):
    top, left = ((large - small) // 2 for large, small in zip(outer, inner, strict=True))
    clean = places(*outer)
    degraded = clean[:, top : top + inner[0], left : left + inner[1]]
    found, (target, _) = PairedImages([Pair(degraded, clean, "haze", "a", margin=True)], WEATHERS)[0]
    assert torch.equal(found, target)


def test_what_is_no_set_of_pairs_is_refused():
    with pytest.raises(InputError, match="there are no pairs; wanted: at least one"):
        PairedImages([], WEATHERS)
    with pytest.raises(InputError, match="a pair's weather is 'hail'; wanted: one of haze, rain, snow"):
        PairedImages([Pair(flat(1), flat(2), "hail", "a")], WEATHERS)
    with pytest.raises(InputError, match="a weather is called 'y', and its PSNR would be psnr_y"):
        PairedImages([Pair(flat(1), flat(2), "y", "a")], ["haze", "y"])


def test_a_weather_keeps_its_number_when_the_others_go():
    data = PairedImages([Pair(flat(1), flat(2), weather, weather) for weather in WEATHERS * 2], WEATHERS, 8, True)
    assert data.where("snow") == [2, 5]
    some = data.only(["snow", "haze"])
    assert (some.weathers, some.crop, some.turned) == (WEATHERS, 8, True)
    assert [number for _, (_, number) in some] == [0, 2, 0, 2]
    with pytest.raises(InputError, match="there is no image in hail; there are: haze, rain, snow"):
        data.only(["hail"])


# --- batches ----------------------------------------------------------------------------------------------------------


def many(**counts):
    """Pairs of each weather, mixed."""
    names = [name for name, count in counts.items() for _ in range(count)]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    image = flat(0, 1, 1)
    return PairedImages([Pair(image, image, names[place], str(place)) for place in order], tuple(counts))


COUNTS = st.integers(1, 12)


@some
@given(haze=COUNTS, rain=COUNTS, snow=COUNTS, each=st.integers(1, 4), batches=st.none() | st.integers(1, 30))
def test_every_batch_has_the_same_number_of_images_of_each_weather(haze, rain, snow, each, batches):
    each = min(each, haze, rain, snow)
    data = many(haze=haze, rain=rain, snow=snow)
    sampler = StratifiedBatches(data, 3 * each, batches=batches)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == (batches or min(haze, rain, snow) // each)
    for batch in drawn:
        assert Counter(data.pairs[index].weather for index in batch) == dict.fromkeys(WEATHERS, each)


@some
@given(haze=COUNTS, rain=COUNTS, snow=COUNTS, batches=st.integers(1, 40))
def test_all_images_of_a_weather_come_before_any_comes_again(haze, rain, snow, batches):
    data = many(haze=haze, rain=rain, snow=snow)
    drawn = list(chain.from_iterable(StratifiedBatches(data, 3, batches=batches)))
    for weather in WEATHERS:
        mine = [index for index in drawn if data.pairs[index].weather == weather]
        known = data.where(weather)
        rounds = [mine[start : start + len(known)] for start in range(0, len(mine), len(known))]
        assert all(sorted(whole) == known for whole in rounds[:-1])
        assert len(set(rounds[-1])) == len(rounds[-1])


def test_an_epoch_shows_no_image_of_the_rarest_weather_twice_and_leaves_out_less_than_a_batch_of_it():
    data = many(haze=30, rain=7, snow=12)
    drawn = Counter(chain.from_iterable(StratifiedBatches(data, 6)))
    rarest = [drawn[index] for index in data.where("rain")]
    assert (max(rarest), sum(rarest)) == (1, 6)


def test_each_epoch_and_each_round_has_an_order_of_its_own():
    sampler = StratifiedBatches(many(haze=8, rain=40), 16, batches=2)
    (first, second), (third, _) = list(sampler), list(sampler)
    assert sorted(first[:8]) == sorted(second[:8]) == sorted(third[:8])
    assert len({tuple(batch[:8]) for batch in (first, second, third)}) == 3


def test_the_order_follows_torchs_seed():
    sampler = StratifiedBatches(many(haze=9, rain=9), 4)
    torch.manual_seed(5)
    first = list(sampler)
    torch.manual_seed(5)
    assert list(sampler) == first
    assert list(sampler) != first


@some
@given(st.sets(st.integers(0, 29), min_size=1))
def test_indices_are_all_that_comes(indices):
    data = many(haze=10, rain=10, snow=10)
    there = {data.pairs[index].weather for index in indices}
    drawn = chain.from_iterable(StratifiedBatches(data, len(there), sorted(indices), batches=10))
    assert set(drawn) == indices


def test_weathers_that_the_data_lacks_need_no_part_of_the_batch():
    """A teacher of snow is trained on snow alone, which keeps its number among three."""
    snow = many(haze=3, rain=3, snow=6).only(["snow"])
    assert [len(batch) for batch in StratifiedBatches(snow, 4)] == [4]


def test_a_loader_takes_them():
    data = many(haze=4, rain=4, snow=4)
    loader = DataLoader(data, batch_sampler=StratifiedBatches(data, 6))
    assert [weather.bincount().tolist() for _, (_, weather) in loader] == [[2, 2, 2]] * 2


@pytest.mark.parametrize("size", [0, -3, 1, 4, 7])
def test_a_batch_that_cannot_be_shared_out_is_refused(size):
    message = f"batch_size is {size}; wanted: a multiple of 3, the same number .*haze, rain, snow"
    with pytest.raises(InputError, match=message):
        StratifiedBatches(many(haze=9, rain=9, snow=9), size)


def test_other_data_is_refused(shapes_unchecked):
    part = Subset(many(haze=9, rain=9), range(6))
    with pytest.raises(InputError, match=r"the data set is Subset; wanted: PairedImages.*with the indices of a part"):
        StratifiedBatches(part, 2)


def test_a_weather_too_rare_for_its_part_is_named():
    with pytest.raises(InputError, match="there are 3 images of rain and each batch of 12 wants 4. Make the batch sm"):
        StratifiedBatches(many(haze=9, rain=3, snow=9), 12)
    data = many(haze=9, rain=9)
    with pytest.raises(InputError, match="there are 1 images of haze and each batch of 4 wants 2"):
        StratifiedBatches(data, 4, [*data.where("haze")[:1], *data.where("rain")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": []}, "indices are empty; wanted: at least one, each from 0 to 5"),
        ({"indices": [0, 6]}, "indices are from 0 to 6; wanted: .* from 0 to 5"),
        ({"indices": [-1, 2]}, "indices are from -1 to 2; wanted: .* from 0 to 5"),
        ({"batches": 0}, "batches is 0; wanted: at least 1"),
        ({"batches": -2}, "batches is -2; wanted: at least 1"),
    ],
)
def test_indices_and_batches_that_there_are_not_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        StratifiedBatches(many(haze=3, rain=3), 2, **options)


# --- what they save ---------------------------------------------------------------------------------------------------


def test_stratified_batches_of_three_skip_no_step_where_others_skip_seven_of_nine():
    data = many(haze=60, rain=60, snow=60)
    weather = torch.tensor([WEATHERS.index(pair.weather) for pair in data.pairs])
    one_by_one = weather[torch.randint(len(data), (20_000, 3))]
    useful = torch.stack([(one_by_one == number).any(1) for number in range(3)]).all(0).float().mean()
    assert useful == pytest.approx(2 / 9, abs=0.02)
    assert all(set(weather[batch].tolist()) == {0, 1, 2} for batch in StratifiedBatches(data, 3))
