"""For tests/test_evidence.py, when the table of dehazing is there."""

import pandas as pd
import pytest

from tests.test_evidence import evidence


def test_the_table_of_dehazing_is_the_summary_of_all_its_runs():
    table = pd.read_csv(evidence.FOLDER / "dehazing.csv", comment="#")
    path, missing = evidence.FOLDER / "dehazing_runs.csv", lambda run: pytest.fail(f"there is no {run}")
    runs = evidence.make(path, evidence.dehazing_runs(), missing)
    metrics = ["psnr", *(name for name in runs if name.startswith(("psnr_", "ssim")))]
    summary = evidence.summarise(runs, evidence.DEHAZING, ["seed"], "alone", metrics)
    hazy, students = table.iloc[0], table.iloc[1:].reset_index(drop=True)
    pd.testing.assert_frame_equal(students[summary.columns], summary, check_dtype=False)
    assert (students.seeds == len(evidence.DEHAZING_SEEDS)).all()
    assert hazy.method == "hazy input"


def test_rate_and_weight_of_dehazing_are_those_that_the_validation_photograph_chose():
    path, missing = evidence.FOLDER / "dehazing_tuning.csv", lambda run: pytest.fail(f"there is no {run}")
    tuning = evidence.make(path, evidence.dehazing_tuning(), missing)
    evidence._check_rate(tuning[tuning.method == "alone"], evidence.HazeRun.lr, "haze")
    evidence.check_weights(tuning[tuning.method != "alone"], "val_psnr", evidence.haze.METHODS, "haze")
