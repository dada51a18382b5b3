"""The commands for public sets that a chapter shows, and runs where it can."""

from contextlib import chdir

import pytest
import torch
from PIL import Image

from kdlab import InputError
from kdlab.classroom.real_data import on_real_data
from kdlab.classroom.setup import Profile

FAST, FULL = (Profile(name, torch.device("cpu")) for name in ("fast", "full"))
TEACH = (
    "kdlab teach data/tiny --out runs/teacher --weights none --image-size 32 --batch-size 4 --epochs 1 --device cpu "
    "--resume"
)
EVALUATE = "kdlab evaluate data/tiny --model runs/teacher --device cpu"
GET = "python get_tiny.py"


@pytest.fixture
def tiny(tmp_path):
    """A course's folder with a set of two classes in data/tiny."""
    for split in ("train", "val"):
        for number, name in enumerate(("dark", "light")):
            folder = tmp_path / "data/tiny" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("L", (32, 32), 50 + 120 * number + index).save(folder / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("place", ["", "tutorials"])
def test_in_the_full_profile_the_commands_run_and_a_second_time_nothing_is_trained_again(tiny, place, capsys):
    (tiny / "tutorials").mkdir()
    with chdir(tiny / place):
        assert on_real_data(FULL, "data/tiny", GET, [TEACH, EVALUATE])
        weights = tiny / "runs/teacher/best.safetensors"
        written = weights.stat().st_mtime_ns
        assert "accuracy" in capsys.readouterr().out
        assert on_real_data(FULL, "data/tiny", GET, [TEACH, EVALUATE])
    assert weights.stat().st_mtime_ns == written


def test_in_the_fast_profile_they_are_shown(tiny, capsys):
    with chdir(tiny):
        assert not on_real_data(FAST, "data/tiny", GET, [TEACH])
    said = capsys.readouterr().out
    assert all(words in said for words in (GET, TEACH, "KDLAB_PROFILE is fast"))
    assert "not here" not in said
    assert not (tiny / "runs").exists()


def test_without_the_data_they_are_shown(tmp_path, capsys):
    with chdir(tmp_path):
        assert not on_real_data(FULL, "data/tiny", GET, [TEACH])
    assert "data/tiny is not here." in capsys.readouterr().out


def test_a_wrong_option_is_found_before_anything_runs(tiny):
    with chdir(tiny), pytest.raises(InputError, match="--narrow"):
        on_real_data(FULL, "data/tiny", GET, [TEACH, f"{TEACH} --narrow"])
    assert not (tiny / "runs").exists()


def test_a_command_that_fails_is_named_and_the_next_is_not_run(tiny):
    missing = "kdlab evaluate data/tiny --model runs/missing --device cpu"
    with chdir(tiny), pytest.raises(RuntimeError, match=f"^{missing} ended with status 2"):
        on_real_data(FULL, "data/tiny", GET, [missing, TEACH])
    assert not (tiny / "runs").exists()
