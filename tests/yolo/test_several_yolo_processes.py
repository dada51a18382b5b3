"""Two processes train one detector; one that is killed takes the other along, and any number goes on."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

pytest.importorskip("ultralytics")

from command_line import done
from parallel_yolo import CWD, SETTINGS, STRENGTH
from ultralytics.cfg import get_cfg

from kdlab import detection, processes, pruning, yolo
from kdlab.yolo import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SHORT = ["--epochs", 1, "--batch-size", 2, "--image-size", 64, "--device", "cpu"]
RUNS = ("distilled", "sparse", "resumed")


class Killed(BaseException):
    """As a signal would end the program."""


@dataclass(repr=False)  # which would print all weights
class Two:
    """The folder of their runs, what each has seen, and what they said until one was killed."""

    out: Path
    seen: list[dict[str, Any]]
    said: subprocess.CompletedProcess
    after_the_death: float


def on_two(*words: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    del environment["TQDM_DISABLE"]
    return subprocess.run([*TORCHRUN, *map(str, words)], env=environment, capture_output=True, text=True, timeout=300)


def different(one: dict, other: dict) -> list[str]:
    """What is not equal to the bit."""
    assert list(one) == list(other)
    return [name for name in one if not torch.equal(one[name], other[name])]


def files(out: Path) -> list[str]:
    return sorted(path.name for path in out.rglob("*") if path.is_file())


def epoch_of(path: Path) -> int:
    return yolo._load_checkpoint(path)["epoch"]


@pytest.fixture(scope="module")
def teacher(wide, folder):
    """Of other channels than the student, so that a connector is learnt."""
    torch.manual_seed(0)
    yolo.save_model(folder / "teacher.pt", load_model(wide, classes=6))
    return folder / "teacher.pt"


@pytest.fixture(scope="module")
def student(tiny, folder):
    torch.manual_seed(1)
    yolo.save_model(folder / "student.pt", load_model(tiny, classes=6))
    return folder / "student.pt"


@pytest.fixture(scope="module")
def begun_by_one(scenes, student, teacher, folder):
    """A distillation that was interrupted in its second epoch."""
    out, progress = folder / "begun", yolo._progress

    def interrupt(trainer):
        if trainer.epoch == 1:
            raise Killed

    def interrupted(trainer):
        trainer.add_callback("on_train_batch_end", interrupt)
        return progress(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yolo, "_progress", interrupted)
        with pytest.raises(Killed):
            yolo.distill(student, teacher, scenes, CWD, SETTINGS, out=out, device="cpu")
    assert epoch_of(out / "weights" / "last.pt") == 0
    return out


@pytest.fixture(scope="module")
def two(scenes, student, teacher, begun_by_one, folder):
    out = folder / "two"
    out.mkdir()
    (scenes / "one.txt").write_text(str(scenes / "images" / "val" / "00000.png"))
    (scenes / "few.yaml").write_text((scenes / "data.yaml").read_text().replace("images/val", "one.txt"))
    command = ["yolo", "fine-tune", scenes, "--model", student, "--out", out / "tuned", *SHORT]
    said = on_two(Path(__file__).with_name("parallel_yolo.py"), out, scenes, student, teacher, begun_by_one, *command)
    ended = time.time()
    assert (out / "dying").exists(), said.stderr
    seen = [torch.load(out / f"{place}.pt", weights_only=True) for place in (0, 1)]
    return Two(out, seen, said, ended - (out / "dying").stat().st_mtime)


@pytest.mark.parametrize("run", RUNS)
def test_both_end_with_the_same_weights_statistics_and_averages(two, run):
    first, second = (seen[run] for seen in two.seen)
    for one, other in zip(first["end"], second["end"], strict=True):
        assert not different(one, other)
    end = first["end"][0]
    trained = [name for name in end if (name.endswith(".conv.weight") and "dfl" not in name) or "connectors" in name]
    assert any("connectors" in name for name in trained) == (run != "sparse")
    assert not any(torch.equal(first["begin"][name], end[name]) for name in trained)


@pytest.mark.parametrize("run", RUNS)
def test_they_begin_alike_and_learn_from_other_images_with_other_random_numbers(two, run):
    first, second = (seen[run] for seen in two.seen)
    assert not different(first["begin"], second["begin"])
    assert first["seed"] != second["seed"]
    assert len(first["batch"]["img"]) == len(second["batch"]["img"]) == SETTINGS.batch // 2
    assert not torch.equal(first["batch"]["img"], second["batch"]["img"])


def test_the_gradient_is_that_of_one_process_with_both_parts(two, student, teacher):
    """Of the student and of the connectors, clipped once they are added up."""
    learner, known = load_model(student).requires_grad_(True), load_model(teacher)
    learner.model[-1].dfl.requires_grad_(False)
    learner.args = get_cfg()
    channels = detection.tapped_channels(learner, known, CWD.layers)
    alone = detection.DetectionDistiller(learner, known, CWD, channels, torch.device("cpu"))
    alone.load_state_dict(two.seen[0]["distilled"]["begin"])
    alone.set_epoch(0, SETTINGS.epochs)
    for seen in two.seen:
        alone(seen["distilled"]["batch"])[0].backward()
    torch.nn.utils.clip_grad_norm_(alone.parameters(), 10.0)
    expected = {name: parameter.grad for name, parameter in alone.named_parameters() if parameter.requires_grad}
    for seen in two.seen:
        theirs = seen["distilled"]["gradients"]
        assert theirs.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_the_penalty_of_sparse_training_is_added_once(two):
    run = two.seen[0]["sparse"]
    gammas = [f"{name}.weight" for name in pruning.gammas(yolo.build_yolov8(0.0625, ["a"]))]
    for name, before in run["gradients"].items():
        penalty = STRENGTH * run["begin"][name].sign() if name in gammas else torch.zeros_like(before)
        torch.testing.assert_close(run["penalised"][name] - before, penalty, rtol=0, atol=1e-5)


def test_losses_and_metrics_are_of_the_images_of_both(two, scenes):
    labels = [line for file in (scenes / "labels" / "val").iterdir() for line in file.read_text().splitlines()]
    for run in RUNS:
        first, second = (seen[run] for seen in two.seen)
        assert first["objects"] == second["objects"] == len(labels)
        assert first["metrics"] == second["metrics"]
        assert not different(first["loss"], second["loss"])
    row = pd.read_csv(two.out / "sparse" / "results.csv").iloc[-1]
    first = two.seen[0]["sparse"]
    assert row[list(first["metrics"])].to_dict() == pytest.approx(first["metrics"], rel=1e-4)
    assert row["train/box_loss"] == pytest.approx(first["loss"]["box_loss"].item(), rel=1e-4)
    assert row["val/box_loss"] > 0


def test_the_first_alone_writes_and_speaks(two):
    for run in ("tuned", "distilled", "sparse"):
        assert files(two.out / run) == [".lock", "args.yaml", "best.pt", "last.pt", "recipe.json", "results.csv"]
    assert pd.read_csv(two.out / "distilled" / "results.csv")["epoch"].tolist() == [1, 2]
    assert two.said.stdout.count("best epoch: 1 of 1") == 1
    assert two.said.stderr.count("AGPL-3.0") == 1
    assert two.said.stderr.count("training: 0step") == 6  # also of the run that is refused, and of the killed one
    assert [seen["sparse"].get("saved", False) for seen in two.seen] == [True, False]


def test_the_first_alone_reads_the_labels_for_the_first_time(two):
    assert [seen["waited"] for seen in two.seen] == [True, True]


def test_a_run_of_one_is_gone_on_with_by_two(two, begun_by_one):
    assert yolo.finished(begun_by_one).history["epoch"].tolist() == [1, 2]


def test_one_that_is_killed_ends_the_other_and_one_goes_on(two, scenes, student, teacher):
    out = two.out / "killed"
    assert two.said.returncode != 0
    assert two.after_the_death < 60
    assert epoch_of(out / "weights" / "last.pt") == 0
    run = yolo.distill(student, teacher, scenes, CWD, SETTINGS, out=out, resume=True, device="cpu")
    assert run.history["epoch"].tolist() == [1, 2]


@pytest.mark.parametrize("step", ["sparse-train", "distill"])
def test_the_other_trainings_are_commands_too(step, scenes, student, teacher, tmp_path):
    """As fine-tune is above. What they leave is whole: the same command in one process finds nothing to train."""
    out, more = tmp_path / "run", ["--teacher", teacher] if step == "distill" else []
    command = ["yolo", step, scenes, "--model", student, "--out", out, *more, *SHORT, "--resume"]
    said = on_two("--no-python", Path(sys.executable).with_name("kdlab"), *command)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("best epoch: 1 of 1") == 1
    assert json.loads((out / "recipe.json").read_text())["step"] == step
    losses = pd.read_csv(out / "results.csv").filter(like="train/")
    assert ("train/cwd_loss" in losses) == (step == "distill")
    assert (losses > 0).all(axis=None)
    assert pruning.structure(load_model(out / "weights" / "best.pt")) == pruning.structure(load_model(student))
    left = {path: path.read_bytes() for path in (out / "weights").iterdir()}
    assert done(*command) == said.stdout
    assert {path: path.read_bytes() for path in (out / "weights").iterdir()} == left


def test_what_cannot_be_divided_is_refused_by_both(two):
    for seen in two.seen:
        assert seen["odd"] == "batch is 3 for 2 processes; wanted: a multiple of 2."
        assert seen["few"] == "there are 1 validation images for 2 processes; wanted: one for each."
    assert not (two.out / "odd").exists()


def test_each_has_the_gpu_that_is_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert yolo._as_told(torch.device("cuda")) == "cuda:3"
    assert [yolo._as_told(torch.device(name)) for name in ("cuda:1", "cpu")] == ["cuda:1", "cpu"]


@pytest.mark.parametrize("several", [1, 2, 3, 5])
def test_parts_are_equal_and_make_the_batch(several, monkeypatch):
    batches, parts = [[3, 0, 5, 1], [4, 2], [6]], []
    monkeypatch.setattr(processes, "count", lambda: several)
    for place in range(several):
        monkeypatch.setattr(processes, "own_place", lambda place=place: place)
        parts.append(list(yolo._Parts(batches)))
    assert len(yolo._Parts(batches)) == len(batches)
    for batch, own in zip(batches, zip(*parts, strict=True), strict=True):
        assert len({len(part) for part in own}) == 1
        assert {image for part in own for image in part} == set(batch)
        assert sum(map(len, own)) < len(batch) + several
