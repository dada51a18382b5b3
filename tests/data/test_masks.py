"""Images with masks on disk: both layouts, one square of both, and a sentence for whatever does not fit."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import OxfordIIITPet, VOCSegmentation

import kdlab.data.scenes as scenes
from kdlab import InputError
from kdlab.data.masks import IGNORE, VOC, load_segmentation

SPLITS = ("train", "val", "test")


def picture(seed=0, height=20, width=30):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask_of(values, height=20, width=30):
    """A grey mask with the values in upright bars from left to right."""
    columns = np.array(values, dtype=np.uint8)[np.arange(width) * len(values) // width]
    return Image.fromarray(np.tile(columns, (height, 1)))


def grow(root, splits=SPLITS, values=(0, 1, 2), count=2, layout="{split}/{kind}"):
    """``count`` images with masks in each split."""
    seed = 0
    for split in splits:
        for kind in ("images", "masks"):
            (root / layout.format(split=split, kind=kind)).mkdir(parents=True)
        for index in range(count):
            picture(seed).save(root / layout.format(split=split, kind="images") / f"{index}.png")
            mask_of(values).save(root / layout.format(split=split, kind="masks") / f"{index}.png")
            seed += 1
    return root


@pytest.fixture
def root(tmp_path):
    return grow(tmp_path / "roads")


def load(root, **options):
    return load_segmentation(root, **{"size": 10} | options)


# --- what is loaded ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_both_layouts_give_the_same(tmp_path, root, layout):
    other = load(grow(tmp_path / "other", layout=layout))
    splits = load(root)
    assert (splits.name, splits.size, splits.classes, splits.test_is_val) == ("roads", 10, ("0", "1", "2"), False)
    assert (other.mean, other.std, other.classes) == (splits.mean, splits.std, splits.classes)
    for split in SPLITS:
        assert len(getattr(splits, split)) == 2
        for own, others in zip(getattr(splits, split), getattr(other, split), strict=True):
            assert torch.equal(own[0], others[0])
            assert torch.equal(own[1], others[1])


def plain(root, count):
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for index in range(count):
        picture(index).save(root / "images" / f"{index:02}.png")
        mask_of((0, 1, 2)).save(root / "masks" / f"{index:02}.png")
    return root


def names_in(part):
    return {path.name for path in part.paths}


def test_a_folder_without_splits_is_split_by_the_names_of_its_images(tmp_path):
    splits = load(plain(tmp_path / "roads", 20))
    assert (len(splits.train), len(splits.val), splits.test_is_val, splits.val_is_drawn) == (16, 4, True, True)
    assert not names_in(splits.train) & names_in(splits.val)
    assert names_in(splits.val) != {f"{index:02}.png" for index in range(4)}
    assert load(tmp_path / "roads").files == splits.files
    more = load(plain(tmp_path / "elsewhere", 24))
    assert len(names_in(more.val) & names_in(splits.val)) >= 2  # new files move few
    assert (len(load(plain(tmp_path / "two", 2)).train), len(load(tmp_path / "two").val)) == (1, 1)


def test_a_folder_with_half_a_split_is_not_split_again(tmp_path, root):
    plain(root, 4)
    (root / "val").rename(root / "validation")
    with pytest.raises(InputError, match=r"no images and masks for val(.|\n)*or images/ and masks/ alone"):
        load(root)


def test_one_image_cannot_be_split(tmp_path):
    with pytest.raises(InputError, match="train of 'own' has no usable image"):
        load(plain(tmp_path / "own", 1))


def test_an_item_is_an_image_and_a_mask_of_one_size(root):
    image, mask = load(root).train[0]
    assert (image.shape, image.dtype) == ((3, 10, 10), torch.float32)
    assert (mask.shape, mask.dtype) == ((10, 10), torch.int64)
    images, masks = next(iter(DataLoader(load(root).train, batch_size=2)))
    assert (images.shape, masks.shape) == ((2, 3, 10, 10), (2, 10, 10))


def test_image_and_mask_are_the_same_square_whatever_the_size(tmp_path):
    """An image that is white where its mask is 1: so are the scaled ones, but for the pixels on the edge."""
    root = grow(tmp_path / "own", count=1)
    for size in [(61, 40), (40, 61), (300, 200), (7, 9)]:
        values = np.zeros(size, np.uint8)
        values[size[0] // 3 :, size[1] // 2 :] = 1
        Image.fromarray(values).save(root / "train" / "masks" / "0.png")
        Image.fromarray(values * 255).save(root / "train" / "images" / "0.png")
        image, mask = load(root, size=24, mean=(0.5,) * 3, std=(0.5,) * 3).train[0]
        agree = (image[0] > 0) == (mask == 1)
        assert agree.float().mean() > 0.93, size
        assert agree[(image[0].abs() == 1)].float().mean() > 0.99, size


def test_no_class_appears_between_two_others(tmp_path):
    root = grow(tmp_path / "own", values=(0, 9))
    for size in (3, 10, 47):
        for _, mask in load(root, size=size).train:
            assert set(mask.unique().tolist()) <= {0, 9}


def test_a_split_with_nothing_but_pixels_to_ignore_is_refused(tmp_path):
    root = grow(tmp_path / "own")
    for path in (root / "val" / "masks").iterdir():
        mask_of((IGNORE,)).save(path)
    for options in ({}, {"classes": ["a", "b", "c"]}):
        with pytest.raises(InputError, match="the masks of val of 'own' have nothing but 255"):
            load(root, **options)


def test_pixels_to_ignore_stay_255_and_are_no_class(tmp_path):
    splits = load(grow(tmp_path / "own", values=(0, IGNORE, 1)))
    assert splits.classes == ("0", "1")
    assert splits.train[0][1].unique().tolist() == [0, 1, 255]


def test_classes_as_given(root):
    names = ("road", "car", "sky", "tree")
    assert load(root, classes=names).classes == names
    assert load(root, classes=list(names)).classes == names


def test_a_palette_mask_is_read_by_its_numbers_and_not_its_colours(root):
    mask = mask_of((0, 2, 1))
    mask = Image.frombytes("P", mask.size, mask.tobytes())
    mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    mask.save(root / "train" / "masks" / "0.png")
    assert load(root).train[0][1][0].tolist()[::4] == [0, 2, 1]


def test_one_bit_and_sixteen_bit_masks_are_masks(root):
    Image.fromarray(np.arange(600).reshape(20, 30) > 300).save(root / "train" / "masks" / "0.png")
    Image.fromarray(np.full((20, 30), 2, np.uint16)).save(root / "train" / "masks" / "1.png")
    splits = load(root)
    assert splits.train[0][1].unique().tolist() == [0, 1]
    assert splits.train[1][1].unique().tolist() == [2]


def test_pairs_are_found_by_stem_in_subfolders_too(tmp_path):
    root = grow(tmp_path / "own")
    for kind, name in (("images", "a.b.jpg"), ("masks", "a.b.png")):
        folder = root / "train" / kind / "town"
        folder.mkdir()
        (picture() if kind == "images" else mask_of((1,))).save(folder / name)
    assert [pair.mask.name for pair in load(root).train.pairs] == ["0.png", "1.png", "a.b.png"]


def test_mean_and_std_are_those_of_the_training_images(root):
    splits = load(root)
    images = torch.stack([image for image, _ in splits.train])
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std(dim=(0, 2, 3), unbiased=False), torch.ones(3), atol=1e-5, rtol=0)
    given = load(root, mean=(0.0, 0.0, 0.0), std=[1, 1, 1])
    assert (given.mean, given.std) == ((0.0,) * 3, (1.0,) * 3)


def test_a_channel_without_contrast_is_left_unscaled(root):
    for path in (root / "train" / "images").iterdir():
        Image.merge("RGB", [*picture().split()[:2], Image.new("L", (30, 20), 51)]).save(path)
    splits = load(root)
    assert (splits.mean[2], splits.std[2]) == (pytest.approx(0.2), 1.0)


def test_without_a_test_split_val_stands_in(tmp_path):
    splits = load(grow(tmp_path / "own", splits=("train", "val")))
    assert splits.test_is_val
    assert splits.test is splits.val


def test_a_damaged_image_is_skipped_with_its_reason(root):
    path = root / "train" / "images" / "0.png"
    path.write_bytes(path.read_bytes()[:200])
    (root / "train" / "images" / "notes.txt").write_text("about")
    splits = load(root)
    assert [pair.image.name for pair in splits.train.pairs] == ["1.png"]
    assert [path.name for path in splits.train.paths] == ["1.png"]  # what a TeacherCache watches
    assert {one.path.name for one in splits.skipped} == {"0.png", "notes.txt"}


# --- by name ----------------------------------------------------------------------------------------------------------


def test_scenes_by_name(monkeypatch):
    monkeypatch.setattr(scenes, "SAMPLES", {"train": 4, "val": 2, "test": 3})
    assert load_segmentation("scenes").size == 64
    splits = load_segmentation("scenes", size=32, mean=(0.0, 0.0, 0.0))
    assert (splits.name, splits.size, len(splits.test), splits.mean) == ("scenes", 32, 3, (0.0, 0.0, 0.0))
    assert splits.std == scenes.STD


def test_pets_where_torchvision_reads_them(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations" / "trimaps").mkdir(parents=True)
    for split, names in (("trainval", [f"cat_{i}" for i in range(20)]), ("test", ["dog_1"])):
        (base / "annotations" / f"{split}.txt").write_text("".join(f"{name} 1 1 1\n" for name in names))
        for name in names:
            picture().save(base / "images" / f"{name}.jpg")
            mask_of((1, 2, 3)).save(base / "annotations" / "trimaps" / f"{name}.png")
    splits = load_segmentation("pets", size=10, data=tmp_path)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [18, 2, 1]
    assert (splits.name, splits.classes) == ("pets", ("background", "pet"))
    assert splits.test[0][1][0].unique(sorted=False).sort().values.tolist() == [0, 1, IGNORE]
    theirs = OxfordIIITPet(tmp_path, split="test", target_types="segmentation")
    assert np.array_equal(np.asarray(theirs[0][1]), np.asarray(mask_of((1, 2, 3))))
    trained, validated = ({pair.image for pair in part.pairs} for part in (splits.train, splits.val))
    assert not trained & validated


def test_voc_where_torchvision_reads_it(tmp_path):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (base / folder).mkdir(parents=True)
    for split in ("train", "val"):
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{split}_1\n{split}_2\n")
        for number in (1, 2):
            picture().save(base / "JPEGImages" / f"{split}_{number}.jpg")
            mask_of((0, 20, IGNORE)).save(base / "SegmentationClass" / f"{split}_{number}.png")
    splits = load_segmentation("voc", size=10, data=tmp_path)
    assert (len(splits.classes), splits.classes[20], splits.test_is_val) == (21, "tvmonitor", True)
    theirs = VOCSegmentation(tmp_path, image_set="train")
    assert [str(pair.mask) for pair in splits.train.pairs] == [str(path) for path in theirs.masks]
    assert splits.train[0][1].unique().tolist() == [0, 20, IGNORE]
    assert splits.classes == VOC


@pytest.mark.parametrize(
    ("name", "call", "folder"), [("pets", "OxfordIIITPet", "oxford-iiit-pet"), ("voc", "VOCSegmentation", "VOCdevkit")]
)
def test_a_public_set_that_is_not_there(tmp_path, name, call, folder):
    said = rf"{call} is not there: no file .*\.txt(.|\n)*{call}\(.*download=True\)"
    with pytest.raises(InputError, match=said) as caught:
        load_segmentation(name, data=tmp_path / "nowhere")
    assert f"If you have it, link it to {tmp_path / 'nowhere' / folder}, or in Python" in str(caught.value)
    command = next(line for line in str(caught.value).splitlines() if "python -c" in line).split('"')[1]
    compile(command, "sentence", "exec")
    assert not (tmp_path / "nowhere").exists()


def test_classes_of_a_named_set_are_its_own():
    with pytest.raises(InputError, match=r"classes=\['a', 'b'\] was given, but those of 'scenes' are fixed"):
        load_segmentation("scenes", classes=("a", "b"))


# --- bad input --------------------------------------------------------------------------------------------------------


def put_mask(root, mask, name="0.png", split="train"):
    mask.save(root / split / "masks" / name)


def beyond(root):
    put_mask(root, mask_of((0, 7, 8)))


def beyond_eight_bits(root):
    put_mask(root, Image.fromarray(np.full((20, 30), 700, np.uint16)))


def another_size(root):
    put_mask(root, mask_of((0, 1), 20, 31))


def colours(root):
    put_mask(root, picture())


def jpeg(root):
    (root / "train" / "masks" / "0.png").unlink()
    put_mask(root, mask_of((0, 1)), "0.jpg")


def cut_mask(root):
    path = root / "train" / "masks" / "0.png"
    path.write_bytes(path.read_bytes()[:40])


def no_mask(root):
    (root / "val" / "masks" / "1.png").unlink()


def two_masks(root):
    put_mask(root, mask_of((0, 1)), "0.tiff")


def no_images(root):
    for path in (root / "val" / "images").iterdir():
        path.unlink()


def no_good_image(root):
    for path in (root / "val" / "images").iterdir():
        path.write_text("no picture")


def no_validation(root):
    (root / "val" / "masks").rename(root / "val" / "labels")


def no_classes(root):
    for path in root.rglob("masks/*.png"):
        mask_of((0, IGNORE)).save(path)


SPOILED = {
    beyond: r"train.masks.0\.png: values 7, 8, but the classes are 0 to 2, and 255 means ignore",
    beyond_eight_bits: r"train.masks.0\.png: value 700, but",
    another_size: r"masks.0\.png: 31x20 pixels, but its image 0\.png has 30x20",
    colours: r"masks.0\.png: colours \(mode RGB\), wanted one class number",
    jpeg: r"masks.0\.jpg: a JPEG file",
    cut_mask: r"masks.0\.png: (damaged|not an image)",
    no_mask: r"1 of the images in .*val.images have no mask in .*val.masks: 1\.png.*such as 1\.png",
    two_masks: r"two masks for one image: .*0\.png and 0\.tiff",
    no_images: r"val of 'roads' has no usable image \(files skipped: 0\)",
    no_good_image: r"val of 'roads' has no usable image \(files skipped: 2; the first: .*0\.png: not an image",
    no_validation: r"no images and masks for val; folders found: test/, train/, val/(.|\n)*Wanted one of(.|\n)*roads/",
}


@pytest.mark.parametrize(("spoil", "said"), SPOILED.items(), ids=[spoil.__name__ for spoil in SPOILED])
def test_what_does_not_fit_is_named(root, spoil, said):
    spoil(root)
    with pytest.raises(InputError, match=said):
        load(root, classes=("road", "car", "sky"))


def test_black_and_white_masks_have_no_class(root):
    no_classes(root)
    with pytest.raises(InputError, match=r"no class but 0.*values found: \[0, 255\]. If white is a class, write 1"):
        load(root)


@pytest.mark.parametrize("values", [(0, 128), (0, 80, 160, 240, IGNORE), (10, 20, 30)])
def test_grey_levels_are_no_class_numbers(tmp_path, values):
    root = grow(tmp_path / "own", values=values)
    levels = [value for value in values if value != IGNORE]
    said = f"values {', '.join(map(str, levels))}: grey levels .* Write {', '.join(map(str, range(len(levels))))} into"
    with pytest.raises(InputError, match=said):
        load(root)
    assert len(load(root, classes=list(map(str, range(250)))).classes) == 250


@pytest.mark.parametrize("values", [(0, 3, IGNORE), (0, 2, 9), (1,)])
def test_classes_that_are_missing_leave_a_gap_that_is_none_of_grey_levels(tmp_path, values):
    highest = max(value for value in values if value != IGNORE)
    assert len(load(grow(tmp_path / "own", values=values)).classes) == highest + 1


def test_five_bad_masks_are_named_and_the_rest_counted(tmp_path):
    root = grow(tmp_path / "own", values=(0, 9), count=4)
    with pytest.raises(InputError, match=r"12 masks in all cannot be used") as caught:
        load(root, classes=("a", "b"))
    assert str(caught.value).count("value 9") == 5


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder.*or one of 'scenes', 'pets', 'voc'"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file, not a folder"):
        load(tmp_path / "file")


def test_a_mask_that_goes_bad_later_is_named(root):
    data = load(root).train
    picture().save(data.pairs[0].mask)
    with pytest.raises(InputError, match=r"masks.0\.png: colours"):
        data[0]


REFUSED = {
    "one class": ({"classes": ["road"]}, r"classes is \['road'\], wanted 2 or more"),
    "one twice": ({"classes": ["road", "road"]}, "wanted 2 or more different names"),
    "a string": ({"classes": "road"}, "classes is 'road', wanted 2 or more"),
    "too many": ({"classes": list(map(str, range(256)))}, "256 classes given; at most 255"),
    "size": ({"size": 0}, "size is 0"),
    "mean": ({"mean": [0.5]}, "mean has 1 value"),
    "std": ({"std": (0.5, 0.0, 0.5)}, "std is .*above 0"),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused(root, options, said, shapes_unchecked):
    with pytest.raises(InputError, match=said):
        load(root, **options)
