"""Public restoration sets as they would be put on disk, in small: found, counted and listed without their traps."""

import hashlib
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from kdlab import InputError
from kdlab.data import load_pairs
from kdlab.data.catalogue import RESTORATION, Part
from kdlab.data.manifest import MANIFEST, hashes
from kdlab.data.photos import FILES, load_photograph
from kdlab.data.restoration_sets import find, folder_of, instructions, joined, take_in, write_lists
from kdlab.data.two_halves import rainy_side, split_halves
from kdlab.data.weather import add_rain

SETS = {one.name: one for one in RESTORATION}


def draw(file, seed, size=(20, 18)):
    """A small picture, another one for another seed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(values).save(file)


def lay_out(folder, pairs):
    """Files of pairs (degraded, clean); each name is a picture of its own."""
    for name in {name for pair in pairs for name in pair}:
        draw(folder / name, int(hashlib.md5(f"{folder.name}/{name}".encode()).hexdigest()[:8], 16))


def sized(name, **counts):
    """The set with other numbers of pairs, as the test's are small."""
    known = SETS[name]
    parts = {
        split: Part(part.folder, ((counts[split], "the test's"),))
        for split, part in known.parts.items()
        if split in counts
    }
    return replace(known, parts=known.parts | parts)


def names(pairs):
    return [pair.degraded.stem for pair in pairs]


def nh_haze(data, count=20):
    lay_out(data / "nh-haze", [(f"{n:02}_hazy.png", f"{n:02}_GT.png") for n in range(1, count + 1)])
    return sized("nh-haze", train=count)


# --- found, counted, listed -------------------------------------------------------------------------------------------


def test_a_set_without_validation_gets_every_tenth_clean_image(tmp_path):
    found = find(nh_haze(tmp_path), tmp_path)
    assert names(found.pairs["val"]) == ["10_hazy", "20_hazy"]
    assert len(found.pairs["train"]) == 18
    assert (found.left_out, found.odd) == ([], [])


def test_of_fewer_than_ten_clean_images_the_last_is_for_validation(tmp_path):
    found = find(nh_haze(tmp_path, 4), tmp_path)
    assert (names(found.pairs["val"]), len(found.pairs["train"])) == (["04_hazy"], 3)


def test_all_that_was_made_of_a_clean_image_stays_on_one_side(tmp_path):
    for split, scenes in (("train", 10), ("test", 2)):
        pairs = [(f"rainy_image/{s}_{n}.jpg", f"ground_truth/{s}.jpg") for s in range(scenes) for n in range(1, 4)]
        lay_out(tmp_path / "rain1400" / split, pairs)
    found = find(sized("rain1400", train=30, test=6), tmp_path)
    assert {split: len(pairs) for split, pairs in found.pairs.items()} == {"train": 27, "val": 3, "test": 6}
    assert names(found.pairs["val"]) == ["9_1", "9_2", "9_3"]


def test_the_lists_are_what_load_pairs_reads(tmp_path):
    wanted = nh_haze(tmp_path)
    root = folder_of(wanted, tmp_path)
    write_lists(root, find(wanted, tmp_path))
    lists = sorted(root.glob("meta/*/*"))
    assert [path.relative_to(root).as_posix() for path in lists] == ["meta/train/haze.json", "meta/valid/haze.json"]
    assert json.loads(lists[1].read_text()) == [["10_GT.png", "10_hazy.png"], ["20_GT.png", "20_hazy.png"]]
    splits = load_pairs(root, crop=16)
    assert (splits.classes, len(splits.train), len(splits.val), splits.skipped) == (("haze",), 18, 2, ())
    again = find(wanted, tmp_path)
    assert len(again.pairs["train"]) == 18, "the lists are no pairs"
    assert not [name for name in hashes(root) if name.startswith("meta")]


def test_several_sets_are_listed_together(tmp_path):
    data, three = tmp_path / "data", tmp_path / "three"
    haze = find(nh_haze(data), data)
    lay_out(data / "sots/outdoor", [("hazy/0001_0.8_0.2.jpg", "gt/0001.png")])
    sots = find(sized("sots-outdoor", test=1), data)
    for split in ("train", "test"):
        lay_out(data / "csd" / split, [(f"Snow/{n}.tif", f"Gt/{n}.tif") for n in range(10)])
    snow = find(sized("csd", train=10, test=10), data)
    write_lists(three, joined([haze, sots, snow]))
    splits = load_pairs(three, crop=16)
    assert splits.classes == ("haze", "snow")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [18 + 9, 2 + 1, 1 + 10]


def test_pairs_may_lie_deeper_and_in_several_folders(tmp_path):
    pairs = [(f"input/{n}.png", f"target/{n}.png") for n in range(10)]
    lay_out(tmp_path / "rain13k" / "train" / "Rain13K", pairs)
    for name in ("Test100", "Rain100H"):
        lay_out(tmp_path / "rain13k" / "test" / name, pairs[:3])
    assert len(find(SETS["rain13k"], tmp_path).pairs["test"]) == 6


def test_the_margin_of_reside_s_clean_images_is_cut_when_listed(tmp_path):
    root = tmp_path / "reside-its"
    for number in range(1, 11):
        draw(root / "train" / "clear" / f"{number}.png", number, (24, 22))
        draw(root / "train" / "hazy" / f"{number}_1.png", 100 + number, (20, 18))
    write_lists(root, find(sized("reside-its", train=10), tmp_path))
    degraded, (clean, _) = load_pairs(root, crop=16).val[0]
    assert degraded.shape == clean.shape == (3, 18, 20)


def test_another_number_of_pairs_is_told_with_the_known_ones(tmp_path):
    nh_haze(tmp_path)
    assert find(SETS["nh-haze"], tmp_path).odd == [
        "train has 20 pairs; known: 55 (the published). Something is missing, or it is another copy"
    ]


def test_a_degraded_image_without_its_clean_one_is_named(tmp_path):
    wanted = nh_haze(tmp_path)
    (tmp_path / "nh-haze" / "07_GT.png").unlink()
    with pytest.raises(InputError, match=r"07_hazy \(wanted: .*07_GT\)"):
        find(wanted, tmp_path)


# --- the traps --------------------------------------------------------------------------------------------------------


def test_the_scenes_that_outdoor_rain_s_training_shares_with_its_test_are_left_out(tmp_path):
    scenes = [299, 300, 301, 325, 350, 351]
    lay_out(
        tmp_path / "outdoor-rain" / "train",
        [(f"input/im_{s:04}_s{v}_a04.png", f"gt/im_{s:04}.png") for s in scenes for v in (80, 95)],
    )
    lay_out(tmp_path / "outdoor-rain" / "test", [("input/im_0301_s80_a05.png", "gt/im_0301.png")])
    found = find(sized("outdoor-rain", train=12, test=1), tmp_path)
    used = {name[:7] for split in ("train", "val") for name in names(found.pairs[split])}
    assert used == {"im_0299", "im_0300", "im_0351"}
    assert found.left_out == ["left out of train, being scenes of the test by their names: 6"]
    assert len(found.pairs["test"]) == 1


def test_in_the_whole_set_8250_of_9000_stay():
    names = [f"im_{scene:04}" for scene in range(1, 601) for _ in range(15)]
    assert len(names) == 9_000
    assert sum(name not in SETS["outdoor-rain"].shared for name in names) == 8_250


def test_training_pairs_with_the_bytes_of_a_test_s_clean_image_are_left_out(tmp_path):
    for split in ("train", "test"):
        lay_out(tmp_path / "allweather" / split, [(f"input/{n}.png", f"gt/{n}.png") for n in range(12)])
    root = tmp_path / "allweather"
    (root / "train/gt/3.png").write_bytes((root / "test/gt/8.png").read_bytes())
    found = find(sized("allweather", train=12), tmp_path)
    assert found.left_out == ["left out of train, having a clean image of the test: 1"]
    assert "3" not in names(found.pairs["train"] + found.pairs["val"])


def test_training_pairs_with_a_clean_image_of_the_own_validation_are_left_out(tmp_path):
    root = tmp_path / "reside-its"
    for split in ("train", "val"):
        lay_out(root / split, [(f"hazy/{n}_{k}.png", f"clear/{n}.png") for n in range(3) for k in (1, 2)])
    (root / "train/clear/1.png").write_bytes((root / "val/clear/2.png").read_bytes())
    found = find(sized("reside-its", train=6, val=6), tmp_path)
    assert found.left_out == ["left out of train, having a clean image of the val: 2"]
    assert names(found.pairs["train"]) == ["0_1", "0_2", "2_1", "2_2"]
    assert len(found.pairs["val"]) == 6


def test_copies_of_a_clean_image_stay_on_one_side(tmp_path):
    """As AllWeather has them: a clean image for every degraded one."""
    root = tmp_path / "allweather"
    lay_out(root / "train", [(f"input/{n:02}.png", f"gt/{n:02}.png") for n in range(20)])
    lay_out(root / "test", [("input/1.png", "gt/1.png")])
    (root / "train/gt/15.png").write_bytes((root / "train/gt/09.png").read_bytes())
    assert names(find(sized("allweather", train=20, test=1), tmp_path).pairs["val"]) == ["09", "15"]


def test_what_one_set_judges_by_is_left_out_of_another_one_s_training(tmp_path):
    """Even in another weather, as one student learns from all."""
    rain, snow = tmp_path / "rain1400", tmp_path / "csd"
    for split in ("train", "test"):
        lay_out(rain / split, [(f"rainy_image/{n}_1.jpg", f"ground_truth/{n}.jpg") for n in range(10)])
        lay_out(snow / split, [(f"Snow/{n:02}.tif", f"Gt/{n:02}.tif") for n in range(20)])
    for own, theirs in (("04", "test/ground_truth/7"), ("05", "train/ground_truth/9"), ("09", "test/ground_truth/8")):
        (snow / f"train/Gt/{own}.tif").write_bytes((rain / f"{theirs}.jpg").read_bytes())
    sets = (sized("rain1400", train=10, test=10), sized("csd", train=20, test=20))
    both = joined(find(one, tmp_path) for one in sets)
    assert both.left_out == [
        "left out of val, having a clean image of the test: 1",
        "left out of train, having a clean image of the test or val: 2",
    ]
    assert {split: len(pairs) for split, pairs in both.pairs.items()} == {"train": 25, "val": 2, "test": 30}


def test_sots_is_500_pairs_or_one_for_each_of_its_492_clean_images(tmp_path):
    pairs = [("hazy/0001_0.8_0.2.jpg", "gt/0001.png"), ("hazy/0001_0.9_0.2.jpg", "gt/0001.png")]
    lay_out(tmp_path / "sots/outdoor", [*pairs, ("hazy/0002_0.9_0.2.jpg", "gt/0002.png")])
    assert len(find(sized("sots-outdoor", test=3), tmp_path).pairs["test"]) == 3
    assert len(hashes(tmp_path / "sots/outdoor")) == 5
    one_each = find(sized("sots-outdoor-492", test=2), tmp_path)
    assert names(one_each.pairs["test"]) == ["0001_0.8_0.2", "0002_0.9_0.2"]
    assert (SETS["sots-outdoor"].parts["test"].counts[0][0], SETS["sots-outdoor-492"].parts["test"].counts[0][0]) == (
        500, 492,
    )  # fmt: skip


def side_by_side(folder, rainy, pictures):
    """Clean and rainy images, by name, beside each other, as JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (clean, degraded) in pictures.items():
        both = torch.cat([degraded, clean] if rainy == "left" else [clean, degraded], dim=2)
        Image.fromarray((both * 255).round().byte().permute(1, 2, 0).numpy()).save(folder / f"{name}.jpg", quality=90)


@pytest.fixture(scope="module")
def photographs():
    """Parts of all the built-in photographs, and the same in rain."""
    generator = torch.Generator().manual_seed(0)
    clean = {name: load_photograph(name)[:, 60:188, 60:188].float() / 255 for name in FILES}
    return {name: (image, add_rain(image, generator, density=0.7, strength=0.4)) for name, image in clean.items()}


def slopes(count):
    """Smooth images, and the same with upright lines in them."""
    slope = torch.linspace(0, 0.5, 24).expand(3, 16, 24)
    lines = torch.zeros(3, 16, 24)
    lines[:, :, ::6] = 0.4
    return {str(number): (slope + 0.01 * number, slope + 0.01 * number + lines) for number in range(count)}


@pytest.mark.parametrize("rainy", ["left", "right"])
def test_the_rainy_half_is_measured_and_written_as_input(tmp_path, rainy, photographs):
    side_by_side(tmp_path / "both", rainy, photographs)
    assert rainy_side(sorted((tmp_path / "both").iterdir())) == rainy
    split_halves(tmp_path / "both", tmp_path / "halves")
    for name, images in photographs.items():
        for kind, image in zip(("target", "input"), images, strict=True):
            written = np.asarray(Image.open(tmp_path / "halves" / kind / f"{name}.png"))
            assert written.shape == (128, 128, 3)
            assert abs(written - (image * 255).permute(1, 2, 0).numpy()).mean() < 12, "what JPEG has changed"


@pytest.mark.parametrize("rainy", ["left", "right"])
@pytest.mark.parametrize(("alike", "enough"), [(0, True), (1, True), (2, False), (5, False)])
def test_halves_that_are_alike_speak_for_none(tmp_path, rainy, alike, enough):
    pictures = slopes(5)
    dry = {name: (clean, clean) for name, (clean, _) in list(pictures.items())[:alike]}
    side_by_side(tmp_path, rainy, pictures | dry)
    assert rainy_side(sorted(tmp_path.iterdir())) == (rainy if enough else None)


@pytest.mark.parametrize(("rainy", "other"), [("left", "right"), ("right", "left")])
def test_four_in_five_decide_for_either_side(tmp_path, rainy, other):
    side_by_side(tmp_path, rainy, slopes(5))
    side_by_side(tmp_path, other, slopes(1))
    assert rainy_side(sorted(tmp_path.iterdir())) == rainy


def test_rain800_is_split_once_and_found(tmp_path):
    for split, count in (("train", 20), ("test", 3)):
        side_by_side(tmp_path / "rain800" / split, "right", slopes(count))
    wanted = sized("rain800", train=20, test=3)
    for _ in range(2):
        found = find(wanted, tmp_path)
        assert len(found.pairs["test"]) == 3
        assert all(pair.degraded.parent.name == "input" for pair in found.pairs["train"])
        assert found.left_out == ["left out of train, having a clean image of the test: 3"], "they are the same here"
        assert len(found.pairs["train"]) + len(found.pairs["val"]) == 17


def test_halves_that_do_not_agree_are_not_guessed(tmp_path):
    side_by_side(tmp_path / "both", "left", slopes(4))
    side_by_side(tmp_path / "more", "right", slopes(4))
    for path in (tmp_path / "more").iterdir():
        path.rename(tmp_path / "both" / f"more_{path.name}")
    with pytest.raises(InputError, match="do not agree on which half is rainy. Write the rainy halves to .*input"):
        split_halves(tmp_path / "both", tmp_path / "halves")
    assert not (tmp_path / "halves").exists()


def test_what_cannot_be_halved_is_told(tmp_path):
    (tmp_path / "both").mkdir()
    with pytest.raises(InputError, match="there is no image in"):
        split_halves(tmp_path / "both", tmp_path / "halves")
    draw(tmp_path / "both" / "a.png", 0, (21, 18))
    with pytest.raises(InputError, match=r"a\.png is 21 pixels wide; wanted: an even number"):
        split_halves(tmp_path / "both", tmp_path / "halves")
    draw(tmp_path / "both" / "more" / "a.jpg", 0, (20, 18))
    with pytest.raises(InputError, match="is called as another image in .*both is"):
        split_halves(tmp_path / "both", tmp_path / "halves")


# --- what to download, and taking it in -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_every_set_says_where_it_is_and_where_to_put_it(tmp_path, name):
    wanted = SETS[name]
    with pytest.raises(InputError) as refusal:
        find(wanted, tmp_path)
    said = str(refusal.value)
    assert instructions(wanted, tmp_path) in said
    for part in wanted.parts.values():
        assert str(folder_of(wanted, tmp_path) / part.folder) in said
        assert all(f"{count:,} ({whose})" in said for count, whose in part.counts)
    assert wanted.page in said
    assert wanted.note in said
    assert wanted.licence == "none stated"


def test_a_folder_without_pairs_is_told_what_is_wanted(tmp_path):
    draw(tmp_path / "nh-haze" / "picture.png", 0)
    with pytest.raises(
        InputError, match=r"there are no pairs in .*nh-haze.*\n(.|\n)*01_hazy\.png, whose clean image is 01_GT\.png"
    ):
        find(SETS["nh-haze"], tmp_path)


def zipped(folder):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, f"NH-HAZE/{path.name}")
    return file.getvalue()


@pytest.fixture
def archive(tmp_path):
    wanted = nh_haze(tmp_path / "source")
    return wanted, zipped(tmp_path / "source")


def test_archives_are_unpacked_and_found(tmp_path, archive):
    wanted, content = archive
    (tmp_path / "download.zip").write_bytes(content)
    take_in(wanted, tmp_path / "data", {"train": [str(tmp_path / "download.zip")]})
    assert len(find(wanted, tmp_path / "data").pairs["train"]) == 18
    assert (tmp_path / "download.zip").exists(), "it is not ours to delete"
    with pytest.raises(InputError, match="has no split 'test'; wanted: train"):
        take_in(wanted, tmp_path / "data", {"test": [str(tmp_path / "download.zip")]})


@pytest.mark.parametrize(("split", "name"), [("tset", "csd.zip"), ("test", "gone.zip")])
def test_what_one_split_cannot_have_is_told_before_another_is_unpacked(tmp_path, split, name):
    with zipfile.ZipFile(tmp_path / "csd.zip", "w") as file:
        file.writestr("Snow/1.tif", b"an image")
    with pytest.raises(InputError, match="no split 'tset'|gone.zip: no such file"):
        take_in(SETS["csd"], tmp_path / "data", {"train": [str(tmp_path / "csd.zip")], split: [str(tmp_path / name)]})
    assert not (tmp_path / "data").exists()


def test_an_address_is_downloaded_and_its_hash_holds_for_every_later_time(tmp_path, archive, server):
    wanted, content = archive
    data = tmp_path / "data"
    server.files["NH.zip"] = content
    take_in(wanted, data, {"train": [f"{server.url}NH.zip"]})
    store = data / "archives" / "nh-haze" / "train"
    assert hashes(store) == {"NH.zip": hashlib.sha256(content).hexdigest()}
    assert [path.name for path in store.iterdir()] == [MANIFEST]
    (data / "nh-haze").rename(data / "aside")
    server.files["NH.zip"] = content + b"another"
    with pytest.raises(InputError, match="has the sha256 .*wanted: .*What had arrived is deleted"):
        take_in(wanted, data, {"train": [f"{server.url}NH.zip"]})
    assert not (data / "nh-haze").exists()


@pytest.mark.parametrize("out_of_it", ["../..", "{here}"])
def test_a_downloaded_archive_that_leads_out_of_the_folder_is_refused_and_leaves_nothing(
    tmp_path, archive, server, out_of_it
):
    wanted, content = archive
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as more:
        more.writestr(f"{out_of_it.format(here=tmp_path)}/evil.png", b"evil")
    server.files["NH.zip"] = file.getvalue()
    before = {*tmp_path.rglob("*")}
    with pytest.raises(InputError, match=r"evil\.png' in it, which leads out of the folder. Do not trust this archive"):
        take_in(wanted, tmp_path / "data", {"train": [f"{server.url}NH.zip"]})
    kept = tmp_path / "data" / "archives" / "nh-haze" / "train" / "NH.zip"  # for whoever wants to look into it
    assert [path for path in {*tmp_path.rglob("*")} - before if path.is_file()] == [kept]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["archives"]


def test_a_damaged_download_is_not_kept_for_the_next_time(tmp_path, archive, server):
    wanted, content = archive
    server.files["NH.zip"] = content[: len(content) // 2]
    with pytest.raises(InputError, match="is neither a zip nor a tar|damaged"):
        take_in(wanted, tmp_path / "data", {"train": [f"{server.url}NH.zip"]})
    assert not list((tmp_path / "data").rglob("*.zip*"))
    server.files["NH.zip"] = content
    take_in(wanted, tmp_path / "data", {"train": [f"{server.url}NH.zip"]})
    assert len(find(wanted, tmp_path / "data").pairs["val"]) == 2
