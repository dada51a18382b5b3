"""The scripts in data_scripts, as they are called."""

import hashlib
import io
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdlab.data import catalogue
from kdlab.data.manifest import MANIFEST
from kdlab.data.pair_folders import load_pairs

SCRIPTS = Path(__file__).parents[1] / "data_scripts"
MAKE = ("make_boxes", "make_digits", "make_scenes", "make_weather")
GET = {"get_classification": "CLASSIFICATION", "get_segmentation": "SEGMENTATION", "get_restoration": "RESTORATION"}


@pytest.fixture
def run(monkeypatch, capsys):
    def run(script, *words):
        """The exit status and all that was printed."""
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, words)])
        status = 0
        try:
            runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        if isinstance(status, str):  # what Python itself prints at the end
            return 1, status
        return status, printed.out + printed.err

    return run


def haze(data, count=10):
    """NH-HAZE in small, or, with 55 pairs, in its size."""
    for number in range(1, count + 1):
        for kind in ("hazy", "GT"):
            path = data / "nh-haze" / f"{number:02}_{kind}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            level = 2 * number + (kind == "GT")
            Image.fromarray(np.full((18, 20, 3), level, np.uint8)).save(path)


def sizes(one):
    if isinstance(one, catalogue.DirectSet):
        return one.counts
    return {split: part.counts[0][0] for split, part in one.parts.items() if part.counts}


@pytest.mark.parametrize("script", [*MAKE, *GET])
def test_help_has_an_example_of_its_own(run, script):
    status, said = run(script, "--help")
    assert status == 0
    assert f"python data_scripts/{script}.py " in said
    assert "--check" in said


@pytest.mark.parametrize("script", GET)
def test_list_shows_name_size_licence_and_use_of_every_set(run, script):
    status, said = run(script, "--list")
    assert status == 0
    for one in getattr(catalogue, GET[script]):
        (entry,) = [line for line in said.splitlines() if line.split()[0] == one.name]
        assert f"{one.title}: {one.weather if script == 'get_restoration' else one.task}; " in entry
        assert all(f"{number:,} {split}" in entry for split, number in sizes(one).items())
        assert f"licence: {one.licence}" in entry
        assert f"for {one.used}" in said


class Closed(io.StringIO):
    """An output that takes nothing, which is noticed when what was buffered is to go out."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def flush(self):
        raise self.error


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (BrokenPipeError(32, "Broken pipe"), "141"),
        (OSError(28, "No space"), "SCRIPT: the disk is full. Make room, then run again."),
    ],
)
@pytest.mark.parametrize("script", GET)
def test_an_output_that_takes_nothing_is_an_end_without_a_traceback(monkeypatch, script, error, end):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--list"])
    monkeypatch.setattr(sys, "stdout", Closed(error))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    assert str(ended.value.code) == end.replace("SCRIPT", script)


@pytest.mark.parametrize("script", GET)
def test_a_set_has_to_be_named_and_known(run, script):
    assert run(script)[0] == 2
    status, said = run(script, "nh-hase")
    assert status == 1
    assert said.startswith(f"{script}: unknown set 'nh-hase'")


def test_a_checkpoint_of_the_course_has_to_be_known(run):
    status, said = run("make_zoo", "--help")
    assert status == 0
    assert "make_zoo.py [-h] [NAME ...]" in said
    assert "weather_two_stages" in said
    status, said = run("make_zoo", "scenes_vgg", "scenes_techer")
    assert status == 2
    assert "unknown checkpoint 'scenes_techer'. Did you mean 'scenes_teacher'" in said


def test_scenes_are_made_and_checked(run, tmp_path):
    folder = tmp_path / "scenes"
    words = [folder, "--size", 32, "--train", 2, "--val", 1, "--test", 1]
    assert run("make_scenes", *words) == (0, f"written: {folder}\n")
    assert run("make_scenes", folder, "--check") == (0, f"{folder}: 17 files, all as they were written\n")
    assert "exists already" in run("make_scenes", *words)[1]
    (folder / "data.yaml").write_text("")
    status, said = run("make_scenes", folder, "--check")
    assert status == 1
    assert said == f"make_scenes: {folder}: 1 with other bytes: data.yaml. Delete the folder and make it again."
    assert run("make_digits", tmp_path / "nowhere", "--check")[0] == 1


def test_boxes_want_voc_first(run, tmp_path):
    status, said = run("make_boxes", tmp_path / "boxes", "--data", tmp_path)
    assert status == 1
    assert "Get it with: python data_scripts/get_segmentation.py voc" in said


def test_a_restoration_set_is_explained_taken_in_listed_and_checked(run, tmp_path):
    status, said = run("get_restoration", "nh-haze", "--data", tmp_path)
    assert status == 1
    assert "https://data.vision.ee.ethz.ch/cvl/ntire20/nh-haze/" in said
    haze(tmp_path, 55)
    assert run("get_restoration", "nh-haze", "--data", tmp_path) == (0, "NH-HAZE: 50 train, 5 val pairs\n")
    assert (tmp_path / "nh-haze/meta/train/haze.json").exists()
    assert run("get_restoration", "nh-haze", "--data", tmp_path, "--check")[0] == 0
    (tmp_path / "nh-haze/01_GT.png").write_bytes((tmp_path / "nh-haze/02_GT.png").read_bytes())
    status, said = run("get_restoration", "nh-haze", "--data", tmp_path, "--check")
    assert status == 1
    assert "1 with other bytes: 01_GT.png" in said


def test_a_copy_of_another_size_is_told_and_listed_all_the_same(run, tmp_path):
    haze(tmp_path)
    status, said = run("get_restoration", "nh-haze", "--data", tmp_path)
    assert status == 1
    assert "NH-HAZE: 9 train, 1 val pairs. train has 10 pairs; known: 55" in said
    assert (tmp_path / "nh-haze/meta/valid/haze.json").exists()


def snow(data):
    """CSD, much smaller than it is."""
    for split, count in (("train", 10), ("test", 1)):
        for number in range(count):
            for level, kind in enumerate(("Snow", "Gt")):
                path = data / "csd" / split / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                values = np.full((18, 20, 3), 100 + 2 * number + level + 50 * (split == "test"), np.uint8)
                Image.fromarray(values).save(path)


def test_one_set_that_fails_does_not_keep_the_others_away(run, tmp_path):
    haze(tmp_path, 55)
    status, said = run("get_restoration", "csd", "nh-haze", "--data", tmp_path)
    assert status == 1
    assert "CSD is behind a page" in said
    assert "NH-HAZE: 50 train" in said
    assert (tmp_path / "nh-haze/meta/train/haze.json").exists()


def test_lists_may_be_joined_and_take_the_place_of_those_there(run, tmp_path):
    haze(tmp_path)
    snow(tmp_path)
    words = ("--data", tmp_path, "--lists", tmp_path / "both")
    run("get_restoration", "csd", "nh-haze", *words)
    lists = {path.relative_to(tmp_path / "both/meta").as_posix() for path in (tmp_path / "both/meta").rglob("*.json")}
    assert lists == {"train/haze.json", "train/snow.json", "valid/haze.json", "valid/snow.json", "test/snow.json"}
    run("get_restoration", "nh-haze", *words)
    assert load_pairs(tmp_path / "both").classes == ("haze",)
    assert load_pairs(tmp_path / "both").test_is_val
    assert not (tmp_path / "nh-haze/meta").exists()


def test_joined_lists_may_be_a_sample_with_a_tenth_of_it_to_validate_with(run, tmp_path):
    haze(tmp_path, count=40)
    words = ("nh-haze", "--data", tmp_path, "--lists", tmp_path / "some")
    whole, some = [], []
    for listed, more in ((whole, []), (some, ["--sample", 4]), (some, ["--sample", 4])):
        run("get_restoration", *words, *more)
        listed.append(load_pairs(tmp_path / "some"))
    drawn, again = (set(data.train.pairs) for data in some)
    assert drawn == again
    assert drawn < set(whole[0].train.pairs)
    assert len(drawn) == 4
    assert len(whole[0].val) == 4
    for number, left in ((4, 1), (25, 2), (100, 4)):
        run("get_restoration", *words, "--sample", number)
        data = load_pairs(tmp_path / "some")
        assert len(data.train) == min(number, len(whole[0].train))
        assert len(data.val) == left
        assert set(data.val.pairs) <= set(whole[0].val.pairs)


def test_no_lists_are_joined_where_a_set_is_missing(run, tmp_path):
    haze(tmp_path)
    status, said = run("get_restoration", "csd", "nh-haze", "--data", tmp_path, "--lists", tmp_path / "both")
    assert status == 1
    assert f"no lists are written to {tmp_path / 'both'}, as these sets cannot be listed: csd." in said
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nh-haze", "csd", "--from", "a.zip"], "--from was given; wanted with it: one set"),
        (["nh-haze", "--sample", "4"], "--sample was given; wanted with it: --lists FOLDER"),
        (["nh-haze", "--check", "--from", "a.zip"], "--from was given; wanted with it: one set"),
        (["csd", "--from", "a.zip"], "csd has no split 'a.zip'; wanted: train or test"),
        (["csd", "--from", "train=a.zip"], "a.zip: no such file"),
        (["nh-haze", "--from", "a.zip"], "a.zip: no such file"),
        (["nh-haze", "--from", "train=a.zip"], "a.zip: no such file"),
    ],
)
def test_sources_that_cannot_be_taken_in_are_told(run, tmp_path, words, said):
    status, printed = run("get_restoration", *words, "--data", tmp_path)
    assert status == 1
    assert said in printed


def test_direct_sets_that_are_not_there_are_told(run, tmp_path, monkeypatch):
    unreachable = [replace(one, archives=()) for one in catalogue.CLASSIFICATION]
    monkeypatch.setattr(catalogue, "CLASSIFICATION", tuple(unreachable))
    status, said = run("get_classification", "cifar10", "cifar100", "--check", "--data", tmp_path)
    assert status == 1
    assert said.count("get it first") == 2


def test_the_manifest_is_one_that_other_programs_read(run, tmp_path):
    haze(tmp_path, 55)
    run("get_restoration", "nh-haze", "--data", tmp_path)
    first = (tmp_path / "nh-haze" / MANIFEST).read_text().splitlines()[0]
    content = (tmp_path / "nh-haze" / "01_GT.png").read_bytes()
    assert first == f"{hashlib.sha256(content).hexdigest()}  01_GT.png"
