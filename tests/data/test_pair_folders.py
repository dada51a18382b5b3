"""Pairs on disk: every layout and the lists lead to the right clean image, and what does not fit is told."""

import json
import random

import pytest
import torch
from PIL import ExifTags, Image, PngImagePlugin

from kdlab import InputError
from kdlab.data.pair_folders import LAYOUTS, list_weathers, load_pairs

SPLITS = ("train", "val", "test")

# By hand from the public sets: each degraded file with its clean one, in a weather's folder.
ON_DISK = {
    "Rain13K": [("input/1.png", "target/1.png"), ("input/2.jpg", "target/2.png")],
    "AllWeather": [("input/im_0001_s80_a04.png", "gt/im_0001_s80_a04.png"), ("input/7.jpg", "gt/7.jpg")],
    "Outdoor-Rain": [
        ("input/im_0001_s80_a04.png", "gt/im_0001.png"),
        ("input/im_0001_s95_a06.png", "gt/im_0001.png"),
        ("input/im_0042_s80_a04.png", "gt/im_0042.png"),
    ],
    "Rain1400": [
        ("rainy_image/901_1.jpg", "ground_truth/901.jpg"),
        ("rainy_image/901_14.jpg", "ground_truth/901.jpg"),
        ("rainy_image/90_1.jpg", "ground_truth/90.jpg"),
    ],
    "Snow100K": [("synthetic/beautiful_smile_0.jpg", "gt/beautiful_smile_0.jpg"), ("synthetic/b.jpg", "gt/b.jpg")],
    "CSD": [("Snow/1.tif", "Gt/1.tif"), ("Snow/2.tif", "Gt/2.tif")],
    "RESIDE indoor": [
        ("hazy/1_1.png", "clear/1.png"),
        ("hazy/1_10.png", "clear/1.png"),
        ("hazy/10_1.png", "clear/10.png"),
    ],
    "RESIDE outdoor": [("hazy/0025_0.8_0.1.jpg", "clear/0025.jpg"), ("hazy/0025_0.85_0.04.jpg", "clear/0025.jpg")],
    "SOTS": [("hazy/0001_0.8_0.2.jpg", "gt/0001.png"), ("hazy/0002_0.9_0.2.jpg", "gt/0002.png")],
    "O-HAZE": [
        ("hazy/01_outdoor_hazy.jpg", "GT/01_outdoor_GT.jpg"),
        ("hazy/02_outdoor_hazy.JPG", "GT/02_outdoor_GT.JPG"),
    ],
    "NH-HAZE": [("01_hazy.png", "01_GT.png"), ("02_hazy.png", "02_GT.png")],
    "NH-HAZE2": [("hazy/01.png", "GT/01.png"), ("hazy/02.png", "GT/02.png")],
    "RainDrop": [("data/0_rain.png", "gt/0_clean.png"), ("data/1_rain.png", "gt/1_clean.png")],
    "RainDrop, renamed": [("input/0_rain.png", "gt/0_clean.png"), ("input/1_rain.png", "gt/1_clean.png")],
    "RainDrop, one folder": [("0_rain.png", "0_clean.png"), ("1_rain.png", "1_clean.png")],
}


def draw(file, level, size=(24, 20)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(file, quality=100)


def lay_out(folder, pairs, size=(24, 20), clean_size=None):
    """The files, grey: of a clean one 100 and more, and of what was made of it the same less 100."""
    cleans = sorted({clean for _, clean in pairs})
    for degraded, clean in pairs:
        level = 100 + 10 * cleans.index(clean)
        draw(folder / clean, level, clean_size or size)
        draw(folder / degraded, level - 100, size)


def grow(root, weathers=("haze", "rain"), splits=SPLITS, layout="Rain13K"):
    for split in splits:
        for weather in weathers:
            lay_out(root / split / weather, ON_DISK[layout])
    return root


@pytest.fixture
def root(tmp_path):
    return grow(tmp_path / "storms")


def load(root):
    return load_pairs(root, crop=16)


def refuses(root, *words):
    """The sentence of the refusal, which has all the words."""
    with pytest.raises(InputError) as refusal:
        load(root)
    for word in words:
        assert str(word) in str(refusal.value)


# --- layouts ----------------------------------------------------------------------------------------------------------


def assert_pairs_match(dataset, count):
    """Every degraded image is beside the clean one that it was made of, and neither is the other."""
    assert len(dataset) == count
    for degraded, (clean, _) in dataset:
        torch.testing.assert_close(clean - degraded, torch.full_like(clean, 100 / 255), atol=2 / 255, rtol=0)


@pytest.mark.parametrize("name", ON_DISK)
def test_every_layout_leads_from_the_degraded_image_to_its_clean_one(tmp_path, name):
    splits = load(grow(tmp_path, layout=name))
    for split in SPLITS:
        assert_pairs_match(getattr(splits, split), 2 * len(ON_DISK[name]))
    assert splits.skipped == ()


@pytest.mark.parametrize("rename", [str.upper, str.lower, str.title])
@pytest.mark.parametrize("name", ["Rain13K", "CSD", "O-HAZE"])
def test_the_case_of_a_folders_name_does_not_matter(tmp_path, name, rename):
    grow(tmp_path, ["any"], layout=name)
    for split in SPLITS:
        for folder in list((tmp_path / split / "any").iterdir()):
            folder.rename(folder.with_name("aside")).rename(folder.with_name(rename(folder.name)))
    assert_pairs_match(load(tmp_path).val, 2)


def test_every_weather_may_have_a_layout_of_its_own(tmp_path):
    weathers = {"haze": "RESIDE outdoor", "rain": "Rain1400", "snow": "CSD", "drops": "RainDrop, one folder"}
    for split in SPLITS:
        for weather, name in weathers.items():
            lay_out(tmp_path / split / weather, ON_DISK[name])
    splits = load(tmp_path)
    assert_pairs_match(splits.train, 2 + 3 + 2 + 2)
    assert splits.classes == ("drops", "haze", "rain", "snow")


def test_folders_within_are_matched_within(tmp_path):
    pairs = [("input/a/1.png", "target/a/1.png"), ("input/b/1.png", "target/b/1.png")]
    for split in SPLITS:
        lay_out(tmp_path / split / "rain", pairs)
    splits = load(tmp_path)
    assert_pairs_match(splits.val, 2)
    assert [pair.name for pair in splits.val.pairs] == ["a/1", "b/1"]


def test_parts_of_the_degraded_images_may_have_one_folder_of_clean_ones(tmp_path):
    """As RESIDE OTS has them; in a list of them, too, the margin is cut."""
    pairs = [("hazy/part1/0025_0.8_0.1.jpg", "clear/0025.jpg"), ("hazy/part2/0031_0.8_0.1.jpg", "clear/0031.jpg")]
    for split in ("train", "val"):
        lay_out(tmp_path / split / "haze", pairs, clean_size=(26, 24))
    assert_pairs_match(load(tmp_path).val, 2)
    write_lists(tmp_path, {"haze": [[f"train/haze/{clean}", f"train/haze/{hazy}"] for hazy, clean in pairs]})
    assert_pairs_match(load(tmp_path).val, 2)


def test_masks_and_clean_images_of_nothing_are_left_alone(tmp_path):
    grow(tmp_path, ["snow"], layout="Snow100K")
    draw(tmp_path / "train/snow/mask/b.jpg", 0)
    draw(tmp_path / "train/snow/gt/unused.jpg", 0)
    draw(tmp_path / "train/snow/synthetic/.hidden.jpg", 0)
    assert_pairs_match(load(tmp_path).train, 2)


def test_resides_clean_images_have_a_margin_that_is_cut(tmp_path):
    """The clean image shows the degraded one's scene in its middle, and white around it."""
    for split in ("train", "val"):
        lay_out(tmp_path / split / "haze", [("hazy/1_1.png", "clear/1.png")], size=(24, 20), clean_size=(44, 30))
        clean = Image.new("RGB", (44, 30), "white")
        clean.paste((100, 100, 100), (10, 5, 34, 25))
        clean.save(tmp_path / split / "haze" / "clear" / "1.png")
    assert_pairs_match(load(tmp_path).val, 1)


@pytest.mark.parametrize(
    ("name", "clean_size"), [("Rain13K", (44, 30)), ("RESIDE indoor", (22, 30)), ("NH-HAZE2", (44, 30))]
)
def test_other_sizes_in_one_pair_are_refused_with_both_files(tmp_path, name, clean_size):
    for split, size in (("train", (24, 20)), ("val", clean_size)):
        lay_out(tmp_path / split / "some", ON_DISK[name], size=(24, 20), clean_size=(24, 20))
        for _, clean in ON_DISK[name]:
            draw(tmp_path / split / "some" / clean, 100, size)
    degraded, clean = (tmp_path / "val" / "some" / file for file in sorted(ON_DISK[name])[0])
    number = len(ON_DISK[name])
    refuses(tmp_path, f"{number} of the pairs of {degraded.parent} have two sizes: {degraded} is 24x20 and {clean} is")


def notes():
    """The ways to tell of a turn by a quarter: a file's ending, and what it is saved with."""
    exif, profile, text = Image.Exif(), PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    exif[ExifTags.Base.Orientation] = 6
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    profile.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n")
    text.add_itxt("XML:com.adobe.xmp", xmp)
    return {
        "EXIF": ("jpg", {"exif": exif}),
        "XMP": ("jpg", {"xmp": xmp.encode()}),
        "EXIF of PNG": ("png", {"exif": exif}),
        "profile of PNG": ("png", {"pnginfo": profile}),
        "XMP of PNG": ("png", {"pnginfo": text}),
        "TIFF": ("tif", {"tiffinfo": {ExifTags.Base.Orientation: 6}}),
        "TIFF with XMP": ("tif", {"tiffinfo": {ExifTags.Base.Orientation: 6, 700: xmp.encode()}}),
    }


NOTES = notes()


@pytest.mark.parametrize("kind", NOTES)
def test_a_size_is_as_the_image_is_seen(tmp_path, kind):
    """One image of the pair was turned by the camera's note, the other one by whoever made the pair."""
    ending, noted = NOTES[kind]
    for split in ("train", "val"):
        lay_out(tmp_path / split / "haze", [(f"hazy/01_hazy.{ending}", "GT/01_GT.jpg")])
        Image.new("RGB", (20, 24)).save(tmp_path / split / "haze" / "hazy" / f"01_hazy.{ending}", **noted)
    assert_pairs_match(load(tmp_path).val, 1)


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_image_too_small_to_be_judged_is_named(root, split):
    for image in ("train/rain/input/1.png", "train/rain/target/1.png"):
        draw(root / image, 0, (9, 30))
    folder = root / split / "rain"
    for kind in ("input", "target"):
        draw(folder / kind / "1.png", 0, (30, 11))
    assert len(load(root).train) == 4
    for kind in ("input", "target"):
        draw(folder / kind / "1.png", 0, (30, 10))
    refuses(root, f"1 of the images of {folder / 'input'} are", folder / "input/1.png", "is 30x10", "at least 11x11")


def test_the_examples_in_the_table_are_what_the_sets_have():
    """They are what a user reads in the error, so each must be a name that its own rule reads."""
    for layout in LAYOUTS:
        assert (layout.clean_stem(layout.example) == layout.example) == (layout.pattern == "")
    assert str(LAYOUTS[-1]) == "01_hazy with 01_GT (NH-HAZE)"


# --- lists ------------------------------------------------------------------------------------------------------------


def write_lists(root, listed, valid="valid"):
    """``listed``: for each weather its [clean, degraded] paths; the same in both splits."""
    for split in ("train", valid):
        (root / "meta" / split).mkdir(parents=True, exist_ok=True)
        for weather, pairs in listed.items():
            (root / "meta" / split / f"{weather}.json").write_text(json.dumps(pairs))


@pytest.fixture
def listed(tmp_path):
    """Pairs anywhere below the root, and what lists them."""
    lay_out(tmp_path / "images", [("x/1.png", "y/one.png"), ("x/2.png", "y/two.png")])
    return {"snow": [["images/y/one.png", "images/x/1.png"]], "haze": [["images/y/two.png", "images/x/2.png"]]}


@pytest.mark.parametrize("valid", ["valid", "val"])
def test_lists_hold_the_clean_path_first(tmp_path, listed, valid):
    write_lists(tmp_path, listed, valid)
    splits = load(tmp_path)
    assert_pairs_match(splits.train, 2)
    assert_pairs_match(splits.val, 2)
    assert splits.test_is_val
    assert splits.val.pairs[0].name == "images/x/2"


def test_a_list_may_have_absolute_paths(tmp_path, listed):
    absolute = {
        weather: [[str(tmp_path / path) for path in pair] for pair in pairs] for weather, pairs in listed.items()
    }
    write_lists(tmp_path / "elsewhere", absolute)
    assert_pairs_match(load(tmp_path / "elsewhere").train, 2)


def test_a_weather_is_known_by_its_name_in_whatever_order_the_files_come(tmp_path, listed):
    names = ["rain", "haze", "rain-light", "snow"]  # "rain-light.json" sorts before "rain.json"
    random.Random(0).shuffle(names)
    write_lists(tmp_path, {name: listed["snow"] for name in names})
    splits = load(tmp_path)
    assert splits.classes == ("haze", "rain", "rain-light", "snow")
    assert [pair.weather for pair in splits.train.pairs] == list(splits.classes)
    assert [number for _, (_, number) in splits.train] == [0, 1, 2, 3]


def test_lists_come_before_folders(tmp_path, listed):
    grow(tmp_path)
    write_lists(tmp_path, listed)
    assert load(tmp_path).classes == ("haze", "snow")


def test_a_listed_file_that_is_missing_is_named(tmp_path, listed):
    listed["haze"] += [["images/y/lost.png", "images/x/2.png"], ["images/y/two.png", "gone/2.png"]]
    write_lists(tmp_path, listed)
    refuses(tmp_path, "haze.json names 2 files that are not there: gone/2.png, images/y/lost.png", "take the pairs out")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", "cannot be read as JSON"),
        ("[[", "cannot be read as JSON"),
        ('{"clean": "a"}', 'has {"clean": "a"}'),
        ('[["a.png"]]', 'has ["a.png"]'),
        ('[["a.png", 1]]', 'has ["a.png", 1]'),
        ('["a.png", "b.png"]', 'has "a.png"'),
        ("[]", "an empty list"),
        ("null", "has null"),
    ],
)
def test_what_is_no_list_of_pairs_is_told(tmp_path, listed, text, shown):
    write_lists(tmp_path, listed)
    (tmp_path / "meta/train/haze.json").write_text(text)
    refuses(tmp_path, tmp_path / "meta/train/haze.json", shown, "list of pairs")


def test_a_weather_that_is_in_one_folder_of_lists_alone_is_named(tmp_path, listed):
    write_lists(tmp_path, listed)
    (tmp_path / "meta/valid/snow.json").unlink()
    refuses(tmp_path, "'snow' is in train/ but not in val/")


def test_hidden_lists_are_no_weathers(tmp_path, listed):
    write_lists(tmp_path, listed)
    (tmp_path / "meta/train/._haze.json").write_bytes(b"\0\5\x16\7")
    assert load(tmp_path).classes == ("haze", "snow")


# --- the splits -------------------------------------------------------------------------------------------------------


def test_what_the_splits_say_of_themselves(root):
    splits = load(root)
    assert (splits.name, splits.size, splits.classes) == ("storms", 16, ("haze", "rain"))
    assert (splits.deterministic, splits.test_is_val) == (False, False)
    assert (splits.mean, splits.std) == ((0.0,) * 3, (1.0,) * 3)
    assert splits.train[0][0].shape == splits.train[0][1][0].shape == (3, 16, 16)
    assert splits.val[0][0].shape == splits.val[0][1][0].shape == (3, 20, 24)
    assert [number for _, (_, number) in splits.val] == [0, 0, 1, 1]


def test_without_a_test_split_val_is_the_test(tmp_path):
    splits = load(grow(tmp_path, splits=("train", "val")))
    assert splits.test_is_val
    assert splits.test is splits.val


@pytest.mark.parametrize("split", ["val", "test"])
def test_one_split_is_enough_to_judge_by(tmp_path, split):
    splits = load_pairs(grow(tmp_path, splits=(split,)), only_judged=True)
    assert_pairs_match(splits.val, 4)
    assert splits.test is splits.val
    assert (splits.test_is_val, splits.val_is_test) == (split == "val", split == "test")
    (tmp_path / split).rename(tmp_path / "other")
    with pytest.raises(InputError, match="has no val/ and no test/ in it"):
        load_pairs(tmp_path, only_judged=True)


def test_one_weather_is_enough(tmp_path):
    assert load(grow(tmp_path, ["rain"])).classes == ("rain",)


@pytest.mark.parametrize("split", SPLITS)
def test_a_weather_that_a_split_lacks_or_has_alone_is_named(root, split):
    (root / split / "rain").rename(root / split / "rian")
    others = " and ".join(f"{other}/" for other in SPLITS if other != split)
    refuses(root, f"'rain' is in {others} but not in {split}/", f"'rian' is in {split}/ but not in {others}")


def test_listing_decodes_nothing(root, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail(f"{self} was decoded"))
    assert len(load(root).train) == 4


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "P", "1", "RGBA", "CMYK"])
def test_pictures_of_any_mode_are_read_as_colour(tmp_path, mode):
    """A grey pair, or one image of a pair: 16 bits are scaled, not clipped."""
    for split in ("train", "val"):
        for kind, level in (("input", 0), ("target", 255)):
            file = tmp_path / split / "rain" / kind / ("1.tif" if mode == "CMYK" else "1.png")
            file.parent.mkdir(parents=True)
            image = Image.new("L", (20, 18), level)
            image = Image.new(mode, (20, 18), level * 257) if mode == "I;16" else image.convert("RGB").convert(mode)
            image.save(file)
    degraded, (clean, _) = load(tmp_path).val[0]
    assert torch.equal(degraded, torch.zeros(3, 18, 20))
    assert torch.equal(clean, torch.ones(3, 18, 20))


# --- files that cannot be used ----------------------------------------------------------------------------------------


def test_files_that_are_no_images_are_skipped_and_listed(root):
    folder = root / "train" / "haze"
    (folder / "input" / "notes.txt").write_text("written by hand")
    (folder / "input" / "3.png").write_bytes(b"")
    draw(folder / "target" / "3.png", 0)
    (folder / "target" / "1.txt").write_text("beside the image of the same name")
    splits = load(root)
    assert_pairs_match(splits.train, 4)
    skipped = [one.path.relative_to(folder).as_posix() for one in splits.skipped]
    assert skipped == ["input/3.png", "input/notes.txt", "target/1.txt"]
    assert "empty file" in splits.skipped[0].reason


def test_what_is_by_its_name_in_no_pair_of_one_folder_is_listed(tmp_path):
    grow(tmp_path, ["haze"], layout="NH-HAZE")
    draw(tmp_path / "train/haze/03_GT.png", 0)
    draw(tmp_path / "train/haze/04-hazy.png", 0)
    splits = load(tmp_path)
    assert_pairs_match(splits.train, 2)
    assert [one.path.name for one in splits.skipped] == ["03_GT.png", "04-hazy.png"]
    assert {one.reason for one in splits.skipped} == {"by its name in no pair"}


def test_a_degraded_image_without_its_clean_one_is_named_with_what_is_wanted(root):
    (root / "val/rain/target/1.png").unlink()
    refuses(root, "1 of the degraded images of", root / "val/rain/input", f"1 (wanted: {root / 'val/rain/target/1'})")


def test_of_many_without_a_clean_image_some_are_named_and_all_counted(tmp_path):
    grow(tmp_path, ["rain"], layout="Rain1400")
    for number in range(8):
        draw(tmp_path / f"train/rain/rainy_image/{700 + number}_3.jpg", 0)
    refuses(tmp_path, "8 of the degraded", "700_3 (wanted:", "ground_truth/700)", "and 3 more")


def test_where_no_name_fits_the_layout_wanted_is_what_the_names_look_like(tmp_path):
    for split in ("train", "val"):
        draw(tmp_path / split / "haze/hazy/0001_0.8_0.2.jpg", 0)
        draw(tmp_path / split / "haze/gt/other.png", 0)
    refuses(tmp_path, f"wanted: {tmp_path / 'train/haze/gt/0001'})")


def test_a_clean_file_that_is_no_image_is_told_with_the_reason(root):
    (root / "train/rain/target/2.png").write_text("404")
    refuses(root, "2 (wanted:", root / "train/rain/target/2.png", "not an image")


def test_two_clean_images_for_one_degraded_are_refused(root):
    draw(root / "train/haze/target/1.bmp", 0)
    refuses(root, "1 (two could be meant: 1.bmp and 1.png)")


def test_a_file_that_is_cut_short_is_named_when_it_is_read(root):
    file = root / "train/haze/input/1.png"
    Image.effect_noise((24, 20), 50).save(file)
    file.write_bytes(file.read_bytes()[:200])
    splits = load(root)
    with pytest.raises(InputError, match=r"train/haze/input/1.png: damaged, cut short"):
        splits.train[0]


# --- other layouts ----------------------------------------------------------------------------------------------------


def test_a_root_that_is_not_there_or_no_folder_is_told(tmp_path):
    refuses(tmp_path / "nowhere", "nowhere: no such folder", "train/ and val/")
    (tmp_path / "file").write_text("")
    refuses(tmp_path / "file", "file: a file, not a folder")


def test_a_root_without_splits_is_told_what_is_there_and_wanted(tmp_path):
    lay_out(tmp_path / "rain", ON_DISK["Rain13K"])
    refuses(tmp_path, "has no train/ and no val/ in it; folders found: rain/", "meta/", "haze.json")


def test_splits_without_weathers_are_told(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    refuses(tmp_path, f"no weather in {tmp_path / 'train'}")


@pytest.mark.parametrize("two", ["hazy clear", "Input target"])
def test_pairs_without_a_weather_are_told_where_to_go(tmp_path, two):
    for split in ("train", "val"):
        for folder in two.split():
            draw(tmp_path / split / folder / "1.png", 0)
    said = (
        f"{tmp_path / 'train'} holds pairs without a weather's folder: {'/ and '.join(two.split())}/. Move these into"
    )
    refuses(tmp_path, said, "train/haze/")
    with pytest.raises(InputError, match="without a weather"):
        list_weathers(tmp_path)


@pytest.mark.parametrize("files", [[], ["a.png"], ["before/1.png", "after/1.png"], ["input/1.png"]])
def test_a_weathers_folder_of_no_known_layout_is_told_what_is_there_and_what_is_known(tmp_path, files):
    for split in ("train", "val"):
        (tmp_path / split / "rain").mkdir(parents=True)
        for file in files:
            draw(tmp_path / split / "rain" / file, 0)
    refuses(tmp_path, tmp_path / "train/rain", *(file.split("/")[0] for file in files), "ground_truth/901 (Rain1400)")


def test_a_weather_without_images_is_named(root):
    folder = root / "val/haze/input"
    for file in folder.iterdir():
        file.unlink()
    refuses(root, f"'haze' has no usable image in {folder} (files skipped: 0)")
    (folder / "notes.txt").write_text("see the other disk")
    refuses(root, f"'haze' has no usable image in {folder} (files skipped: 1", "notes.txt: not an image")


def test_a_crop_too_small_is_refused_before_any_look(tmp_path):
    with pytest.raises(InputError, match="crop is 8; wanted: at least 16"):
        load_pairs(tmp_path / "nowhere", crop=8)
