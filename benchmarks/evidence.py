"""Make a chapter's evidence table: every run of its comparison, then means, intervals and verdicts.

    python benchmarks/evidence.py response
    python benchmarks/evidence.py layers
    python benchmarks/evidence.py loss_zoo
    python benchmarks/evidence.py silent_teacher
    python benchmarks/evidence.py few_masks
    python benchmarks/evidence.py weather
    python benchmarks/evidence.py detection
    python benchmarks/evidence.py without_penalty
    python benchmarks/evidence.py few_boxes
    python benchmarks/evidence.py dehazing

Runs that are in the file of runs already are not made again, so that an interrupted table goes on where it was. With
``--jobs N`` as many are made side by side, each on one thread.
"""

import argparse
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from timing import commit
from torch import nn

from kdlab.data import load_digits, load_scenes
from kdlab.data.weather_photos import load_haze, load_weather
from kdlab.distill import Tap, TeacherCache
from kdlab.files import write_whole
from kdlab.progress import progress
from kdlab.recipes import detection, few_boxes, few_masks, haze, segmentation, weather
from kdlab.recipes.dehazing import FAST, Dehazing
from kdlab.recipes.detection import DetectionRun
from kdlab.recipes.few_boxes import FewBoxes
from kdlab.recipes.few_labels import FewLabels
from kdlab.recipes.few_masks import FewMasks
from kdlab.recipes.haze import HazeRun
from kdlab.recipes.layers import LAYER_TAPS, PAIRS, WEIGHT, LayerRun
from kdlab.recipes.loss_zoo import METHODS, TEACHER_TAPS, ZooRun
from kdlab.recipes.perceptual import feature_slices
from kdlab.recipes.response import LOGITS, digits_teacher, evaluate
from kdlab.recipes.weather import WeatherRun
from kdlab.training import half_interval, pick_device
from kdlab.training.restoration import restoration_metrics

FOLDER = Path(__file__).parent / "evidence"
SEEDS = range(5)
TUNING_SEED = 100  # none of the table's
FEW_MASKS = ["masks", "unlabelled", "steps", "method", "weight"]  # what a row of the table is
# What the grid of weights is spread around: CWD's published one on logits, of the others what first trials suggested.
FEW_MASKS_WEIGHTS = {  # by method; the ratios of MGD share one, and beyond 400 CWD features hardly change
    "hard labels": (1.0, 4.0, 16.0),
    "pseudo-masks": (1.0, 4.0, 16.0, 64.0, 256.0),
    "pixel-wise KD": (1.0, 4.0, 16.0),
    "AT": (15.625, 62.5, 250.0, 1000.0),
    "CWD logits": (0.75, 3.0, 12.0),
    "CWD features": (25.0, 100.0, 400.0),
    "MGD 0.5": (5e-4, 2e-3, 8e-3),
}
FEW_MASKS_LONG_WEIGHT = 8e-3  # of MGD at 1,600 steps, chosen there for both ratios that are compared
WEATHER = ["photographs", "method", "width", "features", "epochs"]
WEATHER_SEEDS = range(3)  # up to six minutes a run
WEATHER_RATES = (2.67e-3, 5.34e-3)  # for a batch of 16: 1e-3 and 2e-3 for the batches of 6
LONGER = 14  # epochs of the student alone in the seconds of two stages: see benchmarks/restoration.py cost
LONG_RUN = 24  # epochs, for the methods that the question is about: is it the teachers, or is it HCR?
LONG_METHODS = ("from scratch", "two stages", "from scratch + HCR", "without HCR")
LONG_CONTROLS = {
    "from scratch, half the rate": WeatherRun.lr / 2,
    "from scratch, squared error": WeatherRun.lr,
    "without HCR, half the rate": WeatherRun.lr / 2,
}
LONGEST = 40  # epochs of the student alone in the seconds of two stages of a long run
DETECTION = ["method", "weight", "keep", "epochs"]
DETECTION_SEEDS = range(3)  # minutes a run, and a dense detector for each
DETECTION_WEIGHTS = {  # from the published ones up, and around ultralytics' own
    "CWD": (1.0, 10.0, 100.0),
    "MGD": (2e-5, 2e-4, 2e-3),
    "ultralytics": (0.6, 6.0, 60.0),
}
KEEPS = (0.5, 0.3, 0.2)  # beside the one that all methods share: what the chapter's slider is drawn through
FEW_BOXES = ["boxes", "unlabelled", "method", "weight"]
FEW_BOXES_WEIGHTS = {"CWD": (1.0, 10.0, 100.0), "MGD": (2e-3, 2e-2, 2e-1)}  # from the published one up; above it
DEHAZING = ["photographs", "method", "weight", "epochs"]
DEHAZING_SEEDS = range(3)  # minutes a run
DEHAZING_RATES = (1e-3, 2e-3, 4e-3)
WEIGHTS = (0.1, 1.0, 10.0)  # times the published weight, where there is one
METRICS = ["accuracy", "loss", "calibration_error"]  # the first is the one that is judged
DENSE_METRICS = ["miou", "mdice", "pixel_accuracy", "loss"]


def response() -> Iterator[FewLabels]:
    """Chapter 01: three ways to use 50, 100 or 1,000 labels, then T and alpha swept at 50 labels."""
    base = FewLabels("kd", labels=50, seed=0)
    table = [replace(base, method=m, labels=n) for n in (50, 100, 1000) for m in ("alone", "kd", "kd_unlabelled")]
    sweeps = [replace(base, temperature=t) for t in (1.0, 2.0, 8.0, 20.0)]
    sweeps += [replace(base, alpha=a) for a in (0.0, 0.1, 0.3, 0.5, 0.9, 1.0)]
    for run in table + sweeps:
        for seed in SEEDS:
            yield replace(run, seed=seed)


def run_response(jobs: int) -> pd.DataFrame:
    """The table of chapter 01, on the test split after the last step."""
    data, teacher = _digits_and_teacher()
    cache = TeacherCache.build(teacher, [LOGITS], data.train)

    def run(settings: FewLabels) -> dict[str, float]:
        student, _ = settings.run(data, teacher, cache)
        return evaluate(student, data.test)

    runs = make(FOLDER / "response_runs.csv", response(), run, jobs)
    return summarise(runs, ["labels", "method", "temperature", "alpha"], ["labels", "seed"], "alone")


def run_loss_zoo(jobs: int) -> pd.DataFrame:
    """The leaderboard of chapter 03."""
    weights = {name: entry.weight for name, entry in METHODS.items()}
    table = _tuned_table("loss_zoo", ZooRun, weights, TEACHER_TAPS, jobs)
    table.insert(1, "family", [METHODS[name].family for name in table.method])
    return table


def run_silent_teacher(jobs: int) -> pd.DataFrame:
    """A control of chapter 03: a distilled student's batches, in which few images have a label, without the teacher."""
    data, teacher = _digits_and_teacher()
    cache = TeacherCache.build(teacher, [LOGITS], data.train)

    def run(settings: ZooRun) -> dict[str, float]:
        student, _ = settings.run(data, teacher, cache)
        return evaluate(student, data.test)

    wanted = [ZooRun(name, 0.0, seed) for name in ("alone", "KD") for seed in SEEDS]
    runs = make(FOLDER / "silent_teacher_runs.csv", wanted, run, jobs)
    return summarise(runs, ["method", "weight"], ["seed"], "alone")


def run_layers(jobs: int) -> pd.DataFrame:
    """Chapter 02: the same hint loss at each pair of layers."""
    return _tuned_table("layers", LayerRun, {"alone": 0.0} | dict.fromkeys(PAIRS, WEIGHT), LAYER_TAPS, jobs)


def few_masks_runs() -> Iterator[FewMasks]:
    """Chapters 04 and 05: every method with 100 masks; some without the other images, with all masks, or for longer."""
    table = [FewMasks(name, weight, seed=0) for name, weight in few_masks_weights().items()]
    some = [run for run in table if run.method in ("pixel-wise KD", "CWD logits")]
    alone, cwd = (run for run in table if run.method in ("alone", "CWD logits"))
    longer = [run for run in table if run.method in ("alone", "pixel-wise KD", "CWD logits", "MGD 0", "MGD 0.5")]
    for run in [*table, *(replace(run, unlabelled=False) for run in some)]:
        for seed in SEEDS:
            yield replace(run, seed=seed)
    for run in (alone, cwd):
        for seed in SEEDS:
            yield replace(run, masks=2000, seed=seed)
    for run in longer:
        for seed in SEEDS:
            yield replace(run, steps=1600, seed=seed)
    for run in longer:
        if run.method.startswith("MGD"):
            for seed in SEEDS:
                yield replace(run, steps=1600, weight=FEW_MASKS_LONG_WEIGHT, seed=seed)


def run_few_masks(jobs: int) -> pd.DataFrame:
    """The table of chapters 04 and 05, on the test split after the last step."""
    data, teacher, run = _scenes_and_teacher()
    tuning = make(FOLDER / "few_masks_tuning.csv", few_masks_tuning(), run, jobs)
    check_weights(tuning[tuning.steps == 400], "val_miou", few_masks_weights(), "few_masks")
    runs = make(FOLDER / "few_masks_runs.csv", few_masks_runs(), run, jobs)
    table = summarise(runs, FEW_MASKS, ["masks", "steps", "seed"], "alone", DENSE_METRICS)
    table["seconds"] = runs.groupby(FEW_MASKS, sort=False).seconds.mean().to_numpy()
    print("teacher:", segmentation.measure(teacher, data.test))
    return table


def few_masks_tuning() -> Iterator[FewMasks]:
    """Every weight of a method, on a seed that is none of the table's."""
    for name, weights in FEW_MASKS_WEIGHTS.items():
        for weight in weights:
            yield FewMasks(name, weight, TUNING_SEED)
    for name in ("MGD 0", "MGD 0.5"):  # whether the mask matters must not hang on a weight that one ratio has chosen
        for weight in (*FEW_MASKS_WEIGHTS["MGD 0.5"], 3.2e-2):
            yield FewMasks(name, weight, TUNING_SEED, steps=1600)


def few_masks_weights() -> dict[str, float]:
    """Those of the recipe, by method; 0 for one without."""
    return {name: 0.0 if what is None else what.weight for name, what in few_masks.METHODS.items()}


def check_weights(tuning: pd.DataFrame, metric: str, weights: Mapping[str, float], recipe: str) -> None:
    """A recipe's weights, which its chapters take too, must be those that the validation split has chosen."""
    chosen = tuning.sort_values(metric, ascending=False).groupby("method").weight.first().to_dict()
    wrong = {name: weight for name, weight in chosen.items() if weight != weights[name]}
    if wrong:
        raise SystemExit(f"kdlab/recipes/{recipe}.py has other weights than were chosen: {wrong}. Put these there.")


def _scenes_and_teacher() -> tuple[Any, Any, Callable[[FewMasks], dict[str, float]]]:
    data = load_scenes()
    teacher, _ = few_masks.scenes_teacher(data, pick_device())
    cache = TeacherCache.build(teacher, few_masks.TEACHER_TAPS, data.train)

    def run(settings: FewMasks) -> dict[str, float]:
        student, done = settings.run(data, teacher, cache)
        seen = {"val_miou": done.history.val_miou.iloc[-1], "seconds": done.history.seconds.sum()}
        return segmentation.measure(student, data.test) | seen

    return data, teacher, run


def _tuned_table(
    chapter: str,
    settings: Callable[[str, float, int], Any],
    weights: dict[str, float],
    taps: Sequence[str | Tap],
    jobs: int,
) -> pd.DataFrame:
    """Methods beside each other: weights chosen on the validation split of one seed, then five other seeds.

    Args:
        settings: from method, weight and seed to a run.
        weights: of each method the one that the grid is spread around; 0 for one without a weight.
        taps: what the runs read of the teacher.
    """
    data, teacher = _digits_and_teacher()
    cache = TeacherCache.build(teacher, taps, data.train)

    def run(one: Any) -> dict[str, float]:
        student, done = one.run(data, teacher, cache)
        history = done.history
        seen = history[["val_accuracy", "val_loss"]].iloc[-1].to_dict()
        seen |= {"best_val": history.val_accuracy.max(), "seconds": history.seconds.sum()}
        return evaluate(student, data.test) | seen

    tried = [
        settings(name, weight * factor, TUNING_SEED)
        for name, weight in weights.items() if weight for factor in WEIGHTS
    ]  # fmt: skip
    tuning = make(FOLDER / f"{chapter}_tuning.csv", tried, run, jobs)
    ranked = tuning.sort_values(["val_accuracy", "val_loss"], ascending=[False, True])
    chosen = dict.fromkeys(weights, 0.0) | ranked.groupby("method").weight.first().to_dict()
    seeds = [settings(name, chosen[name], seed) for name in weights for seed in SEEDS]
    runs = make(FOLDER / f"{chapter}_runs.csv", seeds, run, jobs)
    table = summarise(runs, ["method", "weight"], ["seed"], "alone")
    for column in ("val_accuracy", "best_val", "seconds"):
        table[column] = runs.groupby("method", sort=False)[column].mean().to_numpy()
    return table


def _digits_and_teacher() -> tuple[Any, Any]:
    data = load_digits()
    teacher, _ = digits_teacher(data, pick_device())
    print("teacher:", evaluate(teacher, data.test))
    return data, teacher


def make(path: Path, runs: Iterable[Any], run: Callable[[Any], dict[str, float]], jobs: int = 1) -> pd.DataFrame:
    """The runs that are asked for, in that order; what is lacking is made.

    A row is a run: its settings, its metrics, and the commit and the day that it was made at. (Of runs before
    2026-11-29 that did not note their commit it is the first that kept them.)
    """
    wanted = list(runs)
    names = list(asdict(wanted[0]))
    # A commit such as 2742e53 is no number.
    rows = pd.read_csv(path, dtype={"commit": str}).to_dict("records") if path.exists() else []
    done = [{name: row[name] for name in names} for row in rows]
    lacking = [settings for settings in wanted if asdict(settings) not in done]
    made_at = {"commit": commit(), "date": date.today().isoformat()}

    def one(settings: Any) -> dict[str, Any]:
        if jobs > 1:
            torch.set_num_threads(1)
        return asdict(settings) | run(settings) | made_at

    made = Parallel(jobs, return_as="generator_unordered")(delayed(one)(settings) for settings in lacking)
    for row in progress(made, desc="runs", total=len(lacking)):
        rows.append(row)
        write_whole(path, pd.DataFrame(rows).to_csv(index=False).encode())
    asked = [asdict(settings) for settings in wanted]
    found = [row for row in rows if {name: row[name] for name in names} in asked]
    return pd.DataFrame(sorted(found, key=lambda row: asked.index({name: row[name] for name in names})))


def summarise(
    runs: pd.DataFrame, setting: list[str], pair: list[str], baseline: str, metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """One row a setting: means, half of the 95% interval of the first metric (Student's t over the seeds), a verdict.

    The verdict is on the differences to the baseline method, paired by the columns ``pair``: "beats" or "worse" where
    their 95% interval leaves out 0, else "no difference".
    """
    judged = metrics[0]
    alone = runs[runs.method == baseline].set_index(pair)[judged]
    rows = []
    for key, group in runs.groupby(setting, sort=False):
        values = group.sort_values("seed")[judged].to_numpy()
        row = dict(zip(setting, key, strict=True))
        row |= {"seeds": len(group), judged: values.mean(), "interval": half_interval(values)}
        row |= {name: group[name].mean() for name in metrics[1:]}
        if row["method"] != baseline:
            gain = group[judged].to_numpy() - alone.loc[group.set_index(pair).index].to_numpy()
            row |= {"gain": gain.mean(), "gain_interval": half_interval(gain)}
            row["verdict"] = verdict(gain)
        rows.append(row)
    return pd.DataFrame(rows)


def verdict(gains: np.ndarray) -> str:
    """The word for paired gains: "beats", "no difference" or "worse"."""
    if not abs(gains.mean()) > half_interval(gains):  # NaN of a single run, which proves nothing
        return "no difference"
    return "beats" if gains.mean() > 0 else "worse"


def provenance(chapter: str) -> str:
    """Date, commit, machine and command of a table, as comment lines of its CSV file; its runs have their own."""
    machine = f"{pick_device().type}, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return (
        f"# date: {date.today()}\n# commit: {commit()}\n# machine: {machine}\n"
        f"# command: python benchmarks/evidence.py {chapter}\n"
    )


def weather_runs() -> Iterator[WeatherRun]:
    """Chapters 07 to 09: all methods; with a VGG at random, half the width, few photographs with clean images; long."""
    short = [name for name in weather.METHODS if name not in LONG_CONTROLS]
    table = [WeatherRun(name, 0, epochs=LONGER if "longer" in name else WeatherRun.epochs) for name in short]
    alone, one_stage, two_stages = (WeatherRun(name, 0) for name in ("from scratch", "one stage", "two stages"))
    table += [replace(two_stages, features="none"), replace(two_stages, width=2)]
    longer = WeatherRun("from scratch, longer", 0, epochs=LONGER)
    few = [replace(run, photographs=2) for run in (alone, longer, one_stage, two_stages)]
    for seed in WEATHER_SEEDS:
        for run in table:
            yield replace(run, seed=seed)
    for seed in SEEDS:  # which photographs they are makes much of a difference
        for run in few:
            yield replace(run, seed=seed)
    long = [WeatherRun(name, 0, epochs=LONG_RUN) for name in LONG_METHODS]  # a quarter of an hour to half an hour each
    long += [WeatherRun("from scratch, longer", 0, epochs=LONGEST)]
    long += [WeatherRun(name, 0, epochs=LONG_RUN, lr=lr) for name, lr in LONG_CONTROLS.items()]
    for run in long:
        for seed in WEATHER_SEEDS:
            yield replace(run, seed=seed)


def weather_tuning() -> Iterator[WeatherRun]:
    """Learning rates for the student alone, which all runs then take, on five other seeds: a rate must be safe, too."""
    for seed in range(TUNING_SEED, TUNING_SEED + 5):
        for lr in WEATHER_RATES:
            yield WeatherRun("from scratch", seed, lr=lr)


def run_weather(jobs: int) -> pd.DataFrame:
    """The table of chapters 07 to 09, on the test photographs after the last step."""
    data, teachers = load_weather(), weather.weather_teachers(pick_device())
    features = {name: feature_slices(name).to(pick_device()) for name in ("scenes", "none")}

    def run(settings: WeatherRun) -> dict[str, float]:
        student, done = settings.run(data, teachers, features[settings.features])
        return restoration_metrics(student, data.test) | {"val_psnr": done.history.val_psnr.iloc[-1]}

    _check_rate(make(FOLDER / "weather_tuning.csv", weather_tuning(), run, jobs), WeatherRun.lr, "weather")
    runs = make(FOLDER / "weather_runs.csv", weather_runs(), run, jobs)
    metrics = list(restoration_metrics(nn.Identity(), data.test))
    table = summarise_weather(runs, metrics)
    degraded = {"method": "degraded input", "photographs": 0} | restoration_metrics(nn.Identity(), data.test)
    return pd.concat([pd.DataFrame([degraded]), table], ignore_index=True)[table.columns]


def summarise_weather(runs: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """As :func:`summarise`; the long runs are compared among themselves."""
    parts = [part for _, part in runs.groupby(runs.epochs >= LONG_RUN)]
    tables = [summarise(part, WEATHER, ["photographs", "seed"], "from scratch", metrics) for part in parts]
    return pd.concat(tables, ignore_index=True)


def _check_rate(tuning: pd.DataFrame, lr: float, recipe: str) -> None:
    """The rate of all runs must be the one that the validation photograph has chosen."""
    best = tuning.groupby("lr").val_psnr.mean().idxmax()
    if best != lr:
        raise SystemExit(f"kdlab/recipes/{recipe}.py has another lr than was chosen: put {best} there.")


def detection_runs() -> Iterator[DetectionRun]:
    """Chapter 06: all methods at one keep; with one seed, pruned and fine-tuned at others."""
    table = [
        DetectionRun(name, weight, seed=0, epochs=0 if name in detection.UNTRAINED else detection.EPOCHS)
        for name, weight in detection.METHODS.items()
    ]
    for seed in DETECTION_SEEDS:
        for run in table:
            yield replace(run, seed=seed)
    for keep in KEEPS:
        for run in table:
            if run.method in ("pruned", "fine-tuned"):
                yield replace(run, keep=keep)


def detection_tuning() -> Iterator[DetectionRun]:
    """Three weights a method, on a seed that is none of the table's and in half the time."""
    for name, weights in DETECTION_WEIGHTS.items():
        for weight in weights:
            yield DetectionRun(name, weight, TUNING_SEED, epochs=detection.EPOCHS // 2)


def run_detection(jobs: int) -> pd.DataFrame:
    """The table of chapter 06, on the test scenes after the last epoch. Each seed has a dense detector of its own."""
    run = partial(_detect, strength=detection.STRENGTH)
    tuning = make(FOLDER / "detection_tuning.csv", detection_tuning(), run, jobs)
    check_weights(tuning, "val_map50_95", detection.METHODS, "detection")
    runs = make(FOLDER / "detection_runs.csv", detection_runs(), run, jobs)
    table = summarise(runs, DETECTION, ["keep", "seed"], "fine-tuned", detection.METRICS)
    table["seconds"] = runs.groupby(DETECTION, sort=False).seconds.min().to_numpy()
    return table


def run_without_penalty(jobs: int) -> pd.DataFrame:
    """A control of chapter 06: the same cuts of a dense detector that has felt no penalty, of one seed."""
    methods = ("dense", "pruned", "fine-tuned")
    wanted = [run for run in detection_runs() if run.seed == 0 and run.method in methods]
    runs = make(FOLDER / "without_penalty_runs.csv", wanted, partial(_detect, strength=0.0), jobs)
    return summarise(runs, DETECTION, ["keep", "seed"], "fine-tuned", detection.METRICS)


def _detect(settings: DetectionRun, strength: float) -> dict[str, float]:
    """What a run comes to that starts from the dense detector of its seed, trained with this penalty."""
    data, device = detection.detection_scenes(), str(pick_device())
    start = replace(detection.SPARSE, seed=settings.seed)
    dense, _ = detection.dense_detector(data, start, strength=strength, device=device)
    detector, history = settings.run(data, dense, device=device)
    last = history.iloc[-1] if len(history) else {}
    seen = {"val_map50_95": last.get("metrics/mAP50-95(B)", np.nan), "seconds": last.get("time", 0.0)}
    return detection.measure(detector, data, device=device) | seen


def few_boxes_runs() -> Iterator[FewBoxes]:
    """Chapter 06: few scenes with boxes, alone, with the teacher, with the other scenes too; and all with boxes too.

    With all of them it is the cut that a teacher could mend: whether it is that or the few boxes that it pays for.
    """
    alone = FewBoxes("fine-tuned", 0.0, seed=0, unlabelled=False)
    taught = [FewBoxes(name, weight, seed=0) for name, weight in few_boxes.METHODS.items() if weight]
    labelled = [alone, *(replace(run, unlabelled=False) for run in taught)]
    for run in [*labelled, *taught, *(replace(run, boxes=detection.SAMPLES["train"]) for run in labelled)]:
        for seed in DETECTION_SEEDS:
            yield replace(run, seed=seed)


def few_boxes_tuning() -> Iterator[FewBoxes]:
    """Three weights a method, on a seed that is none of the table's."""
    for name, weights in FEW_BOXES_WEIGHTS.items():
        for weight in weights:
            yield FewBoxes(name, weight, TUNING_SEED)


def run_few_boxes(jobs: int) -> pd.DataFrame:
    """The second table of chapter 06, on the test scenes after the last epoch; all from the course's dense detector."""
    data, device = detection.detection_scenes(), str(pick_device())
    dense, _ = detection.course_detector("dense", data, device)

    def run(settings: FewBoxes) -> dict[str, float]:
        detector, history = settings.run(data, dense, device)
        last = history.iloc[-1]
        seen = {"val_map50_95": last["metrics/mAP50-95(B)"], "seconds": last["time"]}
        return detection.measure(detector, data, device=device) | seen

    tuning = make(FOLDER / "few_boxes_tuning.csv", few_boxes_tuning(), run, jobs)
    check_weights(tuning, "val_map50_95", few_boxes.METHODS, "few_boxes")
    runs = make(FOLDER / "few_boxes_runs.csv", few_boxes_runs(), run, jobs)
    return summarise(runs, FEW_BOXES, ["boxes", "seed"], "fine-tuned", detection.METRICS)


def dehazing_runs() -> Iterator[HazeRun]:
    """Chapter 10: the network alone, with the teacher, with the branch, and with both; then few hazy photographs."""
    for seed in DEHAZING_SEEDS:
        for method, weight in haze.METHODS.items():
            yield HazeRun(method, weight, seed)
    for seed in SEEDS:  # which photographs they are makes much of a difference
        for method in ("alone", "knowledge transfer"):
            yield HazeRun(method, haze.METHODS[method], seed, photographs=2, epochs=FAST.epochs)


def dehazing_tuning() -> Iterator[HazeRun]:
    """On a seed of their own and in half the time: rates for the network alone, and weights of the teacher's map."""
    for lr in DEHAZING_RATES:
        yield HazeRun("alone", 0.0, TUNING_SEED, epochs=FAST.epochs, lr=lr)
    for factor in WEIGHTS:
        yield HazeRun("knowledge transfer", factor * Dehazing.transfer, TUNING_SEED, epochs=FAST.epochs)


def run_dehazing(jobs: int) -> pd.DataFrame:
    """The table of chapter 10, on the test photographs after the last step, without self-ensemble."""
    data, (teacher, _) = load_haze(), haze.clean_teacher(pick_device())

    def run(settings: HazeRun) -> dict[str, float]:
        student, done = settings.run(data, teacher)
        return restoration_metrics(student, data.test) | {"val_psnr": done.history.val_psnr.iloc[-1]}

    tuning = make(FOLDER / "dehazing_tuning.csv", dehazing_tuning(), run, jobs)
    _check_rate(tuning[tuning.method == "alone"], HazeRun.lr, "haze")
    check_weights(tuning[tuning.method != "alone"], "val_psnr", haze.METHODS, "haze")
    runs = make(FOLDER / "dehazing_runs.csv", dehazing_runs(), run, jobs)
    metrics = list(restoration_metrics(nn.Identity(), data.test))
    table = summarise(runs, DEHAZING, ["photographs", "seed"], "alone", metrics)
    hazy = {"method": "hazy input", "photographs": 0} | restoration_metrics(nn.Identity(), data.test)
    return pd.concat([pd.DataFrame([hazy]), table], ignore_index=True)[table.columns]


CHAPTERS = {
    "response": run_response,
    "layers": run_layers,
    "loss_zoo": run_loss_zoo,
    "silent_teacher": run_silent_teacher,
    "few_masks": run_few_masks,
    "weather": run_weather,
    "detection": run_detection,
    "without_penalty": run_without_penalty,
    "few_boxes": run_few_boxes,
    "dehazing": run_dehazing,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapter", choices=CHAPTERS)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: %(default)s)")
    arguments = parser.parse_args()
    chapter = arguments.chapter
    if arguments.jobs < 1:
        parser.error(f"--jobs is {arguments.jobs}; wanted: at least 1")
    origin = provenance(chapter)  # before the runs: the code that is loaded now makes them
    table = CHAPTERS[chapter](arguments.jobs)
    write_whole(FOLDER / f"{chapter}.csv", (origin + table.to_csv(index=False)).encode())
    print(table.to_string(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
