"""Training that is killed, at any moment, goes on to the same bits as the run that was left alone (on the CPU).

The trainings are children of this file run as a program.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from forks import die, start, wait
from torch.utils.data import TensorDataset

from kdlab.data.splits import ImageSplits
from kdlab.files import load_tensors
from kdlab.models import StudentCNN
from kdlab.recipes.response import Distillation, distill
from kdlab.recipes.settings import Settings

KILLS = 20
STEPS = 3  # an epoch
GATE = 2  # epochs that a start may add on average: every kill then comes before the end, on a fast machine too
EPOCHS = (KILLS + 1) * GATE
WRITES = ("history", "best", "last", "resume")  # the files of an epoch, in this order


def train(out: Path, gate: int = EPOCHS) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(40, 3, 8, 8), torch.arange(40) % 3
    train, val = TensorDataset(images[:24], labels[:24]), TensorDataset(images[24:], labels[24:])
    triple = (0.0, 0.0, 0.0)
    data = ImageSplits(train, val, val, ("a", "b", "c"), triple, triple, size=8, name="noise", deterministic=True)
    teacher = StudentCNN(3, (4, 4, 4, 4))
    settings = Settings(epochs=EPOCHS, batch_size=24 // STEPS, lr=1e-2, one_cycle=True)

    def wait_at_the_gate(row: dict[str, float]) -> bool:
        while gate < EPOCHS and row["epoch"] >= gate:
            time.sleep(1)
        return False

    distill(
        data, teacher, Distillation(), settings, out=out, widths=(4, 4, 4, 4), resume=True,
        after_epoch=wait_at_the_gate,
    )  # fmt: skip


def look(out: Path) -> dict[str, int]:
    """How many epochs each file knows of; an error if one of them is not whole."""
    epochs = dict.fromkeys(WRITES, 0)
    for path in [*out.glob("*.safetensors"), *Path(os.environ["KDLAB_CACHE"]).rglob("*.safetensors")]:
        _, meta = load_tensors(path)
        if path.parent == out:
            epochs[path.stem] = len(meta["rows"]) if "rows" in meta else meta["card"]["metrics"]["epoch"]
    if (out / "history.csv").exists():
        epochs["history"] = len(pd.read_csv(out / "history.csv"))
    return epochs | {"partial": len(list(out.glob("*.partial")))}


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    torch.optim.Adam([torch.zeros(1)])  # the first optimiser imports half of torch
    alone, killed = folder / "alone", folder / "killed"
    report = {}
    began = time.perf_counter()
    report["alone"] = [{"ended": wait(start(train, alone)), **look(alone)}]
    epoch = (time.perf_counter() - began) / EPOCHS
    report["at steps"] = [
        {"ended": wait(start(die, train, killed, torch.optim.Adam, "step", count)), **look(killed)}
        for count in range(1, STEPS + 1)
    ]
    report["at writes"] = [
        {"ended": wait(start(die, train, killed, os, call, count)), **look(killed)}
        for call in ("fsync", "replace")  # the bytes are on disk; the file has its name
        for count in range(1, len(WRITES) + 1)
    ]
    moments = random.Random(0)
    report["at random"] = []
    for gate in range(GATE, EPOCHS, GATE):
        child = start(train, killed, gate)
        time.sleep(moments.uniform(0, 4.5 * epoch))
        os.kill(child, signal.SIGKILL)
        report["at random"].append({"ended": wait(child), **look(killed)})
    report["finish"] = [{"ended": wait(start(train, killed)), **look(killed)}]
    (folder / "report.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, __file__, str(folder)]
    environment = os.environ | {"KDLAB_CACHE": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    print(done.stderr)  # a child's traceback, shown with what fails
    report = {name: pd.DataFrame(rows) for name, rows in json.loads((folder / "report.json").read_text()).items()}
    return SimpleNamespace(alone=folder / "alone", killed=folder / "killed", report=report)


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def test_the_student_ends_in_the_same_bits(runs):
    assert runs.report["alone"].ended.tolist() == runs.report["finish"].ended.tolist() == ["finished"]
    for name in ("best.safetensors", "last.safetensors"):
        assert (runs.killed / name).read_bytes() == (runs.alone / name).read_bytes()


def test_so_do_the_optimiser_and_the_history(runs):
    (one, one_meta), (other, other_meta) = (
        load_tensors(out / "resume.safetensors") for out in (runs.alone, runs.killed)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {**one_meta, "rows": None} == {**other_meta, "rows": None}
    histories = [pd.read_csv(out / "history.csv").drop(columns="seconds") for out in (runs.alone, runs.killed)]
    assert len(histories[0]) == EPOCHS
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def test_every_random_kill_came_before_the_end(runs):
    kills = runs.report["at random"]
    assert kills.ended.tolist() == ["killed"] * KILLS
    assert kills["resume"].is_monotonic_increasing
    assert kills["resume"].iloc[-1] < EPOCHS


def test_within_an_epoch_nothing_is_written(runs):
    kills = runs.report["at steps"]
    assert kills.ended.tolist() == ["killed"] * STEPS
    assert (kills[[*WRITES, "partial"]] == 0).all(axis=None)


def test_at_each_write_the_files_were_the_last_whole_ones(runs):
    """Nothing counts as done before ``resume`` has its name; and no file has it before its bytes are on the disk."""
    kills = runs.report["at writes"]
    assert kills.ended.tolist() == ["killed"] * 2 * len(WRITES)
    assert kills["history"].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert kills["best"].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert kills["last"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert kills["resume"].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


def test_the_finished_run_leaves_no_partial_files(runs):
    assert sorted(path.name for path in runs.killed.iterdir()) == sorted(path.name for path in runs.alone.iterdir())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
