"""The commands that the chapters run in the full profile, all of them and to the end, on public sets in small.

To each command is added what makes it short; of an option that is given twice argparse takes the last. A training has
an epoch, or one for each stage, a few small images, random weights, and the narrow network where there is one. The
networks of chapters 01, 03 and 06 are the chapters' own, and so is all that no option here changes.
"""

import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import public_sets
import pytest
import torch
from cifar_files import write_cifar100

from kdlab.classroom import real_data
from kdlab.classroom.setup import Profile
from kdlab.cli import main
from kdlab.commands.options import settle_task
from kdlab.commands.parsers import build_parser
from kdlab.data.weather import WEATHERS

ROOT = Path(__file__).parents[1]
FAST, FULL = (Profile(name, torch.device("cpu")) for name in ("fast", "full"))
CELLS = {
    path.stem: [cell.source for cell in nbformat.read(path, as_version=4).cells if "on_real_data(" in cell.source]
    for path in sorted((ROOT / "tutorials").glob("*.ipynb"))
}

BRIEF = "--epochs 1 --device cpu --workers 0"
MASKS = f"{BRIEF} --narrow --weights none --image-size 32 --batch-size 9"
PAIRS = f"{BRIEF} --width 2 --crop 16 --batch-size 9"
DENSE_HAZE = f"{BRIEF} --narrow --weights none --crop 32 --batch-size 3 --steps 1"
BOXES = "--epochs 1 --device cpu --image-size 64 --batch-size 3"
SHORT = {
    "teach": f"{BRIEF} --weights none --image-size 32 --batch-size 10",
    "distill": f"{BRIEF} --batch-size 10",
    "teach segmentation": MASKS,
    "distill segmentation": MASKS,
    "teach restoration": PAIRS,
    "distill restoration": f"{PAIRS} --epochs 2 --features scenes",
    "teach dehazing": DENSE_HAZE,
    "distill dehazing": DENSE_HAZE,
    "evaluate": "--device cpu",
    "reproduce": "--epochs 1 --seeds 1 --device cpu --workers 0",
    "yolo sparse-train": BOXES,
    "yolo prune": "--image-size 64",
    "yolo fine-tune": BOXES,
    "yolo distill": BOXES,
    "yolo compare": "--device cpu --image-size 64 --batch-size 3",
}

METHODS = ("alone", "kd", "dkd", "dist", "at", "rkd", "crd")
CIFAR = "cifar100/resnet32x4-resnet8x4/1-epochs"
RUNS = {  # by hand: the folders of the trainings, below runs/
    "01_response_distillation": [f"imagenette/{run}" for run in ("teacher", "distilled", "alone")],
    "03_the_loss_zoo": [f"{CIFAR}/{method}/seed-0" for method in METHODS],
    "04_channel_wise_distillation": [f"pets/{run}" for run in ("teacher", "cwd", "alone")],
    "05_masked_generative_distillation": [f"pets/{run}" for run in ("teacher", "mgd", "mgd-unmasked")],
    "06_prune_and_distil_yolov8": ["sparse/weights", "control/weights", "taught/weights"],
    "07_weather_and_teachers": [f"three/{run}" for run in WEATHERS],
    "08_knowledge_collation": [f"three/{run}" for run in (*WEATHERS, "first-stage")],
    "09_knowledge_examination": [f"three/{run}" for run in (*WEATHERS, "student")],
    "10_dehazing_srktdn": [f"nh-haze/{run}" for run in ("teacher", "taught", "alone")],
}
TABLES = {  # by hand: a file, a column of numbers in it, and the number of rows
    "03_the_loss_zoo": (f"{CIFAR}/table.csv", "last", 1 + len(METHODS)),
    "09_knowledge_examination": ("three/quality.csv", "psnr", 2 * len(WEATHERS)),
}
YOLO = "06_prune_and_distil_yolov8"
JUDGE = ("evaluate", "yolo compare")
NUMBERS = r"^ *(accuracy|mIoU|mean|\S+last\.pt) +\d+\.\d"
without_yolo = pytest.mark.skipif(importlib.util.find_spec("ultralytics") is None, reason="needs the extra [yolo]")
pytestmark = pytest.mark.usefixtures("one_thread")


def kind(given):
    """The command, with its step, or with the task that is named."""
    if given[0] == "yolo":
        return " ".join(given[:2])
    return " ".join([given[0], *(given[given.index("--task") + 1 :][:1] if "--task" in given else [])])


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course's folder with the public sets in data/, and not yet what the scripts make of them."""
    course = tmp_path_factory.mktemp("course")
    (course / "tutorials").mkdir()
    public_sets.write_all(course / "data")
    with pytest.MonkeyPatch.context() as patch:
        write_cifar100(course / "data", patch, train=6, test=3)
        yield course


@pytest.fixture
def commands(monkeypatch):
    """The kinds of commands that a cell has run, each shortened; ``left_out`` are not run."""
    seen = SimpleNamespace(kinds=[], left_out=())

    def short(given):
        seen.kinds.append(kind(given))
        return 0 if kind(given) in seen.left_out else main([*given, *shlex.split(SHORT[kind(given)])])

    monkeypatch.setattr(real_data, "main", short)
    return seen


def execute(chapter, profile):
    for source in CELLS[chapter]:
        exec(source, {"profile": profile, "WEATHERS": WEATHERS})  # what these cells have from others


def get(said, monkeypatch):
    """Run the scripts that a cell names before its commands, as if typed in the course's folder."""
    for line in re.findall(r"^python (.+)", said, re.MULTILINE):
        script, *words = shlex.split(line)
        status = 0
        with monkeypatch.context() as patch:
            public_sets.known_in_small(patch)
            patch.setattr(sys, "argv", [script, *words])
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            except SystemExit as end:
                status = end.code
        assert not status, line


def weights(runs):
    """Every file of weights that a training has written, and when."""
    files = [*runs.rglob("*.safetensors"), *runs.glob("*/weights/*.pt")]
    return {path.relative_to(runs).as_posix(): path.stat().st_mtime_ns for path in files}


def results(said):
    """What each evaluation printed, by its command."""
    _, *parts = re.split(r"^\$ kdlab (.+)\n", said, flags=re.MULTILINE)
    return {name: text for name, text in zip(parts[::2], parts[1::2], strict=True) if name.startswith(JUDGE)}


def test_the_chapters_with_such_commands_are_known_here():
    assert [chapter for chapter, cells in CELLS.items() if cells] == [*RUNS]


@pytest.mark.filterwarnings("ignore:the steps of this run:UserWarning")  # of sparse training, for one epoch
@pytest.mark.parametrize("chapter", [pytest.param(one, marks=without_yolo if one == YOLO else ()) for one in RUNS])
def test_a_chapters_commands_run_to_the_end_and_a_second_time_nothing_is_trained_again(
    chapter, course, commands, monkeypatch, capsys
):
    runs = course / "runs"
    monkeypatch.chdir(course)
    execute(chapter, FAST)
    get(capsys.readouterr().out, monkeypatch)
    monkeypatch.chdir(course / "tutorials")  # where a notebook is
    of_others = weights(runs)

    execute(chapter, FULL)
    made, judged = weights(runs), results(capsys.readouterr().out)
    ending = "pt" if chapter == YOLO else "safetensors"
    assert {f"{run}/{which}.{ending}" for run in RUNS[chapter] for which in ("best", "last")} <= made.keys()
    assert of_others.items() <= made.items(), "what chapters share is trained once"
    assert len(judged) == sum(commands.kinds.count(one) for one in JUDGE)
    for command, text in judged.items():
        assert re.search(NUMBERS, text, re.MULTILINE), command
    if chapter in TABLES:
        file, column, rows = TABLES[chapter]
        assert pd.read_csv(runs / file)[column].notna().sum() == rows

    commands.left_out = JUDGE
    execute(chapter, FULL)
    assert weights(runs) == made


def shown(chapter, capsys):
    """The options of the commands that a chapter shows, as they are."""
    execute(chapter, FAST)
    parser = build_parser()
    lines = re.findall(r"^kdlab (.+)", capsys.readouterr().out, re.MULTILINE)
    given = [parser.parse_args(shlex.split(line)) for line in lines]
    for args in given:
        settle_task(args)
    return given


def test_a_run_that_chapters_share_has_the_same_options_in_all_of_them(capsys):
    """Or the second of them would be refused: the runs above all have the few images that SHORT gives them."""
    runs = {}
    for args in (args for chapter in RUNS for args in shown(chapter, capsys) if "out" in args):
        runs.setdefault(args.out, []).append(args)
    shared = {out.name for out, its in runs.items() if len(its) > 1}
    assert shared == {"teacher", *WEATHERS}
    for its in runs.values():
        assert all(args == its[0] for args in its)


def test_sparse_training_on_all_of_voc_is_long_enough_for_a_gamma_to_get_to_zero(capsys):
    """From 1, by AdamW's rates, which fall to next to nothing: half of the first one times the steps, of 64 images."""
    args, *_ = shown(YOLO, capsys)
    assert args.step == "sparse-train"
    steps = args.epochs * 5_717 / 64
    assert args.lr / 2 * steps > 1.5
