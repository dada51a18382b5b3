"""Built-in data on disk: what is written is what the built-in loaders give, and what the folder loaders read back."""

import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import VOCDetection

from kdlab import InputError
from kdlab.data import load_digits, load_folders, load_pairs, load_segmentation, weather_files
from kdlab.data.class_folders import write_class_folders, write_digits
from kdlab.data.manifest import differences
from kdlab.data.new_folder import write_png
from kdlab.data.pairs import Pair, PairedImages
from kdlab.data.scenes import Scenes
from kdlab.data.splits import ImageSplits
from kdlab.data.weather import WEATHERS
from kdlab.data.yolo_scenes import write_yolo_scenes

SPLITS = ("train", "val", "test")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- digits -----------------------------------------------------------------------------------------------------------


def rows(dataset):
    """How often each image is there with its label, whatever the order."""
    return Counter((image.numpy().tobytes(), label) for image, label in dataset)


def test_digits_are_read_back_to_the_bit(tmp_path):
    write_digits(tmp_path / "digits")
    built_in = load_digits()
    read = load_folders(tmp_path / "digits", size=32, mean=built_in.mean, std=built_in.std)
    assert (read.classes, read.test_is_val) == (built_in.classes, False)
    for split in SPLITS:
        assert rows(getattr(read, split)) == rows(getattr(built_in, split))
    assert not any(differences(tmp_path / "digits"))


def test_class_folders_number_their_images_and_leave_nothing_when_they_fail(tmp_path):
    image = Image.new("RGB", (4, 4))
    write_class_folders(tmp_path / "set", {"train": [(image, "cat"), (image, "dog"), (image, "cat")]})
    names = sorted(path.relative_to(tmp_path / "set").as_posix() for path in (tmp_path / "set").rglob("*.png"))
    assert names == ["train/cat/00000.png", "train/cat/00002.png", "train/dog/00001.png"]
    with pytest.raises(InputError, match="exists already"):
        write_class_folders(tmp_path / "set", {})
    with pytest.raises(KeyError):
        write_class_folders(tmp_path / "other", {"train": ({}[0] for _ in range(1))})
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


# --- weather ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    """What load_weather gives, in small: in training each image has a clean one of its own, in the test three share."""
    generator = torch.Generator().manual_seed(0)

    def picture():
        return torch.randint(256, (3, 16, 20), generator=generator, dtype=torch.uint8)

    parts = {}
    for split, scenes, variants in (("train", 4, 1), ("val", 1, 2), ("test", 2, 3)):
        pairs = []
        for scene in range(scenes):
            clean = picture()
            for weather in WEATHERS:
                clean = picture() if split == "train" else clean
                pairs += [Pair(picture(), clean, weather, f"{scene}_{n}") for n in range(variants)]
        parts[split] = PairedImages(pairs, WEATHERS)
    return ImageSplits(
        **parts, classes=WEATHERS, mean=(0.0,) * 3, std=(1.0,) * 3, size=16, name="small", deterministic=True
    )


@pytest.fixture(scope="module")
def weather(tmp_path_factory, drawn):
    def once(variants, seed):
        assert (variants, seed) == (1, 3)
        return drawn

    folder = tmp_path_factory.mktemp("built-in") / "weather"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weather_files, "load_weather", once)
        weather_files.write_weather(folder, variants=1, seed=3)
    return folder


def pixels(image):
    return image if torch.is_tensor(image) else torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)


def test_every_pair_is_read_back_to_the_bit(weather, drawn):
    read = load_pairs(weather)
    assert (read.classes, read.skipped, read.test_is_val) == (drawn.classes, (), False)
    for split in SPLITS:
        both = [
            Counter(
                (pixels(pair.degraded).numpy().tobytes(), pixels(pair.clean).numpy().tobytes(), pair.weather)
                for pair in getattr(splits, split).pairs
            )
            for splits in (drawn, read)
        ]
        assert both[0] == both[1]


def test_each_weather_lies_as_its_public_set_does(weather):
    """Haze and rain have one clean image for all that was made of it; snow has the same names twice."""
    for weather_folder, degraded, clean, cleans in (
        ("haze", "hazy", "clear", 2),
        ("rain", "rainy_image", "ground_truth", 2),
        ("snow", "synthetic", "gt", 6),
    ):
        place = weather / "test" / weather_folder
        names = [sorted(path.name for path in (place / kind).iterdir()) for kind in (degraded, clean)]
        assert names[0] == [f"000{scene}_{variant}.png" for scene in (1, 2) for variant in (1, 2, 3)]
        assert len(names[1]) == cleans
        assert names[1][0] == ("0001_1.png" if cleans == 6 else "0001.png")


def test_weather_is_as_its_manifest_says_and_a_folder_that_is_there_is_left_alone(weather):
    assert not any(differences(weather))
    with pytest.raises(InputError, match="exists already"):
        weather_files.write_weather(weather)


# --- scenes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built-in") / "scenes"
    write_yolo_scenes(folder, {"train": 4, "val": 2, "test": 2}, size=48, seed=3)
    return folder


def test_scenes_are_read_back_as_a_set_with_masks(scenes):
    read = load_segmentation(scenes, size=48, mean=(0.0,) * 3, std=(1.0,) * 3, classes=Scenes.classes)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        drawn = Scenes(split, count, size=48, seed=3, mean=(0.0,) * 3, std=(1.0,) * 3)
        assert len(getattr(read, split)) == count
        for (image, mask), (drawn_image, drawn_mask) in zip(getattr(read, split), drawn, strict=True):
            torch.testing.assert_close(image, drawn_image)
            assert torch.equal(mask, drawn_mask)


def test_voc_s_annotations_have_the_boxes_in_pixels_from_one(scenes):
    drawn = Scenes("train", 4, size=48, seed=3)
    for index in range(4):
        tree = ElementTree.parse(scenes / "annotations" / "train" / f"{index:05}.xml")
        annotation = VOCDetection.parse_voc_xml(tree.getroot())["annotation"]
        assert annotation["filename"] == f"{index:05}.png"
        assert annotation["size"] == {"width": "48", "height": "48", "depth": "3"}
        boxes, labels = drawn.boxes(index)
        shown = annotation["object"]
        assert [one["name"] for one in shown] == [Scenes.classes[label] for label in labels]
        for one, box in zip(shown, boxes.int().tolist(), strict=True):
            first = [int(one["bndbox"][side]) - 1 for side in ("xmin", "ymin")]
            last = [int(one["bndbox"][side]) for side in ("xmax", "ymax")]
            assert first + last == box


def test_scenes_are_as_their_manifest_says(scenes):
    assert not any(differences(scenes))
    assert len(contents(scenes)) == 4 * 8 + 2


# --- lists of pairs whose clean images have a margin ------------------------------------------------------------------


def test_a_margin_is_cut_in_a_listed_pair_of_reside_and_in_no_other(tmp_path):
    sizes = {(24, 20): ("hazy/1_1", "hazy/2_1", "input/1"), (44, 30): ("clear/1", "gt/1")}
    for size, names in sizes.items():
        for name in names:
            path = tmp_path / "its" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size).save(path)

    def listed(weather, clean, degraded):
        for split in ("train", "valid"):
            (tmp_path / "meta" / split).mkdir(parents=True, exist_ok=True)
            pairs = json.dumps([[f"its/{clean}.png", f"its/{degraded}.png"]])
            (tmp_path / "meta" / split / f"{weather}.json").write_text(pairs)

    listed("haze", "clear/1", "hazy/1_1")
    degraded, (clean, _) = load_pairs(tmp_path).val[0]
    assert degraded.shape == clean.shape == (3, 20, 24)
    for clean, other in (("clear/1", "input/1"), ("clear/1", "hazy/2_1"), ("gt/1", "input/1")):
        listed("rain", clean, other)
        with pytest.raises(InputError, match=f"{other}.png is 24x20 and .*{clean}.png is 44x30. Wanted: one size"):
            load_pairs(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_an_image_that_does_not_fit_on_the_disk_is_an_error():
    with pytest.raises(OSError, match="No space left"):
        write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), Path("/dev/full"))
