"""Two-stage training that is killed in either stage, or at the switch, goes on to the same bits (on the CPU).

The trainings are children of this file run as a program.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from forks import die, start, wait

EPOCHS, STEPS = 4, 2  # the switch is after two epochs
KILLS = (  # the call at which a start is killed, and how often it has been made then
    (torch.optim.Adam, "step", STEPS + 1),  # in the first stage, with one epoch saved
    (os, "replace", 3),  # among the files of the last epoch before the switch
    (torch.optim.Adam, "step", STEPS + 1),  # in the second stage
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def train(out: Path) -> None:
    from test_restoration_recipe import PLAN, TINY, WEATHERS, TwoMaps, images

    from kdlab.data.splits import ImageSplits
    from kdlab.models import MSBDN
    from kdlab.recipes.restoration import RestorationSettings, distill

    val = images(1)
    data = ImageSplits(
        images(2, crop=32), val, val, WEATHERS, (0.0,) * 3, (1.0,) * 3, 32, "noise", deterministic=False
    )  # fmt: skip
    torch.manual_seed(1)
    teachers = {weather: MSBDN(TINY["width"]) for weather in WEATHERS}
    settings = RestorationSettings(epochs=EPOCHS, lr=1e-3, batch_size=3, warm_up=1)
    distill(data, teachers, PLAN, TwoMaps(), settings, out=out, architecture=TINY, resume=True)


def main(folder: Path) -> None:
    import test_restoration_recipe  # noqa: F401 its imports take longer than the trainings

    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    torch.optim.Adam([torch.zeros(1)])  # the first optimiser imports half of torch
    ended = [wait(start(train, folder / "alone"))]
    saved = []
    for kill in KILLS:
        ended.append(wait(start(die, train, folder / "killed", *kill)))
        history = folder / "killed" / "history.csv"
        saved.append(len(pd.read_csv(history)) if history.exists() else 0)
    ended.append(wait(start(train, folder / "killed")))
    (folder / "report.json").write_text(json.dumps({"ended": ended, "saved": saved}))


def test_a_killed_run_ends_in_the_same_bits_across_the_switch(tmp_path):
    environment = os.environ | {"KDLAB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ended"] == ["finished", *["killed"] * len(KILLS), "finished"], done.stderr
    assert report["saved"] == [1, 2, 3]  # epochs: in the first stage, at the switch, and in the second
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    histories = [pd.read_csv(tmp_path / run / "history.csv").drop(columns="seconds") for run in ("alone", "killed")]
    assert len(histories[0]) == EPOCHS
    pd.testing.assert_frame_equal(*histories, check_exact=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
