"""Labelled scenes: the same seed gives the same bytes, and mask, boxes and picture say the same."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import kdlab.data.scenes as scenes
from kdlab import InputError
from kdlab.data.photos import FILES, TILE, list_tiles, load_photograph
from kdlab.data.scenes import CLASSES, Scenes, load_scenes

MANY = 300


@pytest.fixture(scope="module")
def train():
    return Scenes("train", MANY)


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("images", "shapes", "labels"))


# --- one thing decides ------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_whatever_else_was_drawn(train):
    again = Scenes("train", 40)
    torch.manual_seed(99)
    torch.rand(7)
    assert same(again, Scenes("train", 40))
    for name in ("images", "shapes", "labels"):  # more scenes begin with the same ones
        assert torch.equal(getattr(train, name)[:40], getattr(again, name))


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Scenes("val", 3)
    assert torch.equal(torch.rand(3), expected)


def test_another_seed_and_another_split_give_other_scenes(train):
    others = Scenes("train", 50, seed=1), Scenes("val", 50)
    for what in ("images", "shapes"):  # neither the same backgrounds nor the same shapes before others
        everything = [getattr(train, what)[:50], *(getattr(other, what) for other in others)]
        assert len(torch.cat(everything).flatten(1).unique(dim=0)) == 150


def test_no_scene_comes_twice(train):
    assert len(train.images.flatten(1).unique(dim=0)) == MANY


# --- what a scene is --------------------------------------------------------------------------------------------------


def test_an_item_is_a_normalised_image_and_a_mask(train):
    image, mask = train[3]
    assert (image.shape, image.dtype) == ((3, 64, 64), torch.float32)
    assert (mask.shape, mask.dtype) == ((64, 64), torch.int64)
    restored = image * torch.tensor(train.std).view(3, 1, 1) + torch.tensor(train.mean).view(3, 1, 1)
    torch.testing.assert_close(restored, train.images[3] / 255)
    images, masks = next(iter(DataLoader(train, batch_size=4)))
    assert (images.shape, masks.shape) == ((4, 3, 64, 64), (4, 64, 64))


def test_the_training_images_have_mean_0_and_deviation_1(train):
    images = torch.stack([image for image, _ in train])
    assert images.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert (images.std(dim=(0, 2, 3)) - 1).abs().max() < 0.05


def test_every_class_has_its_share_and_half_is_background_at_least(train):
    share = torch.stack([mask for _, mask in train]).flatten().bincount(minlength=len(CLASSES)) / (MANY * 64 * 64)
    assert len(share) == len(CLASSES) == 7
    assert 0.6 < share[0] < 0.8
    assert share[1:].min() > 0.03


def test_boxes_are_around_what_the_mask_shows(train):
    for index in range(60):
        _, mask = train[index]
        boxes, labels = train.boxes(index)
        assert boxes.shape == (len(labels), 4)
        covered = torch.zeros(64, 64, dtype=torch.bool)
        for (left, top, right, bottom), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            assert 0 <= left < right <= 64
            assert 0 <= top < bottom <= 64
            inside = mask[top:bottom, left:right] == label
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            covered[top:bottom, left:right] = True
        assert torch.all(mask[~covered] == 0)
        assert set(labels.tolist()) == set(mask.unique().tolist()) - {0}


def test_a_scene_without_a_visible_shape_has_no_boxes():
    bare = Scenes("val", 1)
    bare.shapes.zero_()
    boxes, labels = bare.boxes(0)
    assert (boxes.shape, labels.shape) == ((0, 4), (0,))


def test_there_are_two_to_four_shapes(train):
    counts = (train.labels > 0).sum(dim=1)
    assert counts.unique().tolist() == [2, 3, 4]


def test_the_upper_shapes_hide_the_lower_and_only_what_they_cover(monkeypatch):
    drawn = []

    def remembered(shape):
        def draw(points):
            distance = shape(points)
            drawn.append(distance < 0)
            return distance

        return draw

    monkeypatch.setattr(scenes, "SHAPES", tuple(map(remembered, scenes.SHAPES)))
    some = Scenes("train", 60)
    in_order = iter(drawn)
    bitten = 0
    for shapes, labels in zip(some.shapes, some.labels, strict=True):
        whole = {number: next(in_order) for number in labels.nonzero().flatten().tolist()}
        expected = torch.zeros_like(shapes)
        for number, covered in whole.items():
            expected[covered] = number
        assert torch.equal(shapes, expected)
        bitten += any((shapes == number).sum() < covered.sum() for number, covered in whole.items())
    assert next(in_order, None) is None
    assert 20 < bitten < 60, "of 60 scenes, so many have a shape that another hides in part"


def test_masks_are_exact_and_images_antialiased():
    """Of a scene and its double in size, the mask agrees wherever the four small pixels agree."""
    small, large = Scenes("train", 30), Scenes("train", 30, size=128)
    for index in range(30):
        mask, fine = small[index][1], large[index][1]
        quarters = fine.unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)
        sure = (quarters == quarters[..., :1]).all(dim=-1)
        assert sure.float().mean() > 0.9
        assert (mask == quarters[..., 0])[sure].float().mean() > 0.995


def test_an_edge_pixel_is_between_shape_and_background(monkeypatch):
    monkeypatch.setattr(scenes, "SHAPES", (lambda points: points[..., 0].abs() - 0.8,))  # a bar across
    monkeypatch.setattr(scenes, "TEXTURES", (scenes._plain,))
    monkeypatch.setattr(scenes, "FEWEST", 1), monkeypatch.setattr(scenes, "MOST", 1)
    bars = Scenes("val", 20)
    for image, shapes in zip(bars.images.float(), bars.shapes, strict=True):
        colours = image[:, shapes == 1]
        plain = colours.mode(dim=1).values
        assert (colours == plain[:, None]).all(dim=0).float().mean() > 0.6, "the inside has one colour"
        assert (colours != plain[:, None]).any(), "no pixel of the edge is mixed"


@pytest.mark.parametrize("size", [16, 33, 96])
def test_another_size(size):
    one = Scenes("val", 4, size=size)
    image, mask = one[0]
    assert (image.shape, mask.shape) == ((3, size, size), (size, size))
    assert (mask > 0).any()


# --- shapes and textures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", scenes.SHAPES, ids=CLASSES[1:])
def test_the_shapes_are_of_about_one_area_and_their_distances_are_true(shape):
    axis = torch.linspace(-2, 2, 401)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    distance = shape(points)
    area = (distance < 0).float().mean() * 16
    assert 1.8 < area < 2.8
    # Never more than the true distance: what is 0.1 away by its word is 0.1 away at least.
    rows, columns = (distance.diff(dim=0) / 0.01).abs(), (distance.diff(dim=1) / 0.01).abs()
    assert max(rows.max(), columns.max()) < 1.01
    assert distance[0].min() > 0, "it reaches out of the square of side 4"


@pytest.mark.parametrize("texture", scenes.TEXTURES)
def test_textures_stay_between_the_two_colours(texture):
    waves = torch.randn(20, 20, 2) * 30
    blend = texture(waves, torch.Generator().manual_seed(0))
    assert blend.min() >= 0
    assert blend.max() <= 1
    assert blend.shape in ((), (20, 20))


def test_textures_grow_with_the_size():
    small, large = Scenes("train", 20), Scenes("train", 20, size=128)
    quarters = large.shapes.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
    inside = (quarters == small.shapes[..., None]).all(dim=-1) & (small.shapes > 0)
    halved = F.avg_pool2d(large.images.float(), 2)
    assert (halved - small.images).abs().mean(dim=1)[inside].mean() < 5


def test_the_two_colours_of_a_texture_are_never_alike(monkeypatch):
    """Each channel's circle is of 255 steps, and a pair at least a third of it apart."""
    monkeypatch.setattr(scenes, "SHAPES", (lambda points: points[..., 0].abs() - 1,))
    monkeypatch.setattr(scenes, "TEXTURES", (lambda waves, _: (waves[..., 0].sin() > 0).float(),))
    monkeypatch.setattr(scenes, "FEWEST", 1), monkeypatch.setattr(scenes, "MOST", 1)
    bars = Scenes("val", 20)
    for image, shapes in zip(bars.images, bars.shapes, strict=True):
        colours, counts = image[:, shapes == 1].unique(dim=1, return_counts=True)
        one, other = colours.T[counts.topk(2).indices].int()
        apart = (one - other).abs()
        assert torch.minimum(apart, 255 - apart).min() > 80


def test_half_of_the_shapes_have_the_texture_of_their_class_and_the_others_any(monkeypatch):
    drawn = []

    def remembered(kind, texture):
        return lambda *given: drawn.append(kind) or texture(*given)

    textures = [remembered(kind, texture) for kind, texture in enumerate(scenes.TEXTURES, start=1)]
    monkeypatch.setattr(scenes, "TEXTURES", tuple(textures))
    labels = Scenes("train", 200, size=16).labels
    labels, drawn = labels[labels > 0], torch.tensor(drawn)
    own = (labels == drawn).float().mean()
    assert 0.5 < own < 0.67  # half, and a sixth of the other half by chance
    assert drawn[labels != drawn].bincount(minlength=7)[1:].min() > 20


# --- the splits -------------------------------------------------------------------------------------------------------


def test_the_backgrounds_of_the_splits_come_from_different_tiles(monkeypatch):
    """Photographs painted with one colour for each split's tiles: a scene without shapes shows its own alone."""
    photographs = {name: load_photograph(name) for name in FILES}
    shade = {"train": 50, "val": 150, "test": 250}
    painted = {name: torch.zeros_like(pixels) for name, pixels in photographs.items()}
    for split, value in shade.items():
        for name, top, left in list_tiles(split, photographs):
            painted[name][:, top : top + TILE, left : left + TILE] = value
    monkeypatch.setattr(scenes, "load_photograph", painted.__getitem__)
    monkeypatch.setattr(scenes, "_draw_shapes", lambda image, shapes, generator: [])
    for split, value in shade.items():
        assert Scenes(split, 200).images.unique().tolist() == [value]


def test_all_three_splits(monkeypatch):
    monkeypatch.setattr(scenes, "SAMPLES", {"train": 12, "val": 3, "test": 5})
    splits = load_scenes(size=32, seed=3, mean=(0.1, 0.2, 0.3), std=[0.5, 1, 0.25])
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [12, 3, 5]
    assert (splits.name, splits.size, splits.classes, splits.deterministic) == ("scenes", 32, CLASSES, True)
    assert (splits.mean, splits.std) == ((0.1, 0.2, 0.3), (0.5, 1.0, 0.25))
    assert same(splits.val, Scenes("val", 3, size=32, seed=3))


def test_the_usual_numbers():
    assert scenes.SAMPLES == {"train": 2000, "val": 200, "test": 500}
    assert len(Scenes("val")) == 200


REFUSED = {
    "split": ({"split": "trian"}, "unknown split 'trian'. Did you mean 'train'"),
    "no scene": ({"samples": 0}, "samples is 0, wanted a whole number from 1 up"),
    "too small": ({"size": 8}, "size is 8, wanted a whole number from 16 up"),
    "seed below 0": ({"seed": -1}, "seed is -1, wanted a whole number from 0 up"),
    "half a seed": ({"seed": 0.5}, "seed is 0.5"),
    "true": ({"samples": True}, "samples is True"),
    "mean of one": ({"mean": [0.5]}, "mean has 1 value, 3 wanted"),
    "std of zero": ({"std": (0.5, 0.0, 0.5)}, "std is .*above 0"),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused(options, said, shapes_unchecked):
    with pytest.raises(InputError, match=said):
        Scenes(**{"split": "val", "samples": 2} | options)
