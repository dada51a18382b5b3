"""For tests/test_evidence.py, when the table of restoration is there."""

import pandas as pd
import pytest

from tests.test_evidence import evidence


def test_the_table_of_restoration_is_the_summary_of_all_its_runs():
    table = pd.read_csv(evidence.FOLDER / "weather.csv", comment="#")
    path, missing = evidence.FOLDER / "weather_runs.csv", lambda run: pytest.fail(f"there is no {run}")
    runs = evidence.make(path, evidence.weather_runs(), missing)
    metrics = ["psnr", *(name for name in runs if name.startswith(("psnr_", "ssim")))]
    summary = evidence.summarise(runs, evidence.WEATHER, ["photographs", "seed"], "from scratch", metrics)
    degraded, students = table.iloc[0], table.iloc[1:].reset_index(drop=True)
    pd.testing.assert_frame_equal(students[summary.columns], summary, check_dtype=False)
    assert (students.seeds == len(evidence.WEATHER_SEEDS)).all()
    assert degraded.method == "degraded input"
