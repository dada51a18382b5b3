"""Public sets by their names, where the scripts have put them."""

import json
from pathlib import Path

import pytest
from PIL import Image
from weather_folder import grow

from kdlab import InputError
from kdlab.commands.inputs import load_data, load_restoration
from kdlab.data.catalogue import CLASSIFICATION, RESTORATION
from kdlab.data.named import locate


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "sets", "folder"),
    [
        ("imagenette-160", CLASSIFICATION, "data/imagenette2-160"),
        ("cifar10", CLASSIFICATION, "data/cifar10"),  # the class folders, not the files that torchvision reads
        ("nh-haze", RESTORATION, "data/nh-haze"),
    ],
)
def test_a_name_is_the_folder_that_its_script_made(name, sets, folder):
    Path(folder, "meta").mkdir(parents=True)
    assert locate(name, sets) == Path(folder)


def test_a_sets_lists_are_what_is_wanted_and_not_its_files():
    for folder in ("sots/outdoor/hazy", "sots-outdoor/meta/test"):
        Path("data", folder).mkdir(parents=True)
    assert locate("sots-outdoor", RESTORATION) == Path("data/sots-outdoor")
    with pytest.raises(InputError, match="in data/sots/outdoor, but its pairs are not listed. List them: .* sots-out"):
        locate("sots-outdoor-492", RESTORATION)


def test_a_folder_of_that_name_goes_first_and_any_other_path_is_what_it_is(here):
    (here / "data" / "cifar10").mkdir(parents=True)
    (here / "cifar10").mkdir()
    assert locate("cifar10", CLASSIFICATION) == Path("cifar10")
    assert locate("my photographs", CLASSIFICATION) == Path("my photographs")


@pytest.mark.parametrize(
    ("name", "sets", "said"),
    [
        (
            "cifar100",
            CLASSIFICATION,
            r"CIFAR-100 is not in data/cifar100\. Get it with: python .*classification.py cif",
        ),
        ("rain1400", RESTORATION, r"Rain1400 is not in data/rain1400\. Get it with: python .*restoration.py rain1400"),
    ],
)
def test_what_has_not_been_got_is_said_with_the_command(name, sets, said):
    with pytest.raises(InputError, match=said):
        locate(name, sets)


def test_the_commands_take_them_by_name(here):
    for split in ("train", "val"):
        for label in ("one", "two"):
            (here / "data" / "cifar10" / split / label).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(here / "data" / "cifar10" / split / label / "a.png")
    assert load_data("cifar10").classes == ("one", "two")
    csd = grow(here / "data" / "csd", weathers=("snow",))
    for split, its in (("train", "train"), ("val", "valid")):
        names = sorted(path.name for path in (csd / split / "snow" / "input").iterdir())
        pairs = [[f"{split}/snow/{kind}/{name}" for kind in ("target", "input")] for name in names]
        listed = csd / "meta" / its / "snow.json"
        listed.parent.mkdir(parents=True)
        listed.write_text(json.dumps(pairs))
    assert load_restoration("csd", 32).classes == ("snow",)
