"""The statistics behind the evidence tables, and the committed tables themselves."""

import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kdlab.recipes.weather import WeatherRun

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import evidence


@pytest.mark.parametrize(
    ("gains", "word"),
    [
        ([0.1, 0.11, 0.09, 0.1, 0.12], "beats"),
        ([-0.1, -0.12, -0.1], "worse"),
        ([0.1, -0.1, 0.02], "no difference"),
        ([5.0], "no difference"),
    ],
)
def test_the_verdict_is_on_whether_the_interval_leaves_out_zero(gains, word):
    assert evidence.verdict(np.array(gains)) == word


def test_gains_are_paired_by_labels_and_seed():
    rows = [("alone", 50, seed, 0.5 + seed / 10) for seed in range(3)] + [
        ("alone", 100, seed, 0.0) for seed in range(3)
    ]
    rows += [("kd", 50, seed, 0.5 + seed / 10 + 0.02) for seed in (2, 0, 1)]
    runs = pd.DataFrame(rows, columns=["method", "labels", "seed", "accuracy"])
    runs = runs.assign(temperature=4.0, alpha=0.7, loss=0.0, calibration_error=0.0)
    table = evidence.summarise(runs, ["labels", "method"], ["labels", "seed"], "alone")
    row = table.query("method == 'kd'").iloc[0]
    assert row.gain == pytest.approx(0.02)
    assert row.verdict == "beats"  # the spread between the seeds is no spread of the gain


@pytest.mark.parametrize(
    ("chapter", "setting", "pair"),
    [
        ("response", ["labels", "method", "temperature", "alpha"], ["labels", "seed"]),
        ("layers", ["method", "weight"], ["seed"]),
        ("loss_zoo", ["method", "weight"], ["seed"]),
        ("silent_teacher", ["method", "weight"], ["seed"]),
        ("few_masks", evidence.FEW_MASKS, ["masks", "steps", "seed"]),
    ],
)
def test_the_committed_table_is_the_summary_of_the_committed_runs(chapter, setting, pair):
    metrics = evidence.DENSE_METRICS if chapter == "few_masks" else evidence.METRICS
    table = pd.read_csv(evidence.FOLDER / f"{chapter}.csv", comment="#")
    runs = pd.read_csv(evidence.FOLDER / f"{chapter}_runs.csv")
    summary = evidence.summarise(runs, setting, pair, "alone", metrics)
    pd.testing.assert_frame_equal(table[summary.columns], summary)
    assert table.seeds.eq(len(evidence.SEEDS)).all()


def test_the_table_of_chapter_01_has_all_its_runs():
    assert len(pd.read_csv(evidence.FOLDER / "response_runs.csv")) == len(list(evidence.response()))


@pytest.mark.parametrize(
    ("chapter", "methods"), [("layers", {"alone", *evidence.PAIRS}), ("loss_zoo", set(evidence.METHODS))]
)
def test_the_weights_were_chosen_on_the_validation_split_of_another_seed(chapter, methods):
    table = pd.read_csv(evidence.FOLDER / f"{chapter}.csv", comment="#").set_index("method")
    tuning = pd.read_csv(evidence.FOLDER / f"{chapter}_tuning.csv")
    assert set(table.index) == methods
    assert set(tuning.seed).isdisjoint(evidence.SEEDS)
    for method, tried in tuning.groupby("method"):
        assert len(tried) == len(evidence.WEIGHTS)
        best = tried[tried.val_accuracy == tried.val_accuracy.max()]
        assert table.weight[method] in set(best.weight)


def test_the_table_of_chapters_04_and_05_has_all_its_runs_and_the_weights_that_were_chosen():
    assert len(pd.read_csv(evidence.FOLDER / "few_masks_runs.csv")) == len(list(evidence.few_masks_runs()))
    tuning = pd.read_csv(evidence.FOLDER / "few_masks_tuning.csv")
    assert set(tuning.seed).isdisjoint(evidence.SEEDS)
    assert len(tuning) == len(list(evidence.few_masks_tuning()))
    tuning = tuning[tuning.steps == 400].copy()
    recipe = ("val_miou", evidence.few_masks_weights(), "few_masks")
    evidence.check_weights(tuning, *recipe)
    tuning.loc[tuning.method == "CWD logits", "val_miou"] *= -1  # the worst of them would now be the best
    with pytest.raises(SystemExit, match="few_masks.py has other weights.*CWD logits"):
        evidence.check_weights(tuning, *recipe)


def test_the_table_of_restoration_is_the_summary_of_all_its_runs():
    table = pd.read_csv(evidence.FOLDER / "weather.csv", comment="#")
    path, missing = evidence.FOLDER / "weather_runs.csv", lambda run: pytest.fail(f"there is no {run}")
    runs = evidence.make(path, evidence.weather_runs(), missing)
    metrics = ["psnr", *(name for name in runs if name.startswith(("psnr_", "ssim")))]
    summary = evidence.summarise_weather(runs, metrics)
    degraded, students = table.iloc[0], table.iloc[1:].reset_index(drop=True)
    pd.testing.assert_frame_equal(students[summary.columns], summary, check_dtype=False)
    assert students[students.photographs == 8].seeds.eq(len(evidence.WEATHER_SEEDS)).all()
    assert students[students.photographs == 2].seeds.eq(len(evidence.SEEDS)).all()
    assert degraded.method == "degraded input"
    taught = runs[runs.method == "one stage"].set_index(["seed", "photographs"]).psnr.unstack()
    assert (taught[2] == taught[8])[taught[8].notna()].all()  # it looks at no clean image


def test_the_rate_of_restoration_is_the_one_that_the_validation_photograph_chose():
    tuning = pd.read_csv(evidence.FOLDER / "weather_tuning.csv")
    assert tuning[list(asdict(WeatherRun("one stage", 0)))].to_dict("records") == [
        asdict(run) for run in evidence.weather_tuning()
    ]
    assert set(tuning.seed).isdisjoint(evidence.WEATHER_SEEDS)
    evidence._check_rate(tuning, WeatherRun.lr, "weather")
    tuning.loc[tuning.lr == WeatherRun.lr, "val_psnr"] *= -1
    with pytest.raises(SystemExit, match="another lr than was chosen"):
        evidence._check_rate(tuning, WeatherRun.lr, "weather")


def test_every_detector_is_compared_with_one_that_was_fine_tuned_from_the_same_pruning():
    runs, tuning = list(evidence.detection_runs()), list(evidence.detection_tuning())
    assert len(set(runs)) == len(runs)
    assert {run.method for run in runs} == set(evidence.detection.METHODS)
    baselines = [(run.keep, run.seed) for run in runs if run.method == "fine-tuned"]
    assert len(set(baselines)) == len(baselines)
    assert {(run.keep, run.seed) for run in runs} == set(baselines)
    budgets = {run.epochs for run in runs if run.method in ("fine-tuned", *evidence.DETECTION_WEIGHTS)}
    assert budgets == {evidence.detection.EPOCHS}
    assert {run.epochs for run in tuning} == {evidence.detection.EPOCHS // 2}
    assert {run.seed for run in tuning}.isdisjoint(evidence.DETECTION_SEEDS)


def test_the_cuts_without_penalty_are_those_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "FOLDER", tmp_path)
    started, made = [], []
    monkeypatch.setattr(evidence.detection, "detection_scenes", lambda: tmp_path)
    monkeypatch.setattr(
        evidence.detection, "dense_detector",
        lambda data, settings, strength, **_: started.append((settings.seed, strength)) or (None, None),
    )  # fmt: skip
    monkeypatch.setattr(evidence.DetectionRun, "run", lambda one, *_, **__: made.append(one) or (one, pd.DataFrame()))
    metrics = dict.fromkeys(evidence.detection.METRICS, 0.5)
    monkeypatch.setattr(evidence.detection, "measure", lambda one, *_, **__: metrics)
    table = evidence.run_without_penalty(jobs=1)
    assert set(started) == {(0, 0.0)}
    assert len(table) == len(made) == 9
    assert set(made) <= set(evidence.detection_runs())


def test_a_table_of_detection_is_made_of_runs_of_which_some_train_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "FOLDER", tmp_path)
    monkeypatch.setattr(evidence.detection, "detection_scenes", lambda: tmp_path)
    seeds = []
    monkeypatch.setattr(
        evidence.detection, "dense_detector", lambda data, settings, **_: seeds.append(settings.seed) or (None, None)
    )

    def run(one, data, dense, device):
        rows = {"metrics/mAP50-95(B)": [0.1, 0.2 - abs(one.weight - evidence.detection.METHODS[one.method])]}
        return one, pd.DataFrame(rows | {"time": [1.0, 2.0]}) if one.epochs else pd.DataFrame()

    def measure(one, data, device):
        gain = 0.1 if one.method == "CWD" else 0.0
        return {"map50_95": one.keep / 2 + gain + one.seed / 10, "map50": 0.5, "parameters": 1.0, "gflops": 1.0}

    monkeypatch.setattr(evidence.DetectionRun, "run", run)
    monkeypatch.setattr(evidence.detection, "measure", measure)
    table = evidence.run_detection(jobs=1)
    assert set(seeds) == {*evidence.DETECTION_SEEDS, evidence.TUNING_SEED}
    row = table.query("method == 'CWD'").iloc[0]
    assert (row.verdict, row.gain, row.seeds, row.seconds) == ("beats", pytest.approx(0.1), 3, 2.0)
    assert table.query("method == 'pruned'").seconds.eq(0).all()
    assert len(table) == len(set(map(tuple, table[evidence.DETECTION].to_numpy())))


def test_the_table_of_detection_is_the_summary_of_all_its_runs_with_the_weights_that_were_chosen():
    folder, missing = evidence.FOLDER, lambda run: pytest.fail(f"there is no {run}")
    table = pd.read_csv(folder / "detection.csv", comment="#")
    tuning = evidence.make(folder / "detection_tuning.csv", evidence.detection_tuning(), missing)
    evidence.check_weights(tuning, "val_map50_95", evidence.detection.METHODS, "detection")
    runs = evidence.make(folder / "detection_runs.csv", evidence.detection_runs(), missing)
    summary = evidence.summarise(runs, evidence.DETECTION, ["keep", "seed"], "fine-tuned", evidence.detection.METRICS)
    pd.testing.assert_frame_equal(table[summary.columns], summary, check_dtype=False)
    assert table[table.keep == evidence.detection.KEEP].seeds.eq(len(evidence.DETECTION_SEEDS)).all()


def test_the_table_of_few_boxes_is_the_summary_of_all_its_runs_with_the_weights_that_were_chosen():
    folder, missing = evidence.FOLDER, lambda run: pytest.fail(f"there is no {run}")
    table = pd.read_csv(folder / "few_boxes.csv", comment="#")
    tuning = evidence.make(folder / "few_boxes_tuning.csv", evidence.few_boxes_tuning(), missing)
    assert set(tuning.seed).isdisjoint(evidence.DETECTION_SEEDS)
    evidence.check_weights(tuning, "val_map50_95", evidence.few_boxes.METHODS, "few_boxes")
    runs = evidence.make(folder / "few_boxes_runs.csv", evidence.few_boxes_runs(), missing)
    summary = evidence.summarise(
        runs, evidence.FEW_BOXES, ["boxes", "seed"], "fine-tuned", evidence.detection.METRICS
    )  # fmt: skip
    pd.testing.assert_frame_equal(table[summary.columns], summary, check_dtype=False)
    assert table.seeds.eq(len(evidence.DETECTION_SEEDS)).all()


def test_the_runs_of_dehazing_share_one_budget_and_were_tuned_on_another_seed():
    runs, tuning = list(evidence.dehazing_runs()), list(evidence.dehazing_tuning())
    assert len(set(runs)) == len(runs)
    assert {run.lr for run in runs} == {evidence.HazeRun.lr}
    assert {(run.photographs, run.epochs) for run in runs} == {(8, evidence.HazeRun.epochs), (2, evidence.FAST.epochs)}
    baselines = [(run.photographs, run.seed) for run in runs if run.method == "alone"]
    assert len(set(baselines)) == len(baselines)
    assert {(run.photographs, run.seed) for run in runs} == set(baselines)
    assert {run.seed for run in tuning}.isdisjoint(evidence.DEHAZING_SEEDS)
    assert evidence.HazeRun.lr in {run.lr for run in tuning if run.method == "alone"}
    assert evidence.haze.METHODS["both"] in {run.weight for run in tuning if run.weight}


def test_a_table_of_dehazing_is_paired_by_seed_and_stops_where_the_recipe_was_not_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "FOLDER", tmp_path)
    monkeypatch.setattr(evidence, "load_haze", lambda: SimpleNamespace(test=None))
    monkeypatch.setattr(evidence.haze, "clean_teacher", lambda device: (None, None))
    monkeypatch.setattr(evidence, "restoration_metrics", lambda model, test: {"psnr": getattr(model, "psnr", 12.0)})

    def run(one, data, teacher):
        value = 20.0 + one.seed - abs(one.lr - evidence.HazeRun.lr) + (0.5 if one.method == "both" else 0.0)
        value -= abs(one.weight - chosen) if one.weight else 0.0
        return SimpleNamespace(psnr=value), SimpleNamespace(history=pd.DataFrame({"val_psnr": [value]}))

    monkeypatch.setattr(evidence.HazeRun, "run", run)
    chosen = evidence.haze.METHODS["both"]
    table = evidence.run_dehazing(jobs=1)
    assert table.method.tolist() == ["hazy input", *evidence.haze.METHODS, "alone", "knowledge transfer"]
    assert table.psnr[0] == 12
    row = table.set_index("method").loc["both"]
    assert (row.verdict, row.gain, row.seeds) == ("beats", pytest.approx(0.5), 3)
    (tmp_path / "dehazing_tuning.csv").unlink()
    chosen *= 10
    with pytest.raises(SystemExit, match="haze.py has other weights than were chosen.*knowledge transfer"):
        evidence.run_dehazing(jobs=1)


def test_the_table_of_dehazing_is_the_summary_of_all_its_runs():
    table = pd.read_csv(evidence.FOLDER / "dehazing.csv", comment="#")
    path, missing = evidence.FOLDER / "dehazing_runs.csv", lambda run: pytest.fail(f"there is no {run}")
    runs = evidence.make(path, evidence.dehazing_runs(), missing)
    metrics = ["psnr", *(name for name in runs if name.startswith(("psnr_", "ssim")))]
    summary = evidence.summarise(runs, evidence.DEHAZING, ["photographs", "seed"], "alone", metrics)
    hazy, students = table.iloc[0], table.iloc[1:].reset_index(drop=True)
    pd.testing.assert_frame_equal(students[summary.columns], summary, check_dtype=False)
    seeds = students.photographs.map({8: len(evidence.DEHAZING_SEEDS), 2: len(evidence.SEEDS)})
    assert (students.seeds == seeds).all()
    assert hazy.method == "hazy input"


def test_rate_and_weight_of_dehazing_are_those_that_the_validation_photograph_chose():
    path, missing = evidence.FOLDER / "dehazing_tuning.csv", lambda run: pytest.fail(f"there is no {run}")
    tuning = evidence.make(path, evidence.dehazing_tuning(), missing)
    evidence._check_rate(tuning[tuning.method == "alone"], evidence.HazeRun.lr, "haze")
    evidence.check_weights(tuning[tuning.method != "alone"], "val_psnr", evidence.haze.METHODS, "haze")


def test_runs_side_by_side_are_those_that_one_after_the_other_would_be(tmp_path):
    runs = [evidence.ZooRun("KD", 1.0, seed) for seed in range(3)]
    tables = [
        evidence.make(tmp_path / f"{jobs}.csv", runs, lambda run: {"accuracy": run.seed / 10}, jobs) for jobs in (1, 2)
    ]
    pd.testing.assert_frame_equal(*tables)


def test_runs_that_were_made_are_not_made_again_and_others_are_left_out(tmp_path):
    def made(runs):
        return evidence.make(tmp_path / "runs.csv", runs, lambda run: seen.append(run) or {"accuracy": run.seed / 10})

    seen, runs = [], [evidence.ZooRun("KD", 1.0, seed) for seed in range(3)]
    made(runs[:2])
    table = made([runs[2], runs[1]])
    assert seen == runs
    assert table.seed.tolist() == [2, 1]


def test_runs_that_were_made_stay_as_they_were_written(tmp_path, monkeypatch):
    path, runs = tmp_path / "runs.csv", [evidence.ZooRun("KD", 1.0, seed) for seed in range(2)]
    monkeypatch.setattr(evidence, "commit", lambda: "2742e53")  # which is a number, too
    evidence.make(path, runs[:1], lambda run: {"accuracy": 0.8618090748786926})
    before = path.read_text()
    assert ",2742e53," in before
    evidence.make(path, runs, lambda run: {"accuracy": 0.9})
    assert path.read_text().startswith(before)


COMMITTED = [chapter for chapter in evidence.CHAPTERS if (evidence.FOLDER / f"{chapter}.csv").exists()]


def test_only_the_newest_tables_are_still_to_be_made():
    assert set(evidence.CHAPTERS) - set(COMMITTED) <= {"detection", "dehazing"}


@pytest.mark.parametrize("chapter", COMMITTED)
def test_the_committed_table_says_where_it_comes_from(chapter):
    head = (evidence.FOLDER / f"{chapter}.csv").read_text().splitlines()[:4]
    assert [line.split(":")[0] for line in head] == ["# date", "# commit", "# machine", "# command"]
