"""For tests/test_evidence.py, when the table of detection is there."""

import pandas as pd
import pytest

from tests.test_evidence import evidence


def test_the_table_of_detection_is_the_summary_of_all_its_runs_with_the_weights_that_were_chosen():
    table = pd.read_csv(evidence.FOLDER / "detection.csv", comment="#")
    missing = lambda run: pytest.fail(f"there is no {run}")  # noqa: E731
    tuning = evidence.make(evidence.FOLDER / "detection_tuning.csv", evidence.detection_tuning(), missing)
    evidence.check_weights(tuning, "val_map50_95", evidence.detection.METHODS, "detection")
    runs = evidence.make(evidence.FOLDER / "detection_runs.csv", evidence.detection_runs(), missing)
    summary = evidence.summarise(
        runs, evidence.DETECTION, ["keep", "seed"], "fine-tuned", evidence.detection.METRICS
    )  # fmt: skip
    pd.testing.assert_frame_equal(table[summary.columns], summary, check_dtype=False)
    assert (table.seeds == len(evidence.DETECTION_SEEDS)).all()
