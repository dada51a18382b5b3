"""Folders of labelled images, and the transform that turns a picture into a tensor."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

import kdlab.data.folders as folders
from kdlab.data.folders import load_folders
from kdlab.data.images import open_image
from kdlab.data.transforms import ImageTransform, central_square, three_numbers
from kdlab.errors import InputError

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))


def picture(seed=0, height=20, width=30):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def grow(root, splits=("train", "val"), classes=("cat", "dog"), count=2):
    """An ImageFolder layout with ``count`` different pictures in each class."""
    seed = 0
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                picture(seed, 20 + seed, 30).save(root / split / name / f"{index}.png")
                seed += 1
    return root


@pytest.fixture
def root(tmp_path):
    return grow(tmp_path / "pets")


def load(root, **options):
    return load_folders(root, size=8, **options)


# --- the transform ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (7, 9), (300, 200)])
def test_any_size_becomes_the_wanted_square(shape):
    tensor = ImageTransform(16, HALF, HALF)(picture(0, *shape))
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert type(tensor) is torch.Tensor


def test_the_whole_short_side_is_seen():
    image = Image.new("RGB", (400, 200), "black")
    image.paste("red", (100, 0, 300, 10))  # the upper edge of the central square
    image.paste("blue", (0, 0, 100, 200))  # outside of it
    red, _, blue = ImageTransform(20, (0.0,) * 3, (1.0,) * 3)(image)
    assert torch.all(red[0] > 0.7)
    assert torch.all(red[2:] == 0)
    assert torch.all(blue[:, 1:-1] == 0)


def test_it_is_resizing_the_short_side_then_cropping_the_centre():
    rows, columns = np.mgrid[0:90, 0:120]
    image = Image.fromarray(np.stack([rows, columns, (rows + columns) // 2], -1).astype(np.uint8))
    two_steps = v2.Compose([v2.Resize(30), v2.CenterCrop(30)])(image)
    difference = np.asarray(central_square(image, 30)).astype(int) - np.asarray(two_steps)
    assert abs(difference).max() <= 1


def test_the_values_are_normalised_per_channel():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)
    tensor = ImageTransform(4, mean, std)(Image.new("RGB", (4, 4), (255, 51, 0)))
    wanted = [(1.0 - 0.1) / 0.5, (0.2 - 0.2) / 0.25, (0.0 - 0.3) / 1.0]
    assert torch.allclose(tensor[:, 0, 0], torch.tensor(wanted), atol=1e-6)


def test_still_images_repeat_and_augmented_ones_follow_the_seed():
    image = picture(0, 64, 64)
    still, moving = ImageTransform(16, HALF, HALF), ImageTransform(16, HALF, HALF, augment=True)
    assert torch.equal(still(image), still(image))
    torch.manual_seed(1)
    first, second = moving(image), moving(image)
    torch.manual_seed(1)
    again = moving(image)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert first.shape == (3, 16, 16)


def test_a_transform_survives_pickle():
    transform = ImageTransform(16, (0.1, 0.2, 0.3), (1, 0.2, 0.3), augment=True)
    transform(picture())
    assert pickle.loads(pickle.dumps(transform)) == transform


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"mean": (0.5, float("nan"), 0.5)}, "finite"),
        ({"std": (1.0, 0.0, 1.0)}, "above 0"),
        ({"std": (1.0, -1.0, 1.0)}, "above 0"),
        ({"mean": (0.5, 0.5, 127.0)}, r"mean is \(0.5, 0.5, 127.0\), wanted for pixels in 0 to 1"),
        ({"std": (50, 50, 50)}, "std is .* Divide what is for 0 to 255 by 255"),
    ],
)
def test_wrong_settings_of_a_transform_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ImageTransform(**{"size": 8, "mean": HALF, "std": HALF} | settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.5, 0.5), r"mean has 2 values, 3 wanted \(red, green, blue\)"),
        ((0.5,), "mean has 1 value, 3 wanted"),
        ((1.0, 1.0, 1.0, 1.0), "mean has 4 values, 3 wanted"),
        (0.5, "mean is 0.5, wanted 3 numbers"),
    ],
)
def test_what_is_not_three_numbers_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        three_numbers("mean", values)


# --- what is loaded ---------------------------------------------------------------------------------------------------


def test_splits_classes_and_labels(tmp_path):
    root = grow(tmp_path / "pets", ("train", "val", "test"), ("zebra", "Ant", "étoile de mer"))
    splits = load(root)
    assert splits.classes == ("Ant", "zebra", "étoile de mer")
    assert (splits.name, splits.size, splits.deterministic, splits.skipped) == ("pets", 8, True, ())
    assert not splits.test_is_val
    for split, data in {"train": splits.train, "val": splits.val, "test": splits.test}.items():
        assert data.targets == [0, 0, 1, 1, 2, 2]
        assert [path.parts[-3:-1] for path in data.paths] == [(split, splits.classes[label]) for label in data.targets]
        assert [label for _, label in (data[i] for i in range(len(data)))] == data.targets


def test_without_a_test_split_the_validation_split_stands_in(root):
    splits = load(root)
    assert splits.test is splits.val
    assert splits.test_is_val


def test_an_item_is_its_file_transformed(root):
    splits = load(root)
    transform = ImageTransform(8, splits.mean, splits.std)
    for data in (splits.train, splits.val):
        assert torch.equal(data[1][0], transform(open_image(data.paths[1])))


def test_mean_and_std_are_those_of_the_training_pixels(root):
    picture(99, 50, 50).save(root / "val" / "cat" / "other.png")
    splits = load(root)
    plain = ImageTransform(8, (0.0,) * 3, (1.0,) * 3)
    pixels = torch.stack([plain(open_image(path)) for path in splits.train.paths]).double()
    assert splits.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-6)
    assert splits.std == pytest.approx(pixels.std((0, 2, 3), unbiased=False).tolist(), rel=1e-6)
    normalised = torch.stack([splits.train[i][0] for i in range(len(splits.train))])
    assert torch.allclose(normalised.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normalised.std((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-5)


def test_a_channel_without_contrast_is_left_unscaled(root):
    for path in root.rglob("*.png"):
        Image.merge("RGB", [*open_image(path).split()[:2], Image.new("L", open_image(path).size, 51)]).save(path)
    splits = load(root)
    assert splits.mean[2] == pytest.approx(0.2)
    assert splits.std[2] == 1.0


def test_given_mean_and_std_are_used(root):
    splits = load(root, mean=[0.1, 0.2, 0.3], std=(1.0, 0.2, 0.3))
    assert (splits.mean, splits.std) == ((0.1, 0.2, 0.3), (1.0, 0.2, 0.3))
    measured = load(root)
    assert load(root, mean=HALF).std == measured.std
    assert load(root, std=HALF).mean == measured.mean


def test_only_training_images_are_augmented_and_the_seed_decides(tmp_path):
    splits = load(grow(tmp_path / "pets", ("train", "val", "test")), augment=True)
    assert not splits.deterministic
    torch.manual_seed(0)
    first, second = splits.train[0][0], splits.train[0][0]
    torch.manual_seed(0)
    assert torch.equal(first, splits.train[0][0])
    assert not torch.equal(first, second)
    for data in (splits.val, splits.test):
        assert torch.equal(data[0][0], data[0][0])


def test_the_same_through_worker_processes(root):
    data = load(root).train
    loader = DataLoader(pickle.loads(pickle.dumps(data)), batch_size=3, num_workers=2)  # spawned workers get a pickle
    images, labels = map(torch.cat, zip(*loader, strict=True))
    assert labels.tolist() == data.targets
    assert torch.equal(images, torch.stack([data[i][0] for i in range(len(data))]))


def test_a_file_that_vanishes_later_is_named_from_a_worker_too(root):
    data = load(root).train
    data.paths[0].unlink()
    batches = iter(DataLoader(Subset(data, [0]), num_workers=1))
    with pytest.raises(InputError, match=r"0\.png: no such file"):
        next(batches)
    assert next(batches, None) is None  # a worker that is left before its end is waited for, five seconds


def test_odd_files_are_skipped_with_their_reason_and_the_rest_is_used(root):
    folder = root / "train" / "cat"
    (folder / "Thumbs.db").write_text("no picture")
    (folder / "empty.jpg").touch()
    (folder / ".hidden").write_text("not worth a word")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:600])
    (folder / "below" / "two words").mkdir(parents=True)
    Image.new("LA", (5, 5), (0, 0)).save(folder / "below" / "two words" / "grey.png")
    Image.new("CMYK", (5, 5)).save(folder / "print.jpg")
    (root / "train" / "readme.txt").write_text("about")
    picture(1).save(root / "train" / "loose.png")
    splits = load(root)
    assert [path.name for path in splits.train.paths[:4]] == ["0.png", "1.png", "grey.png", "print.jpg"]
    assert [one.path.name for one in splits.skipped] == ["Thumbs.db", "cut.png", "empty.jpg", "loose.png"]
    assert str(splits.skipped[3]).endswith("loose.png: an image in no class's folder")
    assert "cut short" in splits.skipped[1].reason


def test_a_link_to_another_class_labels_nothing(root):
    (root / "train" / "cat" / "all").symlink_to("..")
    (root / "train" / "cat" / "more").symlink_to("../../val/dog")
    splits = load(root)
    assert splits.train.targets == [0, 0, 1, 1]
    assert [one.path.name for one in splits.skipped] == ["all", "more"]


def test_names_that_only_look_alike(tmp_path):
    root = grow(tmp_path / "pets", classes=("dog", "\u00e9"))
    (root / "val" / "\u00e9").rename(root / "val" / "e\u0301")
    with pytest.raises(InputError, match="look alike, but their letters are stored in two ways"):
        load(root)


def test_other_files_are_known_from_these(root, tmp_path):
    first = load(root).files
    assert first.keys() == {"train", "val"}
    assert first["train"].startswith("4 files, ")
    assert load(root.rename(tmp_path / "elsewhere")).files == first
    (tmp_path / "elsewhere" / "val" / "cat" / "0.png").rename(tmp_path / "elsewhere" / "val" / "cat" / "00.png")
    assert load(tmp_path / "elsewhere").files["val"] != first["val"]
    picture(9, 77, 77).save(tmp_path / "elsewhere" / "train" / "cat" / "0.png")
    assert load(tmp_path / "elsewhere").files["train"] != first["train"]


def test_a_linked_class_folder_is_a_class_folder(root, tmp_path):
    (root / "train" / "dog").rename(tmp_path / "dogs elsewhere")
    (root / "train" / "dog").symlink_to(tmp_path / "dogs elsewhere")
    assert load(root).train.targets == [0, 0, 1, 1]


def test_a_path_from_where_one_stands(root, monkeypatch):
    monkeypatch.chdir(root)
    splits = load(".")
    monkeypatch.chdir("/")
    assert splits.name == "pets"
    assert splits.train[0][1] == 0


# --- what is remembered -----------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that were decoded by `load_folders` itself."""
    names = []
    real = folders.try_open
    monkeypatch.setattr(folders, "try_open", lambda path: names.append(Path(path).name) or real(path))
    return names


def memory(tmp_path):
    (file,) = (tmp_path / "cache" / "scans").iterdir()
    return file


def test_a_second_start_decodes_only_what_is_new_or_changed(root, decoded):
    first = load(root)
    assert len(decoded) == 8
    decoded.clear()
    assert load(root).mean == first.mean
    assert decoded == []

    picture(50).save(root / "val" / "dog" / "new.png")
    picture(51, 90, 90).save(root / "train" / "cat" / "1.png")
    (root / "train" / "dog" / "0.png").unlink()
    changed = load(root)
    assert sorted(decoded) == ["1.png", "new.png"]
    assert len(changed.train) == 3
    assert changed.mean != first.mean
    os.environ["KDLAB_CACHE"] += "2"  # from nothing
    assert load(root).mean == changed.mean


def test_the_one_split_that_is_wanted_is_read_alone(tmp_path, decoded):
    root = grow(tmp_path / "pets", ("test",))
    splits = load(root, only="test", mean=HALF, std=HALF)
    assert len(splits.test) == 4
    assert splits.classes == ("cat", "dog")
    assert not splits.test_is_val
    with pytest.raises(InputError, match="pets has no val/ in it; folders found: test/"):
        load(root, only="val")
    grow(root)
    load(root)
    decoded.clear()
    picture(50).save(root / "val" / "dog" / "new.png")
    load(root, only="val")
    load(root)  # what a look at one split finds does not make the others unknown
    assert decoded == ["new.png"]


def test_a_file_of_another_length_is_another_one_whatever_its_time(root, decoded):
    """A copy keeps the time of what it was made of."""
    load(root)
    decoded.clear()
    file = root / "train" / "cat" / "1.png"
    status = file.stat()
    picture(51, 90, 90).save(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    load(root)
    assert decoded == ["1.png"]


def test_another_size_has_its_own_statistics(root):
    assert load_folders(root, size=8).std != load_folders(root, size=2).std


def test_a_file_that_could_not_be_used_is_tried_again(root):
    bad = root / "val" / "cat" / "0.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:500])
    assert [one.path for one in load(root).skipped] == [bad]
    assert [one.path for one in load(root).skipped] == [bad]
    bad.write_bytes(content)
    assert load(root).skipped == ()


@pytest.mark.parametrize(
    "content", [b"", b'{"train/cat', b"\xff\xfe", b"[]", b'{"train/cat/0.png": 3}', b'{"a": ["b"]}']
)
def test_a_broken_memory_is_ignored_and_written_anew(root, tmp_path, decoded, content):
    first = load(root)
    good = memory(tmp_path).read_bytes()
    memory(tmp_path).write_bytes(content)
    assert load(root).mean == first.mean
    assert len(decoded) == 16
    assert json.loads(memory(tmp_path).read_bytes()) == json.loads(good)


def test_a_memory_that_cannot_be_written_costs_only_a_warning(root, tmp_path):
    load(root)
    file = memory(tmp_path)
    file.unlink()
    file.mkdir()  # nothing can be put in its place
    with pytest.warns(UserWarning, match="not remembered .* KDLAB_CACHE names the place"):
        assert len(load(root).train) == 4


def test_an_interrupted_look_goes_on_where_it_was(root, decoded, monkeypatch):
    real = folders.progress

    def interrupted(results, **options):
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(root)
    monkeypatch.setattr(folders, "progress", real)
    decoded.clear()
    load(root)
    assert len(decoded) == 7


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(root, *parts, **options):
    with pytest.raises(InputError) as caught:
        load(root, **options)
    for part in parts:
        assert part in str(caught.value)


def test_no_such_root(tmp_path):
    refused(tmp_path / "nowhere", "nowhere: no such folder", "train/ and val/")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "a file, not a folder")


def test_no_train_or_val(tmp_path):
    refused(grow(tmp_path / "a", ["train"]), "has no val/ in it", "folders found: train/", "val/    cat/")
    refused(grow(tmp_path / "b", ["val", "valid"]), "has no train/ in it", "folders found: val/, valid/")
    (tmp_path / "c").mkdir()
    refused(tmp_path / "c", "no train/ and no val/", "folders found: none")


def test_images_that_are_not_yet_split(tmp_path):
    grow(tmp_path, [""])
    (tmp_path / "other").mkdir()
    refused(tmp_path, "Images lie directly in cat/, dog/: share them out between train/ and val/")


def test_a_class_in_one_split_only(tmp_path):
    root = grow(tmp_path / "a", ("train", "val", "test"))
    (root / "val" / "bird").mkdir()
    refused(root, "'bird' is in val/ but not in train/ and test/")
    root = grow(tmp_path / "b", ("train", "val", "test"))
    (root / "test" / "dog").rename(root / "test" / "Dog")
    refused(root, "'Dog' is in test/ but not in train/ and val/", "'dog' is in train/ and val/ but not in test/")


def test_an_empty_class(root):
    (root / "train" / "empty").mkdir()
    (root / "val" / "empty").mkdir()
    (root / "val" / "empty" / ".gitkeep").touch()
    refused(root, "no file in these class folders", "train/empty, val/empty")


def test_a_class_without_a_usable_image(root):
    for path in (root / "val" / "dog").iterdir():
        path.write_text("text")
    refused(root, "class 'dog' has no usable image in val/", "files skipped: 2", "0.png: not an image")


@pytest.mark.parametrize("classes", [(), ("cat",)])
def test_fewer_than_two_classes(tmp_path, classes):
    root = grow(tmp_path / "pets", classes=classes)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True, exist_ok=True)
    refused(root, f"class folders found in {root / 'train'}: {', '.join(classes) or 'none'}", "at least 2")


def test_wrong_settings_are_refused_before_any_work(tmp_path):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(InputError, match="size is 0"):
        load_folders(nowhere, size=0)
    refused(nowhere, "mean has 2 values, 3 wanted", mean=(0.5, 0.5))
    refused(nowhere, "std has 1 value, 3 wanted", std=[1.0])
    refused(nowhere, "above 0", std=(1.0, 0.0, 1.0))


def test_an_augmented_image_is_a_part_of_8_to_100_percent_and_mirrored_half_of_the_time():
    across, down = np.meshgrid(np.linspace(0, 255, 200), np.linspace(0, 255, 200))  # red is the column, green the row
    image = Image.fromarray(np.stack([across, down, 0 * down], axis=-1).round().astype(np.uint8))
    transform = ImageTransform(16, (0, 0, 0), (1, 1, 1), augment=True)
    drawn = torch.stack([transform(image) for _ in range(300)])
    width = 16 * drawn[:, 0, 8].diff(dim=1).mean(dim=1)  # as a share of the image's; below 0 where it is mirrored
    height = 16 * drawn[:, 1, :, 8].diff(dim=1).mean(dim=1)
    area = (width * height).abs()
    assert 0.4 < (width < 0).float().mean() < 0.6
    assert height.min() > 0
    assert 0.07 < area.min() < 0.12
    assert 0.95 < area.max() < 1.02


def test_an_image_that_was_replaced_by_one_of_the_same_length_is_looked_at_again(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), "black").save(tmp_path / "pets" / split / name / "0.bmp")
    file = tmp_path / "pets/train/cat/0.bmp"
    assert load(tmp_path / "pets").mean == (0, 0, 0)
    before = file.stat()
    Image.new("RGB", (8, 8), "white").save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    assert file.stat().st_size == before.st_size
    assert load(tmp_path / "pets").mean == (0.5, 0.5, 0.5)
