"""The scenes as a YOLO data set."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from kdlab import InputError
from kdlab.data.scenes import CLASSES, Scenes
from kdlab.data.yolo_scenes import write_yolo_scenes

ROOT = Path(__file__).parents[2]
FEW = {"train": 4, "val": 2, "test": 1}


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_images_boxes_and_classes_are_those_of_the_scenes(tmp_path):
    description = yaml.safe_load(write_yolo_scenes(tmp_path / "scenes", FEW, size=48, seed=3).read_text())
    assert description["names"] == dict(enumerate(CLASSES[1:]))
    for split, count in FEW.items():
        scenes = Scenes(split, count, size=48, seed=3)
        folder = tmp_path / "scenes" / description[split]
        assert len(list(folder.iterdir())) == count
        for index in range(count):
            image = np.array(Image.open(folder / f"{index:05}.png"))
            assert (image == scenes.images[index].permute(1, 2, 0).numpy()).all()
            rows = np.loadtxt(tmp_path / "scenes" / "labels" / split / f"{index:05}.txt", ndmin=2)
            boxes, classes = scenes.boxes(index)
            assert rows[:, 0].tolist() == (classes - 1).tolist()
            x, y, w, h = 48 * torch.from_numpy(rows[:, 1:]).T
            written = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1)
            torch.testing.assert_close(written.float(), boxes, atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_files_and_another_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_yolo_scenes(tmp_path / name, FEW, size=32, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")


def test_what_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="could not be written: the disk is full"):
        write_yolo_scenes(tmp_path / "scenes", FEW, size=32)
    assert not list(tmp_path.iterdir())


def test_what_makes_no_data_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="unknown split 'vall'"):
        write_yolo_scenes(tmp_path / "scenes", {"train": 1, "vall": 1})
    with pytest.raises(InputError, match="lacks val"):
        write_yolo_scenes(tmp_path / "scenes", {"train": 1})
    with pytest.raises(InputError, match="exists already"):
        write_yolo_scenes(tmp_path, FEW)
    assert not list(tmp_path.iterdir())


def test_the_script_writes_them(tmp_path, monkeypatch, capsys):
    words = f"{tmp_path / 'scenes'} --size 32 --train 2 --val 1 --test 1".split()
    script = ROOT / "data_scripts" / "make_scenes.py"
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out == f"written: {tmp_path / 'scenes'}\n"
    with pytest.raises(SystemExit, match="make_scenes: .* exists already"):
        runpy.run_path(str(script), run_name="__main__")
